"""What a student keeps of its teacher: its scores between those of filterbanks (0) and of the teacher (1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .metrics.bootstrap import Estimate, mean_of
from .published import COLUMNS, Column

MARGIN = 0.1
"""A measure counts where the teacher is better than filterbanks by this share of theirs."""

UNKNOWN = float("nan")


@dataclass(frozen=True)
class Kept:
    """Shares: 1 is as good as the teacher, 0 no better than filterbanks; above and below are possible.

    Attributes:
        by_measure: name of COLUMNS → share, with the interval of the student's score; those of teacher and filterbanks
            are not in it.
        overall: mean over tasks of the mean over the task's measures; None where no measure counts.
        tasks: how many are in it.
        too_close: measures in which the teacher is not clearly better than filterbanks, which are left out.
    """

    by_measure: dict[str, Estimate]
    overall: Estimate | None
    tasks: int
    too_close: tuple[str, ...]


def kept(student: Mapping[str, Any], teacher: Mapping[str, Any], filterbanks: Mapping[str, Any]) -> Kept:
    """Compare rows of one table.

    Args:
        student, teacher, filterbanks: rows with "scores" and, perhaps, "intervals", by names of COLUMNS.
    """
    one, top, floor = (row["scores"] for row in (student, teacher, filterbanks))
    common = [column for column in COLUMNS if all(column.name in scores for scores in (one, top, floor))]
    counted = [column for column in common if gain(column, floor, top) > MARGIN]
    shares = {
        column.name: _share(estimate_of(student, column.name), floor[column.name], top[column.name])
        for column in counted
    }
    by_task: dict[str, list[Estimate]] = {}
    for column in counted:
        by_task.setdefault(column.task, []).append(shares[column.name])
    # Measures of one task are of the same utterances: their intervals do not shrink in a mean.
    tasks = [Estimate(*(sum(side) / len(side) for side in zip(*several, strict=True))) for several in by_task.values()]
    return Kept(
        shares, mean_of(tasks) if tasks else None, len(tasks), tuple(one.name for one in common if one not in counted)
    )


def gain(column: Column, floor: Mapping[str, float], top: Mapping[str, float]) -> float:
    """By what share of the filterbanks' measure, of its error where it is one, the teacher is better."""
    sign = 1 if column.higher_is_better else -1
    return sign * (top[column.name] - floor[column.name]) / max(abs(floor[column.name]), 1e-9)


def estimate_of(row: Mapping[str, Any], name: str) -> Estimate:
    """A score of a row of table.json with its interval, whose ends are NaN where it has none."""
    ends = row.get("intervals", {}).get(name)
    value = float(row["scores"][name])
    return Estimate(value, UNKNOWN, UNKNOWN) if ends is None else Estimate(value, ends["low"], ends["high"])


def _share(score: Estimate, floor: float, top: float) -> Estimate:
    value, low, high = ((part - floor) / (top - floor) for part in score)
    return Estimate(value, low, high) if top > floor else Estimate(value, high, low)


def row_of(rows: Sequence[dict[str, Any]], parameters: int) -> dict[str, Any] | None:
    """The first of our own rows of a table with so many parameters, which tell the models of a run; 0: filterbanks."""
    return next((row for row in rows if not row.get("source") and row["parameters"] == parameters), None)
