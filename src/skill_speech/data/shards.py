"""Shards: audio in tar files, with the manifests that say what is in them; lhotse's Shar layout and an index.

    FOLDER/index.json               which shards there are, cuts and seconds of each
    FOLDER/cuts.000000.jsonl.gz     1000 cuts; each knows where in the tar file its audio lies
    FOLDER/recording.000000.tar     their audio, 16 kHz mono FLAC

Manifests are read one after another and only as far as they are needed; audio is read by those who decode it, a few
hundred kilobytes at a time, by its place in the tar file. So a resumed run reads no audio for the cuts that it has
already used, and shards may lie on any server that knows range requests. lhotse's own `CutSet.from_shar` reads them
too.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import logging
import random
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from lhotse import AudioSource, CutSet, MonoCut, Recording
from lhotse.cut import Cut
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from ..errors import InputError
from ..files import atomic_write, write_json
from .audio import SAMPLE_RATE, BadAudio, load_waveform, num_samples
from .corpus import Corpus
from .fields import MEMBER, SHARD_CUT, SHARD_INDEX
from .lines import blocks, lines
from .remote import is_remote, read_bytes

logger = logging.getLogger("skill_speech.data")

INDEX = "index.json"
SHARD_CUTS = 1_000
"""Some 200 MB of FLAC: large enough for an object store, small enough to be shuffled among each other."""

TAR_BLOCK = 512


@dataclass(frozen=True)
class Shard:
    """Names of a shard's two files, relative to the folder, and what is in them."""

    cuts: str
    recording: str
    number: int
    seconds: float


@dataclass(frozen=True)
class ShardReader:
    """The cuts of shards, one shard after another; to be wrapped in a CutSet."""

    location: str
    shards: tuple[Shard, ...]

    def __iter__(self) -> Iterator[Cut]:
        for shard in self.shards:
            yield from self._read(shard)

    def fingerprint(self) -> tuple[int, str]:
        """The number of cuts, and a hash of what the index says."""
        index = json.dumps([asdict(shard) for shard in self.shards])
        return sum(shard.number for shard in self.shards), hashlib.sha256(index.encode()).hexdigest()

    def in_order(self, key: str) -> Iterator[Cut]:
        """The shards in an order that is a function of the key."""
        order = list(self.shards)
        random.Random(f"{key}/shards").shuffle(order)
        for shard in order:
            yield from self._read(shard)

    def _read(self, shard: Shard) -> Iterator[Cut]:
        where, tar = f"{self.location}/{shard.cuts}", f"{self.location}/{shard.recording}"
        number = 1
        try:
            packed = read_bytes(where)
            for number, line in enumerate(lines(blocks(io.BytesIO(packed), where), where), 1):  # noqa: B007
                item = json.loads(line.decode())
                SHARD_CUT.check(item)
                cut = deserialize_item(item)
                cut.custom = {**cut.custom, MEMBER: (tar, *cut.custom[MEMBER])}
                yield cut
        except InputError:
            raise
        except FileNotFoundError:
            raise InputError(f"{where}: no such file: the shards are not complete") from None
        # What damaged JSON, a truncated gzip stream and a foreign object make of themselves.
        except (
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            EOFError,
            OSError,
            zlib.error,
            RecursionError,
        ) as error:
            raise InputError(
                f"{where}: cannot be read, at or after line {number} ({type(error).__name__}: {error}): copy or write "
                "the shards again"
            ) from error


