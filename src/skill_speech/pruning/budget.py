"""How small the student has to become."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..encoder import Encoder, EncoderConfig
from ..errors import InputError
from ..quantities import human
from .size import Number, Widths, as_float, config_after_surgery, count_macs, count_parameters
from .times import Times


@dataclass(frozen=True)
class Limit:
    """One quantity that a budget limits.

    Attributes:
        what: its name in messages, with its unit.
        removed: what the share of it that is removed is called, in no more than eight letters.
        target: how much of it the student may have.
        whole: how much of it the teacher has.
        count: how much of it an encoder of some widths has.
    """

    what: str
    removed: str
    target: float
    whole: float
    count: Callable[[EncoderConfig, Widths], Number]

    @property
    def share(self) -> float:
        """The target as a share of the teacher."""
        return self.target / self.whole


@dataclass(frozen=True)
class Budget:
    """What the student may cost: parameters, MACs per second of audio, milliseconds per second of audio, or several.

    With several, all hold and the tightest one is met exactly. A head counts with the teacher and with the student,
    which both have it as it is; its time does not, which is next to nothing.
    """

    parameters: float | None
    macs: float | None
    teacher_parameters: float
    teacher_macs: float
    milliseconds: float | None = None
    teacher_milliseconds: float = 0.0
    times: Times | None = None
    head_parameters: float = 0.0
    head_macs: float = 0.0

    @classmethod
    def of(
        cls,
        teacher: EncoderConfig,
        *,
        sparsity: float | None = None,
        parameters: str | float | None = None,
        macs: str | float | None = None,
        speedup: float | None = None,
        latency: str | float | None = None,
        times: Times | None = None,
        head_parameters: float = 0.0,
        head_macs: float = 0.0,
    ) -> Budget:
        """A budget from what a person writes.

        Args:
            teacher: what the shares are taken of.
            sparsity: share of the teacher's parameters to remove, in (0, 1).
            parameters: parameters to keep: a number, "23.6M", or a share below 1.
            macs: MACs per second of audio to keep: a number, "1.2G", or a share below 1.
            speedup: how many times as fast as the teacher the student has to be, above 1.
            latency: milliseconds that it may take for a second of audio: a number, or "12ms/s".
            times: what the teacher's components take; needed for the last two.
            head_parameters, head_macs: of what stands on the encoder and stays as it is.

        Raises:
            InputError: no budget, two for the same thing, a value out of range or larger than the teacher.
        """
        widths = Widths.of(teacher)
        whole = float(count_parameters(teacher, widths)) + head_parameters
        work = float(count_macs(teacher, widths)) + head_macs
        if sparsity is not None and parameters is not None:
            raise InputError("sparsity and params both set the number of parameters: give only one")
        if speedup is not None and latency is not None:
            raise InputError("speedup and latency both set the time: give only one")
        if speedup is not None and not 1 < speedup < math.inf:
            raise InputError(f"speedup is {speedup:g}; it must be above 1 (4 takes a quarter of the time)")
        if all(value is None for value in (sparsity, parameters, macs, speedup, latency)):
            raise InputError("no budget: give sparsity, params, macs, speedup or latency")
        if sparsity is not None and not 0 < sparsity < 1:
            raise InputError(f"sparsity is {sparsity:g}; it must lie between 0 and 1 (0.75 keeps a quarter)")
        keep = whole * (1 - sparsity) if sparsity is not None else quantity("params", parameters, whole)
        keep_macs = quantity("macs", macs, work)
        if speedup is None and latency is None:
            return cls(keep, keep_macs, whole, work, head_parameters=head_parameters, head_macs=head_macs)
        assert times is not None
        now = float(times.count(teacher, widths))
        milliseconds = now / speedup if speedup is not None else _milliseconds(latency, now)
        return cls(keep, keep_macs, whole, work, milliseconds, now, times, head_parameters, head_macs)

    def enlarged(self, share: float) -> Budget:
        """A budget with so much more room, as a share of this one."""
        return dataclasses.replace(
            self,
            parameters=None if self.parameters is None else self.parameters * (1 + share),
            macs=None if self.macs is None else self.macs * (1 + share),
            milliseconds=None if self.milliseconds is None else self.milliseconds * (1 + share),
        )

    def excess(self, encoder: Encoder, widths: Widths) -> Tensor:
        """How far above the budget, as a share of the teacher: the largest over what the budget limits (0-d).

        Equal to t - s for target sparsity t and sparsity s; negative when there is room.
        """
        return torch.stack([size - target for size, target in self._shares(encoder, widths)]).max()

    @property
    def limits(self) -> list[Limit]:
        """The quantities that are limited, one or more."""
        limits = []
        if self.parameters is not None:
            count = _with(count_parameters, self.head_parameters)
            limits.append(Limit("parameters", "sparsity", self.parameters, self.teacher_parameters, count))
        if self.macs is not None:
            count = _with(count_macs, self.head_macs)
            limits.append(Limit("MACs per second", "MACs cut", self.macs, self.teacher_macs, count))
        if self.milliseconds is not None and self.times is not None:
            wanted, whole = self.milliseconds, self.teacher_milliseconds
            limits.append(Limit("ms per second of audio", "time cut", wanted, whole, self.times.count))
        return limits

    def _shares(self, encoder: Encoder, widths: Widths) -> list[tuple[Tensor, float]]:
        config = config_after_surgery(encoder)
        return [
            (torch.as_tensor(limit.count(config, widths) / limit.whole, dtype=torch.float64), limit.share)
            for limit in self.limits
        ]

    def sparsities(self, encoder: Encoder, widths: Widths) -> list[tuple[Tensor, float]]:
        """Pairs of sparsity (0-d) and final target, one per limited quantity."""
        return [(1 - size, 1 - target) for size, target in self._shares(encoder, widths)]

    def check(self, encoder: Encoder) -> None:
        """See that the gates of an encoder can reach the budget.

        Raises:
            InputError: they cannot; names the smallest size that they can reach.
        """
        config, smallest = config_after_surgery(encoder), Widths.smallest(encoder)
        for limit in self.limits:
            least = as_float(limit.count(config, smallest))
            if least > limit.target:
                raise InputError(
                    f"budget out of reach: {human(limit.target)} {limit.what}; with everything prunable removed this "
                    f"teacher still has {human(least)}, {least / limit.whole:.1%} of its {human(limit.whole)}"
                )


def _with(count: Callable[[EncoderConfig, Widths], Number], head: float) -> Callable[[EncoderConfig, Widths], Number]:
    """An encoder's count and that of its head."""
    return count if not head else lambda config, widths: count(config, widths) + head


def quantity(name: str, value: str | float | None, whole: float) -> float | None:
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
    return _below(name, value, number, whole)


def _milliseconds(value: str | float | None, whole: float) -> float:
    """Milliseconds for a second of audio from "12ms/s" or 12."""
    try:
        number = float(str(value).strip().removesuffix("/s").removesuffix("ms"))
    except ValueError:
        raise InputError(f"latency is {value!r}; write milliseconds for a second of audio, such as 12ms/s") from None
    if not math.isfinite(number) or number <= 0:
        raise InputError(f"latency is {value!r}; it must be positive")
    return _below("latency", value, number, whole)


def _below(name: str, value: object, number: float, whole: float) -> float:
    if number >= whole:
        raise InputError(f"{name} is {value!r}; the teacher has only {human(whole)}")
    return number
