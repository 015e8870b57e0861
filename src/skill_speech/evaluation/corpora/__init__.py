"""The corpora of SUPERB's ten tasks, read in the folder layouts in which they are distributed."""

from __future__ import annotations

from pathlib import Path

from .task_data import TASKS, TaskData

__all__ = ["TASKS", "TaskData", "find_corpora", "missing_reason", "read_task"]


def find_corpora(root: str | Path) -> dict[str, Path]:
    """The tasks whose corpus lies in `root` or one level below it, each with the corpus' folder; others are absent."""
    raise NotImplementedError


def missing_reason(root: str | Path, task: str) -> str:
    """One line: which layout was looked for under `root` for a task that `find_corpora` did not find."""
    raise NotImplementedError


def read_task(task: str, folder: str | Path) -> list[TaskData]:
    """What a task learns from and is scored on: one TaskData, or five for er (one per fold).

    Raises InputError, naming the file and the rule, for a corpus that cannot be used as it is.
    """
    raise NotImplementedError
