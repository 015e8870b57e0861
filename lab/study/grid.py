"""From the study's YAML to its cells: which teacher is compressed how, with which seed, in which order."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

Kind = Literal["student", "teacher", "fbank"]


@dataclass(frozen=True)
class Cell:
    """One run: a student that is made and evaluated, or a baseline that is evaluated.

    Attributes:
        kind: what is evaluated.
        teacher: name of the teacher, "" for filterbanks.
        variant: name of the method or ablation, "" for a baseline.
        sparsity: share of parameters removed; None for a baseline and where the variant states its own budget.
        seed: of the compression and of the heads.
        groups: the tables that it belongs to.
        tasks: what it is evaluated on, SUPERB's names, comma-separated.
    """

    kind: Kind
    teacher: str
    variant: str
    sparsity: float | None
    seed: int
    groups: tuple[str, ...] = ()
    tasks: str = ""

    @property
    def id(self) -> str:
        """Its folder's name."""
        if self.kind == "fbank":
            return f"fbank-seed{self.seed}"
        if self.kind == "teacher":
            return f"{self.teacher}-seed{self.seed}"
        budget = "" if self.sparsity is None else f"-sp{round(100 * self.sparsity)}"
        return f"{self.teacher}-{self.variant}{budget}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """What the YAML says.

    Attributes:
        path: where it says so.
        speech: what the students are distilled on: one corpus or several, as the setting `data` of `compress`;
            or arguments of `lab.speech.make_speech`.
        corpora: what they are evaluated on: the folder of the corpora, or size and seed of synthetic ones.
        teachers: name → hub ID or folder, from the working directory.
        compress: settings of every compression.
        tasks: SUPERB's names, comma-separated; a group may state fewer.
        variants: name → changes of `compress`.
        groups: tables in the order of their worth: each a product of teachers, variants, sparsities and seeds.
        noise: tests in noise: "snr_db", and "variants" whose students are scored there, as the teachers are; what they
            know of the teacher there is measured for all students.
        heads: the settings of `skill-speech evaluate`, in a file from the working directory; "" for the published ones.
        calibration: how the question of how much audio the clusters need is asked.
        note: what every table and figure says of itself, such as that it is synthetic.
        pages: files whose marked places are filled with the tables, from the working directory.
    """

    path: Path
    speech: dict[str, Any] | str | list[dict[str, Any]]
    corpora: dict[str, Any] | str
    teachers: dict[str, str]
    compress: dict[str, Any]
    tasks: str
    variants: dict[str, dict[str, Any]]
    groups: list[dict[str, Any]]
    noise: dict[str, Any] = field(default_factory=dict)
    heads: str = ""
    calibration: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    pages: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """From a YAML file.

        `like: FILE` takes from another study what this one does not say, variant by variant, and `compress: FILE` the
        settings of a recipe; both are named from the working directory.
        """
        values = _read(path)
        if like := values.pop("like", None):
            base = _read(like)
            values = base | values | {"variants": base["variants"] | values.get("variants", {})}
        if isinstance(values["compress"], str):
            values["compress"] = _read(values["compress"])
        return cls(Path(path), **values)

    def speech_in(self, output: Path) -> str | list[dict[str, Any]]:
        """What the students are distilled on, as the setting `data` of `compress`."""
        return str(output / "data" / "speech") if isinstance(self.speech, dict) else self.speech

    def corpora_in(self, output: Path) -> Path:
        """The corpora that they are evaluated on."""
        return Path(self.corpora) if isinstance(self.corpora, str) else output / "data" / "corpora"

    def noisy_in(self, output: Path) -> Path:
        """The same corpora with their test splits in noise."""
        return output / "data" / f"corpora-noisy-{self.noise['snr_db']:g}-dB"

    def is_scored_in_noise(self, cell: Cell) -> bool:
        """Whether a cell's model is tested in noise, too."""
        return bool(self.noise) and (cell.kind == "teacher" or cell.variant in self.noise["variants"])

    def cells(self) -> list[Cell]:
        """All cells, each once, in the order in which they are worth running.

        The first seed of every cell of a group comes before the second of any, so that a study that is cut short has a
        value for each cell first. Baselines come before the students that are measured against them, with the first
        seed of their group alone: they are the fixed ends of the score.
        """
        cells: dict[str, Cell] = {}

        def add(cell: Cell, group: dict[str, Any]) -> None:
            known = cells.get(cell.id, replace(cell, tasks=group.get("tasks", self.tasks)))
            cells[cell.id] = replace(known, groups=tuple(dict.fromkeys((*known.groups, group["name"]))))

        for group in self.groups:
            first = group["seeds"][0]
            add(Cell("fbank", "", "", None, first), group)
            for teacher in group["teachers"]:
                add(Cell("teacher", teacher, "", None, first), group)
            for seed in group["seeds"]:
                for sparsity in group["sparsities"]:
                    for teacher in group["teachers"]:
                        for variant in group["variants"]:
                            own_budget = {"params", "macs"} & set(self.variants[variant])
                            share = None if own_budget else sparsity
                            add(Cell("student", teacher, variant, share, seed), group)
        return list(cells.values())

    def settings(self, cell: Cell) -> dict[str, Any]:
        """The settings of `compress` of a student's cell, but for the folders of data and output."""
        settings = merged(self.compress, self.variants[cell.variant])
        settings |= {"teacher": self.teachers[cell.teacher], "seed": cell.seed}
        if cell.sparsity is not None:
            settings["sparsity"] = cell.sparsity
        return settings


def _read(path: str | Path) -> dict[str, Any]:
    return dict(yaml.safe_load(Path(path).read_text(encoding="utf-8")))


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with changes, key by key in nested dictionaries."""
    result = dict(settings)
    for name, value in changes.items():
        both = isinstance(value, dict) and isinstance(result.get(name), dict)
        result[name] = merged(result[name], value) if both else value
    return result
