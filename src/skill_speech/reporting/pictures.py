"""The pictures of the HTML report, as SVG: they scale, show numbers when pointed at, and say in words what they show.

Colours that depend on light and dark are classes of page.css; those of a heat map are the same in both. All are 480
units wide, so that a unit is about a pixel in a column of text and two thirds of one on a phone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import to_hex, to_rgb
from numpy.typing import NDArray

from ..similarity import LayerClusters
from .shapes import CLUSTER_COLOURS, cluster_colour, runs_of, tree_layout
from .svg import element, hover, picture, round_steps, text

WIDTH = 480.0
PRINTED_UP_TO = 13  # cells in a row: more numbers than these cannot be read


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
        name: of it.
        kind: class of page.css.
        points: (x, y), in the order of x.
        marked: each point is a dot, for values that are few and far between.
    """

    name: str
    kind: str
    points: list[tuple[float, float]]
    marked: bool = False


class Bar(NamedTuple):
    """What there was and what is left of it."""

    name: str
    before: float
    after: float


def cluster_class(number: int) -> str:
    """The class of page.css that has a cluster's colour, clusters counted from 0."""
    return f"c{number % len(CLUSTER_COLOURS) + 1}"


def readable_on(colour: str) -> str:
    """Black or white, whichever stands out more on a colour (WCAG's relative luminance): at least 4.5 to 1."""
    channels = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(colour)]
    luminance = float(np.dot(channels, (0.2126, 0.7152, 0.0722)))
    return "#ffffff" if 1.05 / (luminance + 0.05) >= (luminance + 0.05) / 0.05 else "#000000"


def similarity_picture(cka_LL: NDArray[np.float64], clusters: LayerClusters) -> str:
    """The heat map with cluster borders: blocks on the diagonal in a full line, others of the cluster in dashes."""
    layers = clusters.layers
    L = len(layers)
    left, top = 42.0, 2.0
    cell = (WIDTH - left - 2) / L
    lowest = float(min(np.floor(cka_LL.min() * 10) / 10, 0.9))
    parts = []
    for row, column in np.ndindex(L, L):
        value = float(cka_LL[row, column])
        colour = _viridis((value - lowest) / (1 - lowest))
        x, y = left + column * cell, top + row * cell
        words = f"h_{layers[row]} and h_{layers[column]}: CKA {value:.3f}"
        box = element("rect", x=x, y=y, width=cell + 0.3, height=cell + 0.3, fill=colour)
        if L <= PRINTED_UP_TO:
            said = f"{value:.2f}".replace("-0.00", "0.00")
            box += _inside(x + cell / 2, y + cell / 2, said, colour)
        parts.append(element("g", hover(words), box))
    for number, group in enumerate(clusters.groups):
        runs = runs_of([layers.index(layer) for layer in group])
        for rows, columns in product(runs, runs):
            parts += _outline(left, top, cell, rows, columns, cluster_colour(number))
        for first, last in runs:
            length = (last - first + 1) * cell - 2
            parts += _chip(26, top + first * cell + 1, 13, length, number)
            parts += _chip(left + first * cell + 1, top + L * cell + 3, length, 13, number)
    for row, layer in enumerate(layers):
        middle = (row + 0.5) * cell
        if _labelled(row, L):
            parts.append(text(22, top + middle, str(layer), text_anchor="end", dominant_baseline="central"))
            parts.append(text(left + middle, top + L * cell + 32, str(layer), text_anchor="middle"))
    bottom = top + L * cell + 48
    parts += _scale(left, bottom, lowest)
    a, b = np.unravel_index(int(np.argmin(cka_LL)), cka_LL.shape)
    label = (
        f"Heat map of the similarity of {L} layers. Least alike are h_{layers[min(a, b)]} and h_{layers[max(a, b)]} "
        f"with a CKA of {cka_LL.min():.3f}. Clusters: {describe_groups(clusters)}."
    )
    return picture(WIDTH, bottom + 16, label, parts)


