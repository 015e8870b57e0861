"""Removing units during training, once their gates have closed for good: the student gets cheaper as it gets smaller.

What is removed is cut out of the weights, the gate vectors and the optimiser's moments. The remaining student computes
the same function, draws the same gates, and learns from the next batch what it would have learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..encoder import Encoder
from .cutting import Selection, Survivors, cut, cut_config, selections
from .gates import HardConcrete, find_gates

# Matrix products are fastest at such widths; a few closed units more cost nothing.
MULTIPLES = {"channels": 8, "heads": 1, "units": 8}

Replacements = dict[Tensor, tuple[nn.Parameter | None, Selection]]
"""For every parameter that is gone: the one that stands in its place, if any does, and what was kept of the old one."""


def closed_for_good(encoder: Encoder, below: float) -> dict[str, Tensor]:
    """Which units of a gated encoder may go.

    Args:
        encoder: with gates.
        below: probability of being open under which a drawn gate counts as closed for good.

    Returns:
        indices (K,) of the units that stay, ascending, by the names of the gate vectors that can lose some.
    """
    kept = {}
    for gate in find_gates(encoder):
        index = _survivors(gate.module, below, MULTIPLES[gate.kind])
        if len(index) < len(gate.module.kept_units):
            kept[gate.name] = index
    return kept


def _survivors(gate: HardConcrete, below: float, multiple: int) -> Tensor:
    """Indices (K,) of the units that must stay, ascending.

    A unit may go if its gate is open with a probability under `below`, if it is closed in evaluation, and if the number
    of gates that are open in evaluation does not change with it. The least probable ones go first.
    """
    keep = gate.keep_probability().detach().double().cpu()
    count = gate.open_count()
    order = torch.argsort(gate.log_alpha.detach().cpu(), descending=True, stable=True)
    candidates = order[max(count, int((keep >= below).sum())) :].flip(0)
    # The rounded expectation with the first of the candidates gone, with the first two, and so on.
    counts = (keep.sum() - keep[candidates].cumsum(0)).round().clamp(min=gate.at_least)
    number = int((counts == count).sum())
    left = len(keep) - number
    number = max(0, number - -left % multiple)
    stays = torch.ones(len(keep), dtype=torch.bool)
    stays[candidates[:number]] = False
    return stays.nonzero().flatten()


def shrink(encoder: Encoder, kept: Mapping[str, Tensor]) -> Replacements:
    """Cut a gated encoder down in place, its gates too.

    Args:
        encoder: its front end and layers are replaced by smaller ones; the encoder itself stays the same object.
        kept: indices (K,) of the units that stay, ascending, by the name of their gate vector; others stay whole.

    Returns:
        what has become of the parameters that were replaced, for the optimiser.
    """
    before = dict(encoder.named_parameters())
    survivors = Survivors.of(encoder.config, kept)
    plan = selections(encoder.config, survivors)
    config = cut_config(encoder.config, survivors)
    smaller = Encoder(config)
    for gate in find_gates(encoder):
        index = getattr(survivors, gate.kind)[gate.layer]
        parent, _, name = gate.place.rpartition(".")
        setattr(smaller.get_submodule(parent), name, gate.module.only(index))
    weights = {name: cut(tensor, plan.get(name, ())) for name, tensor in encoder.state_dict().items()}
    like = next(encoder.parameters())
    smaller.to(like.device, like.dtype)
    smaller.load_state_dict({name: weights[name] for name in smaller.state_dict()})
    smaller.train(encoder.training)
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
    """Put the new parameters where the old ones were in an optimiser, with what is left of their moments."""
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
