"""Listings, which name audio and say something of it (folders, tables, Kaldi directories, tar files …), and their cuts.

A listing is gone through as a stream of entries. How long one is, and at which rate, its audio's header says,
whatever the listing states; so every form of listing becomes cuts in the same way, here.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

from lhotse import AudioSource, MonoCut, MultiCut, Recording, SupervisionSegment

from ..errors import InputError
from .audio import SAMPLE_RATE, AudioHeader, BadAudio, at_16khz, doubts, load_waveform, other_format, read_header
from .fields import BAD, LONGEST_SECONDS, MEMBER, SLACK_SECONDS
from .lines import blocks, is_regular, lines
from .remote import read_bytes
from .streams import LOOKED_AT

In = TypeVar("In")
Out = TypeVar("Out")

SHORTEST_SECONDS = 0.025
"""One frame of the convolutional front end; nothing can be done with less."""

UNKNOWN_SECONDS = 10.0
"""How long an unusable file is taken to be if nobody has said it."""

JOBS, GROUP = 4, 16
"""Threads that read headers ahead where a listing is streamed, and how many each reads at a time."""


@dataclass(frozen=True)
class Entry:
    """Audio that a listing names, with what it says of it.

    Attributes:
        path: of the file; of audio inside another file what it is called in messages.
        id: of the cut.
        recording: the id of the recording, where several entries may lie in one; else the cut's.
        start: seconds into the recording.
        seconds: how long it is; None for the rest of the recording.
        samples: how many the file has to have, if that is stated.
        label: a class or several, or numbers.
        place: (file, first byte, byte after the last) where the audio lies in another file.
        contents: the bytes of the audio, where it came as a stream.
    """

    path: str
    id: str
    text: str | None = None
    speaker: str | None = None
    language: str | None = None
    gender: str | None = None
    label: Any = None
    recording: str | None = None
    start: float = 0.0
    seconds: float | None = None
    samples: int | None = None
    place: tuple[str, int, int] | None = None
    contents: bytes | None = None

    @property
    def inside(self) -> bool:
        """Whether the audio is no file of its own."""
        return self.place is not None or self.contents is not None


@dataclass(frozen=True)
class Listing:
    """Entries, to be gone through again and again.

    Attributes:
        source: what messages call it.
        read: goes through it.
        mark: how many there are and a hash of what they say, without making all of them; None: by going through them.
        details: what of it is used, for the log.
        stream: its entries bring their audio with them: they are passed on, and never kept.
    """

    source: str
    read: Callable[[], Iterable[Entry]]
    mark: Callable[[], tuple[int, str]] | None = None
    details: str = ""
    stream: bool = False

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.read())

    def fingerprint(self) -> tuple[int, str]:
        """The number of entries (of a text its lines), and a hash."""
        if self.mark is not None:
            return self.mark()
        digest, count = hashlib.sha256(), 0
        for entry in self:
            bare = replace(entry, contents=None)
            digest.update(json.dumps([astuple(bare), len(entry.contents or b"")], default=str).encode())
            count += 1
        return count, digest.hexdigest()

    def under(self, prefix: str) -> Listing:
        """The same with a prefix to all ids, where several listings are one."""
        return replace(self, read=partial(_prefixed, self, prefix))


def distinct(entries: list[Entry]) -> list[Entry]:
    """The same entries, with suffixes or numbers after ids that are not the only ones of that name."""
    for name in (lambda one, number: f"{one.id}{Path(one.path).suffix}", lambda one, number: f"{one.id}-{number}"):
        count = Counter(one.id for one in entries)
        if len(count) == len(entries):
            break
        entries = [
            replace(one, id=name(one, number)) if count[one.id] > 1 else one for number, one in enumerate(entries)
        ]
    return entries


def _prefixed(listing: Listing, prefix: str) -> Iterator[Entry]:
    for one in listing:
        yield replace(one, id=f"{prefix}/{one.id}", recording=one.recording and f"{prefix}/{one.recording}")


def mark_of_texts(paths: Iterable[Path]) -> tuple[int, str]:
    """The number of lines of some text files, and a hash of them."""
    digest, count = hashlib.sha256(), 0
    for path in paths:
        with path.open("rb") as file:
            for block in blocks(file, str(path)):
                digest.update(block)
                count += block.count(b"\n")
        digest.update(b"\0")
    return count, digest.hexdigest()


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of a UTF-8 text file, .gz or not, one at a time, without line ends and a byte order mark.

    Raises:
        InputError: it cannot be read, is not UTF-8, or has a line of more than 1 MiB.
    """
    if not is_regular(path):
        raise InputError(
            f"{path}: {'not a regular file but a pipe, a device or a folder' if path.exists() else 'no such file'}"
        )
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(lines(blocks(file, str(path)), str(path)), start=1):
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\r")
                if "\0" in text:
                    raise InputError(f"{path}: line {number} has a NUL character: not a text file")
                yield number, text
    # What a damaged gzip file makes of itself, and text of another encoding.
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(
            f"{path}: cannot be read as UTF-8 text, at or after line {max(1, number)} ({error}): convert it to UTF-8"
        ) from None


