"""Tensors out of files, as data: nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..encoder import Encoder, EncoderConfig
from ..encoder.layer import TransformerLayer
from ..errors import InputError
from .archives import read_archive
from .pickles import Record


def read_file(path: Path, dtype: torch.dtype | None = None) -> Any:
    """What a .safetensors file or a torch archive holds.

    Args:
        path: the file.
        dtype: of a .safetensors file's floating-point tensors, instead of the file's own; never all of them in both.

    Raises:
        InputError: damaged, truncated, or with code in it.
    """
    if path.suffix != ".safetensors":
        return read_archive(path)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
        tensors = {}
        for name in names:
            # A mapping of its own for each: what was read through one counts as this process's memory until it ends.
            with safe_open(path, framework="pt") as file:
                tensor = file.get_tensor(name)
                tensors[name] = tensor.to(dtype if tensor.is_floating_point() else None, copy=True)
        return tensors
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: damaged or not a safetensors file ({error}); get it again") from None


def read_weights(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or in a torch archive; `dtype` as in `read_file`.

    Raises:
        InputError: damaged, truncated, or not a flat dictionary of tensors.
    """
    weights = read_file(path, dtype)
    if isinstance(weights, Record):
        raise InputError(f"{path}: holds an object of {weights.name}, not a state dict; save its state_dict() instead")
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InputError(f"{path}: not a state dict (a flat dictionary of tensors)")
    return weights


class StateDict:
    """The weights of a file, asked for by Transformers' names and kept under the file's own.

    Args:
        tensors: the file's weights, without whatever stands around the encoder's.
        source: for messages.
        rename: the file's name for one of Transformers'.
    """

    def __init__(
        self, tensors: Mapping[str, Any], source: str, rename: Callable[[str], str] = lambda name: name
    ) -> None:
        self.tensors, self.source, self.rename = tensors, source, rename
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return self.rename(name) in self.tensors

    def __getitem__(self, name: str) -> Tensor:
        theirs = self.rename(name)
        if theirs not in self.tensors:
            raise InputError(f"{self.source}: the weight {theirs} is missing")
        if not isinstance(self.tensors[theirs], Tensor):
            raise InputError(f"{self.source}: {theirs} is no tensor")
        self.taken.add(theirs)
        return self.tensors[theirs]

    def left(self) -> Iterator[str]:
        """The file's names that nobody has asked for."""
        return (name for name in self.tensors if name not in self.taken)


def build(
    config: EncoderConfig, weights: dict[str, Tensor], source: str, dtype: torch.dtype = torch.float32
) -> Encoder:
    """The encoder of a configuration with these weights, which become its own, in `dtype`.

    Raises:
        InputError: a weight is missing, unknown, of another shape, or not a finite number.
    """
    # Without memory first: a configuration may claim any size.
    try:
        with torch.device("meta"):
            empty = Encoder(config)
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{source}: its configuration makes no encoder ({str(error).splitlines()[0]})") from None
    check(empty, weights, source)
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{source}: the weight {name} has numbers that are not finite; the file is of no use")
    # Assigned, not copied: there is never more of them in memory than needed.
    encoder = empty.to_empty(device="cpu")
    own = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in encoder.state_dict().items()}
    encoder.load_state_dict({name: tensor.to(own[name]) for name, tensor in _apart(weights)}, assign=True)
    for layer in encoder.layers:
        if isinstance(layer, TransformerLayer):
            layer.attention.number_heads()
    return encoder


def _apart(weights: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights, each with memory of its own all of which it uses; copies where that was not so."""
    taken = set()
    for name, tensor in weights.items():
        storage = tensor.untyped_storage()
        shares = storage.data_ptr() in taken or storage.nbytes() != tensor.numel() * tensor.element_size()
        taken.add(storage.data_ptr())
        yield name, tensor.contiguous().clone() if shares or not tensor.is_contiguous() else tensor


def fill(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """Copy `weights` (any float type) into a freshly built module, every one of them and nothing else.

    Raises:
        InputError: a weight is missing, unknown, or of another shape.
    """
    check(module, weights, source)
    own = module.state_dict()
    module.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in weights.items()})


def check(module: nn.Module, weights: dict[str, Tensor], source: str) -> None:
    """See that `weights` are those of the module, by name and shape.

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
        if weights[name].is_floating_point() != tensor.is_floating_point():
            wanted = "floating point" if tensor.is_floating_point() else "whole numbers"
            raise InputError(f"{source}: the weight {name} is of the type {weights[name].dtype}, not {wanted}")
    unknown = sorted(set(weights) - set(own))
    if unknown:
        raise InputError(f"{source}: unknown weights: {', '.join(unknown[:3])}{' …' if len(unknown) > 3 else ''}")
