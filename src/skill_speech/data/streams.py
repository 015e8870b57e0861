"""Cuts as a stream: gone through again and again, in an order that a key decides, and never held all at once."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import chain, islice

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.cut.data import DataCut

from ..errors import InputError
from .fingerprint import fingerprint

LOOKED_AT = 20_000
"""Cuts that are looked at before a run starts: of these, durations, validation and calibration audio are taken.

Of smaller data these are all cuts. Of larger data it bounds memory and the time to the first step.
"""

MOST_HELD = 256 << 20
SEGMENT_BYTES = 600
"""What the supervisions of the cuts that are looked at may take, in bytes, and what one takes beside its text.

Cuts that are held together may have as much audio with them, where that came as a stream.
"""

SHUFFLED_AT_ONCE = 20_000
"""Cuts among which the next one is drawn: smaller data is shuffled as a whole, larger data approximately."""


def in_order(cuts: CutSet, key: str) -> Iterator[Cut]:
    """All cuts once: shards and corpora in an order that is a function of `key`, others as they are stored."""
    ordered = getattr(cuts.data, "in_order", None)
    return iter(cuts) if ordered is None else ordered(key)


def audio_bytes(cut: Cut) -> int:
    """How much encoded audio a cut has with it: nothing, unless it came as a stream."""
    source = cut.recording.sources[0] if isinstance(cut, DataCut) and cut.has_recording else None
    return len(source.source) if source is not None and source.type == "memory" else 0


def some(cuts: Iterator[Cut], most: int) -> list[Cut]:
    """The next cuts, so many as may be held together."""
    taken: list[Cut] = []
    held = 0
    for cut in islice(cuts, most):
        taken.append(cut)
        held += audio_bytes(cut)
        if held > MOST_HELD:
            break
    return taken


def all_cuts(cuts: CutSet) -> list[Cut]:
    """All cuts, held together.

    Raises:
        InputError: they have too much audio with them.
    """
    found: list[Cut] = []
    held = 0
    for cut in cuts:
        found.append(cut)
        held += audio_bytes(cut)
        if held > MOST_HELD:
            raise InputError(
                f"more than {MOST_HELD >> 20} MiB of audio in streamed data that is needed in one pass: write shards "
                "with skill-speech prepare --shards"
            )
    return found


def first_cuts(cuts: CutSet, key: str) -> list[Cut]:
    """The cuts that are looked at: all of small data, each once."""
    found: dict[tuple[object, ...], Cut] = {}
    held = 0
    for cut in islice(in_order(cuts, key), LOOKED_AT):
        held += audio_bytes(cut)
        held += sum(SEGMENT_BYTES + len(said.id) + len(said.text or "") for said in cut.supervisions)
        if held > MOST_HELD and found:
            break
        # A mixture repeats cuts, and its corpora may use the same ids.
        source = cut.recording.sources[0].source if cut.has_recording and isinstance(cut, DataCut) else None
        found.setdefault((cut.id, cut.start, cut.duration, source), cut)
    return list(found.values())


@dataclass(frozen=True)
class Transformed:
    """The cuts of a set as a function makes them, without those that it makes None of; to be wrapped in a CutSet."""

    cuts: CutSet
    function: Callable[[Cut], Cut | None]

    def __iter__(self) -> Iterator[Cut]:
        return self._made(self.cuts)

    def fingerprint(self) -> tuple[int, str]:
        """That of the cuts before the function."""
        return astuple(fingerprint(self.cuts))

    def in_order(self, key: str) -> Iterator[Cut]:
        """As `in_order` has them."""
        return self._made(in_order(self.cuts, key))

    def _made(self, cuts: Iterable[Cut]) -> Iterator[Cut]:
        for cut in cuts:
            made = self.function(cut)
            if made is not None:
                yield made


def transformed(cuts: CutSet, function: Callable[[Cut], Cut | None]) -> CutSet:
    """A CutSet of what a function makes of the cuts, each time they are gone through."""
    return CutSet(Transformed(cuts, function))


@dataclass(frozen=True)
class Chain:
    """Several sets of cuts as one, each cut once; to be wrapped in a CutSet."""

    sets: tuple[CutSet, ...]

    def __iter__(self) -> Iterator[Cut]:
        return chain.from_iterable(self.sets)

    def fingerprint(self) -> tuple[int, str]:
        """The number of all cuts, and a hash of the parts."""
        parts = [fingerprint(part) for part in self.sets]
        return sum(part.cuts for part in parts), hashlib.sha256(
            json.dumps([part.hash for part in parts]).encode()
        ).hexdigest()

    def in_order(self, key: str) -> Iterator[Cut]:
        """The cuts of all sets among each other; the draws are a function of the key."""
        generator = random.Random(f"{key}/chain")
        streams = [in_order(one, f"{key}/{number}") for number, one in enumerate(self.sets)]
        while streams:
            number = generator.randrange(len(streams))
            cut = next(streams[number], None)
            if cut is None:
                del streams[number]
            else:
                yield cut


@dataclass(frozen=True)
class Mixture:
    """Several sets of cuts, the next one drawn from set i with probability weight_i / sum; to be wrapped in a CutSet.

    A set that comes to its end starts again, in another order, until all have come to theirs: then an epoch is over.
    lhotse's `CutSet.mux` continues without the sets that have ended, and so ignores their weights.
    """

    sets: tuple[CutSet, ...]
    weights: tuple[float, ...]

    def __iter__(self) -> Iterator[Cut]:
        return self.in_order("as stored")

    def fingerprint(self) -> tuple[int, str]:
        """The number of all cuts, and a hash of the parts."""
        parts = [fingerprint(part) for part in self.sets]
        text = json.dumps([[part.hash for part in parts], self.weights])
        return sum(part.cuts for part in parts), hashlib.sha256(text.encode()).hexdigest()

    def in_order(self, key: str) -> Iterator[Cut]:
        """The draws are a function of the key."""
        generator = random.Random(f"{key}/mixture")
        rounds = [0] * len(self.sets)
        streams = [self._again(number, 0, key) for number in range(len(self.sets))]
        while True:
            number = generator.choices(range(len(self.sets)), self.weights)[0]
            cut = next(streams[number], None)
            if cut is None:
                rounds[number] += 1
                if all(rounds):
                    return
                streams[number] = self._again(number, rounds[number], key)
                cut = next(streams[number], None)
                if cut is None:
                    raise InputError(f"part {number + 1} of the data has no cuts")
            yield cut

    def _again(self, number: int, times: int, key: str) -> Iterator[Cut]:
        return in_order(self.sets[number], f"{key}/{number}/{times}")


def shuffled(items: Iterable[Cut], generator: random.Random, at_once: int = SHUFFLED_AT_ONCE) -> Iterator[Cut]:
    """The items in random order: each next one drawn from the `at_once` that were read last.

    Not lhotse's streaming_shuffle, which leaves those that fit into its buffer partly in their order.
    """
    stream = iter(items)
    buffer = some(stream, at_once)
    generator.shuffle(buffer)
    for item in stream:
        index = generator.randrange(len(buffer))
        drawn, buffer[index] = buffer[index], item
        yield drawn
    generator.shuffle(buffer)
    yield from buffer
