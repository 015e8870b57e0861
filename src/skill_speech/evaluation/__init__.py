"""SUPERB: evaluate any encoder on ten tasks; or the head that a fine-tuned model has."""

from .own_head import HeadEvaluation
from .superb import Evaluation, evaluate

__all__ = ["Evaluation", "HeadEvaluation", "evaluate"]
