"""Figures: the similarity of layers, their clusters in the same colors, and the layers that tasks read.

Each is drawn once, for files and for the HTML report: about as wide as a column of text, so that it can be read on a
phone too. What an artist's gid says in words is shown where the picture is pointed at, and the figure's label is its
text alternative (`figures.output`). Drawn with matplotlib's object-oriented interface: nothing global, no window, safe
in any process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from textwrap import fill
from typing import Any, Protocol

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from ..errors import printable
from .shapes import INK, RULE, TRUNK, cluster_color, readable_on, runs_of, tree_layout

_PRINTED_UP_TO = 13  # cells in a row: more numbers than these cannot be read
_NAMED_UP_TO = 16  # of more layers, every second one has its number, or every third


class Clusters(Protocol):
    """Layers grouped by similarity: what a picture shows of `skill_speech.similarity.LayerClusters`."""

    @property
    def layers(self) -> Sequence[int]:
        """Their numbers, ascending."""

    @property
    def groups(self) -> Sequence[Sequence[int]]:
        """Layer numbers."""

    @property
    def linkage(self) -> NDArray[np.float64]:
        """The merges, as SciPy's linkage matrix."""

    @property
    def threshold(self) -> float:
        """Height of the cut."""

    @property
    def method(self) -> str:
        """Of the linkage."""


def similarity_map(
    cka_LL: ArrayLike, clusters: Clusters, title: str = "Similarity of layers", lowest: float | None = None
) -> Figure:
    """Heat map of the similarity, layers in their natural order, clusters outlined.

    Each run of neighboring layers of a cluster is outlined on the diagonal; where a cluster has several runs, the
    blocks between them are outlined with dashes. The strips along the axes carry each cluster's color and number.

    Args:
        cka_LL: similarity of the layers, (L, L).
        clusters: their groups.
        title: written above, if any.
        lowest: the smallest value of the colors, for maps side by side; by default that of this one.
    """
    cka_LL = np.asarray(cka_LL, dtype=np.float64)
    layers = clusters.layers
    L = len(layers)
    figure, axes = _figure(7.0, title)
    # The scale starts at a round number below the smallest value, so that similar layers can still be distinguished.
    colors = ScalarMappable(
        Normalize(min(np.floor((cka_LL.min() if lowest is None else lowest) * 10) / 10, 0.9), 1.0), "viridis"
    )
    rgba_LL4 = colors.to_rgba(cka_LL)
    for row, column in np.ndindex(L, L):
        value = float(cka_LL[row, column])
        words = f"h_{layers[row]} and h_{layers[column]}: CKA {value:.3f}"
        _cell(axes, row, column, rgba_LL4[row, column], words, value if L <= _PRINTED_UP_TO else None)
    strip = 0.04 * L
    for number, group in enumerate(clusters.groups):
        runs = runs_of([layers.index(layer) for layer in group])
        for rows, columns in product(runs, runs):
            _outline(axes, rows, columns, number)
        for first, last in runs:
            _strip(axes, (-0.5 - 1.25 * strip, first - 0.44), strip, last - first + 0.88, number)
            _strip(axes, (first - 0.44, L - 0.5 + 0.25 * strip), last - first + 0.88, strip, number)
    _name_layers(axes.xaxis, layers)
    _name_layers(axes.yaxis, layers)
    axes.set(xlim=(-0.5 - 1.35 * strip, L - 0.5), ylim=(L - 0.5 + 1.35 * strip, -0.5), aspect="equal")
    _color_bar(figure, axes, colors, "linear CKA")
    a, b = sorted(map(int, np.unravel_index(np.argmin(cka_LL), cka_LL.shape)))
    groups = "; ".join(
        f"{number}: {', '.join(f'h_{layer}' for layer in group)}" for number, group in enumerate(clusters.groups, 1)
    )
    figure.set_label(
        f"Heat map of the similarity of {L} layers. Least alike are h_{layers[a]} and h_{layers[b]} "
        f"with a CKA of {cka_LL.min():.3f}. Clusters: {groups}."
    )
    return figure


