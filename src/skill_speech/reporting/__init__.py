"""What a person looks at: figures, tables, the model card, the HTML report."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .html import report

__all__ = ["report"]


def __getattr__(name: str) -> Any:
    # The report reads from rooms that draw their figures here: it is imported when it is asked for.
    if name != "report":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .html import report

    return report
