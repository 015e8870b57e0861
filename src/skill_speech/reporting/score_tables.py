"""The tables of scores: what was measured, on how many test items, how sure it is, and what is kept of the teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from ..evaluation.kept import estimate_of
from ..evaluation.own_head import by_label_table, head_table
from ..evaluation.published import COLUMNS, filterbanks
from ..quantities import human
from .evidence import Evidence
from .markup import details, paragraph, table


def scores_of(run: Evidence) -> str:
    """A run's scores of tasks, a row per measure: its models, what differs, what is kept."""
    if run.scores is None:
        scored = run.own_head is not None  # as the verdict says
        return "" if scored else paragraph("Not evaluated on tasks yet: see the next steps.", "absent")
    scores = run.scores
    own = [row for row in scores.rows if not row.get("source")]
    heading, rows = _with_change(run, *_columns_of(run, own))
    published = [row for row in scores.rows if row.get("source")]
    sources = list(dict.fromkeys(str(row["source"]) for row in published))
    beside = ""
    if published:
        named = [row | {"model": f"{row['model']} [{sources.index(row['source']) + 1}]"} for row in published]
        beside = details("Published models", table(*_columns_of(run, named), name="scores of published models"))
    notes = [*scores.notes, *_reading(run, own), *(f"[{number}] {source}" for number, source in enumerate(sources, 1))]
    said = "".join(f"<li>{escape(note)}</li>" for note in notes)
    title = f'<p class="title">{escape(scores.title)}</p>'
    listed = table(heading, rows, name="scores")
    return f'<div class="scores">{title}{listed}{beside}<ul class="notes">{said}</ul></div>'


def scores_compared(runs: Sequence[Evidence]) -> str:
    """The students' scores in one table, where those of two runs at least were measured on the same data."""
    found = [(run, run.student_row) for run in runs if run.scores and run.student_row is not None]
    titles = dict.fromkeys(run.scores.title for run, _ in found if run.scores)
    parts = []
    for title in titles:
        rows = [(run, row) for run, row in found if row is not None and run.scores and run.scores.title == title]
        columns = [column for column in COLUMNS if any(column.name in row["scores"] for _, row in rows)]
        if len(rows) > 1:
            cells = [[run.name, *(score(row, column.name) for column in columns)] for run, row in rows]
            heading = ["student of", *(column.title for column in columns)]
            kept = [run.kept.overall if run.kept else None for run, _ in rows]
            if any(kept):
                heading.append("kept of the teacher")
                cells = [[*line, shares(one)] for line, one in zip(cells, kept, strict=True)]
            parts.append(f'<p class="title">{escape(title)}</p>{table(heading, cells, name="scores of the students")}')
    return f'<div class="scores">{"".join(parts)}</div>' if parts else ""


def own_head_of(run: Evidence) -> str:
    """The scores of the head that a run's model has."""
    if run.own_head is None and not run.outcome.get("head"):
        return paragraph("This student is an encoder without a head.", "absent")
    if run.own_head is None:
        return paragraph(
            "Not measured: there is no RUN/evaluation/own_head.json, which skill-speech evaluate RUN/model "
            "--own_head --data DATA writes for a model with a head.",
            "absent",
        )
    shown = head_table(run.own_head)
    heading, lines = shown.cells()
    rows = [list(cells) for cells in zip(heading, *lines, strict=True)]
    listed = table(["", *rows[0][1:]], rows[1:], name="scores of the model's own head")
    labels = by_label_table(run.own_head)
    each = details("Every label", table(labels[0], labels[1:], name="scores of every label")) if labels else ""
    said = "".join(f"<li>{escape(note)}</li>" for note in shown.notes)
    title = f'<p class="title">{escape(shown.title)}</p>'
    return f'<div class="scores">{title}{listed}{each}<ul class="notes">{said}</ul></div>'


