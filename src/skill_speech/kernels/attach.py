"""Where an encoder's operations are carried out: kernels put there, from outside, as gates are."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from ..encoder.layers import Attention, ConvLayer, PositionalConv
from .attend import attend
from .convolution import convolve
from .dropout import Dropout

Module = TypeVar("Module", bound=nn.Module)


def attach_kernels(module: Module) -> Module:
    """Have an encoder, or a part of one, compute with the operations written for CPUs, in place; returns it.

    Weights, their names and what is computed stay, but for rounding and for which random numbers dropout draws. On
    other devices, and in programs that are compiled or exported, the encoder's own operations stay.
    """
    for part in module.modules():
        if isinstance(part, (ConvLayer, PositionalConv)):
            part.convolve = convolve
        elif isinstance(part, Attention):
            part.attend = attend
        for name, child in part.named_children():
            if type(child) is nn.Dropout:
                setattr(part, name, Dropout(child.p).train(child.training))
    return module


def has_kernels(module: nn.Module) -> bool:
    """Whether kernels are attached to an encoder."""
    return any(isinstance(part, PositionalConv) and part.convolve is convolve for part in module.modules())
