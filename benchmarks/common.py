"""What the benchmarks share: options, interleaved timing, the machine's own matrix rate, and the report."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from skill_speech.environment import environment
from skill_speech.files import write_json
from skill_speech.hardware import matrix_rate, multiplies_bfloat16

__all__ = ["Options", "Report", "Timing", "interleaved", "matrix_rate", "parse", "parser"]


class Timing(NamedTuple):
    """Seconds of wall clock of one function, over some repeats."""

    minimum: float
    median: float


class Options(argparse.Namespace):
    """What `parse` returns: what every benchmark takes, and the command that was given."""

    quick: bool
    json: Path
    threads: int
    command: str


def timed_types(options: Options, device: str = "cpu") -> tuple[str, ...]:
    """The types whose speed is measured: float32, and bfloat16 where the device multiplies in it, as `compress` does.

    Where it is only emulated an update takes a dozen times as long, and nobody uses it. With --quick one of them.
    """
    types = ("float32", "bfloat16") if multiplies_bfloat16(torch.device(device)) else ("float32",)
    return types[-1:] if options.quick else types


def parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark: --quick, --json FILE, --threads N; `name` is the module in benchmarks/."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=description)
    made.add_argument("--quick", action="store_true", help="smaller and fewer measurements")
    made.add_argument("--json", type=Path, required=True, help="where to write the result")
    made.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (default: torch's)")
    return made


def parse(made: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> Options:
    """Parse, set the number of threads, and remember the command."""
    options = made.parse_args(arguments, Options())
    if options.threads < 1:
        made.error(f"--threads is {options.threads}; it must be at least 1")
    torch.set_num_threads(options.threads)
    options.command = shlex.join([*made.prog.split(), *(sys.argv[1:] if arguments is None else arguments)])
    return options


def interleaved(functions: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, Timing]:
    """Time the functions in turn, `repeats` rounds after `warm_up` rounds, so that what disturbs one disturbs all."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(warm_up + repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - started)
    return {name: Timing(min(values), median(values)) for name, values in seconds.items()}


class Report:
    """The comparisons of one benchmark: a table on the screen, and JSON with the machine and the command.

    Args:
        title: over the table.
        options: as `parse` gave them.
    """

    def __init__(self, title: str, options: Options) -> None:
        self.title, self.options = title, options
        self.comparisons: list[dict[str, Any]] = []
        self.figures: dict[str, Any] = {}
        self._load = os.getloadavg()

    def add(
        self,
        name: str,
        peer: float,
        ours: float,
        goal: float | None = None,
        *,
        unit: str = "seconds",
        **details: Any,
    ) -> dict[str, Any]:
        """One comparison; `ratio` is the peer's value over ours, `goal` what it should at least be (None: no goal).

        Details go into the JSON as they are, and numbers and words also into the table.
        """
        ratio = peer / ours
        comparison = {
            "name": name,
            "ratio": ratio,
            "goal": goal,
            "met": None if goal is None else ratio >= goal,
            "unit": unit,
            f"peer_{unit}": peer,
            f"our_{unit}": ours,
            **details,
        }
        self.comparisons.append(comparison)
        return comparison

    def write(self, json_path: Path) -> None:
        """Print the table and write the JSON file."""
        machine = environment() | {
            "threads": self.options.threads,
            "load_before": self._load,
            "load_after": os.getloadavg(),
        }
        values = {"title": self.title, "machine": machine, "command": self.options.command, **self.figures}
        write_json(json_path, values | {"comparisons": self.comparisons})
        Console().print(self.table())

    def table(self) -> Table:
        """All comparisons, a column for each detail that is a number or a word."""
        table = Table(title=self.title)
        units = {one["unit"] for one in self.comparisons}
        fixed = {
            "name",
            "ratio",
            "goal",
            "met",
            "unit",
            *(f"{side}_{unit}" for unit in units for side in ("peer", "our")),
        }
        details = dict.fromkeys(
            key
            for comparison in self.comparisons
            for key, value in comparison.items()
            if key not in fixed and isinstance(value, int | float | str)
        )
        for heading in ("", "peer", "ours", "ratio", "goal", *(key.replace("_", " ") for key in details)):
            table.add_column(heading, justify="right" if heading else "left")
        for one in self.comparisons:
            goal = "" if one["goal"] is None else f"{one['goal']:g}x" + (" met" if one["met"] else " missed")
            table.add_row(
                one["name"],
                *(f"{one[side + one['unit']]:.4g} {_short(one['unit'])}" for side in ("peer_", "our_")),
                f"{one['ratio']:.2f}x",
                goal,
                *(_cell(one.get(key)) for key in details),
            )
        return table


def _short(unit: str) -> str:
    return "s" if unit == "seconds" else unit


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
