"""From a user's audio to a lhotse cut set: `prepare` checks and writes a manifest, `open_cuts` opens anything."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from lhotse import AudioSource, CutSet, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.cut import Cut, MixedCut
from lhotse.cut.data import DataCut
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy
from rich.progress import track

from ..errors import InputError
from ..files import atomic_write, write_json
from ..limits import check_options
from ..run.progress import terminal
from .audio import (
    SAMPLE_RATE,
    AudioHeader,
    BadAudio,
    at_16khz,
    audio_path,
    doubts,
    ends_early,
    is_resampled,
    load_waveform,
    local_files,
    other_format,
    read_header,
    shown,
)
from .corpus import Corpus
from .fields import BAD_AUDIO, MEMBER, FieldError, check_line
from .layouts import AudioFile, list_folder, list_tsv
from .lines import blocks, is_regular, lines
from .remote import is_remote
from .shards import INDEX, is_sharded, open_shards, write_shards
from .streams import Mixture, transformed
from .tally import AudioTally, Note

logger = logging.getLogger("skill_speech.data")

In = TypeVar("In")
Out = TypeVar("Out")

Checked = tuple[AudioHeader | BadAudio, list[str]]
Check = Callable[[str], Checked]

SHORTEST_SECONDS = 0.025
"""One frame of the convolutional front end; nothing can be done with less."""

LIST = "bad_audio.json"
"""The file in a folder of shards, or the end of the name of one beside a manifest, that lists unusable audio."""

MANIFEST_SUFFIXES = (".jsonl", ".jsonl.gz")
KNOWN_SOURCES = (
    "a folder of audio, a LibriSpeech folder, a fairseq .tsv, a lhotse manifest of cuts or recordings "
    "(.jsonl, .jsonl.gz), or shards"
)


@dataclass(frozen=True)
class Part:
    """One of several corpora that are mixed.

    Attributes:
        path: anything that `open_cuts` takes.
        weight: of its cuts among those of the others: with 3 and 1, three of four cuts are from the first.
    """

    path: str
    weight: float = 1.0


def prepare(
    source: str | Path,
    output: str | Path | None = None,
    *,
    shards: bool = False,
    jobs: int = 2,
    max_bad: float | str = "1%",
    decode: bool = False,
    absolute_paths: bool = False,
) -> CutSet:
    """Makes a cut set of 16 kHz mono audio from a folder, a LibriSpeech folder, a fairseq tsv or a lhotse manifest.

    Every file's header and last sample are read, or all of it with `decode`. Files that cannot be used are named in the
    log and left out; beside the output, a file that ends in .bad_audio.json lists them.
    Audio of another sample rate or with several channels stays as it is on disk; it is resampled and mixed down when
    it is read (`load_waveform`).

    Args:
        source: a folder of audio (anything soundfile reads, searched recursively), a LibriSpeech folder (a subset, or
            the folder of several; transcripts and speakers become supervisions), a fairseq or DPHuBERT tsv, or a
            lhotse manifest of cuts or recordings.
        output: where to write the cuts (.jsonl or .jsonl.gz, with absolute paths); written whole or not at all. With
            `shards`, the folder for them.
        shards: copy the audio too, as 16 kHz mono FLAC in tar files of about 200 MB, which can be read from a server.
        jobs: number of threads that read headers and encode audio.
        max_bad: the share of files that may be unusable, such as 1% or 0.01.
        decode: decode all audio, which takes long, and find what headers do not show: NaN, damage in the middle; files
            that are silent, clipped or have a DC offset are named, and kept. Shards are always made of what could be
            decoded.
        absolute_paths: a manifest or tsv may name files outside of its own folder.

    Returns:
        The cuts, in memory, or opened lazily from `output` where it is given.

    Raises:
        InputError: a source that does not exist or is of no known kind, a folder without audio, more unusable files
            than `max_bad`, or an output that cannot be written.
    """
    check_options(prepare, dict(locals()))
    return _prepare(source, output, shards, jobs, max_bad, decode, absolute_paths)[0]


def _prepare(
    source: str | Path,
    output: str | Path | None,
    shards: bool,
    jobs: int,
    max_bad: float | str,
    decode: bool,
    absolute_paths: bool,
) -> tuple[CutSet, AudioTally]:
    path = _existing(source)
    if shards and output is None:
        raise InputError("shards need an output folder: give --output")
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")
    if output is not None and not shards and not str(output).endswith(MANIFEST_SUFFIXES):
        raise InputError(f"{output}: a manifest's name must end in .jsonl or .jsonl.gz")
    tally = _Tally(path, AudioTally(max_bad))
    check = _decode if decode else _check_header
    if path.name.endswith(MANIFEST_SUFFIXES):
        cuts = _check_manifest(_ManifestReader(path, absolute_paths), tally, check, jobs)
    else:
        cuts = _cut_files(path, tally, check, jobs, absolute_paths)
    if output is None:
        kept = list(cuts)
        tally.report()
        logger.info("%s: %d cuts, %.2f h", path, tally.usable, tally.seconds / 3600)
        return CutSet(kept), tally.audio
    output = Path(output).expanduser()
    if shards:
        _write_shards(cuts, output, tally, jobs)
        return open_shards(output), tally.audio
    _write_whole(cuts, output, tally)
    logger.info("%s: %d cuts, %.2f h", output, tally.usable, tally.seconds / 3600)
    outside = Corpus(output.parent, anywhere=False)
    if any(not outside.holds(name) for cut in islice(_ManifestReader(output, True), 1) for name in local_files(cut)):
        logger.info("%s: its audio lies outside of its folder: open it with absolute_paths set to true", output)
    return CutSet(_ManifestReader(output, True)), tally.audio


def open_cuts(
    data: str | Path | CutSet | Sequence[Part],
    *,
    absolute_paths: bool = False,
    max_bad: float | str = "1%",
    found: AudioTally | None = None,
    labels: bool = False,
) -> CutSet:
    """Opens training data: a manifest or shards (read lazily), a CutSet, or anything else that `prepare` takes.

    Shards may lie anywhere that fsspec reaches: https://…, s3://…. Of several parts a mixture is made. The cuts count
    in samples of 16 kHz, whatever their files' rate. A manifest's audio is not checked here: bad files show when they
    are read.

    Args:
        data: what to open.
        absolute_paths: a manifest or tsv may name files outside of its own folder.
        max_bad: as in `prepare`, for what is prepared here.
        found: gets what was wrong with audio that was prepared, here or before.
        labels: keep what a manifest's supervisions have under custom["label"]; otherwise custom fields are left out.

    Raises InputError for anything that `prepare` refuses, and while iterating for a manifest line that is not a cut.
    """
    if isinstance(data, CutSet):
        return transformed(data, _To16kHz("the given cuts"))
    if not isinstance(data, str | Path):
        return _mixture(data, absolute_paths, max_bad, found, labels)
    if is_sharded(data):
        if not is_remote(str(data)):
            _read_list(Path(data).expanduser() / LIST, found)
        return open_shards(data, absolute_paths)
    path = _existing(data)
    if not path.name.endswith(MANIFEST_SUFFIXES):
        cuts, audio = _prepare(path, None, False, 2, max_bad, False, absolute_paths)
        if found is not None:
            found.include(audio.state_dict())
        return cuts
    _read_list(_list_of(path), found)
    cuts = transformed(CutSet(_ManifestReader(path, absolute_paths, bare=True, labels=labels)), _To16kHz(str(path)))
    # The wrong kind of file should fail here, not in the middle of a run.
    if next(iter(cuts), None) is None:
        raise InputError(f"{path}: the manifest is empty")
    return cuts


def _mixture(
    parts: Sequence[Part], absolute_paths: bool, max_bad: float | str, found: AudioTally | None, labels: bool
) -> CutSet:
    for part in parts:
        if not (math.isfinite(part.weight) and part.weight > 0):
            raise InputError(f"{part.path}: its weight is {part.weight:g}; it must be positive")
    if not parts:
        raise InputError("the list of data is empty")
    sets = [
        open_cuts(part.path, absolute_paths=absolute_paths, max_bad=max_bad, found=found, labels=labels)
        for part in parts
    ]
    return CutSet(Mixture(tuple(sets), tuple(part.weight for part in parts)))


@dataclass
class _To16kHz:
    """`at_16khz` for cuts that nobody has counted: says at the first one that has to be converted, and only then."""

    source: str
    said: set[str] = field(default_factory=set)

    def __call__(self, cut: Cut) -> Cut:
        if cut.has_recording and cut.sampling_rate != SAMPLE_RATE:
            self._say("not all cuts are 16 kHz (first: %s): resampled on the fly", cut)
        if isinstance(cut, MultiCut):
            self._say("not all cuts are mono (first: %s): mixed down on the fly", cut)
        return at_16khz(cut)

    def _say(self, message: str, cut: Cut) -> None:
        if message not in self.said:
            self.said.add(message)
            logger.info("%s: " + message, self.source, cut.id)


@dataclass(frozen=True)
class _ManifestReader:
    """Iterates over the cuts of a jsonl manifest of cuts or recordings, one line at a time, with absolute paths.

    Files have to lie below the manifest's folder, links followed; with `absolute_paths` they may be anywhere. Relative
    paths are relative to the working folder, as in lhotse, else to the manifest's own. Sources that are commands, which
    lhotse would run, or addresses are refused.

    `bare`: without what training does not need and what may be large: custom fields, features, alignments.
    `labels`: but with the supervisions' custom["label"].
    """

    path: Path
    absolute_paths: bool = False
    bare: bool = False
    labels: bool = False

    def __iter__(self) -> Iterator[Cut]:
        corpus = Corpus(self.path.parent, self.absolute_paths)
        number = 1
        try:
            for number, line in enumerate(lines(self._blocks(), str(self.path)), start=1):
                item = json.loads(line.decode())
                check_line(item)
                if self.bare:
                    _strip(item, self.labels)
                yield self._to_cut(deserialize_item(item), number, corpus)
        except InputError:
            raise
        except FieldError as error:
            raise InputError(f"{self.path}: line {number}: {error}: correct it, or prepare the data again") from None
        # What damaged JSON, a truncated gzip stream and a foreign object make of themselves inside lhotse.
        except Exception as error:
            raise InputError(
                f"{self.path}: cannot be read as a lhotse manifest of cuts or recordings, at or after line {number} "
                f"({type(error).__name__}): prepare the data again"
            ) from error

    def fingerprint(self) -> tuple[int, str]:
        """The number of lines, and their hash."""
        digest, count, last = hashlib.sha256(), 0, b"\n"
        for block in self._blocks():
            digest.update(block)
            count += block.count(b"\n")
            last = block
        return count + (not last.endswith(b"\n")), digest.hexdigest()

    def _blocks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from blocks(file, str(self.path))

    def _to_cut(self, item: object, number: int, corpus: Corpus) -> Cut:
        if isinstance(item, Recording):
            item = item.to_cut()
        if not isinstance(item, Cut):
            raise InputError(
                f"{self.path}: line {number} is a {type(item).__name__}: give a manifest of cuts or recordings"
            )
        if isinstance(item, MixedCut):
            for track in item.tracks:
                track.cut = self._checked(track.cut, number, corpus)
            return item
        return self._checked(item, number, corpus)

    def _checked(self, cut: Cut, number: int, corpus: Corpus) -> Cut:
        """The cut with absolute paths."""
        if not isinstance(cut, DataCut):
            return cut
        # Only shards may say that audio lies in another file than the recording's.
        (cut.custom or {}).pop(MEMBER, None)
        cut.custom = cut.custom or None
        if not cut.has_recording:
            return cut
        for source in cut.recording.sources:
            if source.type == "command":
                raise InputError(f"{self.path}: line {number} would run a command, which is never done: {cut.id}")
            if source.type != "file":
                raise InputError(
                    f"{self.path}: line {number} has audio of the type {source.type!r}: only files are read; download "
                    "it, and give their paths"
                )
        sources = [
            fastcopy(source, source=self._absolute(source.source, number, corpus)) for source in cut.recording.sources
        ]
        known = [channel for source in sources for channel in source.channels]
        wanted = cut.channel if isinstance(cut.channel, list) else [cut.channel]
        if not all(channel in known for channel in wanted):
            raise InputError(f"{self.path}: line {number}: {cut.id} has no channel {cut.channel}")
        return fastcopy(cut, recording=fastcopy(cut.recording, sources=sources))

    def _absolute(self, name: str, number: int, corpus: Corpus) -> str:
        here = found = os.path.abspath(name)
        if not os.path.isabs(name):
            own = os.path.abspath(self.path.parent / name)
            found = here if os.path.exists(here) and (corpus.holds(here) or not os.path.exists(own)) else own
        if not corpus.holds(found):
            raise InputError(f"{self.path}: line {number} names {shown(name)}, {corpus.outside}")
        return found


def _strip(item: dict[str, Any], labels: bool) -> None:
    for name in ("custom", "features", "alignment"):
        item.pop(name, None)
    for said in item.get("supervisions") or ():
        custom = said.get("custom") or {}
        _strip(said, labels)
        if labels and "label" in custom:
            said["custom"] = {"label": custom["label"]}
    for mixed in item.get("tracks") or ():
        _strip(mixed["cut"], labels)


@dataclass
class _Tally:
    """Counts what went through, and says it once at the end."""

    source: Path
    audio: AudioTally
    usable: int = 0
    seconds: float = 0.0
    converted: int = 0
    mixed_down: int = 0

    def add(self, cut: Cut, path: str, kinds: Iterable[str], *, converted: bool) -> None:
        self.usable += 1
        self.audio.read += 1
        self.seconds += cut.duration
        self.converted += converted
        self.mixed_down += isinstance(cut, MultiCut)
        for kind in kinds:
            self.audio.note(Note(kind, path, f"{path}: {kind}", False))

    def leave_out(self, path: str, error: BadAudio) -> None:
        self.audio.read += 1
        self.audio.note(Note(error.kind, shown(path), str(error), True))

    def take_back(self, cut: Cut, error: BadAudio) -> None:
        """Leave out what has been added."""
        self.usable -= 1
        self.seconds -= cut.duration
        self.converted -= is_resampled(cut)
        self.mixed_down -= isinstance(cut, MultiCut)
        self.audio.note(Note(error.kind, shown(audio_path(cut)), str(error), True))

    def report(self) -> None:
        """Logs conversions and unusable files; raises InputError when these are too many or there is nothing at all."""
        total, bad = self.audio.read, self.audio.left_out
        if not total:
            raise InputError(f"{self.source}: the manifest is empty")
        if bad and (not self.usable or bad > self.audio.max_bad * total):
            raise InputError(
                f"{self.source}: {bad} of {total} files cannot be used, more than the {self.audio.max_bad:.3g} share "
                f"allowed (max_bad): {self.audio.named()}. Repair or remove them, or raise max_bad"
            )
        if bad:
            logger.warning("%d of %d files cannot be used and were left out", bad, total)
        self.audio.converted = {"resampled": self.converted, "mixed down": self.mixed_down}
        if self.converted:
            logger.info("%d of %d files are not 16 kHz: resampled on the fly", self.converted, self.usable)
        if self.mixed_down:
            logger.info("%d of %d files are not mono: mixed down on the fly", self.mixed_down, self.usable)


def _existing(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"{source}: no such file or folder: give {KNOWN_SOURCES}")
    if not path.is_dir() and not is_regular(path):
        raise InputError(f"{source}: neither a file nor a folder: give {KNOWN_SOURCES}")
    if path.is_file() and not path.name.endswith((*MANIFEST_SUFFIXES, ".tsv")):
        raise InputError(f"{source}: not a known kind of data: give {KNOWN_SOURCES}")
    return Path(os.path.abspath(path))


def _cut_files(path: Path, tally: _Tally, check: Check, jobs: int, absolute_paths: bool) -> Iterator[Cut]:
    files = list_folder(path) if path.is_dir() else list_tsv(path, absolute_paths)
    checked = in_threads(check, (file.path for file in files), jobs)
    for file, (header, kinds) in with_progress(zip(files, checked, strict=True), len(files)):
        if isinstance(header, BadAudio):
            tally.leave_out(file.path, header)
        elif file.samples is not None and file.samples != header.samples:
            message = f"{file.path}: has {header.samples} samples, the tsv says {file.samples}"
            tally.leave_out(file.path, BadAudio(message, "other length than stated"))
        else:
            cut = _file_to_cut(file, header)
            tally.add(cut, file.path, kinds, converted=header.sample_rate != SAMPLE_RATE)
            yield cut


def whole_file(path: str | Path, file_id: str, header: AudioHeader) -> MonoCut | MultiCut:
    """A cut of a whole audio file, counted in samples of 16 kHz."""
    recording = Recording(
        id=file_id,
        sources=[AudioSource(type="file", channels=list(range(header.channels)), source=os.path.abspath(path))],
        sampling_rate=header.sample_rate,
        num_samples=header.samples,
        duration=header.samples / header.sample_rate,
    )
    return at_16khz(recording.to_cut())


def _file_to_cut(file: AudioFile, header: AudioHeader) -> MonoCut | MultiCut:
    cut = whole_file(file.path, file.id, header)
    if file.text is not None:
        supervision = SupervisionSegment(
            id=file.id,
            recording_id=file.id,
            start=0.0,
            duration=cut.duration,
            channel=cut.channel,
            text=file.text,
            speaker=file.speaker,
        )
        cut.supervisions = [supervision]
    return cut


def try_header(path: str) -> AudioHeader | BadAudio:
    """The header, or what is wrong with the file."""
    try:
        return read_header(path)
    except BadAudio as error:
        return error


def _check_header(path: str) -> Checked:
    """The header, or what is wrong with the file; and what is odd about it."""
    header = try_header(path)
    if isinstance(header, BadAudio):
        return header, []
    if header.samples / header.sample_rate < SHORTEST_SECONDS:
        return BadAudio(f"{path}: {header.samples} samples are less than one frame of 25 ms", "too short"), []
    kinds = ["another format than its name says"] if other_format(path, header) else []
    return header, [*kinds, "shorter than its header says"] if header.cut_short else kinds


def _decode(path: str) -> Checked:
    """As `_check_header`, from all of the audio."""
    header, kinds = _check_header(path)
    if isinstance(header, BadAudio):
        return header, kinds
    try:
        return header, kinds + doubts(load_waveform(whole_file(path, path, header)))
    except BadAudio as error:
        return error, []


def _check_manifest(reader: _ManifestReader, tally: _Tally, check: Check, jobs: int) -> Iterator[Cut]:
    def checked(cut: Cut) -> tuple[Cut, Checked | None]:
        found: Checked | None = None
        for path in local_files(cut):
            found = check(path)
            if isinstance(found[0], BadAudio):
                break
            early = ends_early(cut, found[0])
            if early is not None:
                return cut, (early, [])
        return cut, found

    # A line may be long, and so a thousand cuts large.
    for cut, found in in_threads(checked, map(at_16khz, reader), jobs, at_once=8 * jobs):
        header, kinds = found or (None, [])
        if isinstance(header, BadAudio):
            tally.leave_out(audio_path(cut), header)
        else:
            tally.add(cut, audio_path(cut), kinds, converted=is_resampled(cut))
            yield cut


def in_threads(function: Callable[[In], Out], items: Iterable[In], jobs: int, at_once: int = 1000) -> Iterator[Out]:
    """An ordered map that holds `at_once` items at a time, however many there are."""
    remaining = iter(items)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        while some := list(islice(remaining, at_once)):
            yield from pool.map(function, some)


def with_progress(items: Iterable[In], total: int) -> Iterable[In]:
    """A bar with the remaining time, on a terminal only."""
    if not terminal().is_terminal:
        return items
    return track(items, total=total, description="reading headers", console=terminal(), transient=True)


def _write_shards(cuts: Iterable[Cut], output: Path, tally: _Tally, jobs: int) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: a file; the output of shards is a folder")
    if (output / INDEX).exists():
        raise InputError(f"{output}: has shards already; remove them or choose another folder")

    def encode(function: Callable[[Cut], Out], items: Iterable[Cut]) -> Iterator[Out]:
        return in_threads(function, items, jobs, at_once=8 * jobs)

    try:
        # The tally counts what the headers say, before the audio is read.
        number, seconds = write_shards(cuts, output, encode=encode, on_bad=tally.take_back)
        tally.report()
        (output / LIST).unlink(missing_ok=True)
        if tally.audio.kinds:
            write_json(output / LIST, tally.audio.state_dict())
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}): free space or choose another"
        ) from error
    except InputError:
        (output / INDEX).unlink(missing_ok=True)
        raise
    logger.info("%s: %d cuts, %.2f h in shards", output, number, seconds / 3600)


def _write_whole(cuts: Iterable[Cut], output: Path, tally: _Tally) -> None:
    """Writes beside the output and renames, so that a killed run leaves no half manifest behind."""
    try:
        with atomic_write(output) as partial:
            with CutSet.open_writer(partial) as writer:
                for cut in cuts:
                    writer.write(cut)
            tally.report()
        _list_of(output).unlink(missing_ok=True)
        if tally.audio.kinds:
            write_json(_list_of(output), tally.audio.state_dict())
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}): free space or choose another"
        ) from error


def _list_of(manifest: Path) -> Path:
    """Where `prepare` lists what was wrong with the audio of a manifest."""
    return manifest.with_name(f"{manifest.name.partition('.jsonl')[0]}.{LIST}")


def _read_list(path: Path, found: AudioTally | None) -> None:
    """Have a tally include what is listed in a file, if there is one."""
    if found is None or not path.is_file():
        return
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        BAD_AUDIO.check(listed)
        found.include(listed)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it, or prepare the data again") from None
