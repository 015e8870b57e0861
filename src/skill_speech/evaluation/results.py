"""The table of an evaluation: our rows, and published ones beside them where that may be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..encoder import Encoder
from ..errors import InputError
from ..files import atomic_write, read_json, write_json
from ..markdown import escaped
from ..quantities import human
from ..run.folder import is_fresh
from ..run.records import read_record
from .corpora import TASKS
from .metrics.bootstrap import wilson
from .published import COLUMNS, Column, published_rows, superb_s
from .upstream import fingerprint

if TYPE_CHECKING:
    from .own_head import HeadTable


@dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
        model: its name.
        parameters: how many it has.
        scores: measures by the names of COLUMNS.
        superb_s: its score, where all tasks ran on the real corpora.
        source: of a published row; "" for our own.
        items: how many test items a measure is over, by the same names, where that is known.
        intervals: "low" and "high" of 95 %, where they are known.
    """

    model: str
    parameters: int
    scores: dict[str, float]
    superb_s: float | None
    source: str = ""
    items: dict[str, int] = field(default_factory=dict)
    intervals: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows and how they read.

    Attributes:
        title: says what it is, and of synthetic corpora that they are.
        rows: our models first.
        notes: what a reader has to know, one line each.
    """

    title: str
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The measures that one of our rows has."""
        return tuple(
            column for column in COLUMNS if any(column.name in row.scores for row in self.rows if not row.source)
        )

    def cells(self, said: Callable[[str], str] = str) -> tuple[list[str], list[list[str]]]:
        """Heading and rows as text, the models' names as `said`; sources are numbered, and the notes end with them."""
        sources = self.sources()
        scored = any(row.superb_s is not None for row in self.rows)
        heading = ["model", "params", *(column.title for column in self.columns)]
        if scored:
            heading.append("superb_s ↑")
        lines = []
        for row in self.rows:
            name = said(row.model) + (f" [{sources.index(row.source) + 1}]" if row.source else "")
            values = [_number(row.scores.get(column.name)) for column in self.columns]
            score = [f"{row.superb_s:.0f}" if row.superb_s is not None else ""] if scored else []
            lines.append([name, human(row.parameters) if row.parameters else "0", *values, *score])
        return heading, lines

    def sources(self) -> list[str]:
        """Where the published rows are from."""
        return list(dict.fromkeys(row.source for row in self.rows if row.source))


def make_table(results: Mapping[str, Mapping[str, dict[str, Any]]], compare: str | None) -> Table:
    """The table of some results: model → task → contents of its JSON.

    Published rows are added when `compare` says so; the caller has seen to it that no result is synthetic then.
    """
    synthetic = next((one["synthetic"] for tasks in results.values() for one in tasks.values() if one["synthetic"]), "")
    rows = [_row(model, tasks, bool(synthetic)) for model, tasks in results.items()]
    if compare == "published":
        rows += [_published_row(values) for values in published_rows()]
    deviations = _deviations(results)
    title = f"SYNTHETIC, not SUPERB: {synthetic}" if synthetic else "SUPERB"
    if deviations and not synthetic:
        title += ", with settings other than its protocol"
    notes = ["In percent; MTWV times 100.", *deviations]
    if synthetic:
        notes.insert(0, "Made of synthetic speech: no number here can be compared with a published one.")
    return Table(title, tuple(rows), tuple(notes))


def write_table(folder: Path, table: Table) -> None:
    """Write table.md and table.json."""
    with atomic_write(folder / "table.md") as temporary:
        temporary.write_text(f"# {escaped(table.title)}\n\n{markdown(table)}\n", encoding="utf-8")
    write_json(folder / "table.json", asdict(table))


def markdown(table: Table | HeadTable) -> str:
    """Rows, notes and sources of a table, without its title."""
    heading, lines = table.cells(escaped)
    text = [markdown_line(heading), markdown_line(["---", *["---:"] * (len(heading) - 1)])]
    text += [markdown_line(cells) for cells in lines]
    text += ["", *(f"{escaped(note)}  " for note in table.notes)]
    text += [f"[{number}] {source}  " for number, source in enumerate(table.sources(), start=1)]
    return "\n".join(text)


