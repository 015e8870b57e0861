"""Tensors out of files, as data: nothing in a file is ever executed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..encoder import Encoder, EncoderConfig
from ..encoder.layers import TransformerLayer
from ..errors import InputError
from .archives import read_archive
from .pickles import Record

# Float, boolean and whole numbers; no quantized, complex or 8-bit floating-point ones.
SAFETENSORS_DTYPES = ("F64", "F32", "F16", "BF16", "BOOL", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
MAPPED_BYTES = 16 * 2**20
MAX_TENSORS = 2**15  # the deepest encoders have a thousand
# Parts of names that torch.compile, DDP, FSDP and activation checkpointing add, in front and in between.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
ADAPTER_MARKS = (".lora_", ".base_layer.", "base_model.model.")
MERGE = (
    "merge the adapter into its model first: "
    "peft.PeftModel.from_pretrained(MODEL, FOLDER).merge_and_unload().save_pretrained(NEW), and give NEW"
)
MAX_SHARING = 8
"""How many weights may stand on the same numbers, on average: layers that share theirs are a thing."""


def read_file(path: Path, dtype: torch.dtype | None = None) -> Any:
    """What a .safetensors file or a torch archive holds.

    Args:
        path: the file.
        dtype: of a .safetensors file's floating-point tensors, instead of the file's own; never all of them in both.

    Raises:
        InputError: damaged, truncated, with code in it, or with tensors of a type that is not supported.
    """
    if path.suffix != ".safetensors":
        return read_archive(path)
    try:
        return _read_safetensors(path, dtype)
    # The header is checked by the library; what it lets pass is torch's to complain of.
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, OverflowError, AttributeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: damaged or not a safetensors file ({reason}); get a fresh copy") from None


def _read_safetensors(path: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    names: list[str] | None = None
    while names is None or names:
        # Opened again now and then: what was read through a mapping counts as this process's memory until it ends.
        with safe_open(path, framework="pt") as file:
            names, mapped = list(file.keys())[::-1] if names is None else names, 0
            if len(names) > MAX_TENSORS:
                raise InputError(f"{path}: holds {len(names):,} tensors, which no speech encoder has")
            while names and mapped < MAPPED_BYTES:
                name = names.pop()
                kind = file.get_slice(name).get_dtype()
                if kind not in SAFETENSORS_DTYPES:
                    raise InputError(
                        f"{path}: the weight {name} is of the type {kind}; save the model in float32 first"
                    )
                tensor = file.get_tensor(name)
                mapped += tensor.nbytes
                tensors[name] = tensor.to(dtype if tensor.is_floating_point() else None, copy=True)
    return tensors


def read_weights(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The state dict in a .safetensors file or in a torch archive; `dtype` as in `read_file`.

    Raises:
        InputError: damaged, truncated, or not a flat dictionary of tensors by name.
    """
    weights = read_file(path, dtype)
    if isinstance(weights, Record):
        raise InputError(f"{path}: holds an object of {weights.name}, not a state dict; save its state_dict() instead")
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()
    ):
        raise InputError(f"{path}: not a state dict (a flat dictionary of tensors by name)")
    return as_state_dict(weights, str(path))


def as_state_dict(weights: Mapping[Any, Any], source: str) -> dict[Any, Any]:
    """Weights under the names that their model gives them, whatever it was wrapped in when it was saved.

    Every format's state dict comes through here.

    Raises:
        InputError: unmerged adapters, two weights of one name, or weights that claim far more memory than the file has.
    """
    plain: dict[Any, Any] = {}
    for name, tensor in weights.items():
        inner = name
        if isinstance(name, str):
            if any(mark in name for mark in ADAPTER_MARKS):
                raise InputError(f"{source}: {name} is of an adapter; {MERGE}")
            if any(part in name for part in WRAPPERS):
                inner = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if inner in plain:
            raise InputError(f"{source}: the weight {inner} appears twice, also as {name}; keep one of them")
        plain[inner] = tensor
    _refuse_shared(plain, source)
    return plain


def _refuse_shared(weights: Mapping[Any, Any], source: str) -> None:
    """Weights may lie in the same memory, but what they take once each has its own is bounded by what there is."""
    tensors = [tensor for tensor in weights.values() if isinstance(tensor, Tensor)]
    claimed, stored, end = sum(tensor.nbytes for tensor in tensors), 0, 0
    storages = (tensor.untyped_storage() for tensor in tensors)
    for start, size in sorted({(storage.data_ptr(), storage.nbytes()) for storage in storages}):
        stored += max(0, start + size - max(start, end))
        end = max(end, start + size)
    if claimed > MAX_SHARING * stored + 2**20:
        raise InputError(
            f"{source}: weights of {claimed:,} bytes share {stored:,} bytes; save each with its own numbers"
        )


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
            raise InputError(f"{self.source}: {theirs} is not a tensor")
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
    if config.num_layers > len(weights) // 4:  # each has four times as many and more
        raise InputError(f"{source}: its configuration has {config.num_layers} layers for {len(weights)} weights")
    # Without memory first: a configuration may claim any size.
    try:
        with without_memory():
            encoder = Encoder(config)
    except (ValueError, RuntimeError, TypeError, ZeroDivisionError) as error:
        raise InputError(
            f"{source}: its configuration does not describe a valid encoder ({str(error).splitlines()[0]})"
        ) from None
    check(encoder, weights, source)
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{source}: the weight {name} has numbers that are not finite; the file is unusable")
    # Assigned, not copied: there is never more of them in memory than needed.
    own = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in encoder.state_dict().items()}
    encoder.load_state_dict({name: tensor.to(own[name]) for name, tensor in _apart(weights)}, assign=True)
    for layer in encoder.layers:
        if isinstance(layer, TransformerLayer):
            attention = layer.attention
            if attention.kept_heads is not None:  # the only thing that is not in a file
                attention.kept_heads = torch.empty(attention.num_heads, dtype=torch.long)
            attention.number_heads()
    assert not any(tensor.is_meta for tensor in (*encoder.parameters(), *encoder.buffers()))
    return encoder


@contextmanager
def without_memory() -> Iterator[None]:
    """Build modules whose weights have shapes and no numbers."""
    with torch.device("meta"), _NoNumbers():
        yield


class _NoNumbers(TorchFunctionMode):
    """Initializing does nothing. On the meta device it would be nothing, too, but torch imports its compiler for it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


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
