"""Which entries of which weight belong to which unit, and weights with fewer units.

Surgery cuts by it when the gates go, shrinking cuts by it while they stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..encoder import EncoderConfig, LayerConfig
from .gates import PLACES

Selection = tuple[tuple[int, Tensor], ...]
"""Per axis that loses something: its number, and the indices (K,) of the entries that stay."""


@dataclass(frozen=True)
class Survivors:
    """Of every layer the indices (K,) of the units that stay, ascending.

    Attributes:
        channels: of each convolution.
        heads: of each transformer layer, among the heads that it has (not the teacher's numbers).
        units: feed-forward units of each transformer layer.
    """

    channels: list[Tensor]
    heads: list[Tensor]
    units: list[Tensor]

    @classmethod
    def of(cls, config: EncoderConfig, kept: Mapping[str, Tensor]) -> Survivors:
        """Survivors from the indices of some vectors by the name of their gate ("units.3"); the others stay whole."""

        def indices(kind: str, widths: list[int]) -> list[Tensor]:
            return [kept.get(f"{kind}.{number}", torch.arange(width)).cpu() for number, width in enumerate(widths)]

        return cls(
            channels=indices("channels", [conv.channels for conv in config.convs]),
            heads=indices("heads", [len(layer.heads) for layer in config.layers]),
            units=indices("units", [layer.units for layer in config.layers]),
        )


def cut_config(config: EncoderConfig, survivors: Survivors) -> EncoderConfig:
    """The configuration with the survivors' widths."""
    layers = zip(config.layers, survivors.heads, survivors.units, strict=True)
    return config.replace(
        convs=tuple(
            dataclasses.replace(conv, channels=len(index))
            for conv, index in zip(config.convs, survivors.channels, strict=True)
        ),
        layers=tuple(
            LayerConfig(tuple(layer.heads[i] for i in heads.tolist()), len(units)) for layer, heads, units in layers
        ),
    )


def selections(config: EncoderConfig, survivors: Survivors) -> dict[str, Selection]:
    """What stays of the weights that lose something, by their name in an encoder, gated or not."""
    found: dict[str, Selection] = {}
    scale_weights = ("weight", "log_alpha", "kept_units", "gradient_mean", "gradient_square", "inner.weight")
    for number, index in enumerate(survivors.channels):
        for name in ("conv.bias", "norm.weight", "norm.bias"):
            found[f"convs.{number}.{name}"] = ((0, index),)
        inputs: Selection = ((1, survivors.channels[number - 1]),) if number else ()
        found[f"convs.{number}.conv.weight"] = ((0, index), *inputs)
    last = survivors.channels[-1]
    found |= {f"projection.norm.{kind}": ((0, last),) for kind in ("weight", "bias")}
    found["projection.projection.weight"] = ((1, last),)
    for number, index in enumerate(survivors.heads):
        rows = head_rows(index, config.head_size)
        prefix = f"layers.{number}.attention"
        for name in ("query", "key", "value"):
            found |= {f"{prefix}.{name}.{kind}": ((0, rows),) for kind in ("weight", "bias")}
        found[f"{prefix}.output.weight"] = ((1, rows),)
        found[f"{prefix}.position_gate_const"] = ((0, index),)
    for number, index in enumerate(survivors.units):
        prefix = f"layers.{number}.feed_forward"
        found |= {f"{prefix}.input.{kind}": ((0, index),) for kind in ("weight", "bias")}
        found[f"{prefix}.output.weight"] = ((1, index),)
    for kind, place in PLACES.items():
        for number, index in enumerate(getattr(survivors, kind)):
            found |= {f"{place.format(number)}.{name}": ((0, index),) for name in scale_weights}
    return found


def head_rows(index_K: Tensor, head_size: int) -> Tensor:
    """Rows (K·E,) of a projection that belong to these heads."""
    return (index_K[:, None] * head_size + torch.arange(head_size)).flatten()


def cut(tensor: Tensor, selection: Selection) -> Tensor:
    """A tensor with what stays of it, always in memory of its own."""
    tensor = tensor.detach().clone() if not selection else tensor.detach()
    for axis, index in selection:
        tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor
