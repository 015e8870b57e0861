"""What a reader should know first: the outcome in a sentence, what went wrong, and what to do next."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

from ..evaluation.own_head import MEASURES
from ..pruning import quantity
from ..quantities import human

if TYPE_CHECKING:
    from .evidence import Evidence

SPARSITY_TOLERANCE = 0.02
"""Points of expected sparsity away from the target from which a reader should know."""

SLOWER = 0.8
"""Share of the speed that was asked for below which a report warns."""
SIZE_TOLERANCE = 0.01
"""Of the teacher's parameters or MACs, between what was asked for and what was made."""

FEW_UPDATES = 200
"""A run with fewer in both stages together is a trial: it shows that all works, not how good a student can be."""

FEW_ITEMS = 100
"""Scores of fewer utterances say little."""

LEFT_OUT = 0.05
"""Of the audio."""


def verdict(run: Evidence) -> str:
    """The outcome in a sentence or two: size, speed, and what was kept."""
    share = run.student.total_parameters / run.teacher.total_parameters
    said = (
        f"{100 * share:.3g} % of the parameters of {run.teacher_name} ({human(run.student.total_parameters)} of "
        f"{human(run.teacher.total_parameters)}), {run.speedup:.2g} times as fast here."
    )
    kept = _own_head(run) or _tasks(run)
    alike = run.outcome.get("similarity")
    if alike:
        said += f" Its layers are like the teacher's with a CKA of {sum(alike) / len(alike):.2f} (1 is the same)."
    return f"{said} {kept}" if kept else f"{said} It has not been scored on a task yet."


def warnings(run: Evidence) -> list[str]:
    """What went wrong or should not be relied on, each a sentence or two with what to do about it."""
    return [*_size(run), *_training(run), *_data(run)]


def next_steps(run: Evidence) -> list[tuple[str, str]]:
    """What a reader is likely to want now, each with its command."""
    folder, here = shlex.quote(str(run.folder / "model")), shlex.quote(str(run.folder))
    steps = [("Write it for another runtime", f"skill-speech export {folder} --format transformers --output EXPORTED")]
    if run.outcome.get("head") and run.own_head is None:
        score = f"skill-speech evaluate {folder} --own_head --data LABELED_DATA && skill-speech report {here}"
        steps.insert(0, ("Score its head beside the teacher's", score))
    elif run.kept is None and not run.outcome.get("head"):
        score = (
            f"skill-speech evaluate teacher={shlex.quote(str(run.settings['teacher']))} student={folder} fbank "
            f"--data CORPORA --output {shlex.quote(str(run.folder / 'evaluation'))} && skill-speech report {here}"
        )
        steps.insert(0, ("Score it on tasks, beside its teacher and filterbanks", score))
    return steps


def made_by(run: Evidence) -> str:
    """The command that makes the same run again."""
    return f"skill-speech compress --config {shlex.quote(str(run.folder / 'config.yaml'))} --output ANOTHER_FOLDER"


def _own_head(run: Evidence) -> str:
    """The first measure of the model's own head, beside its teacher's."""
    if run.own_head is None:
        return ""
    mine = run.own_head["model"]["metrics"]
    measure = next((name for name in MEASURES if name in mine), None)
    if measure is None:
        return ""
    title, value = MEASURES[measure].rpartition(" ")[0], mine[measure]
    teacher = (run.own_head.get("teacher") or {}).get("metrics", {}).get(measure)
    beside = f"; the teacher: {teacher['value']:.2f}" if teacher else ""
    interval = f" [{value['low']:.1f}, {value['high']:.1f}]" if math.isfinite(value["low"]) else ""
    return f"{title} of its own head: {value['value']:.2f}{interval} on {_scored_on(run)}{beside}."


def _scored_on(run: Evidence) -> str:
    """The items of the scores of the own head, and of synthetic data that it is."""
    assert run.own_head is not None
    what, count = next(iter(run.own_head["items"].items()), ("items", 0))
    return f"{count:,} {'synthetic ' if run.own_head['synthetic'] else ''}{what}"


def _tasks(run: Evidence) -> str:
    if run.scores is None:
        return ""
    found, title = run.kept, run.scores.title
    if found is not None and found.overall is not None:
        value, low, high = (100 * part for part in found.overall)
        interval = f" [{low:.0f}, {high:.0f}]" if math.isfinite(low) else ""
        return (
            f"It keeps {value:.0f} %{interval} of what the teacher gains over filterbanks, as a mean of {found.tasks} "
            f"task{'s' * (found.tasks != 1)} ({title})."
        )
    row = run.student_row
    return "" if row is None else f"Scored on {len(row['scores'])} measures, below ({title})."


