"""What training logs: metrics.csv, and TensorBoard's events made of the same rows."""

from __future__ import annotations

import csv
import logging
import math
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from ..errors import InputError
from ..files import FULL, atomic_write
from ..run import ranks


class StageLog:
    """One row per logged update in FOLDER/metrics.csv; the column `time` holds seconds since 1970.

    A row is numbered by the updates before it: the first update of a stage logs into row 0. TensorBoard's events are
    appended and may be lost when a process is killed; written again of the rows that are there, they are complete, and
    nothing is there twice. Only the first rank writes.

    Args:
        folder: of the stage.
        updates: made so far; the rows of later ones, which are going to be made again, are dropped.

    Raises:
        InputError: the file is damaged.
    """

    def __init__(self, folder: Path, updates: int) -> None:
        self.path = folder / "metrics.csv"
        rows = _read_rows(self.path) if self.path.exists() else {}
        self.rows = {number: row for number, row in rows.items() if number < updates}
        self._events: SummaryWriter | None = None
        if ranks.is_first():
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
            self._events = SummaryWriter(str(folder))
            for number, row in sorted(self.rows.items()):
                self._add_events(number, row, float(row["time"]))

    def add(self, number: int, values: Mapping[str, float]) -> None:
        """Merge values into a row, if there are any, and write it."""
        if not values:
            return
        row = self.rows.setdefault(number, {"step": number, "time": f"{time.time():.3f}"})
        # Nine digits are a float32 to the bit: events that are made of rows equal those that were written at once.
        row |= {name: f"{value:.9g}" for name, value in values.items()}
        self._add_events(number, values)
        if not ranks.is_first():
            return
        names = dict.fromkeys(name for row in self.rows.values() for name in row)
        with atomic_write(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows[step] for step in sorted(self.rows))

    def close(self) -> None:
        """Write the events that have not been written."""
        if self._events is not None:
            self._events.close()

    def _add_events(self, number: int, values: Mapping[str, Any], when: float | None = None) -> None:
        if self._events is None:
            return
        for name, value in values.items():
            if value != "" and value is not None and name not in ("step", "time"):
                self._events.add_scalar(name, float(value), number, walltime=when)


def _read_rows(path: Path) -> dict[int, dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: dict[int, dict[str, Any]] = {int(row["step"]): row for row in csv.DictReader(file)}
        for step, row in rows.items():
            row |= {"time": row.get("time") or "0"}
            if not 0 <= step < 2**62 or not math.isfinite(float(row["time"])):
                raise ValueError(f"step {step} at {row['time']}")
            for text in row.values():
                float(text or 0)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: damaged ({error}); delete it to resume without what it had logged") from None
    return rows


@contextmanager
def full_disk_is_said_once() -> Iterator[None]:
    """In this block a full disk that the thread of TensorBoard's writer meets is raised, and not printed as well.

    The writer raises in whoever writes next what its thread died of; Python would print the thread's traceback too.
    """
    before = threading.excepthook

    def hook(end: threading.ExceptHookArgs) -> None:
        if not (isinstance(end.exc_value, OSError) and end.exc_value.errno in FULL):
            before(end)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """In this block advice of libraries on our own choices, which says nothing to a user, is not shown."""
    with warnings.catch_warnings():
        logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="lightning.*")
        # FSDP warns of changes in place of what a module returns; there are none.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module.*returned a view")
        torch.set_float32_matmul_precision("high")
        yield