def dendrogram_picture(clusters: LayerClusters) -> str:
    """The tree of merges, branches below the cut in their cluster's colour, the cut as a dashed line."""
    layers, linkage, K = clusters.layers, clusters.linkage, len(clusters.groups)
    L = len(layers)
    number_of = {layers.index(layer): number for number, group in enumerate(clusters.groups) for layer in group}
    order, merges = tree_layout(linkage)
    steps = round_steps(0, max([*linkage[:, 2].tolist(), clusters.threshold, 1e-9]))
    left, right, top, bottom = 46.0, 10.0, 18.0, 236.0

    def at(place: float) -> float:
        return left + (place + 0.5) * (WIDTH - left - right) / L

    def up(height: float) -> float:
        return bottom - height / steps[-1] * (bottom - top)

    parts = _grid(steps, up, left, WIDTH - right)
    for node, (one, other, height) in enumerate(merges):
        # The first L - K merges made the clusters; counting them, not heights, is right among ties as well.
        inside = node < L - K
        kind = f"branch {cluster_class(number_of[one.row])}" if inside else "branch trunk"
        path = f"M{at(one.x):.1f} {up(one.y):.1f}V{up(height):.1f}H{at(other.x):.1f}V{up(other.y):.1f}"
        words = f"merge {node + 1} of {len(merges)}, at 1 − CKA = {height:.3f}" + ("" if inside else ", above the cut")
        parts.append(element("path", hover(words), d=path, class_=kind))
        for child in (one, other):
            if not inside and child.node < 2 * L - K:  # a whole cluster: its stem has its colour up to the cut
                stem = f"M{at(child.x):.1f} {up(child.y):.1f}V{up(min(height, clusters.threshold)):.1f}"
                parts.append(element("path", d=stem, class_=f"branch {cluster_class(number_of[child.row])}"))
    cut = up(clusters.threshold)
    words = f"cut at {clusters.threshold:.3f}: {len(clusters.groups)} clusters"
    parts.append(element("line", hover(words), x1=left, x2=WIDTH - right, y1=cut, y2=cut, class_="cut"))
    parts.append(text(WIDTH - right, cut - 6, f"cut at {clusters.threshold:.3f}", text_anchor="end", class_="over"))
    size = (WIDTH - left - right) / L
    for place, row in enumerate(order):
        parts += _chip(at(place) - size / 2 + 1, bottom + 3, size - 2, 13, number_of[row])
        if _labelled(place, L):
            parts.append(text(at(place), bottom + 32, str(layers[row]), text_anchor="middle"))
    label = f"Dendrogram of {L} layers, {clusters.method} linkage, cut at {clusters.threshold:.3f} into {K} clusters."
    return picture(WIDTH, bottom + 40, label, parts)


def heads_picture(before: Sequence[Sequence[int]], after: Sequence[Sequence[int]]) -> str:
    """A row per layer, a square per head of the teacher: full where it is kept."""
    count = max([head + 1 for heads in before for head in heads], default=1)
    left, right, high = 34.0, 96.0, 21.0
    step = min(high, (WIDTH - left - right) / count)
    size = 0.76 * step
    parts = []
    for row, (had, kept) in enumerate(zip(before, after, strict=True)):
        middle = (row + 0.5) * high
        parts.append(text(left - 10, middle, str(row + 1), text_anchor="end", dominant_baseline="central"))
        for head in had:
            words = f"layer {row + 1}, head {head}: {'kept' if head in kept else 'removed'}"
            corner = {"x": left + head * step + (step - size) / 2, "y": middle - size / 2, "rx": 2.5}
            kind = "kept" if head in kept else "gone"
            parts.append(element("rect", hover(words), width=size, height=size, class_=kind, **corner))
        said = f"{len(kept)} of {len(had)}"
        parts.append(text(left + count * step + 12, middle, said, dominant_baseline="central", class_="quiet"))
    had_all, kept_all = sum(map(len, before)), sum(map(len, after))
    label = f"Attention heads per layer: {kept_all} of {had_all} are kept. " + "; ".join(
        f"layer {row}: {len(kept)} of {len(had)}" for row, (had, kept) in enumerate(zip(before, after, strict=True), 1)
    )
    return picture(WIDTH, high * len(before), f"{label}.", parts)


def survivors_picture(what: str, before: Sequence[int], after: Sequence[int]) -> str:
    """A row per layer: how many there were as a pale bar, how many are left as a full one."""
    left, right, high, thick = 34.0, 124.0, 21.0, 11.0
    whole = max([*before, 1])
    parts = []
    for row, (had, kept) in enumerate(zip(before, after, strict=True)):
        middle = (row + 0.5) * high
        bars = "".join(
            element("rect", x=left, y=middle - thick / 2, height=thick, width=full, rx=min(2.5, full / 2), class_=kind)
            for kind, full in (
                ("gone", had / whole * (WIDTH - left - right)),
                ("kept", kept / whole * (WIDTH - left - right)),
            )
            if full
        )
        share = f" ({kept / had:.1%})" if had else ""
        parts.append(element("g", hover(f"layer {row + 1}: {kept} of {had} {what}{share}"), bars))
        parts.append(text(left - 10, middle, str(row + 1), text_anchor="end", dominant_baseline="central"))
        said = f"{kept} of {had}"
        parts.append(text(WIDTH - right + 12, middle, said, dominant_baseline="central", class_="quiet"))
    label = f"{what} per layer: {sum(after)} of {sum(before)} are left. " + "; ".join(
        f"layer {row}: {kept} of {had}" for row, (had, kept) in enumerate(zip(before, after, strict=True), 1)
    )
    return picture(WIDTH, high * len(before), f"{label}.", parts)


