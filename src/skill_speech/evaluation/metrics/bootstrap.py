"""How far a score would move with other utterances of the same kind: percentile bootstrap (Efron 1979).

Legend of the suffixes: R resamples, U units that are drawn, mostly utterances, N utterances, P trials, D sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .verification import equal_error_rates

RESAMPLES = 1_000
LEVEL = 0.95
DRAWN_AT_ONCE = 2_000_000
"""Units, over the resamples that are held together."""
TRIALS_AT_ONCE = 4_000_000
"""Of all resamples that are held together."""
NORMAL = 1.959964
"""The 97.5 % quantile of the normal distribution."""

Array = NDArray[np.float64]
Values = Mapping[str, NDArray[np.float64]]


class Estimate(NamedTuple):
    """A score, and the interval that 95 % of its resamples are in."""

    value: float
    low: float
    high: float


class Scored(Protocol):
    """Scores that are functions of how often each unit counts."""

    @property
    def units(self) -> int:
        """How many there are."""
        ...

    def values(self, weights_RU: NDArray[np.float64]) -> Values:
        """Measure → its values (R,); NaN where a resample has none."""
        ...


@dataclass(frozen=True)
class Sums:
    """Measures that are functions of what is summed over utterances.

    Attributes:
        parts_ND: of every utterance what is summed; dense or sparse.
        measures: of sums (R, D) and the number of utterances (R,).
    """

    parts_ND: Any
    measures: Callable[[Array, Array], Values]

    @property
    def units(self) -> int:
        """Utterances."""
        return int(self.parts_ND.shape[0])

    def values(self, weights_RU: Array) -> Values:
        """Measure → its values (R,)."""
        sums_RD = np.asarray((self.parts_ND.T @ weights_RU.T).T)
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.measures(sums_RD, weights_RU.sum(1))


@dataclass(frozen=True)
class Trials:
    """Pairs of utterances; speakers are resampled, and a pair of two counts as often as both are drawn together.

    Attributes:
        units: speakers.
        speakers_P2: of both utterances.
        scores_P: higher for the same speaker.
    """

    units: int
    speakers_P2: NDArray[np.int64]
    scores_P: Array

    def values(self, weights_RU: Array) -> Values:
        """The equal error rate (R,)."""
        same_P = np.equal(*self.speakers_P2.T)
        rows = max(1, TRIALS_AT_ONCE // len(self.scores_P))
        found = []
        for start in range(0, len(weights_RU), rows):
            one_RP, other_RP = (weights_RU[start : start + rows, side] for side in self.speakers_P2.T)
            # A speaker that is drawn twice is two speakers: neither of them is a target of the other.
            weights_RP = np.where(same_P, one_RP, one_RP * other_RP)
            found.append(equal_error_rates(same_P, self.scores_P, weights_RP))
        return {"eer": np.concatenate(found)}


def point(scored: Scored) -> dict[str, float]:
    """Every measure, each unit counted once."""
    return {name: float(value[0]) for name, value in scored.values(np.ones((1, scored.units))).items()}


def resampled(scored: Sequence[Scored], seed: int) -> list[Values]:
    """Measure → its values in the resamples (R,), for all that are scored on the same units, and in the same resamples.

    Paired so, the difference of two of them has an interval of its own, which is narrower than theirs.
    """
    blocks: list[list[Values]] = [[] for _ in scored]
    for weights_RU in _weights(scored[0].units, seed):
        for one, found in zip(scored, blocks, strict=True):
            found.append(one.values(weights_RU))
    return [{name: np.concatenate([block[name] for block in found]) for name in found[0]} for found in blocks]


def estimate(value: float, samples_R: NDArray[np.float64]) -> Estimate:
    """A score with its interval; NaN where no resample has it."""
    samples_R = samples_R[np.isfinite(samples_R)]
    if not len(samples_R):
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.quantile(samples_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(value, float(low), float(high))


def _weights(units: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each unit is drawn in each resample (R, U), some resamples at a time."""
    generator = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // units)
    for start in range(0, RESAMPLES, at_once):
        rows = min(at_once, RESAMPLES - start)
        drawn_RU = generator.integers(0, units, (rows, units)) + units * np.arange(rows)[:, None]
        yield np.bincount(drawn_RU.ravel(), minlength=rows * units).reshape(rows, units).astype(np.float64)


def wilson(percent: float, items: int) -> Estimate:
    """A share of items with the interval of Wilson (1927), for scores of which only the number of items is known.

    Args:
        percent: of the items.
        items: how many there are, one at least.
    """
    share, spread = percent / 100, NORMAL**2 / items
    middle = share + spread / 2
    reach = NORMAL * math.sqrt(share * (1 - share) / items + spread / (4 * items))
    low, high = (100 * (middle + sign * reach) / (1 + spread) for sign in (-1, 1))
    return Estimate(percent, max(0.0, low), min(100.0, high))


def mean_of(parts: Sequence[Estimate]) -> Estimate:
    """The mean of scores on parts that have no unit in common, with an interval: distances add up as squares do."""
    value = sum(part.value for part in parts) / len(parts)
    low, high = (math.sqrt(sum((part[side] - part.value) ** 2 for part in parts)) / len(parts) for side in (1, 2))
    return Estimate(value, value - low, value + high)
