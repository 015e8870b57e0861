"""Figures: the similarity of layers, their clusters in the same colours, and the layers that tasks read.

Drawn with matplotlib's object-oriented interface: nothing global, no window, safe in any process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from .shapes import cluster_colour, runs_of, tree_layout

if TYPE_CHECKING:
    from ..similarity import LayerClusters

_TRUNK = "#8d939a"
_INK = "#22262a"
_PRINTED_UP_TO = 13  # layers: more values than these cannot be read in 800 pixels


def similarity_map(cka_LL: ArrayLike, clusters: LayerClusters, title: str = "Similarity of layers") -> Figure:
    """Heat map of the similarity, layers in their natural order, clusters outlined.

    Each run of neighbouring layers of a cluster is outlined on the diagonal; where a cluster has several runs, the
    blocks between them are outlined with dashes. The strips along the axes carry each cluster's colour and number.

    Args:
        cka_LL: similarity of the layers, (L, L).
        clusters: their groups.
        title: written above.
    """
    cka_LL = np.asarray(cka_LL, dtype=np.float64)
    layers = clusters.layers
    L = len(layers)
    figure = _figure(8.0, 7.2)
    axes = figure.add_subplot()
    # The scale starts at a round number below the smallest value, so that similar layers can still be told apart.
    lowest = min(np.floor(cka_LL.min() * 10) / 10, 0.9)
    image = axes.imshow(cka_LL, cmap="viridis", vmin=lowest, vmax=1.0)
    if L <= _PRINTED_UP_TO:
        _print_values(axes, cka_LL, lowest)
    # Outlines lie inside their cells, so that those of neighbouring clusters do not cover each other.
    width = 3.0 if L <= _PRINTED_UP_TO else 2.0
    inset = min(0.0035 * L, 0.1)
    strip = 0.55 * L / 13
    for number, group in enumerate(clusters.groups):
        colour = cluster_colour(number)
        runs = runs_of([layers.index(layer) for layer in group])
        for (top, bottom), (left, right) in product(runs, runs):
            outline = Rectangle(
                (left - 0.5 + inset, top - 0.5 + inset),
                right - left + 1 - 2 * inset,
                bottom - top + 1 - 2 * inset,
                fill=False,
                edgecolor=colour,
                linewidth=width,
                linestyle="-" if top == left else (0, (2.5, 1.5)),
                joinstyle="miter",
            )
            outline.set_path_effects([withStroke(linewidth=width + 1.6, foreground="white")])
            axes.add_patch(outline)
        for first, last in runs:
            _strip(axes, -0.5 - 1.25 * strip, first, strip, last, colour, number + 1, upright=True)
            _strip(axes, L - 0.5 + 0.25 * strip, first, strip, last, colour, number + 1, upright=False)
    names = [f"h_{layer}" for layer in layers]
    size = _name_size(L)
    axes.set_xticks(range(L), names, fontsize=size, rotation=90 if L > 16 else 0)
    axes.set_yticks(range(L), names, fontsize=size)
    axes.set_xlim(-0.5 - 1.35 * strip, L - 0.5)
    axes.set_ylim(L - 0.5 + 1.35 * strip, -0.5)
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=14, color=_INK, pad=12)
    bar = figure.colorbar(image, ax=axes, shrink=0.86, aspect=28, pad=0.03)
    bar.set_label("linear CKA", fontsize=11, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=10, length=3, color=_TRUNK)
    return figure


def dendrogram(clusters: LayerClusters, title: str = "Clusters of layers") -> Figure:
    """The tree of merges with the cut as a dashed line, branches below it in their cluster's colour.

    Layers stand in their natural order as far as a tree without crossing branches allows.

    Args:
        clusters: what the tree and the cut are taken from.
        title: written above.
    """
    layers, linkage, K = clusters.layers, clusters.linkage, len(clusters.groups)
    L = len(layers)
    colours = {
        layers.index(layer): cluster_colour(number) for number, group in enumerate(clusters.groups) for layer in group
    }
    order, merges = tree_layout(linkage)
    figure = _figure(8.0, 4.8)
    axes = figure.add_subplot()
    line: dict[str, Any] = {"solid_joinstyle": "round", "solid_capstyle": "round"}
    for number, (left, right, height) in enumerate(merges):
        # The first L - K merges made the clusters; counting them, not heights, is right among ties as well.
        inside = number < L - K
        line["color"], line["linewidth"] = (colours[left.row], 2.4) if inside else (_TRUNK, 1.6)
        axes.plot([left.x, left.x, right.x, right.x], [left.y, height, height, right.y], zorder=2, **line)
        if not inside:
            for child in (left, right):
                if child.node < 2 * L - K:  # a whole cluster: its stem has its colour up to the cut
                    top = min(height, clusters.threshold)
                    line["color"], line["linewidth"] = colours[child.row], 2.4
                    axes.plot([child.x, child.x], [child.y, top], zorder=3, **line)
    highest = max([*linkage[:, 2], clusters.threshold, 1e-9])
    axes.axhline(clusters.threshold, color=_INK, linewidth=1.2, linestyle=(0, (6, 4)), zorder=1)
    axes.text(
        1.01,
        clusters.threshold,
        f"cut at {clusters.threshold:.3f}\n{K} cluster{'s' if K > 1 else ''}",
        transform=axes.get_yaxis_transform(),
        va="center",
        fontsize=10.5,
        linespacing=1.4,
        color=_INK,
    )
    axes.set_xlim(-0.7, L - 0.3)
    axes.set_ylim(0, 1.06 * highest)
    axes.set_xticks(range(L), [f"h_{layers[row]}" for row in order], fontsize=_name_size(L))
    for label, row in zip(axes.get_xticklabels(), order, strict=True):
        label.set_color(colours[row])
        label.set_fontweight("bold")
        label.set_rotation(90 if L > 16 else 0)
    axes.tick_params(axis="x", length=0)
    axes.tick_params(axis="y", labelsize=10, length=3, color=_TRUNK)
    axes.set_ylabel(f"1 − CKA, {clusters.method} linkage", fontsize=11, color=_INK)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.spines["left"].set_color(_TRUNK)
    axes.grid(axis="y", color="#e7e9ec", linewidth=0.8, zorder=0)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=14, color=_INK, pad=12)
    return figure


def layer_weight_map(
    weights: Mapping[str, Sequence[float]], title: str, subtitle: str = "", single: Collection[str] = ()
) -> Figure:
    """Which hidden states the heads of some tasks read: one row per task, darker for more weight.

    Args:
        weights: task → weight of every hidden state, which sum to 1.
        title: written above.
        subtitle: below it, smaller.
        single: the tasks that read one hidden state alone, which is marked as the best one.
    """
    weights_KL = np.asarray(list(weights.values()), dtype=np.float64)
    best = {row: int(weights_KL[row].argmax()) for row, task in enumerate(weights) if task in single}
    weights_KL[list(best)] = np.nan
    K, L = weights_KL.shape
    # Even weights should look like the middle of the scale.
    highest = 1.0 if len(best) == K else max(float(np.nanmax(weights_KL)), 2 / L)
    size = _name_size(L)
    figure = _figure(max(6.0, 2.2 + 0.5 * L), 1.9 + 0.42 * K)
    axes = figure.add_subplot()
    image = axes.imshow(weights_KL, cmap="viridis_r", vmin=0.0, vmax=highest, aspect="auto")
    for row, column in np.ndindex(K, L):
        value = weights_KL[row, column]
        if L <= _PRINTED_UP_TO and np.isfinite(value):
            colour = "white" if value > 0.5 * highest else _INK
            text = f"{value:.2f}".removeprefix("0")
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color=colour)
    for row, column in best.items():
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=_INK, linewidth=0))
        axes.text(column, row, "best", ha="center", va="center", fontsize=min(8.5, size), color="white")
    axes.set_xticks(range(L), ["input", *(f"h_{layer}" for layer in range(1, L))], fontsize=size)
    if L > 16:
        axes.tick_params(axis="x", rotation=90)
    axes.set_yticks(range(K), [task.upper() for task in weights], fontsize=11)
    axes.tick_params(length=0, pad=3)
    axes.spines[:].set_visible(False)
    figure.suptitle(title, fontsize=13, color=_INK)
    axes.set_title(subtitle, fontsize=9, color=_INK, pad=8)
    bar = figure.colorbar(image, ax=axes, aspect=24, pad=0.02)
    bar.set_label("weight", fontsize=11, color=_INK)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=10, length=3, color=_TRUNK)
    return figure


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as SVG or PNG, by its suffix; the same figure gives the same bytes."""
    path = Path(path)
    with matplotlib.rc_context({"svg.hashsalt": "skill-speech"}):
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)


