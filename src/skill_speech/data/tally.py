"""What was wrong with the audio of a run: counted by kind, named, and bounded."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError
from ..run import ranks
from .audio import BadAudio

if TYPE_CHECKING:
    from .dataset import AudioBatch

logger = logging.getLogger("skill_speech.data")

ONE_MAY_FAIL = 20
"""Files of a listing from which on a single bad one is no reason to stop."""

JUDGED_FROM = 1000
"""The share of bad audio is taken of at least so many cuts, so that one bad file among the first does not end a run."""

MOST_NAMES = 1000
"""Files named per kind; the count continues."""

MOST_EMPTY_BATCHES = 3
"""Batches in a row of which nothing can be used, before a run takes it that its data is gone."""

SHOWN = 10
"""Files named in an error."""


class Note(NamedTuple):
    """What there is to say of one cut's audio.

    Attributes:
        kind: a few words, the same for all of the kind.
        file: its path, or the cut's id.
        message: a sentence that begins with the file.
        left_out: it was not used; otherwise it was, in spite of this.
    """

    kind: str
    file: str
    message: str
    left_out: bool


def parse_share(share: float | str, name: str = "max_bad") -> float:
    """A share as a number from 0 to 1: 0.01, "0.01" and "1%" are the same.

    Raises:
        InputError: it is none.
    """
    text = str(share).strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {share}; it must be a share such as 1% or 0.01")
    return value


class AudioTally:
    """Counts cuts that were read, and says of those with something wrong what it is.

    Args:
        max_bad: the share of cuts that may be left out, of all that were read or of the first 1000 if fewer. Of a
            listing it is of its files, and of 20 or more one may always be left out unless the share is 0.
    """

    def __init__(self, max_bad: float | str = "1%") -> None:
        self.max_bad = parse_share(max_bad)
        self.said: set[str] = set()
        """Kinds of which a file that is used has been named."""
        self.read = 0
        self.left_out = 0
        self.empty_in_a_row = 0
        self.kinds: dict[str, dict[str, Any]] = {}
        self.converted: dict[str, int] = {}
        """Files that are resampled or mixed down when they are read; `prepare` counts them."""

    def beside(self) -> AudioTally:
        """An empty one of another part of the same run, which does not name again what this one has named."""
        other = AudioTally(self.max_bad)
        other.said = self.said
        return other

    def add(self, batch: AudioBatch) -> None:
        """Count a batch that is used now."""
        bad = [note for note in batch.notes if note.left_out]
        self.read += len(batch.ids) + len(bad)
        for note in batch.notes:
            self.note(note)
        self.empty_in_a_row = 0 if batch.ids else self.empty_in_a_row + 1

    def include(self, state: Mapping[str, Any]) -> None:
        """Count what another tally, whose state this is, has counted too."""
        self.read += state["read"]
        self.left_out += state["left_out"]
        self.empty_in_a_row = max(self.empty_in_a_row, state["empty_in_a_row"])
        for name, theirs in state["kinds"].items():
            kind = self.kinds.setdefault(name, {"left_out": theirs["left_out"], "cuts": 0, "files": {}})
            kind["cuts"] += theirs["cuts"]
            kind["files"] = dict(islice({**kind["files"], **theirs["files"]}.items(), MOST_NAMES))
        for name, count in state["converted"].items():
            self.converted[name] = self.converted.get(name, 0) + count

    def of_all_ranks(self) -> AudioTally:
        """What the ranks have counted together; every rank has to ask."""
        together = AudioTally(self.max_bad)
        for state in ranks.gathered(self.state_dict()):
            together.include(state)
        return together

    def check(self) -> None:
        """See that what all ranks have counted together is good enough; every rank has to ask, and all find the same.

        Raises:
            BadAudio: more is bad than allowed, or nothing of some batches in a row is usable; names files.
        """
        if ranks.count() == 1:
            self._check()
        elif ranks.largest(int(self.left_out > 0 or self.empty_in_a_row >= MOST_EMPTY_BATCHES)):
            self.of_all_ranks()._check()

    def _check(self) -> None:
        if self.left_out > self.max_bad * max(self.read, JUDGED_FROM):
            raise BadAudio(f"{self.left_out} of {self.read} cuts cannot be used, {self.more_than_allowed()}")
        if self.empty_in_a_row >= MOST_EMPTY_BATCHES:
            raise BadAudio(
                f"none of the audio of {self.empty_in_a_row} batches in a row is usable: {self.named()}. Check that "
                "the data still exists"
            )

    def is_too_much(self, left_out: int, read: int) -> bool:
        """Whether so many of a listing's files are more than may be left out."""
        return left_out > max(self.max_bad * read, int(self.max_bad > 0 and read >= ONE_MAY_FAIL))

    def more_than_allowed(self) -> str:
        """What an error says of files that were left out, and what to do about them."""
        return (
            f"more than the {100 * self.max_bad:.3g}% that max_bad allows: {self.named()}. Repair or remove them, or "
            "raise max_bad"
        )

    def note(self, note: Note) -> None:
        """Count one thing. The log names all files that are left out, and of those that are used one of a kind."""
        self.left_out += note.left_out
        kind = self.kinds.setdefault(note.kind, {"left_out": note.left_out, "cuts": 0, "files": {}})
        kind["cuts"] += 1
        if note.file not in kind["files"] and len(kind["files"]) < MOST_NAMES:
            if note.left_out:
                logger.warning("skipped %s", note.message)
            elif note.kind not in self.said:
                logger.info("warning: kept %s; more files of this kind are only counted", note.message)
                self.said.add(note.kind)
            kind["files"][note.file] = note.message

    def named(self) -> str:
        """The first files that were left out, with what is wrong."""
        messages = [message for kind in self.kinds.values() if kind["left_out"] for message in kind["files"].values()]
        return "; ".join(messages[:SHOWN]) + ("; …" if len(messages) > SHOWN else "")

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain values; "kinds" is kind → {"left_out", "cuts", "files": path → message}."""
        return {name: value for name, value in vars(self).items() if name not in ("max_bad", "said")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from there."""
        vars(self).update(state)


def tallied(batches: Iterable[AudioBatch], tally: AudioTally) -> Iterator[AudioBatch]:
    """The batches of which something can be used, counted as they are taken; every rank goes through its share of them.

    Several ranks, whose shares may be of different lengths, check their total count after their last batch.

    Raises:
        BadAudio: as `AudioTally.check`; or nothing could be used at all.
    """
    some = False
    for batch in batches:
        tally.add(batch)
        if ranks.count() == 1:
            tally.check()
        if batch.ids:
            some = True
            yield batch
    if ranks.count() > 1:
        tally.check()
    if not ranks.largest(int(some)):
        together = tally.of_all_ranks()
        if together.left_out:
            raise BadAudio(f"none of the audio is usable: {together.named()}")