Checked = tuple[AudioHeader | BadAudio, list[str]]


class ListedCuts:
    """The cuts of a listing that is too long to be checked before a run: headers are read as they come by.

    What is unusable becomes a cut that says so when it is read, and is named and counted then, as that of a manifest.
    """

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self._first: dict[int, AudioHeader | BadAudio] = {}  # headers of those that every run looks at several times

    def fingerprint(self) -> tuple[int, str]:
        """That of the listing."""
        return self.listing.fingerprint()

    def __iter__(self) -> Iterator[MonoCut | MultiCut]:
        numbered = enumerate(self.listing)
        groups = iter(lambda: list(islice(numbered, GROUP)), [])
        for entry, header in chain.from_iterable(in_threads(self._checked, groups, JOBS, at_once=JOBS)):
            if not isinstance(header, BadAudio):
                header = unfitting(entry, header) or header
            yield unusable(entry, header) if isinstance(header, BadAudio) else cut_of(entry, header)

    def _checked(self, group: list[tuple[int, Entry]]) -> list[tuple[Entry, AudioHeader | BadAudio]]:
        checked = []
        for number, entry in group:
            header = self._first.get(number)
            if header is None:
                header, _ = check_header(entry, last_sample=False)
                if number < LOOKED_AT:
                    self._first[number] = header
            checked.append((entry, header))
        return checked


def whole_file(path: str | Path, file_id: str, header: AudioHeader) -> MonoCut | MultiCut:
    """A cut of a whole audio file, counted in samples of 16 kHz."""
    return cut_of(Entry(str(path), file_id), header)


def try_header(path: str) -> AudioHeader | BadAudio:
    """The header, or what is wrong with the file."""
    try:
        return read_header(path)
    except BadAudio as error:
        return error


def check_header(entry: Entry, *, last_sample: bool = True) -> Checked:
    """The header, or what is wrong with the audio; and what is odd about it. For `last_sample` see `read_header`."""
    path = entry.path
    try:
        contents = _contents(entry) if entry.inside else None
        header = read_header(path, contents, last_sample=last_sample)
    except BadAudio as error:
        return error, []
    if header.samples / header.sample_rate < SHORTEST_SECONDS:
        return BadAudio(f"{path}: {header.samples} samples are less than one frame of 25 ms", "too short"), []
    kinds = ["another format than its name says"] if other_format(path, header) else []
    return header, [*kinds, "shorter than its header says"] if header.cut_short else kinds


def check_all(entry: Entry) -> Checked:
    """As `check_header`, from all of the audio."""
    header, kinds = check_header(entry)
    if isinstance(header, BadAudio):
        return header, kinds
    try:
        return header, kinds + doubts(load_waveform(cut_of(replace(entry, start=0.0, seconds=None), header)))
    except BadAudio as error:
        return error, []


def _contents(entry: Entry) -> io.BytesIO:
    if entry.place is None:
        return io.BytesIO(entry.contents or b"")
    try:
        return io.BytesIO(read_bytes(*entry.place))
    except OSError as error:
        raise BadAudio(f"{entry.path}: {error}") from error


