"""Tar files of audio: WebDataset's samples, and lhotse's Shar as lhotse writes it.

Only the headers of a tar file are gone through: where a sample's audio begins and ends is what is kept of it, and those
who decode it read it there. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.serialization import deserialize_item

from ..errors import InputError
from .corpus import Corpus
from .fields import MEMBER, RECORDING, FieldError, check_line
from .layouts import AUDIO_SUFFIXES
from .lhotse_manifests import strip
from .lines import is_regular
from .listing import Entry, Listing, mark_of_texts, text_lines
from .rows import columns_of, fields_of

TEXTS = ("txt", "text", "transcript", "lab")
"""Members of a sample with what is said in it."""

CLASSES = ("cls", "label")
SPEAKERS = ("spk", "speaker")

PICKLES = frozenset("data pkl pickle pyd pt pth npy npz".split())

LARGEST_TEXT = 1 << 20
"""Bytes of a member that is not audio."""


class Member(NamedTuple):
    """A file in a tar file, by its name there and its place in it."""

    name: str
    start: int
    stop: int

    @property
    def key(self) -> str:
        """That of its sample: the name up to the first dot after the folders."""
        folder, slash, file = self.name.rpartition("/")
        return folder + slash + file.partition(".")[0]

    @property
    def extension(self) -> str:
        """What comes after that dot, in lower case."""
        return self.name.rpartition("/")[2].partition(".")[2].lower()


def is_tar(path: Path) -> bool:
    """Whether it is a tar file, not packed."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(257)
        return file.read(5) == b"ustar"


def members(path: Path) -> Iterator[Member]:
    """The files in a tar file.

    Raises:
        InputError: it is damaged or cut off.
    """
    if not is_regular(path):
        raise InputError(f"{path}: not a regular file but a pipe, a device or a folder: remove it")
    size = os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # which would otherwise grow with the file
                if not info.isreg() or info.issparse():
                    continue
                stop = info.offset_data + info.size
                if stop > size:
                    raise InputError(f"{path}: truncated within {info.name}: copy it again")
                yield Member(info.name.removeprefix("./"), info.offset_data, stop)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a tar file ({error}): copy it again") from None


def has_tars(path: Path) -> bool:
    """Whether a folder holds tar files and no other files than them and descriptions."""
    if not path.is_dir():
        return False
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return any(name.endswith(".tar") for name in names) and all(
        name.endswith((".tar", ".json", ".txt", ".md", ".idx")) for name in names
    )


def list_tar_folder(path: Path, absolute_paths: bool = False) -> Listing:
    """The samples of all tar files of a folder."""
    corpus = Corpus(path, absolute_paths)
    paths = sorted(one for one in path.glob("*.tar") if not one.name.startswith("."))
    for one in paths:
        if not corpus.holds(str(one)):
            raise InputError(f"{one}: a link to what {corpus.outside.removeprefix('which ')}")
    return list_tars(paths, str(path))


def list_tars(paths: Sequence[Path], source: str) -> Listing:
    """The samples of WebDataset tar files: audio, beside it text (.txt), a class (.cls) or fields (.json).

    Raises:
        InputError: while they are gone through: a damaged tar file, one without audio, or one of pickles.
    """
    details = f"{len(paths)} tar file{'s' if len(paths) > 1 else ''}"
    return Listing(source, partial(_samples, paths), partial(_mark, paths), details=details)


def _mark(paths: Sequence[Path]) -> tuple[int, str]:
    """The number of samples, and a hash of names and sizes of the files in the tar files."""
    digest, count = hashlib.sha256(), 0
    for path in paths:
        last = ""
        for member in members(path):
            digest.update(json.dumps([path.name, *member]).encode())
            count, last = count + (member.key != last), member.key
    return count, digest.hexdigest()


def _samples(paths: Sequence[Path]) -> Iterator[Entry]:
    for path in paths:
        found, extensions = False, set()
        for key, group in groupby(members(path), lambda member: member.key):
            sample = list(group)
            audio = [one for one in sample if f".{one.extension.rpartition('.')[2]}" in AUDIO_SUFFIXES]
            extensions |= {one.extension for one in sample} if not found else set()
            if not audio:
                continue
            found = True
            said = _said(path, key, sample)
            for one in audio:
                entry_id = key if len(audio) == 1 else one.name
                yield Entry(f"{path}: {one.name}", entry_id, place=(str(path), one.start, one.stop), **said)
        if not found:
            shown = ", ".join(sorted(extensions)[:6]) or "nothing"
            why = ": pickles are never read" if extensions & PICKLES else ""
            raise InputError(
                f"{path}: no audio in this tar file (found {shown}{why}): write the audio as .flac, .wav, .ogg or .mp3"
            )


