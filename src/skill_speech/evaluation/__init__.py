"""SUPERB: evaluate any encoder on ten tasks."""

from .superb import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
