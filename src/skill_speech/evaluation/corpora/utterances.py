"""From what a corpus says of its utterances to cuts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lhotse import CutSet, MonoCut, MultiCut, SupervisionSegment
from lhotse.cut.data import DataCut

from ...data.audio import AudioHeader, BadAudio
from ...data.listing import in_threads, try_header, whole_file
from ...data.manifests import with_progress
from ...errors import InputError
from .lines import Line

HEADER_THREADS = 8
"""For corpora on a network drive, where opening a file is mostly waiting."""

TURN_TOLERANCE_SECONDS = 0.5
"""A turn that ends later than its recording by more than this belongs to another recording."""


@dataclass(frozen=True)
class Turn:
    """When a speaker of a recording speaks, in seconds."""

    speaker: str
    start: float
    end: float


@dataclass(frozen=True)
class Utterance:
    """One utterance of a corpus.

    Attributes:
        id: unlike any other in the corpus; by default the corpus' own.
        path: of its audio file.
        named_in: the line that names it, for messages; None if it was found by its place in the folders.
        text, speaker, custom: for its supervision.
        start, duration: seconds of the file that it takes; all of it without a duration.
        turns: of several speakers; each becomes a supervision, instead of the one for the whole.
    """

    id: str
    path: Path
    named_in: Line | None = None
    text: str | None = None
    speaker: str | None = None
    custom: Mapping[str, Any] = field(default_factory=dict)
    start: float = 0.0
    duration: float | None = None
    turns: tuple[Turn, ...] = ()

    def __str__(self) -> str:
        return str(self.named_in or self.path)


def make_cuts(utterances: Sequence[Utterance]) -> CutSet:
    """Cuts of 16 kHz, in the same order. Of every file the header and the last sample are read, in threads.

    Raises InputError naming the first file that is missing or cannot be used, and how many there are; for two
    utterances of the same id; and for a turn that ends after its recording.
    """
    twice = [name for name, count in Counter(utterance.id for utterance in utterances).items() if count > 1]
    if twice:
        places = [str(utterance) for utterance in utterances if utterance.id == twice[0]]
        raise InputError(f"{places[1]}: {twice[0]} is already in {places[0]}: keep one of them")
    headers = in_threads(try_header, (str(utterance.path) for utterance in utterances), HEADER_THREADS)
    cuts, bad = [], []
    for utterance, header in with_progress(zip(utterances, headers, strict=True), len(utterances)):
        if isinstance(header, BadAudio):
            bad.append(str(header) + (f" (named in {utterance.named_in})" if utterance.named_in else ""))
        else:
            cuts.append(_make_cut(utterance, header))
    if bad:
        raise InputError(f"{bad[0]}: {len(bad)} of {len(utterances)} audio files are unusable: complete the corpus")
    return CutSet(cuts)


def require_some(utterances: Iterable[Utterance], where: Path, what: str) -> list[Utterance]:
    """The utterances.

    Raises InputError if there are none.
    """
    listed = list(utterances)
    if not listed:
        raise InputError(f"{where}: no {what}: complete the corpus")
    return listed


def require_seen(training: Iterable[Utterance], others: Iterable[Utterance], key: str, what: str = "") -> list[Any]:
    """The sorted values that training has in `custom[key]`.

    Raises InputError, calling the value `what` (by default as the key), if another utterance has a value that none in
    training has.
    """
    seen = {utterance.custom[key] for utterance in training}
    for utterance in others:
        value = utterance.custom[key]
        if value not in seen:
            raise InputError(
                f"{utterance}: the {what or key} {value!r} of {utterance.id} is unseen in training: "
                "no head can predict it; complete the training split or correct the line"
            )
    return sorted(seen)


def _make_cut(utterance: Utterance, header: AudioHeader) -> MonoCut | MultiCut:
    cut = whole_file(utterance.path, utterance.id, header)
    if utterance.duration is not None:
        cut = cut.truncate(offset=utterance.start, duration=utterance.duration).with_id(utterance.id)
    if utterance.turns:
        cut.supervisions = [_turn(cut, utterance, number) for number in range(len(utterance.turns))]
    else:
        cut.supervisions = [
            SupervisionSegment(
                id=utterance.id,
                recording_id=cut.recording_id,
                start=0.0,
                duration=cut.duration,
                channel=cut.channel,
                text=utterance.text,
                speaker=utterance.speaker,
                custom=dict(utterance.custom) or None,
            )
        ]
    return cut


def _turn(cut: DataCut, utterance: Utterance, number: int) -> SupervisionSegment:
    turn = utterance.turns[number]
    if turn.end > cut.duration + TURN_TOLERANCE_SECONDS:
        raise InputError(
            f"{utterance.path}: lasts {cut.duration:.2f} s, but a turn of {turn.speaker} ends at {turn.end:.2f} s: "
            "restore the audio or the corpus' own segments"
        )
    return SupervisionSegment(
        id=f"{utterance.id}-{number}",
        recording_id=cut.recording_id,
        start=turn.start,
        duration=turn.end - turn.start,
        channel=cut.channel,
        speaker=turn.speaker,
    )
