"""The scores of a model's own head, as they are read back and shown: terminal, report, model card."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...quantities import duration, human
from ...run.records import read_record

FILE = "own_head.json"

MEASURES = {
    "wer": "WER ↓",
    "cer": "CER ↓",
    "accuracy": "accuracy ↑",
    "f1": "F1 ↑",
    "mae": "MAE ↓",
    "ccc": "CCC ↑",
    "eer": "EER ↓",
}
"""Measures by their names in own_head.json, as they are shown; a difference above 0 is for the better after ↑."""

FRACTIONS = ("mae", "ccc")
"""Those that are no percentages."""

KINDS = {
    "ctc": "speech recognition",
    "sequence": "utterances",
    "frame": "frames",
    "x-vector": "speaker verification",
}


@dataclass(frozen=True)
class HeadTable:
    """The model and its teacher, a row each, and how they differ.

    Attributes:
        title: what it is; of synthetic data it says that it is.
        heading, lines: as text; names of models are to be escaped for where they are shown.
        notes: what a reader has to know, one line each.
    """

    title: str
    heading: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    def cells(self, said: Callable[[str], str] = str) -> tuple[list[str], list[list[str]]]:
        """Heading and rows, the models' names as `said`."""
        return list(self.heading), [[said(name), *values] for name, *values in self.lines]

    def sources(self) -> list[str]:
        """Nothing here is published."""
        return []


def read_own_head_result(folder: Path) -> dict[str, Any] | None:
    """What `evaluate --own_head` wrote into a folder; None if it did not.

    Raises:
        InputError: it is damaged.
    """
    path = folder / FILE
    return read_record(path, "own-head") if path.is_file() else None


def head_table(result: Mapping[str, Any]) -> HeadTable:
    """The table of a result, which is the contents of own_head.json."""
    model, teacher, difference = result["model"], result["teacher"], result["difference"]
    measures = [name for name in MEASURES if name in model["metrics"]]
    lines = [_line(model["name"], human(model["parameters"]), model["metrics"], measures)]
    if teacher is not None:
        lines.append(_line(f"{teacher['name']} (teacher)", human(teacher["parameters"]), teacher["metrics"], measures))
    if difference is not None:
        lines.append(_line("model − teacher", "", difference, measures, sign="+"))
    title = f"Own head ({KINDS.get(result['head'], result['head'])}) on {result['data']}"
    if result["synthetic"]:
        title = f"SYNTHETIC ({result['synthetic']}): {title}"
    return HeadTable(title, ("model", "params", *(MEASURES[name] for name in measures)), tuple(lines), _notes(result))


MOST_LABELS = 200
"""Shown one by one: of more, own_head.json has the rest."""


def by_label_table(result: Mapping[str, Any]) -> list[list[str]]:
    """The measures of every label, heading first, of the model and its teacher; nothing where there are no labels."""
    model, teacher = result["model"], result["teacher"]
    several = [("", model)] if teacher is None else [("", model), (", teacher", teacher)]
    labels = list(model["by_label"])[:MOST_LABELS]
    if not labels:
        return []
    kinds = [name for name in MEASURES if any(name in model["by_label"][label] for label in labels)]
    rows = [["label", "in the data", *(MEASURES[kind] + whose for kind in kinds for whose, _ in several)]]
    for label in labels:
        found = [one["by_label"].get(label, {}) for _, one in several]
        items = found[0].get("items")
        values = [_plain(kind, measures.get(kind)) for kind in kinds for measures in found]
        rows.append([label, "" if items is None else f"{items:,.0f}", *values])
    return rows


def _plain(measure: str, value: float | None) -> str:
    return "" if value is None else f"{value:.{4 if measure in FRACTIONS else 2}f}"


def _line(name: str, size: str, metrics: Mapping[str, Any], measures: list[str], sign: str = "") -> tuple[str, ...]:
    return name, size, *(_shown(measure, metrics.get(measure), sign) for measure in measures)


def _shown(measure: str, found: Mapping[str, float] | None, sign: str) -> str:
    if found is None:
        return ""
    digits = 4 if measure in FRACTIONS else 2
    value = f"{found['value']:{sign}.{digits}f}"
    if not math.isfinite(found["low"]):
        return value
    low, high = (f"{found[part]:{sign}.{digits - 1}f}" for part in ("low", "high"))
    return f"{value} [{low}, {high}]"


def _notes(result: Mapping[str, Any]) -> tuple[str, ...]:
    drawn = result["bootstrap"]
    items = ", ".join(f"{count:,} {what}" for what, count in result["items"].items())
    left = f"; {result['without_reference']:,} cuts without a reference" if result["without_reference"] else ""
    bad = f"; {result['audio']['left_out']:,} with unusable audio" if result["audio"]["left_out"] else ""
    unit = "" if set(result["model"]["metrics"]) <= set(FRACTIONS) else "In percent; in"
    paired = "; of the difference, paired" if result["difference"] is not None else ""
    return (
        f"{items}; {duration(3600 * result['hours'])}{left}{bad}.",
        f"{unit or 'In'} brackets 95 % intervals of {drawn['resamples']:,} bootstrap resamples of {drawn['of']}, seed "
        f"{drawn['seed']}{paired}.",
        *result["notes"],
    )
