"""Tables of what the components of an encoder take on a machine, by their widths: measured, written and read."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import pairwise, product
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .encoder import Encoder, EncoderConfig, LayerConfig
from .encoder.layers import Attention, ConvLayer, FeatureProjection, FeedForward
from .environment import processor
from .errors import InputError
from .files import write_json
from .kernels import attach_kernels
from .pruning import REFERENCE_SECONDS, Curve, Surface, Times, Widths
from .run.records import RECORDS, read_record

logger = logging.getLogger(__name__)

SHARES = (0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
"""Of the whole width: where channels are measured."""

FINE_SHARES = (0, 1 / 64, 1 / 32, *SHARES[1:])
"""The same of units, of which few may be left; they need no pairs."""

MOST_HEADS = 16
"""Every number of heads is measured up to here; of more heads, every second or third number."""

Key = TypeVar("Key")
Part = TypeVar("Part", bound=nn.Module)

Spent = dict[tuple[str | int, ...], float]
"""Seconds by what they were spent on: a component, its number and its widths."""


def clock(module: nn.Module, name: Key, spent: dict[Key, float]) -> list[torch.utils.hooks.RemovableHandle]:
    """Add the time of every call of a module to what its component has spent, until the handles are removed."""
    started = 0.0

    def before(*_: object) -> None:
        nonlocal started
        started = time.perf_counter()

    def after(*_: object) -> None:
        spent[name] = spent.get(name, 0.0) + time.perf_counter() - started

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


@torch.inference_mode()
def measure_times(encoder: Encoder, seconds: float = REFERENCE_SECONDS, rounds: int = 5) -> Times:
    """Time the components of an encoder at several widths, as `profile` times a whole one: float32, one utterance.

    Everything is timed once in each round, and the fastest time counts: what else the machine does only adds to it.
    For the same reason nothing takes longer than something wider did. Then each component is brought to the time that
    it takes within a pass of the encoder, and all of them together to the time of the pass.

    Args:
        encoder: on a CPU, as `load_encoder` gives it.
        seconds: length of the utterance.
        rounds: how often everything is timed.
    """
    config = encoder.config
    with torch.random.fork_rng(devices=[]):  # a run draws the same numbers whether or not it measures
        bench, waveform_BT = _Bench(encoder), torch.randn(1, round(seconds * config.sampling_rate))
    best: Spent = {}
    for number in range(rounds + 1):
        spent = bench.times(waveform_BT) | _pass(encoder, waveform_BT)
        if number:  # the first one warms up
            best = {key: min(value, best.get(key, value)) for key, value in spent.items()}

    def curve(name: str, knots: Sequence[int], widths: Sequence[int]) -> Curve:
        alone = Curve(knots, _ascending([best[name, width] for width in knots]).tolist())
        inside = sum(best["inside", name, number] for number in range(len(widths)))
        factor = inside / sum(alone.at(width) for width in widths)
        return Curve(knots, [factor * value for value in alone.seconds])

    convs = []
    for number, (inputs, outputs) in enumerate(zip([[1], *bench.channels[:-1]], bench.channels, strict=True)):
        alone_IO = _ascending([[best["conv", number, i, o] for o in outputs] for i in inputs])
        seconds_IO = alone_IO * (best["inside", "conv", number] / alone_IO[-1, -1])
        convs.append(Surface(inputs, outputs, seconds_IO.tolist()))
    widths = Widths.of(config)
    times = Times(
        utterance=seconds,
        fixed=best["inside", "rest"],
        convs=convs,
        projection=curve("projection", bench.channels[-1], widths.channels[-1:]),
        attention=curve("attention", bench.heads, widths.heads),
        feed_forward=curve("feed_forward", bench.units, widths.units),
        encoder=json.loads(json.dumps(config.to_dict())),
        machine={"processor": processor(), "threads": torch.get_num_threads(), "precision": "float32"},
    )
    return times.scaled(1000 * best["inside", "all"] / seconds / times.count(config, widths))


class _Bench:
    """Components of an encoder at several widths, with random weights."""

    def __init__(self, encoder: Encoder) -> None:
        config = self.config = encoder.config
        self.position_bias = encoder.position_bias
        heads = max(len(layer.heads) for layer in config.layers)
        units = max(layer.units for layer in config.layers)
        self.heads = sorted({*range(0, heads, math.ceil(heads / MOST_HEADS) or 1), min(1, heads), heads})
        self.units = sorted({_width(units, share) for share in FINE_SHARES})
        self.channels = [sorted({_channels(conv.channels, share) for share in SHARES}) for conv in config.convs]
        # A front end that alternates between two shares has a pair of widths in every convolution.
        self.front_ends = [self._front_end(even, odd) for even, odd in product(SHARES, SHARES)]
        self.attention = [_ready(Attention(config, LayerConfig(tuple(range(count)), 0))) for count in self.heads]
        self.feed_forward = [_ready(FeedForward(config, count)) for count in self.units]

    def _front_end(self, *shares: float) -> tuple[list[ConvLayer], FeatureProjection]:
        convs = tuple(
            replace(conv, channels=_channels(conv.channels, shares[number % 2]))
            for number, conv in enumerate(self.config.convs)
        )
        config = self.config.replace(convs=convs)
        return [_ready(ConvLayer(config, number)) for number in range(len(convs))], _ready(FeatureProjection(config))

    def times(self, waveform_BT: Tensor) -> Spent:
        """Seconds of every component once."""
        spent: Spent = {}

        def note(started: float, *key: str | int) -> None:
            seconds = time.perf_counter() - started
            spent[key] = min(seconds, spent.get(key, seconds))

        for convs, projection in self.front_ends:
            x_BTC = waveform_BT[..., None]
            for number, conv in enumerate(convs):
                started = time.perf_counter()
                x_BTC = conv(x_BTC, None, None)[0]  # gives the memory of what it reads back, too
                note(started, "conv", number, *conv.conv.weight.shape[1::-1])
            started = time.perf_counter()
            x_BTD = projection(x_BTC, None)
            note(started, "projection", x_BTC.shape[-1])
        position_HTT = None if self.position_bias is None else self.position_bias(x_BTD.shape[1])
        for count, attention in zip(self.heads, self.attention, strict=True):
            started = time.perf_counter()
            attention(x_BTD, position_HTT, None)
            note(started, "attention", count)
        for count, feed_forward in zip(self.units, self.feed_forward, strict=True):
            started = time.perf_counter()
            feed_forward(x_BTD)
            note(started, "feed_forward", count)
        return spent


def _ready(module: Part) -> Part:
    """To be timed as in an encoder that `load_encoder` gives."""
    return attach_kernels(module).eval()


def _width(whole: int, share: float) -> int:
    """An odd width: most of a student's are not the multiples of 8 and more that matrix products are fastest at."""
    return min(whole, round(share * whole) | 1) if 0 < share < 1 else round(share * whole)


