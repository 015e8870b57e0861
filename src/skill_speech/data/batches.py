"""Which cuts make up which batch: pure functions of the cuts and a seed; no audio is read here.

Nothing depends on global random state. Batch n of a run is the same after a restart, for any number of workers and of
ranks.
"""

from __future__ import annotations

import logging
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, count, islice

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling import DynamicCutSampler
from torch.utils.data import Sampler

from ..errors import InputError
from .audio import SAMPLE_RATE, at_16khz, num_samples
from .fields import LONGEST_SECONDS
from .streams import all_cuts, first_cuts, in_order, shuffled, some

logger = logging.getLogger("skill_speech.data")

MOST_WINDOWS = 40_000
"""Held of the cuts that are looked at: recordings of many hours have more."""

MOST_IN_A_PASS = 200_000
"""Windows of an evaluation, which are all held: 36 days of audio at 15.6 s."""

SORTED_AT_ONCE = 10_000
"""Windows that are divided into batches together: of more data, a batch takes its windows from so many."""

MIXED_BATCHES = 2
"""Of so many batches' audio of about the same length, any window may be in any batch."""

SHORTEST_EVALUATED_SECONDS = 0.025
"""One frame of the convolutional front end (400 samples); it has no output for anything shorter."""


@dataclass(frozen=True)
class Position:
    """Where a sequence of training batches stands: in which epoch, and how many batches of it are done."""

    epoch: int = 0
    batch: int = 0


class TrainingBatches(Sampler[CutSet]):
    """An endless sequence of training batches, epoch after epoch, each batch a CutSet of equally long crops.

    Cuts longer than `max_seconds` are divided into equal windows, so that nothing is lost; shorter ones than
    `min_seconds` are dropped. An epoch shuffles them (`shuffled`: data beyond 20,000 cuts approximately), and of every
    10,000 the ones of about the same length make a batch: they are sorted, neighbors are mixed, and the row is divided
    into batches, which come in random order. (lhotse's buckets, 30 of them, leave batches less full and crop six times
    as much; more of them hold too many cuts.) Every cut of a batch is then cropped at random to the shortest of the
    batch, on the cut, so that reading it is a pure function of the cut (DPHuBERT, arXiv 2305.17651, crops so too
    instead of padding).

    The cuts are streamed: no more than about 30,000 are held at a time. To be used as a DataLoader's `sampler` with
    `batch_size=None`; see `audio_loader`.

    The sequence does not depend on the number of ranks, which take turns: with three of them

        batch of the sequence   0  1  2  3  4  5  6 …
        goes to rank            0  1  2  0  1  2  0 …

    so that no two ranks get the same batch, none runs out before another, and a run can resume with another number of
    them. A loader asks for batches ahead of the training: how many were used is for the caller to count, whom
    `position` tells where a later run has to start.

    Args:
        cuts: what `prepare` or `open_cuts` returned.
        batch_seconds: the most seconds of audio in a batch, as cropped. Windows are at most this long.
        min_seconds: shortest cut that is used.
        max_seconds: longest cut; at least twice `min_seconds`, so that windows are not too short themselves.
        seed: of the order, the batches and the crops.
        start: of the sequence; nothing is decoded for what lies before it.
        rank: this process among world_size.
        world_size: number of training processes.
        whole: utterances stay whole, with what their supervisions say, and are padded when they are read; the padding
            counts in `batch_seconds`. Of longer cuts than `max_seconds` windows are taken, without supervisions.

    Raises:
        InputError: no cut is long enough, or the limits contradict each other.
    """

    def __init__(
        self,
        cuts: CutSet,
        *,
        batch_seconds: float,
        min_seconds: float = 2.0,
        max_seconds: float = 15.6,
        seed: int = 0,
        start: Position = Position(),
        rank: int = 0,
        world_size: int = 1,
        whole: bool = False,
    ) -> None:
        longest = min(max_seconds, batch_seconds)
        if not (0 < 2 * min_seconds <= longest and batch_seconds <= LONGEST_SECONDS):
            raise InputError(
                f"min_seconds={min_seconds:g} must be positive and at most half of max_seconds={max_seconds:g} and of "
                f"batch_seconds={batch_seconds:g}, and that at most {LONGEST_SECONDS:g}"
            )
        if min_seconds < SHORTEST_EVALUATED_SECONDS:
            raise InputError(f"min_seconds is {min_seconds:g}; it must be at least {SHORTEST_EVALUATED_SECONDS:g}")
        if not 0 <= rank < world_size:
            raise InputError(f"rank is {rank}; it must be from 0 to world_size - 1, {world_size - 1}")
        self.batch_seconds, self.min_seconds, self.longest, self.seed = batch_seconds, min_seconds, longest, seed
        self.start, self.rank, self.world_size = start, rank, world_size
        self._all_cuts, self.whole = cuts, whole
        self._began: dict[int, int] = {}
        windows = _windows(first_cuts(cuts, f"{seed}/look"), longest)
        _long_enough(islice(windows, MOST_WINDOWS), min_seconds)  # refuses data that is all too short

    def __iter__(self) -> Iterator[CutSet]:
        began = -self.start.batch
        for epoch in count(self.start.epoch):
            self._began[epoch] = began
            length = 0
            for index, batch in enumerate(self._epoch(epoch)):
                length, number = index + 1, began + index
                if number >= 0 and number % self.world_size == self.rank:
                    key = f"{self.seed}/{epoch}/{index}"
                    yield CutSet(batch) if self.whole else _crop_to_shortest(batch, key)
            if not length:
                raise InputError(f"no audio of at least {self.min_seconds:g} s is left: has the data changed?")
            began += length

    def position(self, used: int) -> Position:
        """Where the sequence stands when `used` of its batches, over all ranks, have been used since `start`."""
        epoch = max((epoch for epoch, began in self._began.items() if began <= used), default=self.start.epoch)
        return Position(epoch, used - self._began.get(epoch, -self.start.batch))

    def _epoch(self, epoch: int) -> Iterator[list[Cut]]:
        # Seeding with a string hashes it: unlike seed + epoch, no two runs share an epoch.
        generator = random.Random(f"{self.seed}/{epoch}")
        windows = _windows(in_order(self._all_cuts, f"{self.seed}/{epoch}"), self.longest, self.whole)
        long_enough = (cut for cut in windows if cut.duration >= self.min_seconds)
        stream = shuffled(long_enough, generator)
        while pool := some(stream, SORTED_AT_ONCE):
            most = round(self.batch_seconds * SAMPLE_RATE)
            batches = list(_of_similar_length(pool, most, generator, max if self.whole else min))
            generator.shuffle(batches)
            yield from batches


