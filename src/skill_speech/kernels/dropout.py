"""Dropout on a CPU that draws sixteen bits for a number, where torch's own takes a random float of its own for each."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import on_cpu

RANGE = 2**15
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def draw(shape: torch.Size | tuple[int, ...], probability: float) -> Tensor:
    """16-bit integers from torch's CPU generator, negative with `probability` (rounded to 1/32768).

    Four come from each 64-bit word. Comparing would give booleans, which torch is slow to compute with.
    """
    count = torch.Size(shape).numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    numbers = words.view(torch.int16)[:count].view(shape)
    return numbers.bitwise_right_shift_(1).sub_(round(probability * RANGE) - RANGE // 2)


def mark_dropped(weights: Tensor, probability: float) -> None:
    """Set the sign of each of some weights, none of them negative, with `probability`, in place.

    A weight and whether it is dropped then take no more memory than the weight: `clamp(min=0)` is what is kept
    and `abs()` what there was.
    """
    kind = INTEGERS[weights.element_size()]
    signs = draw(weights.shape, probability).to(kind)
    if kind != torch.int16:
        signs <<= 8 * (weights.element_size() - 2)
    weights.view(kind).bitwise_or_(signs.bitwise_and_(torch.iinfo(kind).min))


def clear_dropped(x: Tensor, marked: Tensor) -> None:
    """Set to zero what stands where `marked` has a sign, in place."""
    kind = INTEGERS[x.element_size()]
    dropped = marked.view(kind) >> (8 * x.element_size() - 1)  # all bits of it, or none
    x.view(kind).bitwise_and_(dropped.bitwise_not_())


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU its random numbers take a fifteenth of the time."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero each number with probability p while training and scale the rest by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return input
        if not on_cpu(input) or self.p == 1:
            return F.dropout(input, self.p, training=True)
        kept = draw(input.shape, self.p).bitwise_right_shift_(15).add_(1)
        return input * kept.to(input.dtype).div_(1 - self.p)