def dendrogram(clusters: Clusters, title: str = "Clusters of layers") -> Figure:
    """The tree of merges with the cut as a dashed line, branches below it in their cluster's color.

    Layers stand in their natural order as far as a tree without crossing branches allows.

    Args:
        clusters: what the tree and the cut are taken from.
        title: written above, if any.
    """
    layers, linkage, K = clusters.layers, clusters.linkage, len(clusters.groups)
    L = len(layers)
    number_of = {layers.index(layer): number for number, group in enumerate(clusters.groups) for layer in group}
    order, merges = tree_layout(linkage)
    figure, axes = _figure(3.9, title)
    line: dict[str, Any] = {"solid_joinstyle": "round", "solid_capstyle": "round"}
    for number, (left, right, height) in enumerate(merges):
        # The first L - K merges made the clusters; counting them, not heights, is right among ties as well.
        inside = number < L - K
        words = f"merge {number + 1} of {L - 1}, at 1 − CKA = {height:.3f}" + ("" if inside else ", above the cut")
        line["color"], line["linewidth"] = (cluster_color(number_of[left.row]), 2.2) if inside else (TRUNK, 1.5)
        x, y = [left.x, left.x, right.x, right.x], [left.y, height, height, right.y]
        axes.plot(x, y, zorder=2, gid=words, **line)
        for child in (left, right):
            if not inside and child.node < 2 * L - K:  # a whole cluster: its stem has its color up to the cut
                top = min(height, clusters.threshold)
                line["color"], line["linewidth"] = cluster_color(number_of[child.row]), 2.2
                axes.plot([child.x, child.x], [child.y, top], zorder=3, gid=_cluster(number_of[child.row]), **line)
    cut, count = f"cut at {clusters.threshold:.3f}", f"{K} cluster{'s' * (K > 1)}"
    axes.axhline(clusters.threshold, color=INK, linewidth=1.1, linestyle=(0, (6, 4)), zorder=1, gid=f"{cut}: {count}")
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", "linespacing": 1.5}
    axes.text(1.01, clusters.threshold, f"cut at\n{clusters.threshold:.3f}\n{count}", fontsize=10, color=INK, **beside)
    highest = max([*linkage[:, 2], clusters.threshold, 1e-9])
    for number in range(K):
        for first, last in runs_of([place for place, row in enumerate(order) if number_of[row] == number]):
            _strip(axes, (first - 0.44, -0.09 * highest), last - first + 0.88, 0.07 * highest, number)
    axes.set(xlim=(-0.7, L - 0.3), ylim=(-0.1 * highest, 1.06 * highest))
    _name_layers(axes.xaxis, [layers[row] for row in order])
    axes.set_ylabel(f"1 − CKA, {clusters.method} linkage", fontsize=10, color=INK, labelpad=11)
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    figure.set_label(f"Dendrogram of {L} layers, {clusters.method} linkage, {cut} into {count}.")
    return figure


def layer_weight_map(
    model: str,
    weights: Mapping[str, Sequence[float]],
    title: str = "",
    subtitle: str = "",
    single: Collection[str] = ("qbe",),
) -> Figure:
    """Which hidden states the heads of some tasks read: one row per task, darker for more weight.

    Args:
        model: whose they are.
        weights: task → weight of every hidden state, which sum to 1.
        title: written above, if any.
        subtitle: below it, smaller.
        single: the tasks that read one hidden state alone, which is marked as the best one.
    """
    names = [printable(task.upper()) for task in weights]
    weights_KL = np.asarray(list(weights.values()), dtype=np.float64)
    K, L = weights_KL.shape
    best_K = weights_KL.argmax(axis=1)
    mixed = [row for row, task in enumerate(weights) if task not in single]
    # Even weights should look like the middle of the scale.
    highest = max(float(weights_KL[mixed].max()), 2 / L) if mixed else 1.0
    colors = ScalarMappable(Normalize(0.0, highest), "viridis_r")
    rgba_KL4 = colors.to_rgba(weights_KL)
    figure, axes = _figure(1.0 + 0.34 * K + 0.2 * bool(subtitle), title, subtitle)
    for row, column in np.ndindex(K, L):
        value, state = float(weights_KL[row, column]), f"{names[row]}, {_state(column)}"
        if row in mixed:
            printed = value if L <= _PRINTED_UP_TO else None
            _cell(axes, row, column, rgba_KL4[row, column], f"{state}: weight {value:.3f}", printed)
            continue
        is_best = column == best_K[row]
        color, words = (INK, "the one state it reads") if is_best else (RULE, "not read")
        _cell(axes, row, column, color, f"{state}: {words}")
        if is_best:  # named beside it, on the side where there is more room
            side = 1 if column < L / 2 else -1
            place = {"ha": "left" if side == 1 else "right", "va": "center_baseline"}
            axes.text(column + 0.65 * side, row, "best", fontsize=9, color=INK, **place)
    axes.set(xlim=(-0.5, L - 0.5), ylim=(K - 0.5, -0.5))
    axes.set_yticks(range(K), names, parse_math=False)
    _name_layers(axes.xaxis, ["input", *range(1, L)])
    _color_bar(figure, axes, colors, "weight")
    most = "; ".join(f"{name} most of all {_state(best)}" for name, best in zip(names, best_K, strict=True))
    figure.set_label(f"Hidden states that each task reads from {printable(model)}. {most}.")
    return figure


