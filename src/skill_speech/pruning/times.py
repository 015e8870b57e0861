"""How long an encoder takes as a formula of its widths, from a table of what its components take on some machine.

    seconds = fixed + Σ conv(inputs, outputs) + projection(channels) + Σ attention(heads) + Σ feed_forward(units)

Between the widths that were measured, times are interpolated linearly: the formula serves whole numbers and
expectations alike, as those of `size` do, and is differentiable in the latter.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from ..encoder import EncoderConfig
from .size import Number, Widths, as_float


@dataclass(frozen=True)
class Curve:
    """Seconds that a component takes by its width (K,), both ascending."""

    widths: Sequence[int]
    seconds: Sequence[float]

    def at(self, width: Number) -> Number:
        """Seconds at a width."""
        return _interpolated(self.widths, lambda place: self.seconds[place], width)


@dataclass(frozen=True)
class Surface:
    """Seconds that a convolution takes by its input and output channels (K, N), ascending along both."""

    inputs: Sequence[int]
    outputs: Sequence[int]
    seconds: Sequence[Sequence[float]]

    def at(self, inputs: Number, outputs: Number) -> Number:
        """Seconds at these numbers of channels."""
        return _interpolated(self.inputs, lambda place: Curve(self.outputs, self.seconds[place]).at(outputs), inputs)


@dataclass(frozen=True)
class Times:
    """What the components of an encoder take for one utterance, by their widths.

    Attributes:
        utterance: its length in seconds.
        fixed: seconds that do not depend on any width.
        convs: of each convolution.
        projection: of the feature projection, by its input channels.
        attention: of one layer, by its heads.
        feed_forward: of one layer, by its units.
        encoder: the configuration that was measured.
        machine: problem measured on.
    """

    utterance: float
    fixed: float
    convs: Sequence[Surface]
    projection: Curve
    attention: Curve
    feed_forward: Curve
    encoder: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    def count(self, config: EncoderConfig, widths: Widths) -> Number:
        """Milliseconds for a second of audio that an encoder of such widths takes; `config` is the one measured."""
        seconds: Number = self.fixed + self.projection.at(widths.channels[-1])
        for conv, inputs, outputs in zip(self.convs, [1, *widths.channels[:-1]], widths.channels, strict=True):
            seconds = seconds + conv.at(inputs, outputs)
        for heads, units in zip(widths.heads, widths.units, strict=True):
            seconds = seconds + self.attention.at(heads) + self.feed_forward.at(units)
        return 1000 * seconds / self.utterance

    def scaled(self, factor: float) -> Times:
        """The same machine if everything took so many times as long."""

        def curve(one: Curve) -> Curve:
            return Curve(one.widths, [factor * value for value in one.seconds])

        return replace(
            self,
            fixed=factor * self.fixed,
            convs=[Surface(c.inputs, c.outputs, [[factor * v for v in row] for row in c.seconds]) for c in self.convs],
            projection=curve(self.projection),
            attention=curve(self.attention),
            feed_forward=curve(self.feed_forward),
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Times:
        """A table out of what `dataclasses.asdict` makes of one.

        Raises:
            ValueError: widths or seconds do not ascend, or are not as many as they should be.
        """
        curves = {name: Curve(**values[name]) for name in ("projection", "attention", "feed_forward")}
        convs = [Surface(**conv) for conv in values["convs"]]
        for surface in convs:
            rows = [Curve(surface.outputs, row) for row in surface.seconds]
            columns = [Curve(surface.inputs, column) for column in zip(*surface.seconds, strict=True)]
            if not rows or not columns:
                raise ValueError("a convolution has no times")
            for curve in (*rows, *columns):
                _check(curve)
        for curve in curves.values():
            _check(curve)
        return cls(**values | curves | {"convs": convs})


def _check(curve: Curve) -> None:
    if not curve.widths or len(curve.widths) != len(curve.seconds):
        raise ValueError("there are not as many seconds as widths")
    if any(low >= high for low, high in pairwise(curve.widths)):
        raise ValueError("its widths are not ascending")
    if any(low > high for low, high in pairwise(curve.seconds)):
        raise ValueError("a wider component is faster in it")


def _interpolated(knots: Sequence[int], value: Callable[[int], Number], at: Number) -> Number:
    """Linear between the knots, and on as between the last two outside of them."""
    if len(knots) == 1:
        return value(0)
    place = min(max(bisect_right(knots, as_float(at)), 1), len(knots) - 1)
    low, high = value(place - 1), value(place)
    return low + (high - low) * ((at - knots[place - 1]) / (knots[place] - knots[place - 1]))
