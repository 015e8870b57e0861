"""What a finished run left in its folder, read for a report; what is not there is None or empty."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..errors import InputError
from ..evaluation.kept import Kept, kept, row_of
from ..evaluation.own_head import read_own_head_result
from ..evaluation.published import filterbanks
from ..evaluation.results import reach, read_results
from ..limits import check_settings
from ..profiling import Profile, short_name
from ..run.records import read_record
from ..similarity import LayerAnalysis, load_analysis
from ..yaml_values import read_yaml
from .stages import asked_for

LARGEST = 1e18
"""Number in a picture or a table."""

STAGES = ("stage1", "stage2")


class Widths(NamedTuple):
    """What there is of every layer.

    Attributes:
        channels: of each convolution.
        heads: of each transformer layer, the teacher's numbers of the heads.
        units: feed-forward units of each transformer layer.
    """

    channels: list[int]
    heads: list[list[int]]
    units: list[int]


@dataclass(frozen=True)
class Scores:
    """What `evaluate` wrote into RUN/evaluation.

    Attributes:
        title: what the table is; of synthetic corpora it says that they are.
        notes: what a reader has to know.
        rows: of table.json, models as they were evaluated, followed by published ones.
        layer_weights: model → task → weight of every hidden state.
        incomparable: why published results may not stand beside these; "" where they may.
        data: task → fingerprint of what it was scored on.
    """

    title: str
    notes: list[str]
    rows: list[dict[str, Any]]
    layer_weights: dict[str, dict[str, list[float]]]
    incomparable: str
    data: dict[str, str]


@dataclass(frozen=True)
class Evidence:
    """One finished run.

    Attributes:
        name: of its folder.
        folder: where it is, to tell it from one of the same name.
        settings: config.yaml.
        outcome: result.json.
        finished: when; "" where the run did not record it.
        teacher, student: their costs.
        analysis: of the teacher's layers; None for methods that need none.
        metrics: stage → rows of metrics.csv, each with "step" and what was logged there.
        widths: of the teacher and the student; None where the run did not record them.
        scores: of SUPERB's tasks, if they were measured.
        own_head: scores of the head that the model has, if they were measured: contents of own_head.json.
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    outcome: dict[str, Any]
    finished: str
    teacher: Profile
    student: Profile
    analysis: LayerAnalysis | None
    metrics: dict[str, list[dict[str, float]]]
    widths: tuple[Widths, Widths] | None
    scores: Scores | None
    own_head: dict[str, Any] | None

    @property
    def teacher_name(self) -> str:
        """A hub ID, or the name of a folder."""
        source = str(self.settings["teacher"])
        return Path(source).name if Path(source).is_absolute() else short_name(source)

    @property
    def budget(self) -> str:
        """What was asked for, as on the command line."""
        return asked_for(self.settings)

    @property
    def speedup(self) -> float:
        """How many times faster the student is."""
        return self.teacher.real_time_factor / self.student.real_time_factor

    def role(self, row: Mapping[str, Any]) -> str:
        """What a model of the table of scores is to the run, which its number of parameters gives away."""
        roles = {self.teacher.total_parameters: "teacher", self.student.total_parameters: "student", 0: "filterbanks"}
        return "" if row.get("source") else roles.get(row["parameters"], "")

    @property
    def student_row(self) -> dict[str, Any] | None:
        """The student's scores."""
        return self._row(self.student.total_parameters)

    @property
    def teacher_row(self) -> dict[str, Any] | None:
        """The teacher's scores."""
        return self._row(self.teacher.total_parameters)

    @property
    def kept(self) -> Kept | None:
        """What the student keeps of the teacher; None where one of the three was not measured.

        Filterbanks are those of the same evaluation, or the published ones where these may stand beside it.
        """
        student, teacher, floor = self.student_row, self.teacher_row, self._row(0)
        if floor is None and self.scores is not None and not self.scores.incomparable:
            floor = filterbanks()
        return None if student is None or teacher is None or floor is None else kept(student, teacher, floor)

    def _row(self, parameters: int) -> dict[str, Any] | None:
        return row_of(self.scores.rows, parameters) if self.scores is not None else None


