"""The pictures that only the HTML report has, as SVG: they scale, show numbers when pointed at, and say in words what
they show.

Colors are classes of page.css. All are 480 units wide, so that a unit is about a pixel in a column of text and two
thirds of one on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..evaluation.metrics.bootstrap import Estimate
from .svg import element, hover, picture, round_steps, text

WIDTH = 480.0


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


class Spot(NamedTuple):
    """A model in a chart of size and quality.

    Attributes:
        name: of it.
        kind: "student", "teacher", "other" or "published": each has a shape of its own.
        parameters: more than 0.
        value: with its interval, whose ends are NaN where they are unknown.
    """

    name: str
    kind: str
    parameters: float
    value: Estimate


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
    label: str,
    series: Sequence[Series],
    *,
    bounds: tuple[float, float] | None = None,
    percent: bool = False,
    over: str = "step",
) -> str:
    """Lines over training steps, or over layers.

    Args:
        label: text alternative.
        series: what is drawn; points that are no finite numbers are not there.
        bounds: of the values; by default those of the series.
        percent: values are shares.
        over: what stands below: "step" or "layer".
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
    parts.append(text(WIDTH - right, bottom + 39, over, text_anchor="end", class_="quiet"))
    for one in series:
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in one.points)
        parts.append(element("polyline", points=path, class_=f"line {one.kind}"))
    for one in series:
        for x, y in one.points:
            said = f"{one.name}, {over} {x:g}: " + (f"{y:.2%}" if percent else f"{y:.4f}")
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


def spots_picture(
    label: str, spots: Sequence[Spot], over: str, *, floor: tuple[str, float] | None = None, digits: int = 0
) -> str:
    """Models by their parameters, on a logarithmic axis, and a value.

    Args:
        label: text alternative.
        spots: one at least.
        over: what the value is.
        floor: name and value of a line; the axis reaches it. Without one it begins at the lowest value.
        digits: of values.
    """
    values = [end for spot in spots for end in spot.value if math.isfinite(end)]
    values += [floor[1]] if floor is not None else []
    margin = (abs(values[0]) / 10 or 1.0) if min(values) == max(values) else 0.0
    steps = round_steps(min(values) - margin, max(values) + margin)
    sizes = [math.log10(spot.parameters) for spot in spots]
    low, high = min(sizes) - 0.12, max(sizes) + 0.12
    left, right, top, bottom = 52.0, 14.0, 30.0, 250.0

    def across(parameters: float) -> float:
        return left + (math.log10(parameters) - low) / (high - low) * (WIDTH - left - right)

    def up(value: float) -> float:
        return bottom - (value - steps[0]) / (steps[-1] - steps[0]) * (bottom - top)

    parts = _grid(steps, up, left, WIDTH - right)
    parts.append(text(0, 8, over, class_="quiet"))
    for size, words in _sizes(low, high):
        parts.append(text(across(size), bottom + 20, words, text_anchor="middle", class_="quiet"))
    parts.append(text(WIDTH - right, bottom + 39, "parameters", text_anchor="end", class_="quiet"))
    taken: list[tuple[float, float, float, float]] = []
    if floor is not None:
        y = up(floor[1])
        parts.append(element("line", x1=left, x2=WIDTH - right, y1=y, y2=y, class_="line aim"))
        parts.append(text(WIDTH - right, y - 9, floor[0], text_anchor="end", class_="quiet"))
        taken.append((WIDTH - right - 7.2 * len(floor[0]), y - 18, WIDTH - right, y))
    places = [(across(spot.parameters), up(spot.value[0])) for spot in spots]
    taken += [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    # Those that the page is about get their names first.
    order = sorted(range(len(spots)), key=lambda number: KINDS.index(spots[number].kind))
    for number in reversed(order):
        parts.append(_spot(spots[number], *places[number], up, digits))
    for number in order:
        parts += _name_of(spots[number].name, *places[number], taken)
    return picture(WIDTH, bottom + 46, label, parts)


KINDS = ("student", "teacher", "other", "published")


def mark(kind: str, x: float, y: float, size: float = 5.5) -> str:
    """What stands for a kind of model: a disk, a square, a triangle, a ring."""
    corners = {"teacher": ((-1, -1), (1, -1), (1, 1), (-1, 1)), "other": ((0, -1.1), (1.1, 0.9), (-1.1, 0.9))}
    if kind in corners:
        said = " ".join(f"{x + size * one:.1f},{y + size * other:.1f}" for one, other in corners[kind])
        return element("polygon", points=said, class_=f"mark {kind}")
    return element("circle", cx=x, cy=y, r=size if kind == "student" else size - 1, class_=f"mark {kind}")


def _spot(spot: Spot, x: float, y: float, up: Callable[[float], float], digits: int) -> str:
    value, low, high = spot.value
    parts = []
    interval = ""
    if math.isfinite(low) and math.isfinite(high):
        interval = f" [{low:.{digits}f}, {high:.{digits}f}]"
        parts.append(element("line", x1=x, x2=x, y1=up(low), y2=up(high), class_=f"bar {spot.kind}"))
        parts += [
            element("line", x1=x - 4, x2=x + 4, y1=up(y), y2=up(y), class_=f"bar {spot.kind}") for y in spot.value[1:]
        ]
    words = f"{spot.name}, {spot.kind}: {spot.parameters / 1e6:.3g} M parameters, {value:.{digits}f}{interval}"
    return element("g", hover(words), *parts, mark(spot.kind, x, y))


def _name_of(name: str, x: float, y: float, taken: list[tuple[float, float, float, float]]) -> list[str]:
    """A name beside its spot where there is room; none where there is not, since the table has it."""
    shown = name if len(name) <= 32 else f"{name[:31]}…"
    width, high = 7.2 * len(shown), 15.0
    for anchor, left, top in (
        ("start", x + 10, y - high / 2),
        ("end", x - 10 - width, y - high / 2),
        ("middle", x - width / 2, y - 9 - high),
        ("middle", x - width / 2, y + 9),
        ("end", x - 4 - width, y - 8 - high),
        ("end", x - 4 - width, y + 8),
    ):
        box = (left, top, left + width, top + high)
        free = not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken)
        if free and left >= 52 and left + width <= WIDTH and top >= 12:
            taken.append(box)
            at = {"start": left, "end": left + width, "middle": left + width / 2}[anchor]
            return [text(at, top + high / 2, shown, text_anchor=anchor, dominant_baseline="central")]
    return []


def _sizes(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers of parameters between two powers of ten, few enough to read."""
    for factors in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        powers = range(math.floor(low), math.ceil(high) + 1)
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [size for size in found if low <= math.log10(size) <= high]
        if len(found) <= 6:
            break
    found = found or [10.0 ** ((low + high) / 2)]
    return [(size, _short(size)) for size in found]


def _short(size: float) -> str:
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if size >= unit:
            return f"{size / unit:.3g}{name}"
    return f"{size:.3g}"


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
