"""What `torch.save` wrote, read as data: zip archives, and the files of torch before 1.6.

Tensors are views of the file mapped into memory, so that nothing larger than the file can come out of it.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from mmap import ACCESS_COPY, mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .pickles import Constructors, DamagedError, Name, UnsupportedError, read_pickle

# What tensors are built of. Quantized ones are not: a file that lies about them crashes the process.
DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)
MAX_AXES = 16

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
ZIP_MAGIC = b"PK\x03\x04"
STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}


@dataclass(frozen=True)
class Storage:
    """The bytes that tensors are views of; none while only its type is known."""

    dtype: torch.dtype
    data: memoryview | None = None


def read_archive(path: Path) -> Any:
    """The object that `torch.save` wrote: containers, numbers, tensors, and records of everything else.

    Raises:
        InputError: not such a file, damaged, or with a pickle that would run code.
    """
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise DamagedError("it is empty")
            # Copy on write: tensors may be written to, the file is not.
            content = mmap(file.fileno(), 0, access=ACCESS_COPY)
            if content[:4] == ZIP_MAGIC:
                return _read_zip(file, content, str(path))
            return _read_legacy(content, str(path))
    except UnsupportedError as error:
        raise InputError(f"{path}: {error}; save the model in float32 first") from None
    # What a damaged directory is to zipfile depends on where it is damaged.
    except (
        ValueError,
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        OverflowError,
        struct.error,
        OSError,
    ) as error:
        raise InputError(f"{path}: damaged or not a torch archive ({_reason(error)}); get a fresh copy") from None


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def _read_zip(file: Any, content: mmap, source: str) -> Any:
    archive = zipfile.ZipFile(file)
    members = {info.filename: info for info in archive.infolist()}
    if sum(info.compress_size for info in members.values()) > len(content):
        raise DamagedError("its members overlap")
    pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise DamagedError("it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if f"{root}constants.pkl" in members:
        raise InputError(f"{source}: a TorchScript program; give the file with the model's state dict")

    def member(name: str) -> memoryview:
        if name not in members:
            raise DamagedError(f"{name} is missing")
        return _member(content, members[name])

    if f"{root}byteorder" in members and bytes(member(f"{root}byteorder")) != b"little":
        raise InputError(f"{source}: written on a big-endian machine; save it again on another one")

    storages = dict[str, Storage]()

    def persistent(reference: Any) -> Any:
        dtype, key, count = _storage_reference(reference)
        if key not in storages:
            storages[key] = Storage(dtype, _aligned(member(f"{root}data/{key}")))
        if len(storages[key].data or b"") < count * dtype.itemsize:
            raise DamagedError(f"{root}data/{key} is shorter than expected")
        return storages[key]

    return read_pickle(io.BytesIO(member(pickles[0])), _REBUILDERS, persistent, source)


def _member(content: mmap, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of a member, without a copy: torch never compresses."""
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise DamagedError(f"{info.filename} is compressed, which torch never writes")
    header = content[info.header_offset : info.header_offset + 30]
    if len(header) < 30 or header[:4] != ZIP_MAGIC:
        raise DamagedError(f"{info.filename} is not at the expected offset")
    start = info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    data = memoryview(content)[start : start + info.file_size]
    if len(data) != info.file_size:
        raise DamagedError(f"{info.filename} is truncated")
    if info.CRC and zlib.crc32(data) != info.CRC:  # torch can leave checksums out
        raise DamagedError(f"{info.filename} has a wrong checksum")
    return data


def _read_legacy(content: mmap, source: str) -> Any:
    """Pickles of a magic number, a version, the machine, the object and the keys of its storages; then the storages."""

    def nothing(reference: Any) -> Any:
        raise DamagedError("its pickle refers to something outside the file")

    if read_pickle(content, {}, nothing, source) != LEGACY_MAGIC:
        raise DamagedError("it does not start like a torch file")
    for _ in range(2):
        read_pickle(content, {}, nothing, source)
    start, storages = content.tell(), dict[str, Storage]()

    def persistent(reference: Any) -> Any:
        if isinstance(reference, tuple) and reference[:1] == ("module",):  # a class with its source code
            return reference[1]
        dtype, key, _ = _storage_reference(reference)
        storage = storages.setdefault(key, Storage(dtype))
        if storage.data is None or len(reference) < 6 or reference[5] is None:
            return storage
        _, offset, count = reference[5]
        part = slice(offset * dtype.itemsize, (offset + count) * dtype.itemsize)
        return Storage(dtype, storage.data[part])

    # The storages come last, and how long an element is stands in the pickle before: read it once for the types alone.
    read_pickle(content, dict.fromkeys(_REBUILDERS, lambda *arguments: None), persistent, source)
    keys = read_pickle(content, {}, nothing, source)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DamagedError("its list of storages is missing")
    for key in keys:
        if key not in storages:
            raise DamagedError("it lists a storage that nothing uses")
        dtype = storages[key].dtype
        count = int.from_bytes(content.read(8), "little")
        begin = content.tell()
        data = memoryview(content)[begin : begin + count * dtype.itemsize]
        if len(data) != count * dtype.itemsize:
            raise DamagedError("it is truncated")
        storages[key] = Storage(dtype, _aligned(data))
        content.seek(begin + len(data))
    content.seek(start)
    return read_pickle(content, _REBUILDERS, persistent, source)