def lines_picture(
    label: str, series: Sequence[Series], *, bounds: tuple[float, float] | None = None, percent: bool = False
) -> str:
    """Lines over training steps.

    Args:
        label: text alternative.
        series: what is drawn; points that are no finite numbers are not there.
        bounds: of the values; by default those of the series.
        percent: values are shares.
    """
    values = [y for one in series for _, y in one.points]
    low, high = bounds or (min(values), max(values))
    steps = round_steps(low, high)
    last = max(x for one in series for x, _ in one.points)
    ticks = [tick for tick in round_steps(0, last, 6) if tick <= last * 1.0001] or [0.0]
    left, right, top, bottom = 52.0, 14.0, 12.0, 206.0

    def across(x: float) -> float:
        return left + x / max(last, 1e-9) * (WIDTH - left - right)

    def up(y: float) -> float:
        return bottom - (y - steps[0]) / (steps[-1] - steps[0]) * (bottom - top)

    parts = _grid(steps, up, left, WIDTH - right, percent)
    parts += [text(across(tick), bottom + 20, f"{tick:g}", text_anchor="middle", class_="quiet") for tick in ticks]
    parts.append(text(WIDTH - right, bottom + 39, "step", text_anchor="end", class_="quiet"))
    for one in series:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in one.points)
        parts.append(element("polyline", points=path, class_=f"line {one.kind}"))
    for one in series:
        for x, y in one.points:
            said = f"{one.name}, step {x:g}: " + (f"{y:.2%}" if percent else f"{y:.4f}")
            kind = f"dot {one.kind}" if one.marked else "target"
            spot = {"cx": across(x), "cy": up(y)}
            parts.append(element("circle", hover(said), r=4 if one.marked else 7, class_=kind, **spot))
    return picture(WIDTH, bottom + 46, label, parts)


def budget_picture(what: str, bars: Sequence[Bar], human: Mapping[float, str]) -> str:
    """Two bars per component: the teacher's and the student's."""
    high, thick, room = 62.0, 13.0, 92.0
    whole = max([bar.before for bar in bars] + [1e-9])
    parts = []
    for row, bar in enumerate(bars):
        y = row * high
        parts.append(text(0, y + 14, bar.name))
        share = f"{bar.after / bar.before:.1%} left" if bar.before else ""
        parts.append(text(WIDTH, y + 14, share, text_anchor="end", class_="quiet"))
        for place, (who, kind, value) in enumerate(
            (("teacher", "before", bar.before), ("student", "after", bar.after))
        ):
            length = value / whole * (WIDTH - room)
            here = y + 22 + place * (thick + 3)
            box = element("rect", x=0, y=here, height=thick, width=max(length, 1), rx=min(2.5, length / 2), class_=kind)
            parts.append(element("g", hover(f"{bar.name}, {who}: {human[value]} {what}"), box))
            middle = {"dominant_baseline": "central", "class_": "quiet"}
            parts.append(text(max(length, 1) + 8, here + thick / 2, human[value], **middle))
    label = f"{what} by component: " + "; ".join(
        f"{bar.name}: teacher {human[bar.before]}, student {human[bar.after]}" for bar in bars
    )
    return picture(WIDTH, high * len(bars), f"{label}.", parts)


