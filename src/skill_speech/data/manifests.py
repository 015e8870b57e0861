"""From a user's audio to a lhotse cut set: `prepare` checks and writes a manifest, `open_cuts` opens anything."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeVar

from lhotse import AudioSource, CutSet, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.cut.data import DataCut
from lhotse.serialization import deserialize_item, load_jsonl
from lhotse.utils import fastcopy
from rich.console import Console
from rich.progress import track

from ..errors import InputError
from .audio import SAMPLE_RATE, AudioHeader, BadAudio, at_16khz, is_resampled, read_header
from .layouts import AudioFile, list_folder, list_tsv
from .shards import INDEX, is_sharded, open_shards, write_shards
from .streams import Mixture, transformed

logger = logging.getLogger("skill_speech.data")

In = TypeVar("In")
Out = TypeVar("Out")

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
    max_bad: float = 0.01,
) -> CutSet:
    """Makes a cut set of 16 kHz mono audio from a folder, a LibriSpeech folder, a fairseq tsv or a lhotse manifest.

    Every file's header and last sample are read. Files that cannot be used are named in the log and left out.
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
        max_bad: the share of files that may be unusable, 0.01 for 1 %.

    Returns:
        The cuts, in memory, or opened lazily from `output` where it is given.

    Raises:
        InputError: a source that does not exist or is of no known kind, a folder without audio, more unusable files
            than `max_bad`, or an output that cannot be written.
    """
    path = _existing(source)
    if shards and output is None:
        raise InputError("shards need an output folder: give --output")
    if output is not None and not shards and not str(output).endswith(MANIFEST_SUFFIXES):
        raise InputError(f"{output}: a manifest's name must end in .jsonl or .jsonl.gz")
    tally = _Tally(path)
    cuts = (
        _check_manifest(path, tally, jobs) if path.name.endswith(MANIFEST_SUFFIXES) else _cut_files(path, tally, jobs)
    )
    if output is None:
        kept = list(cuts)
        tally.report(max_bad)
        logger.info("%s: %d cuts, %.2f h", path, tally.usable, tally.seconds / 3600)
        return CutSet(kept)
    output = Path(output).expanduser()
    if shards:
        _write_shards(cuts, output, tally, jobs, max_bad)
        return open_shards(output)
    _write_whole(cuts, output, tally, max_bad)
    logger.info("%s: %d cuts, %.2f h", output, tally.usable, tally.seconds / 3600)
    return CutSet(_ManifestReader(output))


def open_cuts(data: str | Path | CutSet | Sequence[Part]) -> CutSet:
    """Opens training data: a manifest or shards (read lazily), a CutSet, or anything else that `prepare` takes.

    Shards may lie anywhere that fsspec reaches: https://…, s3://…. Of several parts a mixture is made. The cuts count
    in samples of 16 kHz, whatever their files' rate. A manifest's audio is not checked here: bad files show when they
    are read.

    Raises InputError for anything that `prepare` refuses, and while iterating for a manifest line that is not a cut.
    """
    if isinstance(data, CutSet):
        return transformed(data, _To16kHz("the given cuts"))
    if not isinstance(data, str | Path):
        return _mixture(data)
    if is_sharded(data):
        return open_shards(data)
    path = _existing(data)
    if not path.name.endswith(MANIFEST_SUFFIXES):
        return prepare(path)
    cuts = transformed(CutSet(_ManifestReader(path)), _To16kHz(str(path)))
    # The wrong kind of file should fail here, not in the middle of a run.
    if next(iter(cuts), None) is None:
        raise InputError(f"{path}: the manifest is empty")
    return cuts


def _mixture(parts: Sequence[Part]) -> CutSet:
    for part in parts:
        if not (math.isfinite(part.weight) and part.weight > 0):
            raise InputError(f"{part.path}: its weight is {part.weight:g}; it must be positive")
    if not parts:
        raise InputError("the list of data is empty")
    return CutSet(Mixture(tuple(open_cuts(part.path) for part in parts), tuple(part.weight for part in parts)))


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
    """Iterates over the cuts of a jsonl manifest of cuts or recordings, one line at a time, with absolute paths."""

    path: Path

    def __iter__(self) -> Iterator[Cut]:
        number = 1
        try:
            for number, line in enumerate(load_jsonl(self.path), start=1):
                yield self._to_cut(deserialize_item(line), number)
        # What damaged JSON, a truncated gzip stream and a foreign object make of themselves inside lhotse.
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, OSError) as error:
            raise InputError(
                f"{self.path}: cannot be read as a lhotse manifest of cuts or recordings, at or after line {number} "
                f"({type(error).__name__}): prepare the data again"
            ) from error

    def _to_cut(self, item: object, number: int) -> Cut:
        if isinstance(item, Recording):
            item = item.to_cut()
        if not isinstance(item, Cut):
            raise InputError(
                f"{self.path}: line {number} is a {type(item).__name__}: give a manifest of cuts or recordings"
            )
        return self._with_absolute_path(item)

    def _with_absolute_path(self, cut: Cut) -> Cut:
        if not isinstance(cut, DataCut) or not cut.has_recording:
            return cut
        sources = cut.recording.sources
        if all(source.type != "file" or os.path.isabs(source.source) for source in sources):
            return cut
        absolute = [
            fastcopy(source, source=self._absolute(source.source)) if source.type == "file" else source
            for source in sources
        ]
        return fastcopy(cut, recording=fastcopy(cut.recording, sources=absolute))

    def _absolute(self, name: str) -> str:
        """Relative paths are relative to the working folder, as in lhotse, else to the manifest's own."""
        return os.path.abspath(name if os.path.exists(name) else self.path.parent / name)