def _channels(whole: int, share: float) -> int:
    """At least one: a front end without channels is none."""
    return max(1, _width(whole, share))


def _pass(encoder: Encoder, waveform_BT: Tensor) -> Spent:
    """Seconds of an encoder's components, of what lies between them, and of all, in one pass."""
    spent: Spent = {}
    parts: dict[tuple[str | int, ...], nn.Module] = {("inside", "projection", 0): encoder.projection}
    for number, layer in enumerate(encoder.layers):
        for name in ("attention", "feed_forward"):
            parts["inside", name, number] = layer.get_submodule(name)
    handles = [handle for key, module in parts.items() for handle in clock(module, key, spent)]
    # A convolution lasts until the next one starts: what the last one has read is given back in between.
    starts: list[float] = []
    for module in (*encoder.convs, encoder.projection):
        handles.append(module.register_forward_pre_hook(lambda *_: starts.append(time.perf_counter())))
    try:
        started = time.perf_counter()
        encoder(waveform_BT)
        whole = time.perf_counter() - started
    finally:
        for handle in handles:
            handle.remove()
    spent |= {("inside", "conv", number): stop - start for number, (start, stop) in enumerate(pairwise(starts))}
    return spent | {("inside", "rest"): whole - sum(spent.values()), ("inside", "all"): whole}


def _ascending(seconds: ArrayLike) -> np.ndarray:
    """The times with each at most that of anything wider."""
    values = np.asarray(seconds, dtype=float)
    for axis in range(values.ndim):
        values = np.flip(np.minimum.accumulate(np.flip(values, axis), axis), axis)
    return values


def write_times(path: Path, times: Times) -> None:
    """Write a table as JSON."""
    write_json(path, asdict(times))


def read_times(path: Path, config: EncoderConfig) -> Times:
    """A table that was written for an encoder of that shape.

    Raises:
        InputError: the file is damaged, or of another shape.
    """
    values, here = read_record(path, "times"), json.loads(json.dumps(config.to_dict()))
    other = [name for name in here if not name.endswith("_dropout") and here[name] != values["encoder"].get(name)]
    if other:
        raise InputError(f"{path}: measured on an encoder with other {', '.join(other)}; {RECORDS['times'][1]}")
    try:
        times = Times.from_dict(values)
        if not times.count(config, Widths.of(config)) > 0:
            raise ValueError("the whole encoder takes no time")
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); {RECORDS['times'][1]}") from None
    return times
