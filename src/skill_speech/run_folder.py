"""A run's folder: what was asked for, how far it got."""

from __future__ import annotations

import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from . import ranks
from .errors import InputError
from .files import LEFTOVER, atomic_write, write_json
from .run_lock import NAME as LOCK

# What a first step by itself leaves: `compress` goes on from the analysis that `analyze` made in the same folder.
MAY_BE_THERE = ("analysis", LOCK)
# Settings that change how a run is carried out but not what comes of it: they may differ when it goes on.
FREE_KEYS = (
    "output",
    "workers",
    "checkpoint_every",
    "keep_checkpoints",
    "milestone_every",
    "max_bad",
    "absolute_paths",
    "start_from",
    "devices",
    "nodes",
    "strategy",
)


class RunFolder:
    """The folder of one compression run.

    Opening it writes nothing and checks that it is the same run; `start` writes its settings. Between the two lies the
    checking of the settings, so that a mistake in them does not leave a folder behind that refuses the corrected call.

    Raises:
        InputError: the folder holds a run with other settings (the keys that differ are named), or something else.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = Path(path), settings
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: a file; --output is a folder")
        if (self.path / "config.yaml").exists():
            refuse_changes(self.path / "config.yaml", settings)
        elif self.path.exists() and any(
            path.name not in MAY_BE_THERE and not LEFTOVER.fullmatch(path.name) for path in self.path.iterdir()
        ):
            raise InputError(f"{self.path}: not empty and not a run of ours; choose another --output")

    def start(self) -> None:
        """Make the folder and write config.yaml.

        Raises:
            InputError: it cannot be written.
        """
        write_settings(self.path / "config.yaml", self.settings)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def status(self) -> dict[str, Any]:
        """Contents of status.json; empty before the first stage."""
        path = self.path / "status.json"
        if not path.exists():
            return {}
        try:
            status = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise InputError(f"{path}: damaged; delete it, and the run goes on from its stages' files") from None
        return dict(status)

    def report(self, stage: str, step: int | None = None, steps: int | None = None, finished: bool = False) -> None:
        """Say how far the run is; the first rank says it."""
        if not ranks.is_first():
            return
        values = {"stage": stage, "step": step, "steps": steps, "finished": finished}
        write_json(self.path / "status.json", values | {"updated": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


def evaluation_of(model: str | Path) -> Path | None:
    """Where the scores of RUN/model are expected: RUN/evaluation, if `evaluate` wrote something there."""
    folder = Path(model)
    folder = (folder.parent if folder.is_file() else folder).resolve()
    found = folder.parent / "evaluation"
    return found if folder.name == "model" and (found / "table.json").is_file() else None


def write_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write settings as YAML, atomically.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written ({error.strerror}); choose another --output") from None


def pinned_revision(path: Path, teacher: str) -> str | None:
    """The teacher's revision in the settings in a file, if there is such a file and it is of that teacher."""
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # whether it should be there is for others to say
        return None
    revision = before.get("revision") if isinstance(before, dict) and before.get("teacher") == teacher else None
    return str(revision) if revision else None


def refuse_changes(path: Path, settings: dict[str, Any]) -> None:
    """See that the settings in a file are these, but for those that may differ.

    Raises:
        InputError: they are not (names the keys that differ), or the file cannot be read.
    """
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        raise InputError(f"{path}: cannot be read; choose another --output") from None
    changed = differences(before if isinstance(before, dict) else {}, settings, free=FREE_KEYS)
    if changed:
        raise InputError(
            f"{path.parent}: made with other settings: {'; '.join(changed)}. Choose another --output, or give the same "
            "settings to go on"
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
