"""The README's figure: what a student costs and keeps beside its teacher, from records that other commands wrote.

python -m lab.before_after
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from skill_speech.figures.output import save_figure

HERE = Path(__file__).parents[1]
INFERENCE = HERE / "benchmarks/results/inference.json"
HEADS = HERE / "lab/results/heads"
IMAGE = HERE / "docs/images/before-after.png"
TEACHER, STUDENT = "#8d939a", "#2b6cb0"


class Bar(NamedTuple):
    """A bar: whose, how long, and what is written beside it."""

    name: str
    value: float
    words: str


class Panel(NamedTuple):
    """A quantity, what it was measured on, and its bars from above, the teacher's first."""

    title: str
    measured_on: str
    bars: Sequence[Bar]


def cost_panels(inference: Mapping[str, Any]) -> list[Panel]:
    """Parameters, time and memory of WavLM Base's shape and of a student, from `python -m benchmarks.inference`."""
    found = {one["name"]: one for one in inference["comparisons"]}
    times = {name: found[f"5 s, 1 thread: {name} against teacher"] for name in ("float32", "bf16", "int8")}
    memory = {name: found[f"5 s: peak memory in {name} against teacher"] for name in ("float32", "int8")}
    sizes = [Bar(name, count, f"{count / 1e6:.1f} M") for name, count in inference["parameters"].items()]
    before = times["float32"]["peer_seconds"]
    time = [Bar("teacher", before, f"{1e3 * before:.0f} ms")]
    time += [
        Bar(name, one["our_seconds"], f"{1e3 * one['our_seconds']:.0f} ms, {one['ratio']:.1f}× as fast")
        for name, one in times.items()
    ]
    size = [Bar("teacher", memory["float32"]["peer_MiB"], f"{memory['float32']['peer_MiB']:.0f} MiB")]
    size += [Bar(name, one["our_MiB"], f"{one['our_MiB']:.0f} MiB") for name, one in memory.items()]
    return [
        Panel("Parameters", "WavLM Base's shape", sizes),
        Panel("Time for 5 s of audio", "one core of a server", time),
        Panel("Peak memory", "the same", size),
    ]


def error_panel(records: Sequence[Mapping[str, Any]]) -> Panel:
    """Word errors of the lab's recognizer, from `python -m lab.heads`; means over seeds."""
    mine = [one for one in records if (one["teacher"], one["task"]) == ("hubert-mini", "ctc")]
    [teacher] = [one["rate"] for one in mine if one["kind"] == "teacher"]
    bars = [Bar("teacher", teacher, f"{teacher:.1f} %")]
    for route in ("whole", "longer"):
        cells = [one for one in mine if one.get("route") == route]
        updates = cells[0]["budget"]["stage1"] + cells[0]["budget"]["stage2"]
        rate = mean(one["rate"] for one in cells)
        bars.append(Bar(f"{updates:,} updates", rate, f"{rate:.1f} %"))
    return Panel("Word errors, head included", "a recognizer of 5.8 M on synthetic speech, to 1.4 M", bars)


def draw(panels: Sequence[Panel]) -> Figure:
    """Panels side by side, each with a scale of its own that starts at zero."""
    figure = Figure(figsize=(3.1 * len(panels), 2.3), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for number, panel in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        longest = max(bar.value for bar in panel.bars)
        for row, bar in enumerate(panel.bars):
            axes.barh(row, bar.value, height=0.62, color=TEACHER if row == 0 else STUDENT)
            inside = bar.value > 0.6 * longest
            axes.annotate(
                bar.words,
                (bar.value, row),
                xytext=(-5 if inside else 4, 0),
                textcoords="offset points",
                color="white" if inside else "#22272e",
                ha="right" if inside else "left",
                va="center",
                fontsize=9,
                weight="bold" if inside else "normal",
            )
        axes.set_yticks(range(len(panel.bars)), [bar.name for bar in panel.bars], fontsize=9)
        axes.set_ylim(max(len(one.bars) for one in panels) - 0.5, -0.5)
        axes.set_xlim(0, 1.02 * longest)
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
        axes.set_title(f"{panel.title}\n", fontsize=11, loc="left", weight="bold")
        axes.annotate(
            panel.measured_on, (0, 1), xytext=(0, 5), xycoords="axes fraction", textcoords="offset points", fontsize=8
        )
    return figure


def main() -> None:
    """Draw it into docs/images."""
    argparse.ArgumentParser(prog="python -m lab.before_after", description=__doc__).parse_args()
    heads = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(HEADS.glob("*.json"))]
    inference = json.loads(INFERENCE.read_text(encoding="utf-8"))
    save_figure(draw([*cost_panels(inference), error_panel(heads)]), IMAGE)


if __name__ == "__main__":
    main()
