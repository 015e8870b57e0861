"""How much each unit matters: where learned gates start from, and what one-shot pruning goes by."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from ..encoder import Encoder, EncoderOutput, LearnedScale, UnitScale
from ..errors import InputError
from .budget import Budget
from .gates import Gate, find_gates
from .size import Widths

ImportanceName = Literal["sensitivity", "magnitude"]
Importance = Mapping[str, Tensor]
"""The importance of every unit (U,), by the name of its gate vector."""

Outputs = Callable[[EncoderOutput], Sequence[Tensor]]
"""Picks the states (B, T, D) that matter."""

LEAST_CHANNELS = 0.08
"""At least this share of the channels of every convolution is kept: all signal passes through them."""

BALANCING_ROUNDS = 30
"""How often the weights of several limited quantities are adapted to what is left of each."""

CHEAPEST = 1e-12
"""The least price of a unit, as a share of what has to go: by a table of times one may cost nothing."""


def magnitude(encoder: Encoder) -> dict[str, Tensor]:
    """The squared norm of the weights that read each unit, as a share of its vector's sum, by gate name.

    Args:
        encoder: gated.
    """
    found = {}
    for gate in find_gates(encoder):
        norms_U = _reading_weights(encoder, gate).detach().square().sum(-1)
        found[gate.name] = norms_U / norms_U.sum()
    return found


def sensitivity(
    teacher: Encoder, gated: Encoder, outputs: Outputs, waveforms: Iterable[Tensor], seed: int = 0
) -> dict[str, Tensor]:
    """How much of the states that matter each unit moves: E ‖∂y/∂z‖², by gate name.

    z is a factor of the unit's output, 1 in the teacher, and y the states, each divided by its standard deviation. The
    squared derivative is the quadratic term of what closing the unit costs (optimal brain damage; Fisher pruning, arXiv
    1801.05787): the gradient of the loss itself is zero where the student is the teacher. Random projections r of y
    estimate it: E_r (∂(r·y)/∂z)², with one backward pass for each batch.

    Args:
        teacher: stays as it is; run in evaluation mode.
        gated: the same encoder with gates, which say where units are.
        outputs: picks the states that matter.
        waveforms: batches (B, T) without padding; some dozens give an estimate within a fifth.
        seed: of the projections.

    Raises:
        InputError: the states are not finite.
    """
    encoder = copy.deepcopy(teacher).eval().requires_grad_(False)
    factors: dict[str, Tensor] = {}
    for gate in find_gates(gated):
        parent, _, name = gate.place.rpartition(".")
        scale = LearnedScale(len(gate.module.log_alpha)).to(next(encoder.parameters()).device).requires_grad_()
        place = gate.module.inner
        assert isinstance(place, UnitScale)
        inner = place()
        if inner is not None:
            scale.weight.data.copy_(inner)
        setattr(encoder.get_submodule(parent), name, scale)
        factors[gate.name] = scale.weight
    generator = torch.Generator().manual_seed(seed)
    sums, count = {name: torch.zeros_like(weight) for name, weight in factors.items()}, 0
    for waveforms_BT in waveforms:
        projected = torch.zeros(())
        for y_BTD in outputs(encoder(waveforms_BT)):
            r_BTD = torch.randn(y_BTD.shape, generator=generator).to(y_BTD.device)
            projected = projected + (y_BTD * r_BTD).sum() / (y_BTD.detach().std() * math.sqrt(y_BTD.numel()))
        slopes = torch.autograd.grad(projected, list(factors.values()), allow_unused=True)
        for (name, weight), slope in zip(factors.items(), slopes, strict=True):
            if slope is not None:
                sums[name] += (slope * weight.detach()).square()
        count += 1
    if not all(bool(total.isfinite().all()) for total in sums.values()):
        raise InputError("the teacher's states are not finite: check that the file is the right one and complete")
    return {name: total / max(1, count) for name, total in sums.items()}


def value_for_cost(encoder: Encoder, budget: Budget, importance: Importance) -> dict[str, Tensor]:
    """Importance divided by what a unit costs (U,), by gate name.

    The cost is what the size falls by with a unit, as a share of what has to go, on average over the units of a vector
    and with everything else at its full width. Of several limited quantities it is a weighted sum: a quantity weighs
    less the more room the units of the best value leave in it, so that the student has all that the budget allows.
    The best `LEAST_CHANNELS` of every convolution are worth as much as any unit.
    """
    prices = _prices(encoder, budget)
    count = len(budget.limits)
    weights_K, best, most = torch.full((count,), 1 / count, dtype=torch.float64), {}, -math.inf
    for _ in range(BALANCING_ROUNDS if count > 1 else 1):
        values = {
            name: importance[name].double().cpu() / max(float(weights_K @ price_K), CHEAPEST)
            for name, price_K in prices.items()
        }
        highest = max(float(value_U.max()) for value_U in values.values())
        for name, value_U in values.items():
            if name.startswith("channels"):
                value_U[value_U.topk(math.ceil(LEAST_CHANNELS * len(value_U))).indices] = highest
        kept = _fitting(encoder, budget, values)
        worth = sum(float(importance[name].double().cpu()[index_K].sum()) for name, index_K in kept.items())
        if worth > most:
            best, most = values, worth
        widths = _widths(encoder, {name: len(index_K) for name, index_K in kept.items()})
        used_K = [(1 - float(sparsity)) / (1 - target) for sparsity, target in budget.sparsities(encoder, widths)]
        weights_K *= torch.tensor(used_K, dtype=torch.float64)
        weights_K /= weights_K.sum()
    return best


def choose(encoder: Encoder, budget: Budget, importance: Importance) -> dict[str, Tensor]:
    """The units of the best value for their cost that fit the budget: indices (K,) ascending, by gate name.

    Where the next unit is too big, smaller ones of others follow.
    """
    values = value_for_cost(encoder, budget, importance)
    kept = {name: set(index_K.tolist()) for name, index_K in _fitting(encoder, budget, values).items()}
    counts = {name: len(units) for name, units in kept.items()}
    full: set[str] = set()
    ranked = [(value, name, unit) for name, value_U in values.items() for unit, value in enumerate(value_U.tolist())]
    for _, name, unit in sorted(ranked, reverse=True):
        if name not in full and unit not in kept[name]:
            counts[name] += 1
            if float(budget.excess(encoder, _widths(encoder, counts))) <= 0:
                kept[name].add(unit)
            else:
                counts[name] -= 1
                full.add(name)
    return {name: torch.tensor(sorted(units), dtype=torch.int64) for name, units in kept.items()}


def _widths(encoder: Encoder, counts: Mapping[str, int]) -> Widths:
    """The widths with so many units left, by gate name."""
    widths = Widths.of(encoder.config)
    for gate in find_gates(encoder):
        getattr(widths, gate.kind)[gate.layer] = counts[gate.name]
    widths.attends = [int(bool(heads)) for heads in widths.heads]
    return widths


def _prices(encoder: Encoder, budget: Budget) -> dict[str, Tensor]:
    """What a unit costs, as a share of what has to go of each limited quantity (K,), by gate name."""
    prices = {}
    for gate in find_gates(encoder):
        widths, count, sizes = Widths.of(encoder.config), len(gate.module.log_alpha), []
        for kept in (count, gate.module.at_least):
            getattr(widths, gate.kind)[gate.layer] = kept
            pairs = budget.sparsities(encoder, widths)
            sizes.append(torch.tensor([-float(sparsity) / target for sparsity, target in pairs], dtype=torch.float64))
        prices[gate.name] = (sizes[0] - sizes[1]) / max(1, count - gate.module.at_least)
    return prices


def _fitting(encoder: Encoder, budget: Budget, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The units of the highest values that fit the budget, as `choose` gives them."""
    ranked = {name: torch.sort(value_U, descending=True, stable=True) for name, value_U in values.items()}
    thresholds = torch.cat(list(values.values())).sort().values.tolist()
    least = {gate.name: gate.module.at_least for gate in find_gates(encoder)}

    def counts(threshold: float) -> dict[str, int]:
        return {name: max(least[name], int((value.values > threshold).sum())) for name, value in ranked.items()}

    def excess(threshold: float) -> float:
        return float(budget.excess(encoder, _widths(encoder, counts(threshold))))

    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if excess(thresholds[middle]) <= 0 else (middle + 1, high)
    kept = counts(thresholds[low])
    return {name: value.indices[: kept[name]].sort().values for name, value in ranked.items()}


def _reading_weights(encoder: Encoder, gate: Gate) -> Tensor:
    """The weights that read each unit (U, X)."""
    weights = dict(encoder.named_parameters())
    if gate.kind == "channels" and gate.layer + 1 < len(encoder.convs):
        return weights[f"convs.{gate.layer + 1}.conv.weight"].transpose(0, 1).flatten(1)
    reader = {
        "channels": "projection.projection",
        "heads": f"layers.{gate.layer}.attention.output",
        "units": f"layers.{gate.layer}.feed_forward.output",
    }[gate.kind]
    return weights[f"{reader}.weight"].t().reshape(len(gate.module.log_alpha), -1)
