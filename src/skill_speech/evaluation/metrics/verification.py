"""The equal error rate of scored trials.

Legend of the suffixes: R sets of weights, P trials.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def equal_error_rate(labels: ArrayLike, scores: ArrayLike) -> float:
    """Where the share of refused targets equals the share of accepted non-targets.

    The line between the two operating points on either side is followed, as on a receiver operating curve.

    Args:
        labels: 1 for a target trial, 0 for a non-target trial; both must occur.
        scores: higher for targets.
    """
    return float(equal_error_rates(labels, scores, np.ones((1, len(np.asarray(scores)))))[0])


def equal_error_rates(labels: ArrayLike, scores: ArrayLike, weights_RP: NDArray[np.float64]) -> NDArray[np.float64]:
    """The equal error rate (R,) of the same trials, each counted as often as a weight says.

    NaN where no target or no non-target counts.
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    hits, scores, weights_RP = labels[order], scores[order], weights_RP[:, order]
    # Trials of the same score are accepted together.
    last = np.r_[np.flatnonzero(np.diff(scores)), len(scores) - 1]
    start_R1 = np.zeros((len(weights_RP), 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        accepted = [np.hstack([start_R1, np.cumsum(weights_RP * kind, axis=1)[:, last]]) for kind in (hits, ~hits)]
        hits_RP, alarms_RP = (counts_RP / counts_RP[:, -1:] for counts_RP in accepted)
        misses_RP = 1 - hits_RP
        after = np.argmax(alarms_RP >= misses_RP, axis=1)
        rows, before = np.arange(len(after)), after - 1
        # On the segment, misses fall and alarms rise linearly; they meet after this share of it.
        gap = misses_RP[rows, before] - alarms_RP[rows, before]
        share = gap / (gap + alarms_RP[rows, after] - misses_RP[rows, after])
        found: NDArray[np.float64] = 100 * (
            alarms_RP[rows, before] + share * (alarms_RP[rows, after] - alarms_RP[rows, before])
        )
    return found