def _figure(width: float, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(width, height), dpi=100, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _name_size(layers: int) -> float:
    """Font size of the layers' names in points."""
    return 11 if layers <= 16 else 9 if layers <= 26 else 6.5


def _print_values(axes: Any, cka_LL: NDArray[np.float64], lowest: float) -> None:
    for row, column in np.ndindex(cka_LL.shape):
        value = cka_LL[row, column]
        # Viridis is dark below and light above about the middle of its scale.
        dark = (value - lowest) / (1 - lowest) < 0.6
        text = f"{value:.2f}".replace("-0.00", "0.00")
        axes.text(column, row, text, ha="center", va="center", fontsize=8.5, color="white" if dark else _INK)


def _strip(
    axes: Any, start: float, first: int, thickness: float, last: int, colour: str, number: int, *, upright: bool
) -> None:
    """A coloured strip with the cluster's number, beside the rows (upright) or below the columns first … last."""
    corner, extent = (start, first - 0.44), (thickness, last - first + 0.88)
    if not upright:
        corner, extent = corner[::-1], extent[::-1]
    axes.add_patch(Rectangle(corner, *extent, color=colour, linewidth=0))
    axes.text(
        corner[0] + extent[0] / 2,
        corner[1] + extent[1] / 2,
        str(number),
        ha="center",
        va="center_baseline",
        fontsize=min(10.0, 0.9 * _name_size(len(axes.images[0].get_array()))),
        fontweight="bold",
        color="white",
    )
