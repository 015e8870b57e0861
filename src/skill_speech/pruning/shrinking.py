"""Removing units during training, once their gates are permanently closed: the student gets cheaper as it gets smaller.

What is removed is cut out of the weights, the gate vectors and the optimizer's moments. The remaining student computes
the same function, draws the same gates, and learns from the next batch what it would have learned.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..encoder import Encoder
from ..kernels import attach_kernels, has_kernels
from .budget import Budget
from .cutting import Selection, Survivors, cut, cut_config, selections
from .gates import HardConcrete, find_gates
from .size import Widths

# Matrix products are fastest at such widths; a few closed units more cost nothing.
MULTIPLE = 8
# Share of the budget that is left beyond it.
RESERVE = 0.05

Replacements = dict[Tensor, tuple[nn.Parameter | None, Selection]]
"""For every parameter that is gone: the one that stands in its place, if any does, and what was kept of the old one."""


def closed_for_good(
    encoder: Encoder, below: float, budget: Budget | None = None, round_to: int = 1
) -> dict[str, Tensor]:
    """Which units of a gated encoder may go, the least probable ones first.

    A unit may go if its gate is open with a probability under `below`, if it is closed in evaluation, and if the number
    of gates that are open in evaluation does not change with it. With a budget, what is left has room for it and for
    `RESERVE` more: where the sparsity overshoots its target, the units that will be opened again are still there.

    Args:
        encoder: with gates.
        below: probability of being open under which a drawn gate counts as permanently closed.
        budget: what the student will be allowed to cost.
        round_to: as in `fix_gates`, which shall find widths that it can keep.

    Returns:
        indices (K,) of the units that stay, ascending, by the names of the gate vectors that can lose some.
    """
    multiples = {"channels": math.lcm(MULTIPLE, round_to), "heads": 1, "units": math.lcm(MULTIPLE, round_to)}
    gates = {gate.name: gate for gate in find_gates(encoder)}
    candidates = {name: _candidates(gate.module, below) for name, gate in gates.items()}
    # Of every vector the candidates stand in the order of their probability, so any number off the top of the merged
    # list is of each vector the least probable ones. The size that is left is monotone in that number: bisect.
    keep = {name: gate.module.keep_probability().detach()[candidates[name]].tolist() for name, gate in gates.items()}
    order = [name for _, name in sorted((value, name) for name, values in keep.items() for value in values)]

    def going(number: int) -> dict[str, int]:
        tally = Counter(order[:number])
        left = {name: len(gate.module.kept_units) - tally[name] for name, gate in gates.items()}
        over = {name: -left[name] % multiples[gate.kind] for name, gate in gates.items()}
        return {name: max(0, tally[name] - over[name]) for name in gates}

    def too_many(number: int) -> bool:
        widths = Widths.of(encoder.config)
        for name, count in going(number).items():
            vector = getattr(widths, gates[name].kind)
            vector[gates[name].layer] = len(gates[name].module.kept_units) - count
        widths.attends = [int(bool(heads)) for heads in widths.heads]
        return budget is not None and float(budget.enlarged(RESERVE).excess(encoder, widths)) < 0

    number = bisect_left(range(1, len(order) + 1), True, key=too_many)
    kept = {}
    for name, count in going(number).items():
        if count:
            stays = torch.ones(len(gates[name].module.kept_units), dtype=torch.bool)
            stays[candidates[name][:count]] = False
            kept[name] = stays.nonzero().flatten()
    return kept


def _candidates(gate: HardConcrete, below: float) -> Tensor:
    """Indices (N,) of the units of one vector that may go, the least probable one first."""
    keep = gate.keep_probability().detach().double().cpu()
    count = gate.open_count()
    order = torch.argsort(gate.log_alpha.detach().cpu(), descending=True, stable=True)
    closed = order[max(count, int((keep >= below).sum())) :].flip(0)
    # The rounded expectation with the first of them gone, with the first two, and so on.
    counts = (keep.sum() - keep[closed].cumsum(0)).round().clamp(min=gate.at_least)
    return closed[: int((counts == count).sum())]


def shrink(encoder: Encoder, kept: Mapping[str, Tensor]) -> Replacements:
    """Cut a gated encoder down in place, its gates too.

    Args:
        encoder: its front end and layers are replaced by smaller ones; the encoder itself stays the same object.
        kept: indices (K,) of the units that stay, ascending, by the name of their gate vector; others stay whole.

    Returns:
        what has become of the parameters that were replaced, for the optimizer.
    """
    before = dict(encoder.named_parameters())
    survivors = Survivors.of(encoder.config, kept)
    plan = selections(encoder.config, survivors)
    config = cut_config(encoder.config, survivors)
    smaller = Encoder(config)
    smaller.positional_conv = encoder.positional_conv  # is never cut, and may be under weight normalization
    for gate in find_gates(encoder):
        index = getattr(survivors, gate.kind)[gate.layer]
        parent, _, name = gate.place.rpartition(".")
        setattr(smaller.get_submodule(parent), name, gate.module.only(index))
    weights = {name: cut(tensor, plan.get(name, ())) for name, tensor in encoder.state_dict().items()}
    like = next(encoder.parameters())
    smaller.to(like.device, like.dtype)
    smaller.load_state_dict({name: weights[name] for name in smaller.state_dict()})
    smaller.train(encoder.training)
    if has_kernels(encoder):
        attach_kernels(smaller)
    encoder.convs, encoder.projection, encoder.layers = smaller.convs, smaller.projection, smaller.layers
    encoder.config = config
    after = dict(encoder.named_parameters())
    return {old: (after.get(name), plan.get(name, ())) for name, old in before.items() if after.get(name) is not old}


def shrink_like(encoder: Encoder, weights: Mapping[str, Any], prefix: str = "") -> None:
    """Cut a gated encoder down to the units that a saved one still had, in place.

    Args:
        encoder: with all those units.
        weights: the state dict of the saved one; without gates in it, nothing is done.
        prefix: before the encoder's names in it.
    """
    kept = {}
    for gate in find_gates(encoder):
        saved = weights.get(f"{prefix}{gate.place}.kept_units")
        if isinstance(saved, Tensor) and len(saved) < len(gate.module.kept_units):
            kept[gate.name] = torch.isin(gate.module.kept_units.cpu(), saved.cpu()).nonzero().flatten()
    if kept:
        shrink(encoder, kept)


def replace_parameters(optimizers: Iterable[torch.optim.Optimizer], replaced: Replacements) -> None:
    """Put the new parameters where the old ones were in an optimizer, with what is left of their moments."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            now = [replaced.get(weight, (weight, ()))[0] for weight in group["params"]]
            group["params"] = [weight for weight in now if weight is not None]
        for old, (new, selection) in replaced.items():
            state = optimizer.state.pop(old, None)
            if state is not None and new is not None:
                optimizer.state[new] = {
                    # The count of updates is one number, whatever the shape of the weight.
                    name: cut(value, selection) if isinstance(value, Tensor) and value.shape == old.shape else value
                    for name, value in state.items()
                }
