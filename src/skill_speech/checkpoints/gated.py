"""DPHuBERT's stage 1: models whose gates are still on them, read as the student that they stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..encoder import Encoder
from ..errors import InputError
from ..pruning import KINDS, HardConcrete, attach_gates, find_gates, prune
from ..pruning.gates import STRETCH, TEMPERATURE
from .settings import Settings

LAYER = "encoder.transformer.layers"
# Where theirs keep a gate vector; the last kind closes a whole sublayer.
PLACES = {
    "channels": "feature_extractor.conv_layers.{}.hard_concrete.log_alpha",
    "heads": f"{LAYER}.{{}}.attention.hard_concrete_for_heads.log_alpha",
    "units": f"{LAYER}.{{}}.feed_forward.hard_concrete_for_intermediate.log_alpha",
}
SUBLAYERS = {
    "attention": ("out_proj", "encoder_use_attention"),
    "feed_forward": ("output_dense", "encoder_use_feed_forward"),
}


def apply_layer_gates(values: dict[str, Any], tensors: dict[str, Any], gates: dict[str, Any]) -> None:
    """Fold the gates on whole sublayers into their outputs, in place; a closed one is marked absent in `values`."""
    depth = values["encoder_num_layers"]
    for name in [name for name in gates if name.endswith(".hard_concrete_for_layer.log_alpha")]:
        place, sublayer = name.removesuffix(".hard_concrete_for_layer.log_alpha").rsplit(".", 1)
        output, flag = SUBLAYERS.get(sublayer, (None, None))
        number = place.removeprefix(f"{LAYER}.")
        if output is None or flag is None or number not in map(str, range(depth)):
            continue
        factor = _gate(gates.pop(name), 1).gates()
        for kind in ("weight", "bias"):
            tensor = tensors.get(f"{place}.{sublayer}.{output}.{kind}")
            if isinstance(tensor, Tensor):
                tensors[f"{place}.{sublayer}.{output}.{kind}"] = tensor * factor
        if not factor:
            flags = values.get(flag)
            values[flag] = list(flags) if isinstance(flags, list) and len(flags) == depth else [True] * depth
            values[flag][int(number)] = False
            for named in (tensors, gates):
                for left in [left for left in named if left.startswith(f"{place}.{sublayer}.")]:
                    if "rel_attn_embed" not in left:  # the position bias of all layers
                        del named[left]


def apply_gates(encoder: Encoder, settings: Settings, gates: dict[str, Any]) -> Encoder:
    """The student that is left when everything is cut away that the gates close in evaluation.

    Raises:
        InputError: gates of another distribution, or not one for each unit.
    """
    source = settings.source
    for name, usual in (("limit_l", -STRETCH), ("limit_r", 1 + STRETCH), ("temperature", TEMPERATURE)):
        if abs(settings.take(name, float, usual) - usual) > 1e-6:
            raise InputError(
                f"{source}: its gates have another {name} than {usual:g}; prune it with its own code first"
            )
    kinds = tuple(kind for kind in KINDS if any(PLACES[kind].split("{}")[1] in name for name in gates))
    for gate in find_gates(attach_gates(encoder, kinds)):
        name = PLACES[gate.kind].format(gate.layer)
        values = gates.pop(name, None)
        if values is None:
            raise InputError(f"{source}: the weight {name} is missing")
        gate.module.log_alpha = _gate(values, len(gate.module.log_alpha), f"{source}: {name}").log_alpha
    if gates:
        raise InputError(f"{source}: no weights match the gates {next(iter(gates))}")
    return prune(encoder)


def _gate(values: Any, units: int, name: str = "hard_concrete_for_layer") -> HardConcrete:
    if not isinstance(values, Tensor) or values.shape != (units,) or not bool(values.isfinite().all()):
        raise InputError(f"{name} is not one number for each of {units} units")
    gate = HardConcrete(units, 0.01).eval()
    with torch.no_grad():
        gate.log_alpha.copy_(values)
    return gate
