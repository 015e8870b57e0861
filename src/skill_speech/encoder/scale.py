"""The named places where a unit's output is scaled."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class UnitScale(nn.Module):
    """A place where every unit (channel, head, feed-forward unit) of a layer has its output multiplied by a factor.

    Here the factor is 1 and nothing is computed. Gates are attached from outside by replacing this module with one
    whose `forward` returns the factors; a unit is open where its factor is not zero.
    """

    can_close = False  # whether a factor may be zero, which a norm over the units has to know

    def forward(self) -> Tensor | None:
        """Factors of the units (U,), or None for all ones."""
        return None


class LearnedScale(UnitScale):
    """One learned factor per unit: the part of a gate that surgery cannot fold into the next weight."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units))

    def forward(self) -> Tensor:
        """Factors of the units (U,)."""
        return self.weight


def scaled(x: Tensor, factors: Tensor | None) -> Tensor:
    """`x` times the factors of its last axis, in the type of `x`."""
    return x if factors is None else x * factors.to(x.dtype)