def results_of(encoder: Encoder, folder: Path) -> dict[str, dict[str, Any]]:
    """Results in an output folder that are this encoder's, whatever it was called there: task → contents of its JSON.

    Its weights and configuration tell.
    """
    mine = fingerprint(encoder)
    found = {
        task: values
        for tasks in read_results(folder).values()
        for task, values in tasks.items()
        if values.get("settings", {}).get("model") == mine
    }
    return {task: found[task] for task in TASKS if task in found}


def read_results(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """All results in an output folder: model → task → contents of its JSON."""
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*/*.json")):
        if read_json(path).get("kind") == RESULT:
            values = read_record(path, "result")
            _refuse_missing_measures(path, values)
            results.setdefault(values["model"], {})[values["task"]] = values
    return results


def _refuse_missing_measures(path: Path, values: Mapping[str, Any]) -> None:
    """See that a result has the measures that its task is shown with.

    Raises:
        InputError: it has not.
    """
    wanted = [column.measure for column in COLUMNS if column.task == values["task"]]
    missing = [measure for measure in wanted if measure not in values["metrics"]]
    if missing:
        raise InputError(f"{path}: damaged ({', '.join(missing)} is missing); delete it and run evaluate again")


RESULT = "skill-speech evaluation"
"""What a result's JSON says of its kind."""

MARK = "evaluation.json"
"""Says that a folder is of an evaluation, and on what kind of corpora."""

OWN_HEAD = "own_head"
"""Beginning of the names of what an evaluation of a model's own head writes, those of its scratch files after a dot."""


def free_for_results(folder: Path) -> bool:
    """Whether results may be written into a folder: one of an evaluation of any kind, or an empty one."""
    if not folder.is_dir() or (folder / MARK).exists():
        return folder.is_dir()
    own = [path.name for path in folder.iterdir() if path.name.removeprefix(".").startswith(OWN_HEAD)]
    return is_fresh(folder, own)


def _row(model: str, tasks: Mapping[str, dict[str, Any]], synthetic: bool) -> Row:
    scores = {column.name: tasks[column.task]["metrics"][column.measure] for column in COLUMNS if column.task in tasks}
    parameters = next(iter(tasks.values()))["parameters"]
    items, intervals = reach(tasks)
    return Row(model, parameters, scores, None if synthetic else superb_s(scores), items=items, intervals=intervals)


def reach(tasks: Mapping[str, dict[str, Any]]) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
    """How far scores reach: by names of COLUMNS, the number of test items and the 95 % interval, where they are known.

    Results of earlier versions have the number of utterances alone, from which a share of them has an interval.

    Args:
        tasks: task → contents of its JSON.
    """
    items, intervals = {}, {}
    for column in COLUMNS:
        values = tasks.get(column.task, {})
        count = _items(values)
        if count:
            items[column.name] = count
        ends = values.get("intervals", {}).get(column.measure)
        if ends is None and count and column.measure == "accuracy":
            found = wilson(values["metrics"]["accuracy"], count)
            ends = {"low": found.low, "high": found.high}
        if ends is not None:
            intervals[column.name] = ends
    return items, intervals


def _items(values: Mapping[str, Any]) -> int | None:
    """Test items of a result; None where they were not counted, as in the folds of an earlier version."""
    if values.get("items"):
        return int(next(iter(values["items"].values())))
    count = None if "folds" in values else values.get("utterances", {}).get("test")
    return None if count is None else int(count)


def _published_row(values: Mapping[str, Any]) -> Row:
    scores = {column.name: values[column.name] for column in COLUMNS if column.name in values}
    return Row(values["model"], round(values["params"] * 1e6), scores, superb_s(scores), values["source"])


def _deviations(results: Mapping[str, Mapping[str, dict[str, Any]]]) -> list[str]:
    """What was not done as the protocol says."""
    tasks_of: dict[str, list[str]] = {}
    for task in TASKS:
        one = next((tasks[task] for tasks in results.values() if task in tasks), None)  # rows are made alike
        if one and one["not_the_protocol"]:
            said = ", ".join(f"{name} {_short(value)}" for name, value in one["not_the_protocol"].items())
            tasks_of.setdefault(said, []).append(task)
    return [f"Not the protocol in {', '.join(tasks)}: {said}." for said, tasks in tasks_of.items()]


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def markdown_line(cells: Sequence[str]) -> str:
    """A row of a table."""
    return "| " + " | ".join(cells) + " |"
