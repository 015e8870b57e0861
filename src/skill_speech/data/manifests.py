"""From a user's audio to a lhotse cut set: `prepare` checks and writes a manifest, `open_cuts` opens anything."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from lhotse import CutSet, MultiCut
from lhotse.cut import Cut
from rich.progress import track

from ..errors import InputError
from ..files import atomic_write, write_json
from ..limits import check_options
from ..quantities import duration
from ..run.progress import terminal
from .audio import SAMPLE_RATE, BadAudio, at_16khz, audio_path, ends_early, is_resampled, local_files, shown
from .corpus import Corpus
from .fields import BAD_AUDIO
from .forms import MANIFEST_SUFFIXES, Options, Source, open_sources
from .lhotse_manifests import ManifestReader
from .listing import (
    Checked,
    Entry,
    ListedCuts,
    Listing,
    check_all,
    check_header,
    cut_of,
    distinct,
    in_threads,
    unfitting,
)
from .remote import is_remote
from .shards import INDEX, open_shards, write_shards
from .streams import LOOKED_AT, Chain, Mixture, transformed
from .tally import AudioTally, Note

logger = logging.getLogger("skill_speech.data")

In = TypeVar("In")
Out = TypeVar("Out")

Check = Callable[[Entry], Checked]

LIST = "bad_audio.json"
"""The file in a folder of shards, or the end of the name of one beside a manifest, that lists unusable audio."""


@dataclass(frozen=True)
class Part:
    """One of several corpora that are mixed.

    Attributes:
        path: anything that `open_cuts` takes.
        weight: of its cuts among those of the others: with 3 and 1, three of four cuts are from the first.
        column: as in `prepare`.
    """

    path: str
    weight: float = 1.0
    column: str | None = None


def prepare(
    source: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    shards: bool = False,
    jobs: int = 2,
    max_bad: float | str = "1%",
    decode: bool = False,
    absolute_paths: bool = False,
    column: str | None = None,
) -> CutSet:
    """Makes a cut set of 16 kHz mono audio from data of any form.

    docs/data.md lists the forms; what the data was recognized as is said. Every file's header and last sample are read,
    or all of it with `decode`. Files that cannot be used are named in the log and left out; beside the output, a file
    that ends in .bad_audio.json lists them. Audio of another sample rate or with several channels stays as it is on
    disk; it is resampled and mixed down when it is read (`load_waveform`).

    Args:
        source: Audio to prepare: one or more folders (audio, LibriSpeech, Kaldi, shards …), files (audio, CSV, JSON
            lines, TSV, lhotse manifests, tar files …), globs or URLs. Transcripts, speakers and labels become
            supervisions.
        output: Manifest to write (.jsonl or .jsonl.gz, with absolute paths). With `shards`, the
            folder to write them to.
        shards: Copy the audio too, as 16 kHz mono FLAC in tar files of about 200 MB that can be read from a server.
        jobs: Number of threads that read headers and encode audio.
        max_bad: Maximum share of unusable files, such as 1% or 0.01.
        decode: Decode all audio (slow) to find what headers do not show, such as NaN or damage in the middle. Files
            that are silent, clipped or have a DC offset are reported and kept. Shards contain only audio that was
            decoded.
        absolute_paths: Allow a manifest or table to name files outside its own folder.
        column: Column with the paths (of a table) or with the audio (of a dataset).

    Returns:
        The cuts, in memory, or opened lazily from `output` where it is given.

    Raises:
        InputError: a source that does not exist or is of no known kind, a folder without audio, more unusable files
            than `max_bad`, or an output that cannot be written.
    """
    check_options(prepare, dict(locals()))
    _check_output(output, shards, jobs)
    sources = open_sources(source, Options(absolute_paths, column))
    _check_named(sources, output, shards)
    return _prepare(_named(sources), output, shards, jobs, max_bad, decode)[0]


def _check_output(output: str | Path | None, shards: bool, jobs: int) -> None:
    if shards and output is None:
        raise InputError("shards need an output folder: give --output")
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be at least 1")
    if output is not None and not shards and not str(output).endswith(MANIFEST_SUFFIXES):
        raise InputError(f"{output}: a manifest's name must end in .jsonl or .jsonl.gz")
    if output is not None and shards:
        folder = Path(output).expanduser()
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{output}: a file; the output of shards is a folder")
        if (folder / INDEX).exists():
            raise InputError(f"{output}: already has shards: remove them or choose another folder")


def _check_named(sources: Sequence[Source], output: str | Path | None, shards: bool) -> None:
    """See that a manifest can name the audio of the sources, if one is to be written."""
    for source in sources:
        streamed = isinstance(source.content, Listing) and source.content.stream
        if not shards and (streamed or (source.inside and output is not None)):
            raise InputError(
                f"{source.path}: the audio of {source.form} is not in files that a manifest could name: copy it with "
                "--shards and --output FOLDER"
            )


def _prepare(
    sources: Sequence[Source],
    output: str | Path | None,
    shards: bool,
    jobs: int,
    max_bad: float | str,
    decode: bool,
) -> tuple[CutSet, AudioTally]:
    name = ", ".join(dict.fromkeys(source.path for source in sources))
    tally = _Tally(name, AudioTally(max_bad))
    check = check_all if decode else check_header
    cuts = chain.from_iterable(
        _check_listing(source.content, tally, check, jobs)
        if isinstance(source.content, Listing)
        else _check_cuts(source.content, tally, check, jobs)
        for source in sources
    )
    if output is None:
        kept = list(cuts)
        tally.report()
        logger.info("%s: %d cuts, %s", name, tally.usable, duration(tally.seconds))
        return CutSet(kept), tally.audio
    output = Path(output).expanduser()
    if shards:
        _write_shards(cuts, output, tally, jobs)
        return open_shards(output), tally.audio
    _write_whole(cuts, output, tally)
    logger.info("%s: %d cuts, %s", output, tally.usable, duration(tally.seconds))
    outside = Corpus(output.parent, anywhere=False)
    if any(not outside.holds(name) for cut in islice(ManifestReader(output, True), 1) for name in local_files(cut)):
        logger.info("%s: its audio is outside its folder: set absolute_paths to true to open it", output)
    return CutSet(ManifestReader(output, True)), tally.audio


def _named(sources: list[Source]) -> list[Source]:
    """The same, after saying what they are."""
    for source in sources:
        details = source.content.details if isinstance(source.content, Listing) else ""
        logger.info("%s: %s%s", source.path, source.form, f" ({details})" if details else "")
    return sources


def open_cuts(
    data: str | Path | CutSet | Sequence[Part | str],
    *,
    absolute_paths: bool = False,
    max_bad: float | str = "1%",
    found: AudioTally | None = None,
    labels: bool = False,
) -> CutSet:
    """Opens data of any form that `prepare` takes (docs/data.md), or a CutSet.

    What names at most 20,000 files is checked now, as `prepare` does. Of more, and of what comes as a stream, headers
    are read as the files come by: bad ones show when they are read, as those of a lhotse manifest do. The cuts count in
    samples of 16 kHz, whatever their files' rate.

    Args:
        data: a path, a glob, an address (hf://datasets/…; of shards anything that fsspec reaches: https://…, s3://…),
            or a list of them, of which each cut is taken once. A list of parts is mixed by their weights.
        absolute_paths: what names files may name files outside its own folder.
        max_bad: as in `prepare`, for what is checked here.
        found: gets what was wrong with audio that was checked, here or before.
        labels: keep what a manifest's supervisions have under custom["label"]; otherwise custom fields are left out.

    Raises InputError for anything that `prepare` refuses, and while iterating for a line that is not as it has to be.
    """
    if isinstance(data, CutSet):
        return transformed(data, _To16kHz("the given cuts"))
    options = Options(absolute_paths, bare=True, labels=labels)
    if isinstance(data, str | Path):
        return _opened(data, options, max_bad, found)
    if any(isinstance(part, Part) for part in data):
        return _mixture([part if isinstance(part, Part) else Part(part) for part in data], options, max_bad, found)
    return _opened([str(part) for part in data], options, max_bad, found)


def _opened(
    data: str | Path | Sequence[str], options: Options, max_bad: float | str, found: AudioTally | None
) -> CutSet:
    sets = [_cuts_of(source, max_bad, found) for source in _named(open_sources(data, options))]
    return sets[0] if len(sets) == 1 else CutSet(Chain(tuple(sets)))


def _cuts_of(source: Source, max_bad: float | str, found: AudioTally | None) -> CutSet:
    content = source.content
    if isinstance(content, Listing):
        if not content.stream and len(list(islice(content, LOOKED_AT + 1))) <= LOOKED_AT:
            cuts, audio = _prepare([source], None, False, 2, max_bad, False)
            if found is not None:
                found.include(audio.state_dict())
            return cuts
        cuts = CutSet(ListedCuts(content))
    elif isinstance(content, CutSet):  # shards, which are what `prepare` has made of good audio
        if not is_remote(source.path):
            _read_list(Path(source.path) / LIST, found)
        return content
    else:
        if isinstance(content, ManifestReader):
            _read_list(_list_of(content.path), found)
        cuts = transformed(CutSet(content), _To16kHz(source.path))
    # The wrong kind of file should fail here, not in the middle of a run.
    if next(iter(cuts), None) is None:
        raise InputError(f"{source.path}: contains no audio files")
    return cuts


def _mixture(parts: Sequence[Part], options: Options, max_bad: float | str, found: AudioTally | None) -> CutSet:
    for part in parts:
        if not (math.isfinite(part.weight) and part.weight > 0):
            raise InputError(f"{part.path}: its weight is {part.weight:g}; it must be positive")
    sets = [_opened(part.path, options._replace(column=part.column), max_bad, found) for part in parts]
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


@dataclass
class _Tally:
    """Counts what went through, and says it once at the end."""

    source: str
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
            raise InputError(f"{self.source}: contains no audio files")
        if bad and not self.usable:
            raise InputError(f"{self.source}: {bad} of {total} files cannot be used: {self.audio.named()}")
        if self.audio.is_too_much(bad, total):
            raise InputError(f"{self.source}: {bad} of {total} files cannot be used, {self.audio.more_than_allowed()}")
        if bad:
            logger.warning("%d of %d files cannot be used and were left out", bad, total)
        self.audio.converted = {"resampled": self.converted, "mixed down": self.mixed_down}
        if self.converted:
            logger.info("%d of %d files are not 16 kHz: resampled on the fly", self.converted, self.usable)
        if self.mixed_down:
            logger.info("%d of %d files are not mono: mixed down on the fly", self.mixed_down, self.usable)


def _check_listing(listing: Listing, tally: _Tally, check: Check, jobs: int) -> Iterator[Cut]:
    """The cuts of a listing's usable entries."""
    first = [] if listing.stream else list(islice(listing, LOOKED_AT + 1))
    few = 0 < len(first) <= LOOKED_AT
    entries: Iterable[Entry] = distinct(first) if few else listing
    checked = in_threads(
        lambda entry: (entry, check(entry)), entries, jobs, at_once=8 * jobs if listing.stream else 1000
    )
    for entry, (header, kinds) in with_progress(checked, len(first) if few else None):
        if not isinstance(header, BadAudio):
            header = unfitting(entry, header) or header
        if isinstance(header, BadAudio):
            tally.leave_out(entry.path, header)
        else:
            cut = cut_of(entry, header)
            tally.add(cut, entry.path, kinds, converted=header.sample_rate != SAMPLE_RATE)
            yield cut


def _check_cuts(cuts: Iterable[Cut], tally: _Tally, check: Check, jobs: int) -> Iterator[Cut]:
    def checked(cut: Cut) -> tuple[Cut, Checked | None]:
        found: Checked | None = None
        for path in local_files(cut):
            found = check(Entry(path, path))
            if isinstance(found[0], BadAudio):
                break
            early = ends_early(cut, found[0])
            if early is not None:
                return cut, (early, [])
        return cut, found

    # A line may be long, and so a thousand cuts large.
    for cut, found in in_threads(checked, map(at_16khz, cuts), jobs, at_once=8 * jobs):
        header, kinds = found or (None, [])
        if isinstance(header, BadAudio):
            tally.leave_out(audio_path(cut), header)
        else:
            tally.add(cut, audio_path(cut), kinds, converted=is_resampled(cut))
            yield cut


def with_progress(items: Iterable[In], total: int | None) -> Iterable[In]:
    """A bar with the remaining time, on a terminal only."""
    if not terminal().is_terminal:
        return items
    return track(items, total=total, description="reading headers", console=terminal(), transient=True)


def _write_shards(cuts: Iterable[Cut], output: Path, tally: _Tally, jobs: int) -> None:

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
            f"{output}: cannot be written ({error.strerror or error}): free some space or choose another"
        ) from error
    except InputError:
        (output / INDEX).unlink(missing_ok=True)
        raise
    logger.info("%s: %d cuts, %.2f h in shards", output, number, seconds / 3600)


def _write_whole(cuts: Iterable[Cut], output: Path, tally: _Tally) -> None:
    """Writes beside the output and renames, so that a killed run leaves no partial manifest."""
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
            f"{output}: cannot be written ({error.strerror or error}): free some space or choose another"
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
