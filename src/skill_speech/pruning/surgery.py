"""From a gated student to a smaller one: fix the gates, fold their values, cut the rest away."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import Literal

import torch
from torch import Tensor

from ..encoder import Encoder, EncoderConfig
from ..errors import InputError
from ..kernels import attach_kernels, has_kernels
from ..quantities import human
from .budget import Budget
from .cutting import Survivors, cut, cut_config, selections
from .gates import Gate, HardConcrete, find_gates
from .size import Widths, as_float, config_after_surgery

MissedBudget = Literal["refuse", "keep", "cut"]

MOST_CUT = 0.05
"""Share of the budget by which the gates may exceed it: more than that surgery does not close of its own accord."""


class MissedBudgetError(InputError):
    """The gates are far from the budget."""


def fix_gates(
    encoder: Encoder, budget: Budget | None = None, round_to: int = 1, missed: MissedBudget = "refuse"
) -> None:
    """Decide how many units of every gate vector survive, in place.

    The expected numbers are rounded. With a budget, the rounding errors are then evened out: while the student is too
    big, the least certain open units of all are closed (those with the lowest probability of being kept); then the
    most certain closed units are opened as far as they fit.

    Args:
        encoder: gated.
        budget: what the student may cost.
        round_to: numbers of channels and feed-forward units become multiples of it (or none), and units are opened and
            closed in blocks. A vector that is narrower stays whole or goes. Heads are as wide as they are.
        missed: what to do where the gates exceed the budget by more than `MOST_CUT` of it: refuse, keep their size, or
            cut all the same, which removes units that the student still uses.

    Raises:
        MissedBudgetError: they do, and are to be refused.
    """
    gates = find_gates(encoder)
    for gate in gates:
        gate.module.fixed_count = None
    if budget is not None and missed != "cut" and (gap := gap_to(encoder, budget)):
        if missed == "refuse":
            raise MissedBudgetError(
                f"the gates are open for {gap}: surgery would remove units that are still open. Train stage 1 longer "
                "or with control exact, or set missed_budget to keep (the size of the gates) or cut (the budget)"
            )
        budget = None
    choices = {gate.name: _possible_counts(gate, round_to) for gate in gates}
    places = {gate.name: _nearest(choices[gate.name], gate.module.open_count()) for gate in gates}
    if budget is not None and gates:
        places = _fit(encoder, budget, {gate.name: gate.module for gate in gates}, choices, places)
    for gate in gates:
        gate.module.fixed_count = choices[gate.name][places[gate.name]]


def gap_to(encoder: Encoder, budget: Budget) -> str:
    """What exceeds the budget by more than `MOST_CUT` in a gated encoder as it stands, in words; "" for nothing.

    It goes by the expected widths: that few heads in every layer are all rounded up is for surgery to even out.
    """
    config, widths = config_after_surgery(encoder), Widths.expected(encoder)
    sizes = [(limit, as_float(limit.count(config, widths))) for limit in budget.limits]
    far = [(limit, size) for limit, size in sizes if size > limit.target * (1 + MOST_CUT)]
    return " and ".join(
        f"{human(size)} {limit.what} ({1 - size / limit.whole:.1%} removed), the budget is {human(limit.target)} "
        f"({1 - limit.share:.1%} removed)"
        for limit, size in far
    )


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
            f"round_to is {round_to}: the student exceeds the budget even with every width at its smallest multiple: "
            "choose a smaller multiple or a larger budget"
        )


def _possible_counts(gate: Gate, round_to: int) -> list[int]:
    """Ascending."""
    least, width = gate.module.at_least, len(gate.module.log_alpha)
    if gate.kind == "heads":
        round_to = 1
    counts = [count for count in range(least, width + 1) if count % round_to == 0]
    return counts if width >= round_to or width in counts else [*counts, width]


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
    norm after it and stay as one factor per channel (`EncoderConfig.feature_scale`).
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
    student = Encoder.of(config, weights)
    return (attach_kernels(student) if has_kernels(encoder) else student).eval()


def _fold(weights: dict[str, Tensor], values: dict[str, Tensor], config: EncoderConfig) -> None:
    """Multiply the values of the open gates (K,), by the names of their gates, into the weights that follow."""
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
