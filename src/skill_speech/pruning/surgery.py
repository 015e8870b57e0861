"""From a gated student to a smaller one: fix the gates, fold their values, cut the rest away."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections import Counter

import torch
from torch import Tensor

from ..encoder import Encoder, LayerConfig
from ..errors import InputError
from .budget import Budget
from .gates import Gate, HardConcrete, find_gates
from .size import Widths, config_after_surgery


def fix_gates(encoder: Encoder, budget: Budget | None = None, round_to: int = 1) -> None:
    """Decide how many units of every gate vector survive, in place.

    The expected numbers are rounded. With a budget, the rounding errors are then evened out: while the student is too
    big, the least certain open units of all are closed (those with the lowest probability of being kept); then the
    most certain closed units are opened as far as they fit.

    Args:
        encoder: gated.
        budget: what the student may cost.
        round_to: numbers of channels and feed-forward units become multiples of it (or none), and units are opened and
            closed in blocks. A vector that is narrower stays whole or goes. Heads are as wide as they are.
    """
    gates = find_gates(encoder)
    for gate in gates:
        gate.module.fixed_count = None
    choices = {gate.name: _possible_counts(gate, round_to) for gate in gates}
    places = {gate.name: _nearest(choices[gate.name], gate.module.open_count()) for gate in gates}
    if budget is not None and gates:
        places = _fit(encoder, budget, {gate.name: gate.module for gate in gates}, choices, places)
    for gate in gates:
        gate.module.fixed_count = choices[gate.name][places[gate.name]]


def check_rounding(encoder: Encoder, budget: Budget, round_to: int) -> None:
    """See that a gated encoder can meet the budget with such widths.

    Raises:
        InputError: it cannot, or `round_to` is not positive.
    """
    if round_to < 1:
        raise InputError(f"round_to is {round_to}; it must be at least 1 (8, 16 or 32 suit most hardware)")
    widths = Widths.smallest(encoder)
    for gate in find_gates(encoder):
        getattr(widths, gate.kind)[gate.layer] = _possible_counts(gate, round_to)[0]
    if float(budget.excess(encoder, widths)) > 0:
        raise InputError(
            f"round_to is {round_to}: with every width at its smallest multiple the student is still larger than the "
            "budget; choose a smaller multiple or a larger budget"
        )


def _possible_counts(gate: Gate, round_to: int) -> list[int]:
    """Ascending."""
    least, width = gate.module.at_least, len(gate.module.log_alpha)
    if gate.kind == "heads":
        round_to = 1
    counts = [count for count in range(least, width + 1) if count % round_to == 0]
    return counts if width >= round_to else [*counts, width]


def _nearest(counts: list[int], wanted: int) -> int:
    """Where the nearest of the counts stands; of two at the same distance the larger one."""
    return min(range(len(counts)), key=lambda place: (abs(counts[place] - wanted), -place))


def _fit(
    encoder: Encoder,
    budget: Budget,
    gates: dict[str, HardConcrete],
    choices: dict[str, list[int]],
    places: dict[str, int],
) -> dict[str, int]:
    """The places in the choices nearest to the given ones that use the budget up as far as possible counts can."""
    ranked = {
        name: torch.sort(gate.keep_probability().detach(), descending=True, stable=True).values.tolist()
        for name, gate in gates.items()
    }

    def certainty(name: str, place: int) -> float:
        """Mean probability of the units between this choice and the next one."""
        block = ranked[name][choices[name][place] : choices[name][place + 1]]
        return float(sum(block) / len(block))

    def fits(trial: dict[str, int]) -> bool:
        for name, gate in gates.items():
            gate.fixed_count = choices[name][trial[name]]
        return float(budget.excess(encoder, Widths.rounded(encoder))) <= 0

    def moved(moves: list[str], number: int, by: int) -> dict[str, int]:
        tally = Counter(moves[:number])
        return {name: place + by * tally[name] for name, place in places.items()}

    # Of every vector the units stand in the order of their probability, so any number of moves off the top of the
    # merged list leaves each vector with its most certain units. Size is monotone in that number: bisect.
    if not fits(places):
        order = [(certainty(name, place), name) for name in gates for place in range(places[name])]
        closing = [name for _, name in sorted(order, key=lambda pair: pair[0])]
        number = bisect_left(range(len(closing)), True, key=lambda n: fits(moved(closing, n, -1)))
        places = moved(closing, number, -1)
    order = [(certainty(name, place), name) for name in gates for place in range(places[name], len(choices[name]) - 1)]
    opening = [name for _, name in sorted(order, key=lambda pair: -pair[0])]
    number = bisect_left(range(1, len(opening) + 1), True, key=lambda n: not fits(moved(opening, n, 1)))
    places = moved(opening, number, 1)
    full: set[str] = set()
    for name in opening[number:]:
        if name in full:
            continue
        trial = places | {name: places[name] + 1}
        if fits(trial):
            places = trial
        else:  # too big a step; smaller ones of other vectors may still fit
            full.add(name)
            if len(full) == len(gates):
                break
    return places


def prune(encoder: Encoder) -> Encoder:
    """The dense student that computes the same function as the gated one in evaluation mode.

    Gate values are folded into the weights that read the units; those of the last convolution cannot pass the layer
    norm behind it and stay as one factor per channel (`EncoderConfig.feature_scale`).
    """
    gates = {gate.name: gate.module for gate in find_gates(encoder)}
    was_training = encoder.training
    encoder.eval()

    def survivors(name: str, units: int) -> tuple[Tensor, Tensor]:
        """Indices (K,) of the open units in their old order, and their gate values (K,)."""
        if name not in gates:
            return torch.arange(units), torch.ones(units)
        values = gates[name].gates().detach().cpu()
        index = values.nonzero().flatten()
        return index, values[index]

    old = encoder.config
    channels = [survivors(f"channels.{number}", conv.channels) for number, conv in enumerate(old.convs)]
    heads = [survivors(f"heads.{number}", len(layer.heads)) for number, layer in enumerate(old.layers)]
    units = [survivors(f"units.{number}", layer.units) for number, layer in enumerate(old.layers)]
    config = config_after_surgery(encoder).replace(
        convs=tuple(
            dataclasses.replace(conv, channels=len(index)) for conv, (index, _) in zip(old.convs, channels, strict=True)
        ),
        layers=tuple(
            LayerConfig(tuple(layer.heads[i] for i in kept.tolist()), len(index))
            for layer, (kept, _), (index, _) in zip(old.layers, heads, units, strict=True)
        ),
    )
    weights = {name: tensor.detach().cpu() for name, tensor in encoder.state_dict().items() if "log_alpha" not in name}
    _cut_front_end(weights, channels, config.feature_scale)
    for number in range(len(old.layers)):
        _cut_attention(weights, f"layers.{number}.attention", *heads[number], old.head_size)
        _cut_feed_forward(weights, f"layers.{number}.feed_forward", *units[number])
    student = Encoder(config)
    student.load_state_dict(weights)
    encoder.train(was_training)
    return student.eval()


def _cut_front_end(weights: dict[str, Tensor], channels: list[tuple[Tensor, Tensor]], feature_scale: bool) -> None:
    for number, (index, _) in enumerate(channels):
        prefix = f"convs.{number}"
        for name in ("conv.weight", "conv.bias", "norm.weight", "norm.bias"):
            if f"{prefix}.{name}" in weights:
                weights[f"{prefix}.{name}"] = weights[f"{prefix}.{name}"][index]
        if number:
            before, values = channels[number - 1]
            weights[f"{prefix}.conv.weight"] = weights[f"{prefix}.conv.weight"][:, before] * values[:, None]
    last, values = channels[-1]
    if feature_scale:
        name = f"convs.{len(channels) - 1}.channel_scale"
        inner = weights.pop(f"{name}.inner.weight", None)
        inner = weights.get(f"{name}.weight") if inner is None else inner
        weights[f"{name}.weight"] = values if inner is None else inner[last] * values
    for name in ("norm.weight", "norm.bias"):
        if f"projection.{name}" in weights:
            weights[f"projection.{name}"] = weights[f"projection.{name}"][last]
    weights["projection.projection.weight"] = weights["projection.projection.weight"][:, last]


def _cut_attention(weights: dict[str, Tensor], prefix: str, index: Tensor, values: Tensor, head_size: int) -> None:
    rows = (index[:, None] * head_size + torch.arange(head_size)).flatten()
    for name in ("query", "key", "value"):
        for kind in ("weight", "bias"):
            weights[f"{prefix}.{name}.{kind}"] = weights[f"{prefix}.{name}.{kind}"][rows]
    output = weights[f"{prefix}.output.weight"][:, rows]
    weights[f"{prefix}.output.weight"] = output * values.repeat_interleave(head_size)
    if f"{prefix}.position_gate_const" in weights:
        weights[f"{prefix}.position_gate_const"] = weights[f"{prefix}.position_gate_const"][index]
        if not len(index):
            for name in ("position_gate_const", "position_gate.weight", "position_gate.bias"):
                del weights[f"{prefix}.{name}"]


def _cut_feed_forward(weights: dict[str, Tensor], prefix: str, index: Tensor, values: Tensor) -> None:
    for kind in ("weight", "bias"):
        weights[f"{prefix}.input.{kind}"] = weights[f"{prefix}.input.{kind}"][index]
    weights[f"{prefix}.output.weight"] = weights[f"{prefix}.output.weight"][:, index] * values
