"""The head that a fine-tuned model has, measured on any data with text or labels, beside its teacher's."""

from .evaluate import HeadEvaluation, evaluate_own_head
from .table import FILE, MEASURES, HeadTable, by_label_table, head_table, read_own_head_result

__all__ = [
    "FILE",
    "MEASURES",
    "HeadEvaluation",
    "HeadTable",
    "by_label_table",
    "evaluate_own_head",
    "head_table",
    "read_own_head_result",
]
