"""How linear maps are rounded to 8 or 4 bits, and which: the same for training, for CPUs and for exports.

int8: weights w of an output are w ≈ s k with whole k from -63 to 63 and s = max |w| / 63. Inputs x of a frame are
x ≈ t (c - z) with whole c from 0 to 255, t the smallest scale at which all of the frame fits, and z the place of zero:
128, or 32 after an activation, below zero of which there is little (a gelu's least value is -0.17).

int4: weights alone. Every 32 inputs of an output are a group with w ≈ s k, whole k from -8 to 7 and s = -m / 8, m being
the weight of the group that is farthest from zero: what onnxruntime's MatMulNBits has, symmetric, in blocks of 32.

Shapes: … any leading axes, I inputs, O outputs, G groups, N = 32 inputs of a group.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import Encoder
from ..encoder.layers import TransformerLayer

Rounding = Literal["int8", "int4"]

# The largest |k| of 8-bit weights. Sums of two products of 8 bits overflow on x86 processors without VNNI, those with
# weights of 7 bits do not; 63 and not 64, so that 8 bits at twice the resolution hold the same numbers.
LEVELS = 63
ZERO, ZERO_AFTER_ACTIVATION = 128, 32
GROUP = 32
SMALLEST = 1e-12
"""A scale: of a frame, or the weights of an output, that are all zero."""


class LinearMap(NamedTuple):
    """A linear map that is rounded: where it stands, and the code that stands for a zero of its inputs."""

    parent: nn.Module
    name: str
    linear: nn.Linear
    zero: int


def rounded_maps(encoder: Encoder) -> Iterator[LinearMap]:
    """The transformer's linear maps: query, key, value and output of attention, input and output of feed-forward.

    Left out are those without weights and everything that is few parameters: front end, feature projection, positions.
    """
    for layer in encoder.layers:
        assert isinstance(layer, TransformerLayer)
        for parent in (layer.attention, layer.feed_forward):
            for name in ("query", "key", "value", "input", "output"):
                linear = getattr(parent, name, None)
                if isinstance(linear, nn.Linear) and linear.weight.numel():
                    after = parent is layer.feed_forward and name == "output"
                    yield LinearMap(parent, name, linear, ZERO_AFTER_ACTIVATION if after else ZERO)


def weight_scales(weight_OI: Tensor, levels: int = LEVELS) -> Tensor:
    """The scale of every output's weights (O, 1)."""
    return (weight_OI.abs().amax(1, keepdim=True) / levels).clamp(min=SMALLEST)


def input_scales(x_I: Tensor, zero: int) -> Tensor:
    """The scale of every frame (…, 1), given in float32."""
    low_1, high_1 = x_I.amin(-1, keepdim=True), x_I.amax(-1, keepdim=True)
    return torch.maximum(high_1 / (255 - zero), low_1 / -zero).clamp(min=SMALLEST)


def grouped(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """int4: codes k (O, G, N), those beyond the last input 0, and scales (O, G, 1)."""
    weight_OGN = F.pad(weight_OI, (0, -weight_OI.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
    scale_OG1 = weight_OGN.gather(2, weight_OGN.abs().argmax(2, keepdim=True)) / -8
    # By way of the reciprocal, as onnxruntime does it.
    codes_OGN = (weight_OGN * torch.where(scale_OG1 == 0, 0.0, 1 / scale_OG1)).round().clamp(-8, 7)
    return codes_OGN, scale_OG1


def rounded_weight(weight_OI: Tensor, rounding: Rounding) -> Tensor:
    """The weights (O, I) as they are after rounding. Rounded again, they stay what they are."""
    if rounding == "int8":
        scale_O1 = weight_scales(weight_OI)
        return (weight_OI / scale_O1).round() * scale_O1
    codes_OGN, scale_OG1 = grouped(weight_OI)
    return (codes_OGN * scale_OG1).flatten(1)[:, : weight_OI.shape[1]]


def rounded_input(x_I: Tensor, zero: int) -> Tensor:
    """Inputs (…, I) as they are after rounding to 8 bits."""
    scale_1 = input_scales(x_I, zero)
    return (x_I / scale_1).round() * scale_1
