"""Dropout that draws sixteen bits for a number, where torch on a CPU takes a whole random float."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import by_products

STEPS = 2**16


def keep_mask(shape: torch.Size | tuple[int, ...], probability: float) -> Tensor:
    """True for what is kept, on the CPU, from torch's generator; `probability` (of False) is rounded to 1/65536."""
    count = torch.Size(shape).numel()
    words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return words.view(torch.int16)[:count].view(shape) >= round(probability * STEPS) - STEPS // 2


class Dropout(nn.Dropout):
    """nn.Dropout; on a CPU its random numbers take a fifteenth of the time."""

    def forward(self, input: Tensor) -> Tensor:
        """Zero each number with probability p while training and scale the rest by 1 / (1 - p)."""
        if not self.training or self.p == 0:
            return input
        if not by_products(input) or self.p == 1:
            return F.dropout(input, self.p, training=True)
        return input * keep_mask(input.shape, self.p).to(input.dtype).div_(1 - self.p)
