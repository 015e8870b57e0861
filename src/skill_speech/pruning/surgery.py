"""From a gated student to a smaller one: fix the gates, fold their values, cut the rest away."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

import torch
from torch import Tensor

from ..encoder import Encoder, EncoderConfig
from .budget import Budget
from .cutting import Survivors, cut, cut_config, selections
from .gates import HardConcrete, find_gates
from .size import Widths, config_after_surgery


def fix_gates(encoder: Encoder, budget: Budget | None = None) -> None:
    """Decide how many units of every gate vector survive, in place.

    The expected numbers are rounded. With a budget, the rounding errors are then evened out: while the student is too
    big, the least certain open unit of all is closed (the one with the lowest probability of being kept); then the
    most certain closed units are opened as far as they fit.
    """
    gates = {gate.name: gate.module for gate in find_gates(encoder)}
    for gate in gates.values():
        gate.fixed_count = None
    counts = {name: gate.open_count() for name, gate in gates.items()}
    if budget is not None and gates:
        counts = _fit(encoder, budget, gates, counts)
    for name, gate in gates.items():
        gate.fixed_count = counts[name]


def _fit(encoder: Encoder, budget: Budget, gates: dict[str, HardConcrete], counts: dict[str, int]) -> dict[str, int]:
    """The counts nearest to the given ones that use the budget up as far as whole units can."""
    ranked = {
        name: torch.sort(gate.keep_probability().detach(), descending=True, stable=True).values.tolist()
        for name, gate in gates.items()
    }

    def fits(trial: dict[str, int]) -> bool:
        for name, gate in gates.items():
            gate.fixed_count = trial[name]
        return float(budget.excess(encoder, Widths.rounded(encoder))) <= 0

    def moved(moves: list[str], number: int, by: int) -> dict[str, int]:
        tally = Counter(moves[:number])
        return {name: count + by * tally[name] for name, count in counts.items()}

    # Of every vector the units stand in the order of their probability, so any number of moves off the top of the
    # merged list leaves each vector with its most certain units. Size is monotone in that number: bisect.
    if not fits(counts):
        order = [(ranked[name][i], name) for name in gates for i in range(gates[name].at_least, counts[name])]
        closing = [name for _, name in sorted(order, key=lambda pair: pair[0])]
        number = bisect_left(range(len(closing)), True, key=lambda n: fits(moved(closing, n, -1)))
        counts = moved(closing, number, -1)
    order = [(ranked[name][i], name) for name in gates for i in range(counts[name], len(ranked[name]))]
    opening = [name for _, name in sorted(order, key=lambda pair: -pair[0])]
    number = bisect_left(range(1, len(opening) + 1), True, key=lambda n: not fits(moved(opening, n, 1)))
    counts = moved(opening, number, 1)
    full: set[str] = set()
    for name in opening[number:]:
        if name in full:
            continue
        trial = counts | {name: counts[name] + 1}
        if fits(trial):
            counts = trial
        else:  # too big a unit; smaller ones of other vectors may still fit
            full.add(name)
            if len(full) == len(gates):
                break
    return counts


def prune(encoder: Encoder) -> Encoder:
    """The dense student that computes the same function as the gated one in evaluation mode.

    Gate values are folded into the weights that read the units; those of the last convolution cannot pass the layer
    norm behind it and stay as one factor per channel (`EncoderConfig.feature_scale`).
    """
    was_training = encoder.training
    encoder.eval()
    values = {gate.name: gate.module.gates().detach().cpu() for gate in find_gates(encoder)}
    encoder.train(was_training)
    survivors = Survivors.of(encoder.config, {name: gates.nonzero().flatten() for name, gates in values.items()})
    plan = selections(encoder.config, survivors)
    weights = {name: cut(tensor.cpu(), plan.get(name, ())) for name, tensor in encoder.state_dict().items()}
    config = cut_config(config_after_surgery(encoder), survivors)
    _fold(weights, {name: gates[gates != 0] for name, gates in values.items()}, config)
    student = Encoder(config)
    student.load_state_dict({name: weights[name] for name in student.state_dict()})
    return student.eval()


def _fold(weights: dict[str, Tensor], values: dict[str, Tensor], config: EncoderConfig) -> None:
    """Multiply the values of the open gates (K,), by the names of their gates, into the weights behind them."""
    last = len(config.convs) - 1
    for name, value in values.items():
        kind, number = name.split(".")
        if kind == "units":
            weights[f"layers.{number}.feed_forward.output.weight"] *= value
        elif kind == "heads":
            weights[f"layers.{number}.attention.output.weight"] *= value.repeat_interleave(config.head_size)
        elif int(number) < last:
            weights[f"convs.{int(number) + 1}.conv.weight"] *= value[:, None]
        else:
            scale = f"convs.{number}.channel_scale"
            inner = weights.get(f"{scale}.inner.weight")
            weights[f"{scale}.weight"] = value if inner is None else inner * value
