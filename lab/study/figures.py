"""The figures of the study, from its records: scores, sparsity, what the layers know, how much audio clusters need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from skill_speech.evaluation.published import COLUMNS, Column
from skill_speech.figures.output import save_figure
from skill_speech.figures.plots import dendrogram, layer_weight_map, similarity_map
from skill_speech.similarity import cluster_layers

Record = dict[str, Any]
ShareOf = Callable[[Record, Column], float | None]

COLORS = {"skill": "#2f6db5", "dphubert": "#c2571a"}
NAMES = {"skill": "SKILL", "dphubert": "DPHuBERT"}


def draw_figures(
    results: Path,
    records: Sequence[Record],
    of_group: Mapping[str, Sequence[Record]],
    calibration: Record | None,
    share: ShareOf,
    note: str,
) -> None:
    """Write every figure whose records are there, as PNG and SVG.

    Args:
        results: the folder that they go to.
        records: of all students and baselines.
        of_group: those of every group, with their scores.
        calibration: of how much audio the clusters need.
        share: puts a measure on the score's scale.
        note: what every figure says of itself.
    """
    figures: dict[str, Figure] = {}
    if any(one["score"] is not None and one["kind"] == "student" for one in of_group.get("headline", [])):
        figures["headline"] = headline_figure(of_group["headline"], share, note)
    if any(one["score"] is not None and one["kind"] == "student" for one in of_group.get("sparsity", [])):
        figures["sparsity"] = sparsity_figure(of_group["sparsity"], note)
    ablations = [one for one in of_group.get("ablations", []) if one["kind"] == "student"]
    if len({one["method"] for one in ablations if "fidelity" in one and one["score"] is not None} - {"skill"}):
        figures["ablations"] = ablations_figure(ablations, note)
    if any("fidelity" in one and one["method"] in COLORS for one in records):
        figures["fidelity"] = fidelity_figure(records, note)
    students = [one for one in records if one["kind"] == "student" and one["method"] in COLORS]
    shares = {one["sparsity"] for one in of_group.get("headline", []) if one["kind"] == "student"}
    shares.add(max((one["sparsity"] for one in students), default=0.0))  # where least is left
    for teacher in sorted({one["teacher"] for one in students}):
        chosen = [one for one in students if one["sparsity"] in shares]
        figures[f"survivors-{teacher}"] = survivors_figure(teacher, chosen, note)
    for teacher in sorted({one["teacher"] for one in records if one["kind"] == "teacher"}):
        weights = [one["layer_weights"] for one in records if one["kind"] == "teacher" and one["teacher"] == teacher]
        averaged = {task: np.mean([one[task] for one in weights], axis=0).tolist() for task in weights[0]}
        title = f"Hidden states of {teacher} that each task reads"
        figures[f"layers-{teacher}"] = layer_weight_map(teacher, averaged, title, note)
    if calibration is not None:
        for name, values in calibration["teachers"].items():
            cka_LL = np.array(values["cka"])
            clusters = cluster_layers(cka_LL, calibration["options"]["clusters"])
            figures[f"similarity-{name}"] = similarity_map(cka_LL, clusters, f"Similarity of layers, {name}")
            figures[f"dendrogram-{name}"] = dendrogram(clusters, f"Clusters of layers, {name}")
        figures["calibration"] = calibration_figure(calibration, note)
    for name, figure in figures.items():
        save_figure(figure, results / f"{name}.png")
        save_figure(figure, results / f"{name}.svg")


def headline_figure(records: Sequence[Record], share: ShareOf, note: str) -> Figure:
    """The score and what it is made of, from filterbanks (0) to the teacher (1000), a dot per seed."""
    teachers = sorted({one["teacher"] for one in records if one["kind"] == "student"})
    figure = _canvas(4.6 * len(teachers) + 0.6, 4.6)
    for number, teacher in enumerate(teachers):
        axes = figure.add_subplot(1, len(teachers), number + 1)
        _plain(axes, "x")
        mine = [one for one in records if one["teacher"] == teacher and one["kind"] == "student"]
        columns = [column for column in COLUMNS if any(share(one, column) is not None for one in mine)]
        for method, shift in (("skill", -0.17), ("dphubert", 0.17)):
            for row in range(len(columns) + 1):
                values = [
                    one["score"] if row == 0 else share(one, columns[row - 1])
                    for one in mine
                    if one["method"] == method and one["score"] is not None
                ]
                known = [value for value in values if value is not None]
                if known:
                    style: dict[str, Any] = {"color": COLORS[method], "zorder": 3}
                    axes.plot(known, [row + shift] * len(known), "o", markersize=4, alpha=0.55, mew=0, **style)
                    axes.plot([mean(known)], [row + shift], "|", markersize=13, mew=2.5, **style)
        axes.axvline(1000, color="#8d939a", linewidth=1, linestyle=(0, (6, 4)))
        axes.axhspan(-0.5, 0.5, color="#f1f3f5", zorder=0)
        axes.set_yticks(range(len(columns) + 1), ["score", *(column.title.rstrip(" ↑↓") for column in columns)])
        axes.set_ylim(len(columns) + 0.5, -0.5)
        axes.set_xlabel("0: filterbanks, 1000: teacher")
        axes.set_title(teacher, fontsize=11)
    handles = [Line2D([], [], color=COLORS[name], marker="|", markersize=11, mew=2.5, lw=0) for name in COLORS]
    figure.legend(handles, [NAMES[name] for name in COLORS], frameon=False, loc="outside lower center", ncols=2)
    shares = sorted({f"{one['sparsity']:.0%}" for one in records if one["sparsity"] is not None})
    removed = f"{' and '.join(shares)} of the parameters removed"
    figure.suptitle(f"{removed}: dots are seeds, bars their mean\n{_bracketed(note).strip()}".rstrip(), fontsize=12)
    return figure


def sparsity_figure(records: Sequence[Record], note: str) -> Figure:
    """Score over sparsity, a panel per teacher; bars are the spread where there are several seeds."""
    students = {one["id"]: one for one in records if one["kind"] == "student" and one["score"] is not None}
    teachers = sorted({one["teacher"] for one in students.values()})
    figure, first = _canvas(4.4 * len(teachers) + 0.4, 3.8), None
    for number, teacher in enumerate(teachers):
        first = axes = figure.add_subplot(1, len(teachers), number + 1, sharey=first)
        _plain(axes)
        axes.axhline(1000, color="#8d939a", linewidth=1, linestyle=(0, (6, 4)))
        for method, shift in (("skill", -0.3), ("dphubert", 0.3)):
            points: dict[float, list[float]] = {}
            for one in students.values():
                if (one["teacher"], one["method"]) == (teacher, method):
                    points.setdefault(one["sparsity"], []).append(one["score"])
            if points:
                x = sorted(points)
                axes.errorbar(
                    [100 * share + shift for share in x],
                    [mean(points[share]) for share in x],
                    yerr=[stdev(points[share]) if len(points[share]) > 1 else 0 for share in x],
                    color=COLORS[method],
                    marker="o",
                    capsize=3,
                    label=NAMES[method],
                )
        axes.set_xticks(sorted({100 * one["sparsity"] for one in students.values() if one["sparsity"] is not None}))
        axes.set_xlabel("parameters removed, %")
        axes.set_title(teacher, fontsize=11)
        if not number:
            axes.set_ylabel("score: filterbanks 0, teacher 1000")
            axes.legend(frameon=False, loc="lower left")
    figure.suptitle(f"How much is left when more is removed{_bracketed(note)}", fontsize=12)
    return figure


def survivors_figure(teacher: str, records: Sequence[Record], note: str) -> Figure:
    """Heads, units and channels left in every layer, mean over the seeds, both methods; a row per sparsity."""
    mine = [one for one in records if one["teacher"] == teacher and one["method"] in COLORS]
    shares = sorted({one["sparsity"] for one in mine})
    of_teacher = next((one["teacher_widths"] for one in mine if "teacher_widths" in one), None)
    figure = _canvas(9.6, 0.6 + 2.7 * len(shares))
    kinds = (("channels", "channels"), ("heads", "heads"), ("units", "feed-forward units"))
    for row, share in enumerate(shares):
        for number, (kind, title) in enumerate(kinds):
            axes = figure.add_subplot(len(shares), 3, 3 * row + number + 1)
            _plain(axes)
            for method, shift in (("skill", -0.2), ("dphubert", 0.2)):
                same = [one for one in mine if (one["method"], one["sparsity"]) == (method, share)]
                counts = [_counts(one["widths"][kind]) for one in same]
                if counts:
                    places = np.arange(1, len(counts[0]) + 1)
                    axes.bar(places + shift, np.mean(counts, axis=0), 0.38, color=COLORS[method], label=NAMES[method])
                    axes.set_xticks(places)
            axes.tick_params(labelsize=9)
            if not row:
                of_all = f" of {max(_counts(of_teacher[kind]))}" if of_teacher else ""
                axes.set_title(f"{title} left{of_all}", fontsize=11)
            if not number:
                axes.set_ylabel(f"{share:.0%} removed")
            axes.set_xlabel("convolution" if kind == "channels" else "layer")
    handles = [Patch(color=color) for color in COLORS.values()]
    figure.legend(handles, [NAMES[name] for name in COLORS], frameon=False, loc="outside lower center", ncols=2)
    figure.suptitle(f"What survives where: {teacher}{_bracketed(note)}", fontsize=12)
    return figure


def _counts(widths: Sequence[Any]) -> list[int]:
    """Of every layer: heads are listed by their numbers, channels and units counted."""
    return [len(part) if isinstance(part, list) else part for part in widths]


def ablations_figure(records: Sequence[Record], note: str) -> Figure:
    """Every variant's students of that size: what they know of the teacher, and their score; shaded: SKILL's range."""
    mine = [one for one in records if "fidelity" in one and one["score"] is not None and one["sparsity"] is not None]
    panels = {
        "variance of the teacher's layers explained, %": lambda one: 100 * mean(one["fidelity"]["explained"]),
        "score: filterbanks 0, teacher 1000": lambda one: one["score"],
    }
    value = next(iter(panels.values()))
    methods = sorted(
        {one["method"] for one in mine}, key=lambda name: mean(value(o) for o in mine if o["method"] == name)
    )
    figure, first = _canvas(9.6, 1.4 + 0.28 * len(methods)), None
    for number, (title, value) in enumerate(panels.items()):
        axes = figure.add_subplot(1, 2, number + 1, sharey=first)
        first = first or axes
        _plain(axes, "x")
        ours = [value(one) for one in mine if one["method"] == "skill"]
        axes.axvspan(min(ours), max(ours), color=COLORS["skill"], alpha=0.12, linewidth=0)
        for place, method in enumerate(methods):
            same = [one for one in mine if one["method"] == method]
            color = COLORS.get(method, "#5a6068")
            for one in same:
                ring = "#1b1e22" if one["seed"] == 0 else "none"
                axes.plot([value(one)], [place], "o", color=color, markersize=6, markeredgecolor=ring)
            axes.plot([mean(value(one) for one in same)], [place], "|", color=color, markersize=14, markeredgewidth=2.4)
        axes.set_yticks(range(len(methods)), [NAMES.get(name, name) for name in methods])
        axes.tick_params(labelleft=not number, labelsize=9)
        axes.set_xlabel(title)
    figure.suptitle(f"Dots: seeds, the first ringed; bars: mean; shaded: SKILL's range{_bracketed(note)}", fontsize=11)
    return figure


def fidelity_figure(records: Sequence[Record], note: str) -> Figure:
    """How well every layer of the teacher can be told from a student, by method and sparsity, a panel per teacher."""
    students = [one for one in records if one["kind"] == "student" and "fidelity" in one and one["method"] in COLORS]
    teachers, shares = sorted({one["teacher"] for one in students}), sorted({one["sparsity"] for one in students})
    styles = dict(zip(shares, ("-", (0, (6, 2)), (0, (3, 2)), (0, (1, 1.5))), strict=False))
    figure, first = _canvas(4.6 * len(teachers) + 0.4, 4.0), None
    for number, teacher in enumerate(teachers):
        first = axes = figure.add_subplot(1, len(teachers), number + 1, sharey=first)
        _plain(axes)
        for share in shares:
            for method, color in COLORS.items():
                curves = [
                    one["fidelity"]["explained"]
                    for one in students
                    if (one["teacher"], one["sparsity"], one["method"]) == (teacher, share, method)
                ]
                if curves:
                    curve = np.mean(curves, axis=0)
                    axes.plot(range(len(curve)), curve, color=color, linestyle=styles[share], linewidth=1.6)
                    axes.set_xticks(range(len(curve)))
        axes.set_xlabel("layer of the teacher")
        axes.set_title(teacher, fontsize=11)
        if not number:
            axes.set_ylabel("variance that a student explains")
    lines = [Line2D([], [], color=color) for color in COLORS.values()]
    lines += [Line2D([], [], color="#5a6068", linestyle=styles[share]) for share in shares]
    names = [*(NAMES[name] for name in COLORS), *(f"{share:.0%} removed" for share in shares)]
    figure.legend(lines, names, frameon=False, loc="outside lower center", ncols=6)
    figure.suptitle(f"What the students know of every layer{_bracketed(note)}", fontsize=12)
    return figure


def calibration_figure(record: Record, note: str) -> Figure:
    """Largest difference of the similarities from those of all the audio, over the audio that was looked at."""
    figure = _canvas(7.0, 3.6)
    axes = figure.add_subplot()
    _plain(axes)
    for color, (name, values) in zip(("#2f6db5", "#c2571a", "#5f8f3a"), record["teachers"].items(), strict=False):
        x = sorted({row["seconds"] for row in values["samples"]})
        y = [[row["largest_difference"] for row in values["samples"] if row["seconds"] == seconds] for seconds in x]
        axes.fill_between(x, [min(some) for some in y], [max(some) for some in y], color=color, alpha=0.2, linewidth=0)
        axes.plot(x, [mean(some) for some in y], marker="o", color=color, label=name)
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{seconds:g}" for seconds in x])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("calibration audio, s")
    axes.set_ylabel("largest difference of CKA")
    axes.set_title(f"How much audio the similarities need{_bracketed(note)}", fontsize=12)
    axes.legend(frameon=False)
    return figure


def _bracketed(note: str) -> str:
    return f" ({note})" if note else ""


def _canvas(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any, grid: Literal["x", "y"] = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e7e9ec", linewidth=0.8)
    axes.set_axisbelow(True)
