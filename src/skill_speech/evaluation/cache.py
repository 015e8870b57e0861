"""Hidden states on disk, so that a frozen encoder runs once per utterance however often it is trained on.

A cache is a folder with one folder of shards per upstream, named by its fingerprint. A shard is one file of tensors end
to end, read through a memory map, and a JSON index of what stands where. The index is written after the file, and both
whole or not at all, so what an index names is there; what is not named is encoded again.

Legend of the tensor suffixes: L hidden states, T frames, D features.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..files import atomic_write, not_written, read_json, remove_leftovers, write_json
from ..run import ranks

logger = logging.getLogger(__name__)

SHARD_BYTES = 512 * 2**20
RESERVE_BYTES = 2**30
"""Of the disk that is left free."""

DAMAGED = "%s: damaged (%s); its contents will be encoded and written again"

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: byte offset in its shard's file, shape, type, and the CRC-32 of its bytes."""

    offset: int
    shape: tuple[int, int, int]
    dtype: str
    checksum: int

    @property
    def bytes(self) -> int:
        """Its size."""
        L, T, D = self.shape
        return L * T * D * DTYPES[self.dtype].itemsize


@dataclass
class _Shard:
    """A shard that is open: its file, its index, and the memory map, made when first read."""

    path: Path
    places: dict[str, Place]
    bytes: int
    map: Tensor | None = None

    def tensor(self, place: Place) -> Tensor:
        if self.map is None:
            # Private: pages are read when touched and shared with whoever reads them too.
            self.map = torch.from_file(str(self.path), shared=False, size=self.bytes, dtype=torch.uint8)
        part = self.map[place.offset : place.offset + place.bytes]
        return part.view(DTYPES[place.dtype]).view(place.shape)


