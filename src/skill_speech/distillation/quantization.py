"""A student whose linear maps are rounded while it learns, so that it is exported in 8 or 4 bits as it was trained.

Forward, weights (and in int8 the inputs, frame by frame) are what `kernels.rounding` makes of them; backward, rounding
counts as the identity: the straight-through estimator (arXiv 1308.3432) of quantization-aware training (arXiv
1712.05877). The optimizer moves weights that are not rounded; when the stage ends the rounded ones take their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..encoder import Encoder
from ..kernels.rounding import Rounding, rounded_input, rounded_maps, rounded_weight


class StraightThrough(torch.autograd.Function):
    """What it is given second, with the gradient of what it is given first."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, rounded: Tensor) -> Tensor:
        """(…) → (…)."""
        return rounded.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient as it comes."""
        return gradient, None


class RoundedWeight(nn.Module):
    """The parametrization of a linear map's weight, and the hook on its inputs."""

    def __init__(self, linear: nn.Linear, rounding: Rounding, zero: int) -> None:
        super().__init__()
        self.rounding: Rounding = rounding
        # Kept here, so that a copy of the linear map has the handle of its own hook.
        self.handle = linear.register_forward_pre_hook(RoundInputs(zero)) if rounding == "int8" else None

    def forward(self, weight_OI: Tensor) -> Tensor:
        """(O, I) → (O, I)."""
        with torch.no_grad():
            rounded_OI = rounded_weight(weight_OI, self.rounding)
        return StraightThrough.apply(weight_OI, rounded_OI)


class RoundInputs:
    """The hook: rounds in float32, whatever is computed in."""

    def __init__(self, zero: int) -> None:
        self.zero = zero

    def __call__(self, linear: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """(x, …) → (rounded x, …)."""
        x_I, *rest = inputs
        with torch.no_grad():
            rounded_I = rounded_input(x_I.float(), self.zero).to(x_I.dtype)
        return (StraightThrough.apply(x_I, rounded_I), *rest)


def attach_quantization(encoder: Encoder, rounding: Rounding) -> None:
    """Have the transformer's linear maps compute with rounded numbers, in place; weights keep their values."""
    for _, _, linear, zero in list(rounded_maps(encoder)):
        parametrize.register_parametrization(linear, "weight", RoundedWeight(linear, rounding, zero))


def remove_quantization(encoder: Encoder) -> None:
    """Make weights plain ones again, in place, rounded, and leave inputs alone; without quantization, do nothing."""
    for _, _, linear, _ in list(rounded_maps(encoder)):
        if not parametrize.is_parametrized(linear, "weight"):
            continue
        parts: Any = linear.get_submodule("parametrizations.weight")
        if parts[0].handle is not None:
            parts[0].handle.remove()
        parametrize.remove_parametrizations(linear, "weight")