def _time(run: Evidence) -> list[str]:
    """Whether the student, as measured at the end, is far slower than a budget of time asked for."""
    times = run.outcome.get("times")
    if not times:
        return []
    asked = times["teacher"] / times["budget"]
    measured = run.teacher.real_time_factor / run.student.real_time_factor
    if measured >= SLOWER * asked:
        return []
    return [
        f"The budget of time was missed: {asked:.1f}× was asked for, {measured:.1f}× was measured. If the machine was "
        "busy when the run began, the times of the components are wrong: begin another run on a quiet one."
    ]


def _size(run: Evidence) -> list[str]:
    found, asked = [], run.settings
    wholes = run.teacher.total_parameters, run.teacher.total_macs
    limits = [("parameters", None if asked.get("sparsity") is None else (1 - float(asked["sparsity"])) * wholes[0])]
    limits += [("parameters", quantity("params", asked.get("params"), wholes[0]))]
    limits += [("MACs", quantity("macs", asked.get("macs"), wholes[1]))]
    given = [(what, limit) for what, limit in limits if limit is not None]
    alone = len(given) == 1 and asked.get("speedup") is None and asked.get("latency") is None
    for what, limit in given:
        of_model = (
            (run.student.total_parameters, wholes[0]) if what == "parameters" else (run.student.total_macs, wholes[1])
        )
        left, whole = of_model
        # Of several budgets one decides, and the others have room left.
        if left - limit > SIZE_TOLERANCE * whole or (alone and limit - left > SIZE_TOLERANCE * whole):
            found.append(
                f"The budget was missed: {human(left)} {what} are left ({100 * left / whole:.1f} %), and "
                f"{human(limit)} ({100 * limit / whole:.1f} %) were asked for."
            )
    found += _time(run)
    if run.widths is not None and any(run.widths[0].heads) and not any(run.widths[1].heads):
        found.append("No attention head is left in any layer: a larger student or more updates would keep some.")
    if run.widths is not None:
        empty = [
            number
            for number, (heads, units) in enumerate(zip(run.widths[1].heads, run.widths[1].units, strict=True), 1)
            if not heads and not units
        ]
        if empty:
            layers = ", ".join(f"h_{number}" for number in empty)
            found.append(
                f"Nothing is left of {layers} ({len(empty)} of {len(run.widths[1].heads)} layers): a larger student "
                "or more updates would keep them."
            )
    return found


def _training(run: Evidence) -> list[str]:
    found = []
    rows = [{name.rpartition("/")[2]: value for name, value in row.items()} for row in run.metrics["stage1"]]
    rows = [row for row in rows if "sparsity_expected" in row and "sparsity_target" in row]
    last = rows[-1]["sparsity_target"] if rows else 0.0
    over = max((row["sparsity_expected"] for row in rows), default=0.0) - last
    if rows and last - rows[-1]["sparsity_expected"] > SPARSITY_TOLERANCE:
        found.append(
            f"Stage 1 ended {100 * (last - rows[-1]['sparsity_expected']):.1f} points short of its target, and "
            "surgery removed units that training had not closed. More steps, or --control exact, close the gap."
        )
    elif over > SPARSITY_TOLERANCE:
        found.append(
            f"Stage 1 was up to {100 * over:.1f} points smaller than its target: units were removed that the budget "
            "allowed to keep. --control exact does not overshoot."
        )
    before, after = run.outcome["loss_after_surgery"], run.outcome["loss"]
    if before is not None and after is not None and math.isfinite(before) and not after <= before:
        found.append(
            "Stage 2 did not lower the loss on held-out speech: it needs more updates, or a lower learning rate."
        )
    updates = sum(int(stage["steps"]) for stage in run.outcome["stages"].values())
    if updates < FEW_UPDATES:
        found.append(f"The whole run had {updates} updates: a trial run, not a usable student.")
    return found


def _data(run: Evidence) -> list[str]:
    found = []
    audio = (run.outcome.get("audio") or {}).values()
    read, left = sum(part["read"] for part in audio), sum(part["left_out"] for part in audio)
    if read and left / read > LEFT_OUT:
        found.append(f"{100 * left / read:.0f} % of the audio was left out: see the section on audio.")
    if run.own_head is not None and min(run.own_head["items"].values(), default=FEW_ITEMS) < FEW_ITEMS:
        few = ", ".join(f"{count:,} {what}" for what, count in run.own_head["items"].items())
        found.append(f"Few test items: its own head was scored on {few}. See the intervals.")
    items = {} if run.student_row is None else run.student_row.get("items", {})
    few = ", ".join(f"{name} {count:,}" for name, count in items.items() if count < FEW_ITEMS)
    if few:
        found.append(f"Few test items: {few}. See the intervals.")
    if run.analysis is not None and run.analysis.clusters.borders.firm is False:
        found.append(f"The clusters are uncertain: {run.analysis.clusters.borders}.")
    return found
