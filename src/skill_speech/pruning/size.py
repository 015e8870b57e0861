"""Parameters and multiply-accumulates of an encoder as one formula of its widths.

The same formula serves whole numbers (a pruned model, exactly) and expectations (a gated one, differentiably): gates
are independent, so the expectation of a product of two layers' widths is the product of their expectations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..encoder import Encoder, EncoderConfig
from .gates import find_gates

Number = Any  # int, float, or a 0-d tensor: the formulas are written once for all of them
REFERENCE_SECONDS = 10.0


@dataclass
class Widths:
    """What is left of every layer, as numbers or expectations.

    Attributes:
        channels: channels of each convolution.
        heads: heads of each transformer layer.
        attends: per transformer layer, whether (or how probably) it has any head at all.
        units: feed-forward units of each transformer layer.
    """

    channels: list[Number]
    heads: list[Number]
    attends: list[Number]
    units: list[Number]

    @classmethod
    def of(cls, config: EncoderConfig) -> Widths:
        """The widths that a configuration states."""
        return cls(
            channels=[conv.channels for conv in config.convs],
            heads=[len(layer.heads) for layer in config.layers],
            attends=[int(bool(layer.heads)) for layer in config.layers],
            units=[layer.units for layer in config.layers],
        )

    @classmethod
    def expected(cls, encoder: Encoder) -> Widths:
        """Expected widths of a gated encoder, differentiable in its gates (float64: sums of millions)."""
        widths = cls.of(encoder.config)
        for gate in find_gates(encoder):
            keep = gate.module.keep_probability().double()
            getattr(widths, gate.kind)[gate.layer] = keep.sum()
            if gate.kind == "heads":
                widths.attends[gate.layer] = 1 - torch.prod(1 - keep)
        return widths

    @classmethod
    def rounded(cls, encoder: Encoder) -> Widths:
        """Widths that a gated encoder has in evaluation and will have after surgery."""
        widths = cls.of(encoder.config)
        for gate in find_gates(encoder):
            getattr(widths, gate.kind)[gate.layer] = gate.module.open_count()
        widths.attends = [int(bool(heads)) for heads in widths.heads]
        return widths

    @classmethod
    def smallest(cls, encoder: Encoder) -> Widths:
        """The smallest widths that the gates of an encoder can reach."""
        widths = cls.of(encoder.config)
        for gate in find_gates(encoder):
            getattr(widths, gate.kind)[gate.layer] = gate.module.at_least
        widths.attends = [int(bool(heads)) for heads in widths.heads]
        return widths


def parameters_by_component(config: EncoderConfig, widths: Widths) -> dict[str, Number]:
    """Parameters of the front end (with its projection), positional convolution, attention and feed-forward.

    `config` gives everything but the widths. Layer norms of the transformer count with the sublayer they belong to,
    language adapters with the feed-forward blocks.
    """
    D, E = config.hidden_size, config.head_size
    front: Number = 0
    inputs: Number = 1
    for number, (conv, channels) in enumerate(zip(config.convs, widths.channels, strict=True)):
        front = front + channels * inputs * conv.kernel
        front = front + channels * (int(config.conv_bias) + 2 * int(config.conv_norm == "layer" or number == 0))
        inputs = channels
    front = front + inputs * (D + 2 * int(config.feature_norm) + int(config.feature_scale)) + D
    positional = max(1, config.positional_depth) * (D * (D // config.positional_groups) * config.positional_kernel + D)
    positional += 2 * D * int(config.positional_affine) + 2 * D
    relative = config.relative_buckets > 0
    attention: Number = config.relative_buckets * config.num_heads
    feed_forward: Number = 0
    for heads, attends, units in zip(widths.heads, widths.attends, widths.units, strict=True):
        attention = attention + heads * (3 * (D * E + E) + E * D + int(relative)) + D + 2 * D
        if relative:
            attention = attention + attends * (E * 8 + 8)
        feed_forward = feed_forward + units * (2 * D + 1) + D + 2 * D
    feed_forward = feed_forward + config.num_layers * _adapter_weights(config)[1]
    return {
        "front end": front,
        "positional convolution": positional,
        "attention": attention,
        "feed-forward": feed_forward,
    }


def _adapter_weights(config: EncoderConfig) -> tuple[int, int]:
    """Weights of a layer's adapter in matrix products, and all of its parameters."""
    D, A = config.hidden_size, config.language_adapter
    return (2 * D * A, 2 * D * A + A + 3 * D) if A else (0, 0)


def macs_by_component(config: EncoderConfig, widths: Widths, seconds: float = REFERENCE_SECONDS) -> dict[str, Number]:
    """Multiply-accumulates per second of audio in matrix products and convolutions, for an utterance of `seconds`.

    The length matters because attention is quadratic in it.
    """
    D, E = config.hidden_size, config.head_size
    steps = round(seconds * config.sampling_rate)
    front: Number = 0
    inputs: Number = 1
    for conv, channels in zip(config.convs, widths.channels, strict=True):
        steps = (steps - conv.kernel) // conv.stride + 1
        front = front + channels * inputs * (conv.kernel * steps)
        inputs = channels
    T = steps
    front = front + inputs * (D * T)
    kernel = config.positional_kernel
    positional = max(1, config.positional_depth) * D * (D // config.positional_groups) * kernel * T
    attention: Number = 0
    feed_forward: Number = 0
    for heads, units in zip(widths.heads, widths.units, strict=True):
        attention = attention + heads * (4 * D * E * T + 2 * T * T * E + (8 * E * T if config.relative_buckets else 0))
        feed_forward = feed_forward + (units * (2 * D) + _adapter_weights(config)[0]) * T
    parts = {
        "front end": front,
        "positional convolution": positional,
        "attention": attention,
        "feed-forward": feed_forward,
    }
    return {name: value / seconds for name, value in parts.items()}


def count_parameters(config: EncoderConfig, widths: Widths) -> Number:
    """All parameters: equals `Encoder.num_parameters` for the widths of a real encoder."""
    return sum(parameters_by_component(config, widths).values())


def count_macs(config: EncoderConfig, widths: Widths, seconds: float = REFERENCE_SECONDS) -> Number:
    """Multiply-accumulates per second of audio, for an utterance of `seconds`."""
    return sum(macs_by_component(config, widths, seconds).values())


def config_after_surgery(encoder: Encoder) -> EncoderConfig:
    """The configuration of a gated encoder as surgery will leave it, but for the widths."""
    gated = any(gate.kind == "channels" for gate in find_gates(encoder))
    return encoder.config.replace(feature_scale=encoder.config.feature_scale or gated)


def as_float(value: Number) -> float:
    """A plain number out of a formula's result."""
    return float(value.detach()) if isinstance(value, Tensor) else float(value)
