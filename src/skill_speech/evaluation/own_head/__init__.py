"""The head that a fine-tuned model has, measured on any manifest with text or labels, beside its teacher's."""

from .evaluate import HeadEvaluation, evaluate_own_head
from .table import HeadTable, head_table, read_own_head_result

__all__ = ["HeadEvaluation", "HeadTable", "evaluate_own_head", "head_table", "read_own_head_result"]
