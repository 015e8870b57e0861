"""Tensors out of files, as data: nothing in a file is ever executed."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or in a torch archive.

    Raises:
        InputError: damaged, truncated, or not a flat dictionary of tensors.
    """
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path}: damaged or not a safetensors file ({error}); get it again") from None
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(f"{path}: holds more than tensors, and code in a checkpoint is never run; refused") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(f"{path}: damaged or not a torch archive ({type(error).__name__}); get it again") from None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path}: not a state dict (a flat dictionary of tensors)")
    return weights


def fill(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy `weights` (any float type) into a freshly built module, every one of them and nothing else.

    Raises:
        InputError: a weight is missing, unknown, or of another shape.
    """
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in weights:
            raise InputError(f"{source}: the weight {name} is missing")
        if weights[name].shape != tensor.shape:
            have, want = tuple(weights[name].shape), tuple(tensor.shape)
            raise InputError(f"{source}: the weight {name} has the shape {have}; its configuration says {want}")
    unknown = sorted(set(weights) - set(own))
    if unknown:
        raise InputError(f"{source}: unknown weights: {', '.join(unknown[:3])}{' …' if len(unknown) > 3 else ''}")
    module.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in weights.items()})