def evaluation_batches(
    cuts: CutSet,
    *,
    batch_seconds: float,
    max_seconds: float = 15.6,
    limit_seconds: float | None = None,
    seed: int = 0,
) -> list[CutSet]:
    """The batches of one deterministic pass, for calibration and validation; to be padded, not cropped, when read.

    Args:
        cuts: what `prepare` or `open_cuts` returned; longer cuts than `max_seconds` are divided into equal windows.
        batch_seconds: the most seconds of audio per batch, padding included.
        max_seconds: longest window; no window is longer than `batch_seconds` either.
        limit_seconds: take a random sample of about this much audio (the first windows in a random order that
            reach it) instead of all; of more than 20,000 cuts, from the first ones of shards in random order.
        seed: of the sample and of the order of the batches.

    Returns:
        CutSets of similarly long cuts, in random order.

    Raises InputError when no audio is left, or there are too many windows for one pass.
    """
    longest = min(max_seconds, batch_seconds)
    if not longest >= SHORTEST_EVALUATED_SECONDS or not batch_seconds <= LONGEST_SECONDS:
        raise InputError(
            f"batch_seconds={batch_seconds:g} and max_seconds={max_seconds:g} must be at least "
            f"{SHORTEST_EVALUATED_SECONDS:g}, and batch_seconds at most {LONGEST_SECONDS:g}"
        )
    if limit_seconds is not None and not limit_seconds > 0:
        raise InputError(f"limit_seconds is {limit_seconds:g}; it must be positive")
    generator = random.Random(seed)
    if limit_seconds is None:
        whole = all_cuts(cuts)
        if sum(_parts(cut, longest) for cut in whole) > MOST_IN_A_PASS:
            raise InputError(f"more than {MOST_IN_A_PASS:,} windows of audio to go through in one pass: give less")
        chosen = _long_enough(_windows(whole, longest), SHORTEST_EVALUATED_SECONDS)
    else:
        windows = _sampled(first_cuts(cuts, f"{seed}/sample"), longest, generator)
        chosen = _long_enough(windows, SHORTEST_EVALUATED_SECONDS)
        generator.shuffle(chosen)
        chosen = _until(chosen, limit_seconds)
    # From long to short: lhotse closes a batch before one more cut as long as its longest would exceed the limit.
    chosen.sort(key=lambda cut: (-cut.duration, cut.id))
    batches = list(DynamicCutSampler(chosen, max_duration=batch_seconds, world_size=1, rank=0))
    generator.shuffle(batches)
    return batches