def _said(path: Path, key: str, sample: list[Member]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    for one in sample:
        kind = one.extension
        if kind not in (*TEXTS, *CLASSES, *SPEAKERS, "json"):
            continue
        where = f"{path}: {one.name}"
        if one.stop - one.start > LARGEST_TEXT:
            raise InputError(f"{where} is larger than {LARGEST_TEXT:,} bytes: no text needs that much")
        with path.open("rb") as file:
            file.seek(one.start)
            content = file.read(one.stop - one.start)
        try:
            text = content.decode("utf-8-sig").strip()
            if kind == "json":
                row = json.loads(text)
                if isinstance(row, dict):
                    # Of where it lay in another recording, which is not this one.
                    columns = {
                        what: name
                        for what, name in columns_of(list(row)).items()
                        if what not in ("start", "seconds", "end", "path", "id")
                    }
                    said = fields_of(row, columns, where) | said
            elif kind in TEXTS:
                said["text"] = text
            elif text:
                said["label" if kind in CLASSES else "speaker"] = text
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where} cannot be read ({str(error)[:80]}): correct it") from None
    return said


@dataclass(frozen=True)
class SharReader:
    """The cuts of a folder in lhotse's Shar layout, as lhotse writes it: (manifest, tar file) of each shard."""

    shards: tuple[tuple[Path, Path], ...]
    labels: bool = False

    def __iter__(self) -> Iterator[Cut]:
        for shard in self.shards:
            yield from self._read(*shard)

    def fingerprint(self) -> tuple[int, str]:
        """The number of cuts, and a hash of the manifests."""
        return mark_of_texts(manifest for manifest, _ in self.shards)

    def in_order(self, key: str) -> Iterator[Cut]:
        """The shards in an order that is a function of the key."""
        order = list(self.shards)
        random.Random(f"{key}/shards").shuffle(order)
        for shard in order:
            yield from self._read(*shard)

    def _read(self, manifest: Path, tar: Path) -> Iterator[Cut]:
        inside = members(tar)
        for number, line in text_lines(manifest):
            where = f"{manifest}: line {number}"
            try:
                item = json.loads(line)
                check_line(item)
                strip(item, self.labels)
                cut = deserialize_item(item)
                audio, meta = next(inside, None), next(inside, None)
                if not isinstance(cut, DataCut) or audio is None or meta is None:
                    raise FieldError(f"no cut with one recording, or {tar.name} ends before it")
                if audio.name.rpartition(".")[0] != cut.id or audio.name.endswith(".nodata"):
                    raise FieldError(f"{cut.id} has other audio in {tar.name}, or none ({audio.name})")
                cut.recording = self._recording(tar, meta)
            except FieldError as error:
                raise InputError(f"{where}: {error}: write the shards again") from None
            except InputError:
                raise
            # What damaged JSON and a foreign object make of themselves inside lhotse.
            except Exception as error:
                raise InputError(f"{where}: cannot be read ({type(error).__name__}): write the shards again") from error
            cut.custom = {MEMBER: (str(tar), audio.start, audio.stop)}
            yield cut

    @staticmethod
    def _recording(tar: Path, meta: Member) -> Any:
        if meta.stop - meta.start > LARGEST_TEXT:
            raise FieldError(f"{meta.name} is larger than {LARGEST_TEXT:,} bytes")
        with tar.open("rb") as file:
            file.seek(meta.start)
            item = json.loads(file.read(meta.stop - meta.start).decode())
        RECORDING.check(item)
        return deserialize_item(item)


def is_shar(path: Path) -> bool:
    """Whether a folder is in lhotse's Shar layout."""
    return path.is_dir() and any(path.glob("cuts.*.jsonl*")) and any(path.glob("recording.*"))


def open_shar(path: Path, absolute_paths: bool = False, labels: bool = False) -> SharReader:
    """The cuts of a folder in lhotse's Shar layout.

    Raises:
        InputError: a shard lacks its audio, or is a link out of the folder.
    """
    corpus, shards = Corpus(path, absolute_paths), []
    for manifest in sorted(path.glob("cuts.*.jsonl*")):
        tar = path / f"recording.{manifest.name.split('.')[1]}.tar"
        if not tar.is_file():
            raise InputError(f"{tar}: no such file, for {manifest.name}: the shards are not complete")
        for one in (manifest, tar):
            if not corpus.holds(str(one)):
                raise InputError(f"{one}: a link to what {corpus.outside.removeprefix('which ')}")
        shards.append((manifest, tar))
    return SharReader(tuple(shards), labels)