def score(row: dict[str, Any], name: str) -> str:
    """A measure with its interval."""
    if name not in row["scores"]:
        return "–"
    found = estimate_of(row, name)
    interval = f" [{found.low:.1f}, {found.high:.1f}]" if math.isfinite(found.low) else ""
    return f"{found.value:.2f}{interval}"


def shares(found: Sequence[float] | None) -> str:
    """A share of the teacher in percent, with its interval."""
    if found is None:
        return "–"
    value, low, high = found
    interval = f" [{100 * low:.0f}, {100 * high:.0f}]" if math.isfinite(low) else ""
    return f"{100 * value:.0f} %{interval}"


def _columns_of(run: Evidence, models: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows: parameters, every measure, and SUPERB's score where there is one."""
    columns = [column for column in COLUMNS if any(column.name in row["scores"] for row in models)]
    rows = [["parameters", *(human(row["parameters"]) if row["parameters"] else "none" for row in models)]]
    rows += [[column.title, *(score(row, column.name) for row in models)] for column in columns]
    if any(row.get("superb_s") is not None for row in models):
        rows.append(
            ["superb_s ↑", *("–" if row.get("superb_s") is None else f"{row['superb_s']:.0f}" for row in models)]
        )
    return ["", *(_heading(row, run) for row in models)], rows


def _with_change(run: Evidence, heading: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """The same with further columns: the test items, the difference from the teacher, the share of it that is kept."""
    student, teacher, kept = run.student_row, run.teacher_row, run.kept
    items = {} if student is None else student.get("items", {})
    extra: dict[str, list[str]] = {}
    for column in COLUMNS:
        name, cells = column.name, []
        if student is not None and teacher is not None:
            both = name in student["scores"] and name in teacher["scores"]
            cells.append(f"{student['scores'][name] - teacher['scores'][name]:+.2f}" if both else "")
        if kept is not None:
            cells.append(shares(kept.by_measure.get(name)))
        extra[column.title] = cells
    width = len(extra[COLUMNS[0].title])
    filled = [[*row, *extra.get(row[0], [""] * width)] for row in rows]
    if kept is not None and kept.overall is not None:
        blank = [""] * (len(filled[0]) - 2)
        filled.append([f"mean of {kept.tasks} task{'s' * (kept.tasks != 1)}", *blank, shares(kept.overall)])
    if student is not None and teacher is not None:
        heading = [*heading, "student − teacher"]
    if kept is not None:
        heading = [*heading, "kept"]
    if not items:
        return heading, filled
    counts = {column.title: f"{items[column.name]:,}" for column in COLUMNS if column.name in items}
    return [heading[0], "test items", *heading[1:]], [[row[0], counts.get(row[0], ""), *row[1:]] for row in filled]


def _reading(run: Evidence, own: Sequence[dict[str, Any]]) -> list[str]:
    """How to read intervals and shares."""
    notes = []
    if any(row.get("intervals") for row in own):
        notes.append(
            "In brackets: 95 % intervals over the test items (bootstrap; Wilson's where only their number is known). "
            "They leave out what another seed or more training would change."
        )
    if run.kept is not None:
        close = f" Left out, since the teacher is hardly better than filterbanks: {', '.join(run.kept.too_close)}."
        if not any(run.role(row) == "filterbanks" for row in own):
            notes.append(f"Filterbanks are the published ones: {filterbanks()['source']}.")
        notes.append(
            "Kept: 0 % is filterbanks, 100 % the teacher; the interval is that of the student's score alone."
            + close * bool(run.kept.too_close)
        )
    elif run.scores is not None and run.teacher_row is not None:
        notes.append(
            "The share of the teacher that is kept needs filterbanks too: evaluate fbank into the same folder."
        )
    return notes


def _heading(row: dict[str, Any], run: Evidence) -> str:
    role = run.role(row)
    return f"{row['model']} ({role})" if role and role != row["model"] else str(row["model"])