@dataclass
class _Tally:
    """Counts what went through, and says it once at the end."""

    source: Path
    usable: int = 0
    seconds: float = 0.0
    converted: int = 0
    mixed_down: int = 0
    bad: list[str] = field(default_factory=list)

    def add(self, cut: Cut, *, converted: bool) -> None:
        self.usable += 1
        self.seconds += cut.duration
        self.converted += converted
        self.mixed_down += isinstance(cut, MultiCut)

    def report(self, max_bad: float) -> None:
        """Logs conversions and unusable files; raises InputError when these are too many or there is nothing at all."""
        total = self.usable + len(self.bad)
        if not total:
            raise InputError(f"{self.source}: the manifest is empty")
        if self.bad and (not self.usable or len(self.bad) > max_bad * total):
            shown = "; ".join(self.bad[:3]) + ("; …" if len(self.bad) > 3 else "")
            raise InputError(
                f"{self.source}: {len(self.bad)} of {total} files cannot be used, more than the {max_bad:.3g} share "
                f"allowed (max_bad): {shown}. Repair or remove them, or raise max_bad"
            )
        for message in self.bad:
            logger.warning("left out: %s", message)
        if self.bad:
            logger.warning("%d of %d files cannot be used and were left out", len(self.bad), total)
        if self.converted:
            logger.info("%d of %d files are not 16 kHz: resampled on the fly", self.converted, self.usable)
        if self.mixed_down:
            logger.info("%d of %d files are not mono: mixed down on the fly", self.mixed_down, self.usable)


def _existing(source: str | Path) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise InputError(f"{source}: no such file or folder: give {KNOWN_SOURCES}")
    if path.is_file() and not path.name.endswith((*MANIFEST_SUFFIXES, ".tsv")):
        raise InputError(f"{source}: not a known kind of data: give {KNOWN_SOURCES}")
    return Path(os.path.abspath(path))


def _cut_files(path: Path, tally: _Tally, jobs: int) -> Iterator[Cut]:
    files = list_folder(path) if path.is_dir() else list_tsv(path)
    headers = in_threads(try_header, (file.path for file in files), jobs)
    for file, header in with_progress(zip(files, headers, strict=True), len(files)):
        if isinstance(header, BadAudio):
            tally.bad.append(str(header))
        elif file.samples is not None and file.samples != header.samples:
            tally.bad.append(f"{file.path}: has {header.samples} samples, the tsv says {file.samples}")
        else:
            cut = _file_to_cut(file, header)
            tally.add(cut, converted=header.sample_rate != SAMPLE_RATE)
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


def _check_manifest(path: Path, tally: _Tally, jobs: int) -> Iterator[Cut]:
    for cut, error in in_threads(_check_cut, map(at_16khz, _ManifestReader(path)), jobs):
        if error is None:
            tally.add(cut, converted=is_resampled(cut))
            yield cut
        else:
            tally.bad.append(str(error))


def _check_cut(cut: Cut) -> tuple[Cut, BadAudio | None]:
    if isinstance(cut, DataCut) and cut.has_recording:
        for source in cut.recording.sources:
            if source.type == "file":
                header = try_header(source.source)
                if isinstance(header, BadAudio):
                    return cut, header
    return cut, None


def in_threads(function: Callable[[In], Out], items: Iterable[In], jobs: int, at_once: int = 1000) -> Iterator[Out]:
    """An ordered map that holds `at_once` items at a time, however many there are."""
    remaining = iter(items)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        while some := list(islice(remaining, at_once)):
            yield from pool.map(function, some)


def with_progress(items: Iterable[In], total: int) -> Iterable[In]:
    """A bar with the remaining time, on a terminal only."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return items
    return track(items, total=total, description="reading headers", console=console, transient=True)


def _write_shards(cuts: Iterable[Cut], output: Path, tally: _Tally, jobs: int, max_bad: float) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: a file; the output of shards is a folder")
    if (output / INDEX).exists():
        raise InputError(f"{output}: has shards already; remove them or choose another folder")

    def encode(function: Callable[[Cut], Out], items: Iterable[Cut]) -> Iterator[Out]:
        return in_threads(function, items, jobs, at_once=8 * jobs)

    def on_bad(error: BadAudio) -> None:
        tally.usable -= 1
        tally.bad.append(str(error))

    try:
        # The tally counts what the headers say, before the audio is read.
        number, seconds = write_shards(cuts, output, encode=encode, on_bad=on_bad)
        tally.report(max_bad)
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}): free space or choose another"
        ) from error
    except InputError:
        (output / INDEX).unlink(missing_ok=True)
        raise
    logger.info("%s: %d cuts, %.2f h in shards", output, number, seconds / 3600)


def _write_whole(cuts: Iterable[Cut], output: Path, tally: _Tally, max_bad: float) -> None:
    """Writes beside the output and renames, so that a killed run leaves no half manifest behind."""
    partial = output.with_name(f".{os.getpid()}.{output.name}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with CutSet.open_writer(partial) as writer:
            for cut in cuts:
                writer.write(cut)
        tally.report(max_bad)
        os.replace(partial, output)
    except OSError as error:
        raise InputError(
            f"{output}: cannot be written ({error.strerror or error}): free space or choose another"
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()
