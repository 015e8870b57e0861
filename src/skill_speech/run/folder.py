"""A run's folder: what was asked for, how far it got."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..errors import InputError
from ..files import LEFTOVER, atomic_write, not_written, write_json
from ..yaml_values import read_yaml
from . import ranks
from .records import read_record

LOCK = "lock"
"""The file by which a run holds its folder."""

Made = TypeVar("Made")

# What a first step by itself leaves: `compress` continues from the analysis that `analyze` made in the same folder.
MAY_BE_THERE = ("analysis",)


class RunFolder:
    """The folder of a run, and the only one who looks into it and writes there.

    Of several ranks the first one does, and the others are told: every rank has to ask. Making one reads nothing.

    Args:
        path: it need not be there yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._alone = False

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def on_first(self, make: Callable[[], Made]) -> Made:
        """What `make` returns or raises on the first rank, on all of them: to look at files, and to write.

        What `make` asks of the folder, it asks alone.
        """
        if self._alone:
            return make()

        def alone() -> Made:
            self._alone = True
            try:
                return make()
            finally:
                self._alone = False

        return ranks.on_first(alone)

    def has(self, name: str) -> bool:
        """Whether a file or folder is there."""
        return self.on_first((self.path / name).exists)

    def read(self, name: str, kind: str) -> dict[str, Any]:
        """A JSON file of one of the kinds of `records.RECORDS`.

        Raises:
            InputError: it is damaged, or not there.
        """
        return self.on_first(lambda: read_record(self.path / name, kind))

    def save(self, name: str, values: dict[str, Any]) -> None:
        """Write a JSON file, atomically."""
        self.on_first(lambda: write_json(self.path / name, values))

    def stated(self, name: str, of: Mapping[str, Any] | None = None, file: str = "config.yaml") -> Any:
        """What a file of settings says of one; None where it says nothing, or says other things of some others."""

        def look() -> Any:
            before = _stated(self.path / file)
            return before.get(name) if all(before.get(key) == value for key, value in (of or {}).items()) else None

        return self.on_first(look)

    def refuse_others(self, settings: dict[str, Any], free: Collection[str]) -> None:
        """See that the folder is free, or that of a run with these settings.

        Args:
            settings: of the run.
            free: those that may differ when it resumes.

        Raises:
            InputError: it holds a run with other settings (the keys that differ are named), or something else.
        """

        def look() -> None:
            if (self.path / "config.yaml").exists():
                refuse_changes(self.path / "config.yaml", settings, free)

        self.refuse_foreign()
        self.on_first(look)

    def refuse_foreign(self) -> None:
        """See that the folder is free, or that of any run.

        Raises:
            InputError: it holds something else.
        """

        def look() -> None:
            if self.path.exists() and not self.path.is_dir():
                raise InputError(f"{self.path}: a file; --output is a folder")
            is_a_run = (self.path / "config.yaml").exists()
            if self.path.exists() and not is_a_run and not is_fresh(self.path, MAY_BE_THERE):
                raise InputError(f"{self.path}: not empty and not a skill-speech run: choose another --output")

        self.on_first(look)

    def refuse_others_in(self, step: str, settings: dict[str, Any]) -> None:
        """See that a step in this folder was made with these settings.

        Raises:
            InputError: it was not (the keys that differ are named).
        """
        self.on_first(lambda: refuse_changes(self.path / step / "config.yaml", settings))

    def write_settings(self, settings: dict[str, Any], step: str = "") -> None:
        """Write the settings of the run, or of a step, as YAML, atomically.

        Raises:
            InputError: the folder cannot be written.
        """
        self.on_first(lambda: _write_settings(self.path / step / "config.yaml", settings))

    def status(self) -> dict[str, Any]:
        """Contents of status.json; empty before the first step.

        Raises:
            InputError: it is damaged.
        """
        return self.read("status.json", "status") if self.has("status.json") else {}

    def is_finished(self) -> bool:
        """Whether there is nothing left to do.

        Raises:
            InputError: status.json is damaged.
        """
        return bool(self.status().get("finished")) and self.has("result.json")

    def report(self, step: str, update: int | None = None, updates: int | None = None, finished: bool = False) -> None:
        """Say how far the run is; the first rank says it, and no other has to ask."""
        if not ranks.is_first():
            return
        values = {"stage": step, "step": update, "steps": updates, "finished": finished}
        write_json(self.path / "status.json", values | {"updated": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def is_fresh(folder: Path, allowed: Collection[str] = ()) -> bool:
    """Whether nothing is in a folder but what may be, a lock, and what a killed process was writing."""
    names = [path.name for path in folder.iterdir()]
    return all(name in (*allowed, LOCK) or LEFTOVER.fullmatch(name) for name in names)


def evaluation_of(model: str | Path, file: str = "table.json") -> Path | None:
    """Where the scores of RUN/model are expected: RUN/evaluation, if `evaluate` wrote a file there."""
    folder = Path(model)
    folder = (folder.parent if folder.is_file() else folder).resolve()
    found = folder.parent / "evaluation"
    return found if folder.name == "model" and (found / file).is_file() else None


RUNTIMES = "runtimes.json"
"""What the student costs in the runtimes of a machine: `profile RUN/model --runtimes` writes it into RUN."""


def run_of(model: str | Path) -> Path | None:
    """The run that a model is of, which is RUN/model; None for any other model."""
    folder = Path(model)
    folder = (folder.parent if folder.is_file() else folder).resolve()
    return folder.parent if folder.name == "model" and (folder.parent / "config.yaml").is_file() else None


def _write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write settings as YAML, atomically.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise not_written(path.parent, error) from None


def _stated(path: Path) -> dict[str, Any]:
    try:
        before = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError):  # whether it should be there is for others to say
        return {}
    return before if isinstance(before, dict) else {}


def refuse_changes(path: Path, settings: dict[str, Any], free: Collection[str] = ()) -> None:
    """See that the settings in a file are these, but for those that are `free` to differ.

    Raises:
        InputError: they are not (names the keys that differ), or the file cannot be read.
    """
    try:
        before = read_yaml(path)
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(f"{path}: cannot be read; choose another --output") from None
    before = before if isinstance(before, dict) else {}
    old, new = _flat(before), _flat(settings)
    # What only the file has is of a version that had more settings; the lengths of stages follow from other minutes.
    free = {*free, *(old.keys() - new.keys())}
    if old.get("minutes") != new.get("minutes"):
        free |= {key for key in new if key.startswith(("stage1.", "stage2."))}
    changed = differences(before, settings, free)
    if changed:
        raise InputError(
            f"{path.parent}: made with different settings: {'; '.join(changed)}. Choose another --output, or restore "
            "the settings to resume"
        )


def differences(before: dict[str, Any], now: dict[str, Any], free: Collection[str] = ()) -> list[str]:
    """What differs between two nested dictionaries of settings, one text per key that is not `free`."""
    old, new = _flat(before), _flat(now)
    return [
        f"{key} (was {old.get(key)}, now {new.get(key)})"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and key not in free
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat
