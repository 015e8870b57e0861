"""Which cuts make up which batch: pure functions of the cuts and a seed; no audio is read here.

Nothing depends on global random state. Batch n of a run is the same after a restart, for any number of workers.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterable, Iterator
from itertools import pairwise

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling import DynamicBucketingSampler, DynamicCutSampler
from lhotse.dataset.sampling.dynamic_bucketing import estimate_duration_buckets
from torch.utils.data import Sampler

from ..errors import InputError
from .audio import SAMPLE_RATE, at_16khz, num_samples

logger = logging.getLogger("skill_speech.data")

MOST_BUCKETS = 30
BATCHES_PER_BUCKET = 8
"""At least so many batches of an epoch come from one bucket, since each bucket may leave one incomplete batch."""

SHORTEST_EVALUATED_SECONDS = 0.025
"""One frame of the convolutional front end (400 samples); it has no output for anything shorter."""


class TrainingBatches(Sampler[CutSet]):
    """An endless sequence of training batches, epoch after epoch, each batch a CutSet of equally long crops.

    Cuts longer than `max_seconds` are divided into equal windows, so that nothing is lost; shorter ones than
    `min_seconds` are dropped. An epoch shuffles all of them and lhotse's DynamicBucketingSampler collects cuts of
    similar duration. Every cut of a batch is then cropped at random to the shortest of the batch, on the cut, so that
    reading it is a pure function of the cut (DPHuBERT, arXiv 2305.17651, crops so too instead of padding).

    The cuts' metadata is held in memory without supervisions: about 1 kB a cut. To be used as a DataLoader's
    `sampler` with `batch_size=None`; see `audio_loader`. A loader asks for batches ahead of the training: where a run
    stands is for the caller to count, who continues it with `start_batch`.

    Args:
        cuts: what `prepare` or `open_cuts` returned.
        batch_seconds: seconds of audio per batch and rank before cropping, as lhotse's `max_duration`: about the
            number of cuts times the longest one. Windows are at most this long.
        min_seconds: shortest cut that is used.
        max_seconds: longest cut; at least twice `min_seconds`, so that windows are not too short themselves.
        seed: of the order, the batches and the crops.
        start_batch: the number of batches (of this rank) to skip; nothing is decoded for that.
        num_buckets: number of duration buckets; by default up to 30, fewer for small data.
        rank: this process among world_size, each of which gets its own batches, all equally many.
        world_size: number of training processes.

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
        start_batch: int = 0,
        num_buckets: int | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        longest = min(max_seconds, batch_seconds)
        if not 0 < 2 * min_seconds <= longest:
            raise InputError(
                f"min_seconds={min_seconds:g} must be positive and at most half of max_seconds={max_seconds:g} and of "
                f"batch_seconds={batch_seconds:g}"
            )
        self.batch_seconds, self.min_seconds, self.seed, self.start_batch = (
            batch_seconds,
            min_seconds,
            seed,
            start_batch,
        )
        self.rank, self.world_size = rank, world_size
        self._cuts = _long_enough(_windows(cuts, longest), min_seconds)
        self.seconds = sum(cut.duration for cut in self._cuts)
        """Audio per epoch, in seconds."""
        if num_buckets is None:
            batches = self.seconds / (batch_seconds * world_size)
            num_buckets = max(1, min(MOST_BUCKETS, int(batches / BATCHES_PER_BUCKET)))
        num_buckets = min(num_buckets, len(self._cuts))
        # lhotse wants at least one border: one beyond all durations makes a single bucket.
        self._borders = estimate_duration_buckets(self._cuts, num_buckets) if num_buckets > 1 else [longest + 1.0]

    def __iter__(self) -> Iterator[CutSet]:
        to_skip = self.start_batch
        epoch = 0
        while True:
            for index, batch in enumerate(self._epoch(epoch)):
                if to_skip > 0:
                    to_skip -= 1
                else:
                    yield _crop_to_shortest(batch, f"{self.seed}/{epoch}/{index}")
            epoch += 1

    def _epoch(self, epoch: int) -> Iterable[CutSet]:
        # Seeding with a string hashes it: unlike seed + epoch, no two runs share an epoch.
        generator = random.Random(f"{self.seed}/{epoch}")
        shuffled = self._cuts.copy()
        generator.shuffle(shuffled)
        buckets = len(self._borders) + 1
        return DynamicBucketingSampler(
            shuffled,
            max_duration=self.batch_seconds,
            duration_bins=self._borders,
            # Enough that some bucket always holds a full batch for every rank, and no more: lhotse walks it each time.
            buffer_size=2 * self.world_size * buckets * math.ceil(self.batch_seconds / self.min_seconds),
            # Ranks wait for one another, so they should get equally long batches at the same time. Also for one rank:
            # without it, lhotse 1.33 may end an epoch at the first empty bucket (a Queue is always true) and lose cuts.
            sync_buckets=True,
            world_size=self.world_size,
            rank=self.rank,
            seed=generator.getrandbits(32),
        )


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
            reach it) instead of all.
        seed: of the sample and of the order of the batches.

    Returns:
        CutSets of similarly long cuts, in random order.

    Raises InputError when no audio is left.
    """
    if batch_seconds <= 0 or max_seconds < SHORTEST_EVALUATED_SECONDS:
        raise InputError(f"batch_seconds={batch_seconds:g} and max_seconds={max_seconds:g} must be positive")
    generator = random.Random(seed)
    chosen = _long_enough(_windows(cuts, min(max_seconds, batch_seconds)), SHORTEST_EVALUATED_SECONDS)
    if limit_seconds is not None:
        generator.shuffle(chosen)
        chosen = _until(chosen, limit_seconds)
    # From long to short: lhotse closes a batch before one more cut as long as its longest would exceed the limit.
    chosen.sort(key=lambda cut: (-cut.duration, cut.id))
    batches = list(DynamicCutSampler(chosen, max_duration=batch_seconds, world_size=1, rank=0))
    generator.shuffle(batches)
    return batches


def _windows(cuts: CutSet, longest_seconds: float) -> Iterator[Cut]:
    """Cuts of at most `longest_seconds`: longer ones divided equally, on the grid of samples, named id-0, id-1 …

    lhotse's own windows leave a tail that may be too short to use and would be lost: 16 s at 15.6 s gives it
    15.6 + 0.4, here it gives 8 + 8.
    """
    longest = round(longest_seconds * SAMPLE_RATE)
    for cut in map(at_16khz, cuts):
        cut = cut.drop_supervisions()
        total = num_samples(cut)
        count = math.ceil(total / longest)
        if count <= 1:
            yield cut
            continue
        borders = [total * index // count for index in range(count + 1)]
        for index, (start, stop) in enumerate(pairwise(borders)):
            yield _part(cut, start, stop - start).with_id(f"{cut.id}-{index}")


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
        logger.info("%d of %d cuts are shorter than %g s: left out", dropped, dropped + len(kept), min_seconds)
    return kept


def _until(cuts: list[Cut], limit_seconds: float) -> list[Cut]:
    total = 0.0
    for count, cut in enumerate(cuts, start=1):
        total += cut.duration
        if total >= limit_seconds:
            return cuts[:count]
    return cuts


def _crop_to_shortest(batch: CutSet, key: str) -> CutSet:
    shortest = min(num_samples(cut) for cut in batch)
    cropped = []
    for cut in batch:
        offset = random.Random(f"{key}/{cut.id}").randint(0, num_samples(cut) - shortest)
        cropped.append(_part(cut, offset, shortest))
    return CutSet(cropped)