def layer_weights_picture(model: str, weights: Mapping[str, Sequence[float]]) -> str:
    """A row per task, a column per hidden state, darker for more weight."""
    values_KL = np.asarray(list(weights.values()), dtype=np.float64)
    K, L = values_KL.shape
    left, high = 52.0, 26.0
    cell = (WIDTH - left - 2) / L
    single = {row for row in range(K) if np.count_nonzero(values_KL[row]) == 1}
    mixed = [row for row in range(K) if row not in single]
    # Even weights should look like the middle of the scale; a task that reads one state alone is off it.
    highest = max(float(values_KL[mixed].max()), 2 / L) if mixed else 1.0
    parts = []
    for row, task in enumerate(weights):
        name = {"text_anchor": "end", "dominant_baseline": "central"}
        parts.append(text(left - 8, (row + 0.5) * high, task.upper(), **name))
        for column in range(L):
            value = float(values_KL[row, column])
            corner = {"x": left + column * cell, "y": row * high, "width": cell + 0.3, "height": high - 2}
            if row in single:
                words = "the one state it reads" if value else "not read"
                box = element("rect", class_="kept" if value else "gone", **corner)
            else:
                words, colour = f"weight {value:.3f}", _viridis(1 - min(1.0, value / highest))
                box = element("rect", fill=colour, **corner)
                if L <= PRINTED_UP_TO:
                    said = f"{value:.2f}".removeprefix("0")
                    box += _inside(left + (column + 0.5) * cell, (row + 0.5) * high - 1, said, colour)
            parts.append(element("g", hover(f"{task.upper()}, {state_name(column)}: {words}"), box))
    for column in range(L):
        if _labelled(column, L):
            said = "in" if column == 0 else str(column)
            parts.append(text(left + (column + 0.5) * cell, K * high + 16, said, text_anchor="middle"))
    most = "; ".join(
        f"{task.upper()} most of all {state_name(int(np.argmax(row)))}"
        for task, row in zip(weights, values_KL, strict=True)
    )
    return picture(WIDTH, K * high + 24, f"Hidden states that each task reads from {model}. {most}.", parts)


def state_name(column: int) -> str:
    """What a hidden state is called in Transformers' order."""
    return f"h_{column}" if column else "the first layer's input"


def describe_groups(clusters: LayerClusters) -> str:
    """The clusters in a line."""
    return "; ".join(
        f"{number}: {', '.join(f'h_{layer}' for layer in group)}" for number, group in enumerate(clusters.groups, 1)
    )


def _viridis(share: float) -> str:
    return str(to_hex(matplotlib.colormaps["viridis"](min(1.0, max(0.0, share)))))


def _labelled(row: int, count: int) -> bool:
    """Beyond sixteen, every second name is left out: they have to be readable on a phone."""
    return count <= 16 or row % 2 == 0


def _inside(x: float, y: float, words: str, colour: str) -> str:
    """A value in a cell of a heat map."""
    place = {"text_anchor": "middle", "dominant_baseline": "central", "class_": "value"}
    return text(x, y, words, fill=readable_on(colour), **place)


def _outline(
    left: float, top: float, cell: float, rows: tuple[int, int], columns: tuple[int, int], colour: str
) -> list[str]:
    """A block of a cluster, inside its cells so that neighbours do not cover each other, on a white casing."""
    box: dict[str, str | float] = {
        "x": left + columns[0] * cell + 2,
        "y": top + rows[0] * cell + 2,
        "width": (columns[1] - columns[0] + 1) * cell - 4,
        "height": (rows[1] - rows[0] + 1) * cell - 4,
        "fill": "none",
        "pointer_events": "none",
    }
    dashes: dict[str, str | float] = {} if rows == columns else {"stroke_dasharray": "6 4"}
    return [
        element("rect", stroke="#ffffff", stroke_width=4, **box),
        element("rect", stroke=colour, stroke_width=2.4, **box, **dashes),
    ]


def _chip(x: float, y: float, width: float, height: float, number: int) -> list[str]:
    """A strip in a cluster's colour with its number."""
    place = {"text_anchor": "middle", "dominant_baseline": "central", "class_": "number"}
    inside = [
        hover(f"cluster {number + 1}"),
        element("rect", x=x, y=y, width=width, height=height, rx=2, class_="chip"),
        text(x + width / 2, y + height / 2 + 0.5, str(number + 1), **place),
    ]
    return [element("g", *inside, class_=cluster_class(number))]


def _scale(left: float, y: float, lowest: float) -> list[str]:
    """The colours of a heat map from `lowest` to 1."""
    start, length, steps = left + 78, 180.0, 30
    parts = [text(left, y + 6, "CKA", dominant_baseline="central", class_="quiet")]
    parts.append(text(start - 8, y + 6, f"{lowest:.1f}", text_anchor="end", dominant_baseline="central"))
    for step in range(steps):
        colour, x = _viridis(step / (steps - 1)), start + step * length / steps
        parts.append(element("rect", x=x, y=y, width=length / steps + 0.3, height=12, fill=colour))
    parts.append(text(start + length + 8, y + 6, "1.0", dominant_baseline="central"))
    return parts


def _grid(
    steps: Sequence[float], up: Callable[[float], float], left: float, right: float, percent: bool = False
) -> list[str]:
    parts = []
    for step in steps:
        y = up(step)
        said = f"{step:.0%}" if percent else f"{step:g}"
        parts.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(text(left - 8, y, said, text_anchor="end", dominant_baseline="central", class_="quiet"))
    return parts
