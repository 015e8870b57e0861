"""Hard-concrete gates and where they sit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..encoder import Encoder, LearnedScale, UnitScale
from ..encoder.layers import ConvLayer, TransformerLayer

TEMPERATURE = 2 / 3
STRETCH = 0.1
EVALUATION_SLOPE = 0.8
# Drop rates at the start, as published (arXiv 2305.17651).
INITIAL_DROP = {"channels": 0.01, "heads": 0.01, "units": 0.5}
KINDS = tuple(INITIAL_DROP)
# Of the running means of a gate's gradient, as Adam's are.
MEAN_DECAY, SQUARE_DECAY = 0.9, 0.999
PLACES = {
    "channels": "convs.{}.channel_scale",
    "heads": "layers.{}.attention.head_scale",
    "units": "layers.{}.feed_forward.unit_scale",
}


def keep_probability(log_alpha: Tensor) -> Tensor:
    """P(gate > 0) of hard-concrete gates (any shape), differentiable (Louizos et al. 2018, eq. 12)."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(STRETCH / (1 + STRETCH)))


class HardConcrete(UnitScale):
    """One random gate in [0, 1] per unit, exactly 0 or 1 with positive probability (Louizos et al. 2018, eq. 10–12).

    While training, `forward` draws the gates; in evaluation the expected number of survivors stays open, each with the
    soft value sigmoid(0.8 · log α / β), and the rest is zero.

    Args:
        units: how many gates.
        initial_drop: probability of a drawn gate's logistic variable to fall below one half at the start.
        at_least: how many gates stay open in evaluation whatever the expectation says.
        inner: the scale that stood in this place before; its factors are multiplied in.

    Attributes:
        all_units: how many gates there were before any was removed (see `skill_speech.pruning.shrink`).
        kept_units: (U,) the numbers among them of the gates that are left, ascending.
        gradient_mean, gradient_square: (U,) running means of the gradient of log α and of its square, where a control
            asked for them.
    """

    can_close = True
    kept_units: Tensor
    gradient_mean: Tensor | None
    gradient_square: Tensor | None

    def __init__(self, units: int, initial_drop: float, at_least: int = 0, inner: UnitScale | None = None) -> None:
        super().__init__()
        mean = math.log(1 - initial_drop) - math.log(initial_drop)
        self.log_alpha = nn.Parameter(torch.empty(units).normal_(mean, 0.01))
        self.all_units = units
        self.register_buffer("kept_units", torch.arange(units))
        self.inner = inner or UnitScale()
        self.at_least = at_least
        self.fixed_count: int | None = None
        self.register_buffer("gradient_mean", None)
        self.register_buffer("gradient_square", None)

    def keep_probability(self) -> Tensor:
        """P(gate > 0) of every unit (U,), differentiable."""
        return keep_probability(self.log_alpha)

    def remember_gradients(self) -> None:
        """Keep running means of the gradient from here on; they belong to the state."""
        if self.gradient_mean is None:
            self.gradient_mean = torch.zeros_like(self.log_alpha, requires_grad=False)
            self.gradient_square = torch.zeros_like(self.log_alpha, requires_grad=False)

    def forget_gradients(self) -> None:
        """Keep nothing of the gradients any more."""
        self.gradient_mean = self.gradient_square = None

    def update_moments(self) -> tuple[Tensor, Tensor]:
        """Take the gradient at hand into the running means; returns both (U,), biased towards zero as Adam's are."""
        assert self.gradient_mean is not None
        assert self.gradient_square is not None
        gradient_U = torch.zeros_like(self.log_alpha) if self.log_alpha.grad is None else self.log_alpha.grad
        self.gradient_mean.lerp_(gradient_U, 1 - MEAN_DECAY)
        self.gradient_square.lerp_(gradient_U.square(), 1 - SQUARE_DECAY)
        return self.gradient_mean, self.gradient_square

    def open_count(self) -> int:
        """How many gates are open in evaluation: the rounded expectation, or what `fixed_count` says."""
        if self.fixed_count is not None:
            return self.fixed_count
        # In float64, so that gates of probability zero change nothing when they are removed.
        return max(self.at_least, round(float(self.keep_probability().detach().double().sum())))

    def gates(self) -> Tensor:
        """The gates (U,) alone, without the inner scale."""
        if self.training:
            # For the removed ones too: the others then draw what they would have drawn.
            noise = torch.rand(self.all_units, dtype=self.log_alpha.dtype, device=self.log_alpha.device)
            if len(self.log_alpha) < self.all_units:
                noise = noise[self.kept_units]
            noise = noise.clamp(1e-6, 1 - 1e-6)
            s = torch.sigmoid((noise.log() - (-noise).log1p() + self.log_alpha) / TEMPERATURE)
            return (s * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)
        # Never zero: the last channel of a convolution is open however closed its gate is.
        soft = torch.sigmoid(self.log_alpha / TEMPERATURE * EVALUATION_SLOPE).clamp(min=1e-30)
        mask = torch.zeros_like(soft)
        # A stable sort, so that equal values give the same survivors every time.
        mask[torch.argsort(self.log_alpha, descending=True, stable=True)[: self.open_count()]] = 1
        return soft * mask

    def only(self, index_K: Tensor) -> HardConcrete:
        """A vector with room for the gates of these indices; the state dict fills it."""
        inner = LearnedScale(len(index_K)) if isinstance(self.inner, LearnedScale) else None
        smaller = HardConcrete(len(index_K), 0.5, self.at_least, inner)
        smaller.all_units, smaller.fixed_count = self.all_units, self.fixed_count
        if self.gradient_mean is not None:
            smaller.remember_gradients()
        return smaller

    def forward(self) -> Tensor:
        """Factors of the units (U,)."""
        inner = self.inner()
        return self.gates() if inner is None else self.gates() * inner