def unfitting(entry: Entry, header: AudioHeader) -> BadAudio | None:
    """What is wrong with audio of another length than the listing says."""
    path, length = entry.path, header.samples / header.sample_rate
    if entry.samples is not None and entry.samples != header.samples:
        message = f"{path}: has {header.samples} samples, the tsv says {entry.samples}"
        return BadAudio(message, "other length than stated")
    stop = entry.start + (SHORTEST_SECONDS if entry.seconds is None else entry.seconds)
    if stop > length + SLACK_SECONDS or entry.start + SHORTEST_SECONDS > length:
        return BadAudio(f"{path}: lasts {length:.3f} s, {entry.id} is said to end at {stop:.3f} s", "truncated")
    return None


def cut_of(entry: Entry, header: AudioHeader) -> MonoCut | MultiCut:
    """The cut of an entry, counted in samples of 16 kHz."""
    source = {"type": "file", "source": os.path.abspath(entry.path)}
    if entry.contents is not None:
        source = {"type": "memory", "source": entry.contents}  # type: ignore[dict-item]
    elif entry.place is not None:
        source = {"type": "shar", "source": ""}
    recording = Recording(
        id=entry.recording or entry.id,
        sources=[AudioSource(channels=list(range(header.channels)), **source)],
        sampling_rate=header.sample_rate,
        num_samples=header.samples,
        duration=header.samples / header.sample_rate,
    )
    cut = at_16khz(recording.to_cut())
    cut.id = entry.id
    if entry.start > 0 or entry.seconds is not None:
        cut = _segment(cut, entry)
    if entry.place is not None:
        cut.custom = {MEMBER: entry.place}
    said = (entry.text, entry.speaker, entry.language, entry.gender, entry.label)
    if any(value is not None for value in said):
        supervision = SupervisionSegment(
            id=entry.id,
            recording_id=recording.id,
            start=0.0,
            duration=cut.duration,
            channel=cut.channel,
            text=entry.text,
            language=entry.language,
            speaker=entry.speaker,
            gender=entry.gender,
            custom=None if entry.label is None else {"label": entry.label},
        )
        cut.supervisions = [supervision]
    return cut


def _segment(cut: MonoCut | MultiCut, entry: Entry) -> MonoCut | MultiCut:
    """The part of the cut that is the entry, on the grid of samples."""
    first = round(entry.start * SAMPLE_RATE)
    last = round(cut.duration * SAMPLE_RATE)
    # Stated lengths are rounded: the end of the recording is meant by what is beyond it.
    stop = last if entry.seconds is None else min(last, round((entry.start + entry.seconds) * SAMPLE_RATE))
    if first == 0 and last - stop <= 0:
        return cut
    return cut.truncate(offset=first / SAMPLE_RATE, duration=(stop - first) / SAMPLE_RATE, preserve_id=True)


def unusable(entry: Entry, error: BadAudio) -> MonoCut:
    """A cut that is refused when it is read."""
    seconds = min(max(SHORTEST_SECONDS, entry.seconds or UNKNOWN_SECONDS), LONGEST_SECONDS)
    bare = replace(entry, start=0.0, seconds=None, place=None, contents=None)
    cut = cut_of(bare, AudioHeader(SAMPLE_RATE, 1, round(seconds * SAMPLE_RATE)))
    cut.custom = {BAD: (str(error), error.kind)}
    return cut


def in_threads(function: Callable[[In], Out], items: Iterable[In], jobs: int, at_once: int = 1000) -> Iterator[Out]:
    """An ordered map that holds `at_once` items at a time, however many there are."""
    remaining = iter(items)
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        while some := list(islice(remaining, at_once)):
            yield from pool.map(function, some)


def stated_seconds(value: Any, where: str, *, least: float = 0.0) -> float:
    """A number of seconds that a listing states.

    Raises:
        InputError: it is none; begins with `where`.
    """
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = -1.0
    if isinstance(value, bool) or not least <= seconds <= LONGEST_SECONDS:
        raise InputError(f"{where} is {str(value)[:40]!r}; it must be a number of seconds: correct it")
    return seconds
