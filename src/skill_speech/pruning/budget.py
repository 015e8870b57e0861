"""How small the student has to become, and the augmented Lagrangian that makes it so."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..encoder import Encoder, EncoderConfig
from ..errors import InputError
from .size import Widths, as_float, config_after_surgery, count_macs, count_parameters


@dataclass(frozen=True)
class Budget:
    """What the student may cost: a number of parameters, of MACs per second of audio, or both.

    With both, both hold and the tighter one is met exactly.
    """

    parameters: float | None
    macs: float | None
    teacher_parameters: float
    teacher_macs: float

    @classmethod
    def of(
        cls,
        teacher: EncoderConfig,
        *,
        sparsity: float | None = None,
        parameters: str | float | None = None,
        macs: str | float | None = None,
    ) -> Budget:
        """A budget from what a person writes.

        Args:
            teacher: what the shares are taken of.
            sparsity: share of the teacher's parameters to remove, in (0, 1).
            parameters: parameters to keep: a number, "23.6M", or a share below 1.
            macs: MACs per second of audio to keep: a number, "1.2G", or a share below 1.

        Raises:
            InputError: no budget, two for the same thing, a value out of range or larger than the teacher.
        """
        widths = Widths.of(teacher)
        whole, work = float(count_parameters(teacher, widths)), float(count_macs(teacher, widths))
        if sparsity is not None and parameters is not None:
            raise InputError("sparsity and params both state the number of parameters: give one of them")
        if sparsity is None and parameters is None and macs is None:
            raise InputError("no budget: give sparsity, params or macs")
        if sparsity is not None and not 0 < sparsity < 1:
            raise InputError(f"sparsity is {sparsity:g}; it must lie between 0 and 1 (0.75 keeps a quarter)")
        keep = whole * (1 - sparsity) if sparsity is not None else _quantity("params", parameters, whole)
        return cls(keep, _quantity("macs", macs, work), whole, work)

    def enlarged(self, share: float) -> Budget:
        """A budget with so much more room, as a share of this one."""
        return dataclasses.replace(
            self,
            parameters=None if self.parameters is None else self.parameters * (1 + share),
            macs=None if self.macs is None else self.macs * (1 + share),
        )

    def excess(self, encoder: Encoder, widths: Widths) -> Tensor:
        """How far above the budget, as a share of the teacher: the largest over what the budget limits (0-d).

        Equal to t - s for target sparsity t and sparsity s; negative when there is room.
        """
        return torch.stack([size - target for size, target in self._shares(encoder, widths)]).max()

    def _shares(self, encoder: Encoder, widths: Widths) -> list[tuple[Tensor, float]]:
        config = config_after_surgery(encoder)
        shares = []
        if self.parameters is not None:
            size = count_parameters(config, widths) / self.teacher_parameters
            shares.append((torch.as_tensor(size, dtype=torch.float64), self.parameters / self.teacher_parameters))
        if self.macs is not None:
            size = count_macs(config, widths) / self.teacher_macs
            shares.append((torch.as_tensor(size, dtype=torch.float64), self.macs / self.teacher_macs))
        return shares

    def sparsities(self, encoder: Encoder, widths: Widths) -> list[tuple[Tensor, float]]:
        """Pairs of sparsity (0-d) and final target, one per limited quantity."""
        return [(1 - size, 1 - target) for size, target in self._shares(encoder, widths)]

    def check(self, encoder: Encoder) -> None:
        """See that the gates of an encoder can reach the budget.

        Raises:
            InputError: they cannot; names the smallest size that they can reach.
        """
        config, smallest = config_after_surgery(encoder), Widths.smallest(encoder)
        for what, target, least in (
            ("parameters", self.parameters, count_parameters(config, smallest)),
            ("MACs per second", self.macs, count_macs(config, smallest)),
        ):
            if target is not None and as_float(least) > target:
                raise InputError(
                    f"out of reach: {human(target)} {what}; with everything prunable removed this teacher still has "
                    f"{human(as_float(least))}"
                )


class Lagrangian(nn.Module):
    """λ1·(s - t) + λ2·(s - t)² with learned multipliers (arXiv 2305.17651, eq. 5–6; Wang, Wohlwend & Lei 2020).

    The student descends and the multipliers ascend. t rises linearly from 0 to its final value over `ramp_steps`.
    """

    def __init__(self, budget: Budget, ramp_steps: int) -> None:
        super().__init__()
        self.budget, self.ramp_steps = budget, ramp_steps
        self.lambda1 = nn.Parameter(torch.zeros(()))
        self.lambda2 = nn.Parameter(torch.zeros(()))

    def forward(self, encoder: Encoder, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The penalty (0-d) at a training step, and what to log.

        With two budgets the one that is furthest from its target counts.
        """
        share = min(1.0, step / self.ramp_steps) if self.ramp_steps else 1.0
        pairs = self.budget.sparsities(encoder, Widths.expected(encoder))
        gaps = torch.stack([sparsity - share * target for sparsity, target in pairs])
        worst = int(gaps.argmin())
        gap = gaps[worst]
        penalty = self.lambda1 * gap + self.lambda2 * gap.square()
        return penalty.float(), {
            "sparsity_expected": pairs[worst][0].detach().float(),
            "sparsity_target": torch.tensor(share * pairs[worst][1]),
            "lambda1": self.lambda1.detach(),
            "lambda2": self.lambda2.detach(),
        }


def human(value: float) -> str:
    """A number as people write it: 23.6M, 1.2G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}" if abs(value) < 100 * size else f"{value / size:.0f}{unit}"
    return f"{value:.3g}"


def _quantity(name: str, value: str | float | None, whole: float) -> float | None:
    """A number of things to keep from "23.6M", 23.6e6 or a share of `whole`."""
    if value is None:
        return None
    text = str(value).strip()
    factor = {"k": 1e3, "m": 1e6, "g": 1e9}.get(text[-1:].lower(), 1.0)
    try:
        number = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        raise InputError(f"{name} is {value!r}; write a number, 23.6M or a share such as 0.25") from None
    if not math.isfinite(number) or number <= 0:
        raise InputError(f"{name} is {value!r}; it must be positive")
    number = number * whole if number < 1 else number
    if number >= whole:
        raise InputError(f"{name} is {value!r}; the teacher itself has only {human(whole)}")
    return number
