"""The maximum term weighted value (MTWV) of spoken term detection, as QUESST 2014 scores it.

Legend of the suffixes: Q queries, N documents.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

TARGET_PRIOR, MISS_COST, ALARM_COST = 0.0008, 100.0, 1.0
"""The working point of QUESST 2014 (Anguera et al., MediaEval 2014)."""

BETA = ALARM_COST / MISS_COST * (1 / TARGET_PRIOR - 1)


def max_term_weighted_value(scores_QN: ArrayLike, matches_QN: ArrayLike) -> float:
    """100 × the largest value over all thresholds θ of 1 - mean over queries of (P_miss(θ) + β P_alarm(θ)).

    A pair is detected where its score is at least θ. Queries that match no document are left out. The value is never
    negative: a threshold above all scores detects nothing, which is worth 0.

    Args:
        scores_QN: of every query in every document; -inf for a pair that was not looked at.
        matches_QN: whether the document has the query.
    """
    scores_QN, matches_QN = np.asarray(scores_QN, dtype=np.float64), np.asarray(matches_QN, dtype=bool)
    sought = matches_QN.any(1)
    scores_QN, matches_QN = scores_QN[sought], matches_QN[sought]
    if not len(scores_QN):
        return 0.0
    targets_Q1 = matches_QN.sum(1, keepdims=True)
    others_Q1 = np.maximum((~matches_QN).sum(1, keepdims=True), 1)
    # What a pair adds to the value once it is detected: a hit 1 / targets of its query, an alarm -β / its other pairs.
    worth_QN = np.where(matches_QN, 1 / targets_Q1, -BETA / others_Q1)
    return 100 * _largest_sum(scores_QN.ravel(), worth_QN.ravel()) / len(scores_QN)


def _largest_sum(scores: NDArray[np.float64], worth: NDArray[np.float64]) -> float:
    """The largest sum of `worth` over all pairs with a score of at least some threshold."""
    order = np.argsort(-scores, kind="stable")
    sums = np.cumsum(worth[order])
    scores = scores[order]
    last = np.r_[np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1]
    return float(max(0.0, sums[last].max()))
