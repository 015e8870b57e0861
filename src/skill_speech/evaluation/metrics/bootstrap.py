"""How far a score would move with other utterances of the same kind: percentile bootstrap (Efron 1979).

Legend of the suffixes: R resamples, U units that are drawn, mostly utterances.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1_000
LEVEL = 0.95
DRAWN_AT_ONCE = 2_000_000
"""Units, over the resamples that are held together."""

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