def read_evidence(folder: Path) -> Evidence:
    """Everything a report tells of a run.

    Raises:
        InputError: no run there, it is not finished, or a file of it cannot be read.
    """
    if not (folder / "config.yaml").is_file():
        raise InputError(f"{folder}: not a run: give the folder that compress wrote (its --output)")
    if not (folder / "result.json").is_file():
        raise InputError(f"{folder}: not finished: rerun the same compress command to resume")
    outcome = read_record(folder / "result.json", "outcome")
    analyzed = (folder / "analysis" / "clusters.json").is_file()
    analysis = load_analysis(folder / "analysis") if analyzed else None
    try:
        teacher, student = Profile(**outcome["teacher"]), Profile(**outcome["student"])
        widths = _widths(outcome.get("widths"))
        _refuse_contradictions(folder / "result.json", teacher, student, widths)
        return Evidence(
            name=folder.resolve().name,
            folder=folder.resolve(),
            settings=_read_settings(folder / "config.yaml"),
            outcome=outcome,
            finished=str(outcome.get("finished", "")),
            teacher=teacher,
            student=student,
            analysis=analysis,
            metrics={stage: _read_metrics(folder / stage / "metrics.csv") for stage in STAGES},
            widths=widths,
            scores=_read_scores(folder / "evaluation"),
            own_head=read_own_head_result(folder / "evaluation"),
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / 'result.json'}: not written by compress ({error}); run it again") from None


def _refuse_contradictions(
    path: Path, teacher: Profile, student: Profile, widths: tuple[Widths, Widths] | None
) -> None:
    """See that the teacher and the student of an outcome are of one make.

    Raises:
        InputError: they are not.
    """
    pairs: list[tuple[str, Any, Any]] = [
        ("parameters", list(teacher.parameters), list(student.parameters)),
        ("macs", list(teacher.macs), list(student.macs)),
    ]
    if widths is not None:
        pairs += [(name, len(getattr(widths[0], name)), len(getattr(widths[1], name))) for name in Widths._fields]
    for name, one, other in pairs:
        if one != other:
            raise InputError(
                f"{path}: damaged (the {name} of teacher and student do not match): delete it and rerun the same "
                "compress command"
            )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(f"{path}: cannot be read as YAML") from None
    if not isinstance(values, dict) or not all(isinstance(values.get(name), str) for name in ("teacher", "method")):
        raise InputError(f"{path}: not a run's settings; give the folder that compress wrote")
    check_settings(values, path)
    return values


def _read_metrics(path: Path) -> list[dict[str, float]]:
    """Rows of numbers that can be drawn; other cells are left out. No rows where the run had no such stage."""
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{name: float(text) for name, text in row.items() if text} for row in csv.DictReader(file)]
        kept = [{name: value for name, value in row.items() if abs(value) <= LARGEST} for row in rows]
        if any("step" not in row for row in kept):
            raise ValueError("a row without its step")
        return kept
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table of numbers ({error})") from None


def _widths(values: dict[str, Any] | None) -> tuple[Widths, Widths] | None:
    return None if values is None else (Widths(**values["teacher"]), Widths(**values["student"]))


def _read_scores(folder: Path) -> Scores | None:
    if not (folder / "table.json").is_file():
        return None
    table, results = read_record(folder / "table.json", "table"), read_results(folder)
    # A table that an earlier version wrote does not have the numbers of test items; its results do.
    measured = {name: dict(zip(("items", "intervals"), reach(tasks), strict=True)) for name, tasks in results.items()}
    rows = [row if row.get("source") else measured.get(row["model"], {}) | row for row in table["rows"]]
    several = [values for tasks in results.values() for values in tasks.values()]
    data = {values["task"]: str(values.get("settings", {}).get("data", "")) for values in several}
    return Scores(table["title"], table["notes"], rows, _layer_weights(results), _incomparable(several), data)


def _incomparable(results: Sequence[Mapping[str, Any]]) -> str:
    """Why published results may not stand beside these."""
    if not results:
        return "how these scores were measured is not recorded"
    if any(values["synthetic"] for values in results):
        return "these scores are of synthetic speech"
    changed = sorted({values["task"] for values in results if values["not_the_protocol"]})
    return f"the settings are not the protocol's in {', '.join(changed)}" if changed else ""


def _layer_weights(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Of the models that have more than one hidden state to choose from."""
    weights: dict[str, dict[str, list[float]]] = {}
    for model, tasks in results.items():
        for task, values in tasks.items():
            states = [float(weight) for weight in values["layer_weights"]]
            if len(states) > 1 and all(map(math.isfinite, states)):
                weights.setdefault(model, {})[task] = states
    return weights