def _storage_reference(reference: Any) -> tuple[torch.dtype, str, int]:
    """Type, key and number of elements out of ("storage", type, key, device, number, …)."""
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
        raise DamagedError("its pickle refers to something that is not a storage")
    _, kind, key, _, count = reference[:5]
    if not isinstance(kind, Name) or kind.name not in STORAGES:
        raise UnsupportedError(f"tensors of {getattr(kind, 'name', None)} are not supported")
    if not isinstance(key, str) or not isinstance(count, int) or count < 0:
        raise DamagedError("its pickle refers to a storage without key or length")
    return STORAGES[kind.name], key, count


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """The tensor that `torch._utils._rebuild_tensor` would make, if it lies inside its storage."""
    if not isinstance(storage, Storage) or storage.data is None:
        raise DamagedError("its pickle makes a tensor of something that is not a storage")
    return _view(storage.data, storage.dtype, offset, size, stride)


def _rebuild_typed(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, kind: Any, *rest: Any
) -> Tensor:
    """As `_rebuild`, of bytes whose type is named beside."""
    if not isinstance(storage, Storage) or storage.data is None or not isinstance(kind, Name):
        raise DamagedError("its pickle makes a tensor of something that is not a storage")
    dtype = next((dtype for dtype in DTYPES if str(dtype) == kind.full), None)
    if dtype is None:
        raise UnsupportedError(f"tensors of {kind.full} are not supported")
    return _view(storage.data, dtype, offset, size, stride)


def _view(data: memoryview, dtype: torch.dtype, offset: Any, size: Any, stride: Any) -> Tensor:
    if len(size) != len(stride) or len(size) > MAX_AXES:
        raise DamagedError("it has a tensor without proper sizes and strides")
    if not all(isinstance(number, int) and number >= 0 for number in (offset, *size, *stride)):
        raise DamagedError("it has a tensor without proper sizes and strides")
    if 0 in size:
        # Bounded like the rest: what is empty by one size must not be huge by the others.
        if math.prod(length for length in size if length) > 2**32:
            raise DamagedError("it has a tensor of an impossible size")
        return torch.empty(size, dtype=dtype)
    held = len(data) // dtype.itemsize
    elements, last = 1, offset
    for length, step in zip(size, stride, strict=True):
        elements, last = elements * length, last + (length - 1) * step
    if elements > held or last >= held:
        raise DamagedError(f"it has a tensor of {elements:,} numbers where {held:,} are stored")
    return torch.frombuffer(data, dtype=dtype, count=held).as_strided(size, stride, offset)


def _aligned(data: memoryview) -> memoryview:
    """The same bytes at an address that any type may have, copied only where they are not."""
    if len(data) and torch.frombuffer(data, dtype=torch.uint8).data_ptr() % 16:
        return memoryview(bytearray(data))
    return data


def _unwrap(value: Any, *rest: Any) -> Any:
    return value


def _rebuild_subclass(function: Any, kind: Any, arguments: Any, *rest: Any) -> Any:
    """A tensor with attributes of its own, which are left out."""
    if not isinstance(function, Name) or function.full not in _REBUILDERS:
        raise DamagedError("it has a tensor of an unknown kind")
    return _REBUILDERS[function.full](*arguments)


_REBUILDERS: Constructors = {
    "torch._tensor._rebuild_from_type_v2": _rebuild_subclass,
    "torch._utils._rebuild_parameter": _unwrap,
    "torch._utils._rebuild_parameter_with_state": _unwrap,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_typed,
    "torch.Size": lambda size=(): tuple(size),
}
