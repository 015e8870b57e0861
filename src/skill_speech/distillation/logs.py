"""What training logs: metrics.csv, and TensorBoard's events made of the same rows."""

from __future__ import annotations

import csv
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger

from .. import ranks
from ..errors import InputError
from ..files import atomic_write


class CsvLogger(Logger):
    """One row per logged step in a file that survives going on; the column `time` holds seconds since 1970.

    A row is numbered by the updates before it: the first update of a stage logs into row 0.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            self.rows = _read_rows(path)

    @property
    def name(self) -> str:
        """Lightning wants one."""
        return "csv"

    @property
    def version(self) -> str:
        """Lightning wants one."""
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Merge into the row of that step."""
        number = round(step or 0)
        row = self.rows.setdefault(number, {"step": number, "time": f"{time.time():.3f}"})
        # Nine digits are a float32 to the bit: events that are made of rows equal those that were written at once.
        row |= {name: f"{value:.9g}" for name, value in metrics.items() if name != "epoch"}

    def save(self) -> None:
        """Write the file whole, on the first rank."""
        if not self.rows or not ranks.is_first():
            return
        names = dict.fromkeys(name for row in self.rows.values() for name in row)
        with (
            atomic_write(self.path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.rows[step] for step in sorted(self.rows))

    def finalize(self, status: str) -> None:
        """Write what has been logged since the last time."""
        self.save()

    def go_on_behind(self, updates: int) -> None:
        """Drop what later updates logged, which are going to be made again."""
        self.rows = {number: row for number, row in self.rows.items() if number < updates}


def _read_rows(path: Path) -> dict[int, dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = {int(row["step"]): row for row in csv.DictReader(file)}
        for row in rows.values():
            row |= {"time": row.get("time") or "0"}
            for text in row.values():
                float(text or 0)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(
            f"{path}: damaged ({error}); delete it, and the run goes on without what it had logged"
        ) from None
    return rows


def events_of(log: CsvLogger, folder: Path) -> TensorBoardLogger:
    """A logger that writes TensorBoard's events, beginning with those of the rows that are there already.

    Events are appended and may be lost when a process is killed; written anew of the rows, they are complete, and
    nothing is there twice.
    """
    events = TensorBoardLogger(folder, name="", version="", sub_dir=None)
    # Lightning's rank_zero_only learns of the ranks from the first Trainer, which is not there yet.
    if ranks.is_first():
        _write_events(log, folder, events)
    return events


def _write_events(log: CsvLogger, folder: Path, events: TensorBoardLogger) -> None:
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
    for step, row in sorted(log.rows.items()):
        for name, text in row.items():
            if text and name not in ("step", "time"):
                events.experiment.add_scalar(name, float(text), step, walltime=float(row["time"]))