def open_shards(location: str | Path, absolute_paths: bool = False) -> CutSet:
    """The cuts of a folder of shards, lazily; a folder on this machine or any address that fsspec knows.

    Raises:
        InputError: there is no index, or it is damaged, or it names files that are links out of the folder, which
            `absolute_paths` allows.
    """
    where = str(location).rstrip("/")
    if not is_remote(where):
        where = str(Path(where).expanduser().resolve())
    try:
        values = json.loads(read_bytes(f"{where}/{INDEX}"))
        SHARD_INDEX.check(values)
        shards = tuple(Shard(**shard) for shard in values["shards"])
        if not all(_is_name(name) for shard in shards for name in (shard.cuts, shard.recording)):
            raise ValueError("it lists no shards, or files elsewhere")
    except FileNotFoundError:
        raise InputError(
            f"{where}/{INDEX}: no such file: an address must point to shards written by skill-speech prepare --shards"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{where}/{INDEX}: cannot be read ({error}): copy or write the shards again") from None
    if not is_remote(where):
        corpus = Corpus(Path(where), absolute_paths)
        for name in (name for shard in shards for name in (shard.cuts, shard.recording)):
            if not corpus.holds(f"{where}/{name}"):
                raise InputError(
                    f"{where}/{INDEX}: names {name}, a link to what {corpus.outside.removeprefix('which ')}"
                )
    return CutSet(ShardReader(where, shards))


def _is_name(name: str) -> bool:
    return not name.startswith(".") and {"/", "\\", ":"}.isdisjoint(name)


def write_shards(
    cuts: Iterable[Cut],
    folder: Path,
    *,
    encode: Callable[[Callable[[Cut], Any], Iterable[Cut]], Iterator[Any]] = map,
    on_bad: Callable[[Cut, BadAudio], None],
    shard_cuts: int = SHARD_CUTS,
) -> tuple[int, float]:
    """Write the audio of cuts, and them, as shards; the index last, so that incomplete shards are not taken for all.

    Args:
        cuts: at 16 kHz.
        folder: where to.
        encode: a map that may work on several cuts at a time.
        on_bad: told of cuts whose audio cannot be read, which are left out, and why.
        shard_cuts: cuts per shard.

    Returns:
        The number of cuts and their seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    good = _good(encode(_encoded, cuts), on_bad)
    shards = []
    for number in count():
        shard = _write_shard(islice(good, shard_cuts), folder, number)
        if shard is None:
            break
        shards.append(shard)
    totals = sum(shard.number for shard in shards), sum(shard.seconds for shard in shards)
    if shards:
        index = {"layout": "lhotse-shar", "cuts": totals[0], "seconds": round(totals[1], 3)}
        write_json(folder / INDEX, index | {"shards": [asdict(shard) for shard in shards]})
    return totals


def _good(encoded: Iterable[Any], on_bad: Callable[[Cut, BadAudio], None]) -> Iterator[tuple[Cut, bytes]]:
    for cut, outcome in encoded:
        if isinstance(outcome, BadAudio):
            on_bad(cut, outcome)
        else:
            yield cut, outcome


def _encoded(cut: Cut) -> tuple[Cut, bytes | BadAudio]:
    """The cut as a shard has it, and its audio as 16-bit FLAC: exact for 16-bit sources at 16 kHz."""
    try:
        waveform_T = load_waveform(cut)
    except BadAudio as error:
        return cut, error
    stream = io.BytesIO()
    # Not by soundfile's own conversion, which scales by 32767 and does not give back the integers that it read.
    samples_T = np.clip(np.rint(waveform_T * 32768.0), -32768, 32767).astype(np.int16)
    soundfile.write(stream, samples_T, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    seconds = num_samples(cut) / SAMPLE_RATE
    recording = Recording(
        id=cut.id,
        sources=[AudioSource(type="shar", channels=[0], source="")],
        sampling_rate=SAMPLE_RATE,
        num_samples=num_samples(cut),
        duration=seconds,
    )
    kept = MonoCut(
        id=cut.id,
        start=0.0,
        duration=seconds,
        channel=0,
        # A mixed-down recording has one channel, whoever spoke on which.
        supervisions=[fastcopy(said, recording_id=cut.id, channel=0) for said in cut.supervisions],
        recording=recording,
    )
    return kept, stream.getvalue()


def _write_shard(items: Iterator[tuple[Cut, bytes]], folder: Path, number: int) -> Shard | None:
    """One shard of some items; None when there are none left."""
    cuts_name, tar_name = f"cuts.{number:06}.jsonl.gz", f"recording.{number:06}.tar"
    first = next(items, None)
    if first is None:
        return None
    lines, seconds = [], 0.0
    with atomic_write(folder / tar_name) as temporary, tarfile.open(temporary, "w") as tar:
        for cut, audio in chain([first], items):
            _add(tar, f"{cut.id}.flac", audio)
            stop = tar.offset - -len(audio) % TAR_BLOCK
            cut.custom = {MEMBER: (stop - len(audio), stop)}
            _add(tar, f"{cut.id}.json", json.dumps(cut.recording.to_dict()).encode())
            lines.append(json.dumps(cut.to_dict()))
            seconds += cut.duration
    with atomic_write(folder / cuts_name) as temporary:
        temporary.write_bytes(gzip.compress("\n".join([*lines, ""]).encode(), mtime=0))
    return Shard(cuts_name, tar_name, len(lines), round(seconds, 3))


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))
