"""The figures of the study, from its records: scores, sparsity, what the layers know, how much audio clusters need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from skill_speech.reporting.figures import dendrogram, layer_weight_map, save_figure, similarity_map
from skill_speech.similarity import cluster_layers

Record = dict[str, Any]

COLOURS = {"skill": "#2f6db5", "dphubert": "#c2571a"}
NAMES = {"skill": "SKILL", "dphubert": "DPHuBERT"}
NOTE = "synthetic speech, small teachers"


def draw_figures(
    results: Path, records: Sequence[Record], of_group: Mapping[str, Sequence[Record]], calibration: Record | None
) -> None:
    """Write every figure whose records are there, as PNG and SVG."""
    figures: dict[str, Figure] = {}
    if any(one["score"] is not None and one["kind"] == "student" for one in of_group.get("headline", [])):
        figures["headline"] = headline_figure(of_group["headline"])
    if any(one["score"] is not None and one["kind"] == "student" for one in of_group.get("sparsity", [])):
        figures["sparsity"] = sparsity_figure([*of_group["sparsity"], *of_group.get("headline", [])])
    for teacher in sorted({one["teacher"] for one in records if one["kind"] == "student"}):
        figures[f"survivors-{teacher}"] = survivors_figure(teacher, of_group.get("headline", []))
    for teacher in sorted({one["teacher"] for one in records if one["kind"] == "teacher"}):
        weights = [one["layer_weights"] for one in records if one["kind"] == "teacher" and one["teacher"] == teacher]
        averaged = {task: np.mean([one[task] for one in weights], axis=0).tolist() for task in weights[0]}
        title = f"Hidden states of {teacher} that each task reads"
        figures[f"layers-{teacher}"] = layer_weight_map(averaged, title, NOTE, single=("qbe",))
    if calibration is not None:
        for name, values in calibration["teachers"].items():
            cka_LL = np.array(values["cka"])
            clusters = cluster_layers(cka_LL, calibration["options"]["clusters"])
            figures[f"similarity-{name}"] = similarity_map(cka_LL, clusters, f"Similarity of layers, {name}")
            figures[f"dendrogram-{name}"] = dendrogram(clusters, f"Clusters of layers, {name}")
        figures["calibration"] = calibration_figure(calibration)
    for name, figure in figures.items():
        save_figure(figure, results / f"{name}.png")
        save_figure(figure, results / f"{name}.svg")


def headline_figure(records: Sequence[Record]) -> Figure:
    """Scores at equal size: one dot per seed, a bar for the mean."""
    teachers = sorted({one["teacher"] for one in records} - {""})
    figure, axes = _figure(7.0, 3.6)
    for place, teacher in enumerate(teachers):
        for side, method in enumerate(("skill", "dphubert")):
            values = [
                one["score"]
                for one in records
                if one["teacher"] == teacher and one["method"] == method and one["score"] is not None
            ]
            if not values:
                continue
            x = place + 0.36 * (side - 0.5)
            axes.bar(
                x, mean(values), 0.32, color=COLOURS[method], alpha=0.85, label=NAMES[method] if not place else None
            )
            axes.plot([x] * len(values), values, "o", color="#22262a", markersize=4)
            axes.text(x, mean(values) + 18, f"{mean(values):.0f}", ha="center", fontsize=10)
    axes.axhline(1000, color="#8d939a", linewidth=1, linestyle=(0, (6, 4)))
    axes.text(len(teachers) - 0.5, 1008, "teacher", ha="right", fontsize=9, color="#5a6068")
    axes.set_xticks(range(len(teachers)), teachers, fontsize=11)
    axes.set_ylabel("score: filterbanks 0, teacher 1000")
    axes.set_title(f"A quarter of the parameters ({NOTE})", fontsize=12)
    axes.legend(frameon=False, loc="lower right")
    return figure


def sparsity_figure(records: Sequence[Record]) -> Figure:
    """Score over sparsity, one line per method and teacher; bars are the spread where there are several seeds."""
    figure, axes = _figure(7.0, 4.2)
    students = {one["id"]: one for one in records if one["kind"] == "student" and one["score"] is not None}
    for style, teacher in zip(("-", "--", ":"), sorted({one["teacher"] for one in students.values()}), strict=False):
        for method in ("skill", "dphubert"):
            points: dict[float, list[float]] = {}
            for one in students.values():
                if (one["teacher"], one["method"]) == (teacher, method):
                    points.setdefault(one["sparsity"], []).append(one["score"])
            if points:
                x = sorted(points)
                axes.errorbar(
                    [100 * share for share in x],
                    [mean(points[share]) for share in x],
                    yerr=[stdev(points[share]) if len(points[share]) > 1 else 0 for share in x],
                    color=COLOURS[method],
                    linestyle=style,
                    marker="o",
                    capsize=3,
                    label=f"{NAMES[method]}, {teacher}",
                )
    axes.set_xlabel("parameters removed, %")
    axes.set_ylabel("score: filterbanks 0, teacher 1000")
    axes.set_title(f"How much is left when more is removed ({NOTE})", fontsize=12)
    axes.legend(frameon=False)
    return figure


def survivors_figure(teacher: str, records: Sequence[Record]) -> Figure:
    """Heads, units and channels left in every layer, mean over the seeds, both methods."""
    figure = Figure(figsize=(9.0, 3.2), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for number, (kind, title) in enumerate(
        (("channels", "channels"), ("heads", "heads"), ("units", "feed-forward units"))
    ):
        axes = figure.add_subplot(1, 3, number + 1)
        _plain(axes)
        for side, method in enumerate(("skill", "dphubert")):
            mine = [one for one in records if one["teacher"] == teacher and one["method"] == method]
            if not mine:
                continue
            counts = np.mean(
                [[len(part) if isinstance(part, list) else part for part in one["widths"][kind]] for one in mine],
                axis=0,
            )
            places = np.arange(1, len(counts) + 1) + 0.4 * (side - 0.5)
            axes.bar(places, counts, 0.38, color=COLOURS[method], label=NAMES[method])
        axes.set_title(f"{title} left", fontsize=11)
        axes.set_xlabel("convolution" if kind == "channels" else "layer")
        if not number:
            axes.legend(frameon=False, fontsize=9)
    figure.suptitle(f"What survives where: {teacher} ({NOTE})", fontsize=12)
    return figure


def calibration_figure(record: Record) -> Figure:
    """Largest difference of the similarities from those of all the audio, over the audio that was looked at."""
    figure, axes = _figure(7.0, 3.6)
    for colour, (name, values) in zip(("#2f6db5", "#c2571a", "#5f8f3a"), record["teachers"].items(), strict=False):
        x = sorted({row["seconds"] for row in values["samples"]})
        y = [[row["largest_difference"] for row in values["samples"] if row["seconds"] == seconds] for seconds in x]
        axes.fill_between(x, [min(some) for some in y], [max(some) for some in y], color=colour, alpha=0.2, linewidth=0)
        axes.plot(x, [mean(some) for some in y], marker="o", color=colour, label=name)
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{seconds:g}" for seconds in x])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("calibration audio, s")
    axes.set_ylabel("largest difference of CKA")
    axes.set_title(f"How much audio the similarities need ({NOTE})", fontsize=12)
    axes.legend(frameon=False)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _plain(axes)
    return figure, axes


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e7e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
