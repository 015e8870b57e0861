"""The equal error rate of scored trials."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> float:
    """Where the share of refused targets equals the share of accepted non-targets.

    The line between the two operating points on either side is followed, as on a receiver operating curve.

    Args:
        labels: 1 for a target trial, 0 for a non-target trial; both must occur.
        scores: higher for targets.
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    hits, scores = labels[order], scores[order]
    # Trials of the same score are accepted together.
    last = np.r_[np.flatnonzero(np.diff(scores)), len(scores) - 1]
    misses = np.r_[1.0, 1 - np.cumsum(hits)[last] / hits.sum()]
    alarms = np.r_[0.0, np.cumsum(~hits)[last] / (~hits).sum()]
    after = int(np.argmax(alarms >= misses))
    before = after - 1
    # On the segment, misses fall and alarms rise linearly; they meet after this share of it.
    gap = misses[before] - alarms[before]
    share = gap / (gap + alarms[after] - misses[after])
    return 100 * float(alarms[before] + share * (alarms[after] - alarms[before]))