class StateCache:
    """The hidden states of one upstream, by key.

    Args:
        folder: of the caches of all upstreams.
        fingerprint: of this upstream.
        limit_bytes: of the whole folder. Room is made by removing first the shards of other upstreams, then those of
            this one that hold nothing of what is being written.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, fingerprint: str, limit_bytes: float) -> None:
        self.folder, self.own, self.limit_bytes = folder, folder / fingerprint, limit_bytes
        self._shard_of: dict[str, _Shard] = {}
        self._checked: set[str] = set()
        try:
            self.own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise not_written(folder, error) from None
        ranks.on_first(self._remove_leftovers)
        self.look_again()

    def look_again(self) -> None:
        """Take note of what other ranks have written and removed."""
        known = {shard.path: shard for shard in self._shard_of.values()}
        indices = sorted(self.own.glob("*.json"))
        there = {index.with_suffix(".states") for index in indices}
        for path in known.keys() - there:
            self._forget(known[path])
        for index in indices:
            if index.with_suffix(".states") not in known:
                self._open(index)

    def __contains__(self, key: str) -> bool:
        return key in self._shard_of

    def __len__(self) -> int:
        return len(self._shard_of)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard_of)

    def read(self, key: str) -> Tensor | None:
        """The tensor (L, T, D) of a key that is in the cache; None if it turns out to be damaged.

        The checksum is compared when a tensor is first read.
        """
        shard = self._shard_of[key]
        place = shard.places[key]
        try:
            states_LTD = shard.tensor(place)
        except RuntimeError:  # torch's word for a file that somebody has removed or cut off
            self._give_up(shard, "no longer there")
            return None
        if key not in self._checked:
            if _checksum(states_LTD) != place.checksum:
                self._give_up(shard, "changed since it was written")
                return None
            self._checked.add(key)
        return states_LTD

    def _give_up(self, shard: _Shard, what: str) -> None:
        logger.warning(DAMAGED, shard.path, what)
        self._drop(shard)

    def room_for(self, wanted: int, keep: set[str]) -> int:
        """Make room for `wanted` bytes and return how many may be written, at most `wanted`.

        Shards that hold one of the keys `keep` stay.
        """
        self._remove_foreign(wanted)
        free = self._free()
        for shard in {id(shard): shard for shard in self._shard_of.values()}.values():
            if free >= wanted:
                break
            if keep.isdisjoint(shard.places):
                self._drop(shard)
                free += shard.bytes
        return max(0, min(wanted, free))

    def write(self, items: Iterable[tuple[str, Tensor]]) -> None:
        """Write tensors (L, T, D) as shards of about 512 MiB; a shard is there as soon as it is full.

        Raises:
            InputError: the disk is full.
        """
        iterator = iter(items)
        try:
            while self._write_shard(iterator):
                pass
        except OSError as error:
            raise InputError(
                f"{self.own}: cannot be written ({error.strerror}); free some space or lower --cache_gb, and rerun "
                "the same command to resume"
            ) from None

    def _write_shard(self, items: Iterator[tuple[str, Tensor]]) -> bool:
        path = self.own / f"{time.time_ns():x}-{uuid.uuid4().hex[:8]}.states"
        places: dict[str, Place] = {}
        offset = 0
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            for key, states_LTD in items:
                flat = states_LTD.contiguous()
                name = str(flat.dtype).removeprefix("torch.")
                L, T, D = flat.shape
                places[key] = Place(offset, (L, T, D), name, _checksum(flat))
                offset += file.write(_bytes(flat))
                if offset >= SHARD_BYTES:
                    break
            file.flush()
        if not places:
            path.unlink()
            return False
        named = {key: asdict(place) | {"shape": list(place.shape)} for key, place in places.items()}
        write_json(path.with_suffix(".json"), {"bytes": offset, "checksum": _checksum_of_index(named), "places": named})
        self._open(path.with_suffix(".json"))
        return offset >= SHARD_BYTES

    def _open(self, index: Path) -> None:
        path = index.with_suffix(".states")
        try:
            values = read_json(index)
            # Whatever else is wrong with an index, its checksum is too.
            if values.get("checksum") != _checksum_of_index(values.get("places")):
                raise ValueError("its index has changed since it was written")
            if path.stat().st_size != values.get("bytes"):
                raise ValueError("not as long as its index says")
            named = values["places"].items()
            places = {key: Place(**(place | {"shape": tuple(place["shape"])})) for key, place in named}
        except (OSError, ValueError, InputError) as error:
            logger.warning(DAMAGED, path, error)
            _remove(path)
            return
        shard = _Shard(path, places, values["bytes"])
        self._shard_of.update(dict.fromkeys(places, shard))

    def _drop(self, shard: _Shard) -> None:
        self._forget(shard)
        _remove(shard.path)

    def _forget(self, shard: _Shard) -> None:
        for key in shard.places:
            if self._shard_of.get(key) is shard:
                del self._shard_of[key]
            self._checked.discard(key)

    def _remove_leftovers(self) -> None:
        """Remove the files of a killed process. Nobody else writes there: an evaluation has its folder for itself."""
        remove_leftovers(self.own)
        for path in self.own.glob("*.states"):
            if not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)

    def _remove_foreign(self, wanted: int) -> None:
        others = [path for path in self.folder.iterdir() if path.is_dir() and path != self.own]
        for path in sorted(others, key=lambda other: other.stat().st_mtime):
            if self._free() >= wanted:
                return
            logger.info("%s: removed to free space", path)
            shutil.rmtree(path, ignore_errors=True)

    def _free(self) -> int:
        used = sum(path.stat().st_size for path in self.folder.glob("*/*.states"))
        disk = shutil.disk_usage(self.folder).free - RESERVE_BYTES
        return int(min(self.limit_bytes - used, disk))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data.cast("B")


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(_bytes(tensor))


def _checksum_of_index(places: Any) -> int:
    return zlib.crc32(json.dumps(places, sort_keys=True).encode())


def _remove(path: Path) -> None:
    """A shard: the index first, so that it never names what is gone."""
    for part in (path.with_suffix(".json"), path):
        part.unlink(missing_ok=True)