def _figure(height: float, title: str, subtitle: str = "") -> tuple[Figure, Any]:
    """A figure as wide as all are, higher where it has a title, and its axes without a frame."""
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    figure = Figure(figsize=(6.4, height + 0.35 * bool(title)), dpi=125, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, pad=5, labelsize=11, labelcolor=INK)
    if subtitle:
        axes.set_title(fill(printable(subtitle), 90), fontsize=9, color=INK, pad=8, parse_math=False)
    if title:
        figure.suptitle(fill(printable(title), 64), fontsize=13, color=INK, parse_math=False)
    return figure, axes


def _name_layers(axis: Any, names: Sequence[int | str]) -> None:
    step = -(-len(names) // _NAMED_UP_TO)
    axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]])


def _cell(axes: Any, row: int, column: int, color: Any, words: str, value: float | None = None) -> None:
    """One of a heat map, with its value inside, short as in .97, which has room on a phone."""
    # A little too large: between neighbors that only touch, a scaled picture shows a gap.
    _box(axes, (column - 0.5, row - 0.5), 1.02, 1.02, words, color=color)
    if value is not None:
        said = f"{value:.2f}".replace("-0.00", "0.00").removeprefix("0")
        place = {"ha": "center", "va": "center_baseline", "in_layout": False}
        axes.text(column, row, said, fontsize=9, color=readable_on(color), **place)


def _outline(axes: Any, rows: tuple[int, int], columns: tuple[int, int], number: int) -> None:
    """A block of a cluster, inside its cells, so that those of neighboring clusters do not cover each other."""
    inset = 0.07
    corner = columns[0] - 0.5 + inset, rows[0] - 0.5 + inset
    width, height = columns[1] - columns[0] + 1 - 2 * inset, rows[1] - rows[0] + 1 - 2 * inset
    style: dict[str, Any] = {"fill": False, "edgecolor": cluster_color(number), "linewidth": 2.2, "joinstyle": "miter"}
    style["linestyle"] = "-" if rows == columns else (0, (2.5, 1.5))
    style["path_effects"] = [withStroke(linewidth=3.6, foreground="white")]
    _box(axes, corner, width, height, _cluster(number), **style)


def _strip(axes: Any, corner: tuple[float, float], width: float, height: float, number: int) -> None:
    """A cluster's color with its number."""
    color = cluster_color(number)
    _box(axes, corner, width, height, _cluster(number), color=color)
    place = {"ha": "center", "va": "center_baseline", "fontweight": "bold"}
    center = corner[0] + width / 2, corner[1] + height / 2
    axes.text(*center, str(number + 1), fontsize=9.5, color=readable_on(color), **place)


def _box(axes: Any, corner: tuple[float, float], width: float, height: float, words: str, **style: Any) -> None:
    """A rectangle that says something when pointed at; where it is changes neither limits nor layout."""
    style = {"linewidth": 0, "in_layout": False} | style
    axes.add_artist(Rectangle(corner, width, height, gid=words, **style))


def _color_bar(figure: Figure, axes: Any, colors: ScalarMappable, name: str) -> None:
    # In few colors, because that of many is an image, which has no place in a page of one file.
    few = ScalarMappable(colors.norm, colors.cmap.resampled(32))
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10])
    bar: Any = figure.colorbar(few, ax=axes, ticks=ticks, location="bottom", shrink=0.5, aspect=20, pad=0.02)
    bar.set_label(name, fontsize=10, color=INK, labelpad=7)
    bar.outline.set_visible(False)
    bar.solids.set_edgecolor("face")  # no gaps between them
    bar.ax.tick_params(length=0, pad=6, labelsize=10, labelcolor=INK)


def _cluster(number: int) -> str:
    return f"cluster {number + 1}"


def _state(column: int) -> str:
    """What a hidden state is called in Transformers' order."""
    return f"h_{column}" if column else "the first layer's input"