def _windows(cuts: Iterable[Cut], longest_seconds: float, labeled: bool = False) -> Iterator[Cut]:
    """Cuts of at most `longest_seconds`: longer ones divided equally, on the grid of samples, named id-0, id-1 …

    Undivided ones keep their supervisions if `labeled`.

    lhotse's own windows leave a tail that may be too short to use and would be lost: 16 s at 15.6 s gives it
    15.6 + 0.4, here it gives 8 + 8.
    """
    for cut in map(at_16khz, cuts):
        parts = _parts(cut, longest_seconds)
        if parts > 1 or not labeled:
            cut = cut.drop_supervisions()
        for index in range(parts):
            yield _window(cut, index, parts)


def _parts(cut: Cut, longest_seconds: float) -> int:
    return max(1, math.ceil(num_samples(cut) / round(longest_seconds * SAMPLE_RATE)))


def _window(cut: Cut, index: int, parts: int) -> Cut:
    if parts == 1:
        return cut
    total = num_samples(cut)
    start, stop = total * index // parts, total * (index + 1) // parts
    return _part(cut, start, stop - start).with_id(f"{cut.id}-{index}")


def _sampled(cuts: list[Cut], longest_seconds: float, generator: random.Random) -> Iterator[Cut]:
    """The windows of cuts, or so many of them that they can be held, drawn at random."""
    cuts = [at_16khz(cut).drop_supervisions() for cut in cuts]
    parts = [_parts(cut, longest_seconds) for cut in cuts]
    first = [0, *accumulate(parts)]
    chosen: Sequence[int] = range(first[-1])
    if first[-1] > MOST_WINDOWS:
        chosen = sorted(generator.sample(chosen, MOST_WINDOWS))
    for number in chosen:
        which = bisect_right(first, number) - 1
        yield _window(cuts[which], number - first[which], parts[which])


def _part(cut: Cut, start: int, length: int) -> Cut:
    """Samples start … start + length of the cut at 16 kHz, under the same id (lhotse would make up a random one)."""
    return cut.truncate(offset=start / SAMPLE_RATE, duration=length / SAMPLE_RATE, preserve_id=True)


def _long_enough(cuts: Iterable[Cut], min_seconds: float) -> list[Cut]:
    kept, dropped, longest = [], 0, 0.0
    for cut in cuts:
        longest = max(longest, cut.duration)
        if cut.duration >= min_seconds:
            kept.append(cut)
        else:
            dropped += 1
    if not kept:
        detail = f"all {dropped} cuts are shorter (the longest: {longest:.2f} s)" if dropped else "there are no cuts"
        raise InputError(f"no audio of at least {min_seconds:g} s: {detail}: give more data or lower min_seconds")
    if dropped:
        logger.info(
            "%d of %d utterances or pieces of them are shorter than %g s: left out",
            dropped,
            dropped + len(kept),
            min_seconds,
        )
    return kept


def _until(cuts: list[Cut], limit_seconds: float) -> list[Cut]:
    total = 0.0
    for number, cut in enumerate(cuts, start=1):
        total += cut.duration
        if total >= limit_seconds:
            return cuts[:number]
    return cuts


def _of_similar_length(
    cuts: list[Cut], most: int, generator: random.Random, length: Callable[[int, int], int]
) -> Iterator[list[Cut]]:
    """All of the cuts in batches of at most so many samples; few have much fewer.

    `length` says of two cuts how long they are together: `min` where they are cropped, `max` where they are padded.

    Example with five cuts to a batch and `MIXED_BATCHES` = 2, from short to long: the first ten are mixed, the next
    ten, and so on. The first batch is then five of the ten shortest ones.
    """
    cuts = sorted(cuts, key=num_samples)
    row: list[Cut] = []
    while len(row) < len(cuts):
        neighbors = max(1, most // num_samples(cuts[len(row)])) * MIXED_BATCHES
        group = cuts[len(row) : len(row) + neighbors]
        row += generator.sample(group, len(group))
    batch: list[Cut] = []
    common = 0
    for cut in row:
        if batch and (len(batch) + 1) * length(common, num_samples(cut)) > most:
            yield batch
            batch = []
        common = length(common, num_samples(cut)) if batch else num_samples(cut)
        batch.append(cut)
    if batch:
        yield batch


def _crop_to_shortest(batch: list[Cut], key: str) -> CutSet:
    shortest = min(num_samples(cut) for cut in batch)
    cropped = []
    for cut in batch:
        offset = random.Random(f"{key}/{cut.id}").randint(0, num_samples(cut) - shortest)
        cropped.append(_part(cut, offset, shortest))
    return CutSet(cropped)