@dataclass(frozen=True)
class Gate:
    """A gate vector and its place: `kind` is one of `KINDS`, `layer` counts convolutions or layers from 0."""

    kind: str
    layer: int
    module: HardConcrete

    @property
    def name(self) -> str:
        """For logs and reports."""
        return f"{self.kind}.{self.layer}"

    @property
    def place(self) -> str:
        """The module's name in the encoder."""
        return PLACES[self.kind].format(self.layer)


def attach_gates(encoder: Encoder, kinds: tuple[str, ...] = KINDS) -> Encoder:
    """Put gates on convolution channels, attention heads and feed-forward units, in place; returns the encoder."""
    for conv, shape in zip(_convs(encoder) if "channels" in kinds else [], encoder.config.convs, strict=False):
        conv.channel_scale = HardConcrete(shape.channels, INITIAL_DROP["channels"], 1, conv.channel_scale)
    for layer, kept in zip(_layers(encoder), encoder.config.layers, strict=True):
        if "heads" in kinds and kept.heads:
            layer.attention.head_scale = HardConcrete(len(kept.heads), INITIAL_DROP["heads"])
        if "units" in kinds and kept.units:
            layer.feed_forward.unit_scale = HardConcrete(kept.units, INITIAL_DROP["units"])
    return encoder


def find_gates(encoder: Encoder) -> list[Gate]:
    """All gates of an encoder, front end first."""
    return list(_gates(encoder))


def _gates(encoder: Encoder) -> Iterator[Gate]:
    for number, conv in enumerate(_convs(encoder)):
        if isinstance(conv.channel_scale, HardConcrete):
            yield Gate("channels", number, conv.channel_scale)
    for number, layer in enumerate(_layers(encoder)):
        if isinstance(layer.attention.head_scale, HardConcrete):
            yield Gate("heads", number, layer.attention.head_scale)
        if isinstance(layer.feed_forward.unit_scale, HardConcrete):
            yield Gate("units", number, layer.feed_forward.unit_scale)


def _convs(encoder: Encoder) -> list[ConvLayer]:
    return [module for module in encoder.convs if isinstance(module, ConvLayer)]


def _layers(encoder: Encoder) -> list[TransformerLayer]:
    return [module for module in encoder.layers if isinstance(module, TransformerLayer)]
