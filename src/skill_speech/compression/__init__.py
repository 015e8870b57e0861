"""The recipe: a plan and five steps."""

from ..distillation import Stage1Config, Stage2Config, StageConfig
from .config import AnalysisConfig, CompressionConfig
from .plan import STAGE1, STAGE2, Plan
from .recipe import CompressionResult, analyze, compress

__all__ = [
    "STAGE1",
    "STAGE2",
    "AnalysisConfig",
    "CompressionConfig",
    "CompressionResult",
    "Plan",
    "Stage1Config",
    "Stage2Config",
    "StageConfig",
    "analyze",
    "compress",
]
