"""Groups of similar layers: agglomerative clustering on the distance 1 - CKA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from ..errors import InputError

Linkage = Literal["average", "complete", "single"]
Groups = tuple[tuple[int, ...], ...]

# Distance of two groups, from the distances of their members.
_LINKAGES: dict[str, Callable[..., np.floating[Any]]] = {"average": np.mean, "complete": np.max, "single": np.min}
METHODS: tuple[str, ...] = tuple(_LINKAGES)


@dataclass(frozen=True)
class LayerClusters:
    """Layers grouped by similarity.

    Attributes:
        groups: layer numbers (0 is h_0), ascending in each group; groups are sorted by their first layer.
        medoids: of each group the layer most similar to the others.
        mean_cka: mean CKA between the layers of each group; 1 for a layer alone.
        linkage: the merges, in the format of SciPy's linkage matrix; its leaf n is the n-th layer.
        threshold: height of the cut, halfway between the last merge below it and the first one above.
        method: "average", "complete" or "single" linkage.
        contiguous: only neighbouring groups were allowed to merge.
        reason: a sentence that says how many groups there are and why.
    """

    groups: Groups
    medoids: tuple[int, ...]
    mean_cka: tuple[float, ...]
    linkage: NDArray[np.float64] = field(compare=False, repr=False)
    threshold: float
    method: str
    contiguous: bool
    reason: str

    @property
    def layers(self) -> tuple[int, ...]:
        """The numbers of all layers, ascending."""
        return tuple(sorted(layer for group in self.groups for layer in group))

    def to_dict(self) -> dict[str, Any]:
        """What clusters.json holds."""
        return {
            "clusters": [
                {"layers": list(group), "names": [f"h_{layer}" for layer in group], "medoid": medoid, "mean_cka": mean}
                for group, medoid, mean in zip(self.groups, self.medoids, self.mean_cka, strict=True)
            ],
            "method": self.method,
            "contiguous": self.contiguous,
            "threshold": self.threshold,
            "reason": self.reason,
            "linkage": self.linkage.tolist(),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LayerClusters:
        """The inverse of `to_dict`."""
        clusters = values["clusters"]
        return cls(
            groups=tuple(tuple(cluster["layers"]) for cluster in clusters),
            medoids=tuple(cluster["medoid"] for cluster in clusters),
            mean_cka=tuple(cluster["mean_cka"] for cluster in clusters),
            linkage=np.array(values["linkage"], dtype=np.float64).reshape(-1, 4),
            threshold=values["threshold"],
            method=values["method"],
            contiguous=values["contiguous"],
            reason=values["reason"],
        )


def cluster_layers(
    cka_LL: ArrayLike,
    clusters: int | Literal["auto"],
    *,
    linkage: Linkage = "average",
    contiguous: bool = False,
    first_layer: int = 0,
) -> LayerClusters:
    """Group layers by agglomerative clustering on 1 - CKA.

    "auto" cuts the dendrogram where it is longest without a merge: the K, from 2 to one less than the layers, with the
    largest gap between the height of the merge that leads to K clusters and the height of the next one.

    Contiguous merges can get lower as they go on, when two layers far apart are more similar than their neighbours are;
    such a merge is given the height of the one before it, so that the dendrogram can be drawn. The groups follow the
    order of the merges and do not depend on it.

    Args:
        cka_LL: similarity of the layers.
        clusters: number of clusters K, or "auto".
        linkage: distance of two groups: mean, largest or smallest distance of their members.
        contiguous: only neighbouring groups may merge, so that each is a run of layers.
        first_layer: number of the first row: 1 when h_0 was left out.

    Raises:
        InputError: K is not between 1 and the number of layers, or the linkage is unknown.
    """
    cka_LL = _symmetric(cka_LL)
    L = len(cka_LL)
    if linkage not in _LINKAGES:
        raise InputError(f"unknown linkage {linkage!r}; known: {', '.join(METHODS)}")
    if clusters != "auto":
        check_number_of_clusters(clusters, L)
    distance_LL = np.clip(1 - cka_LL, 0, 2)
    np.fill_diagonal(distance_LL, 0)
    if contiguous or L == 1:
        merges = _merge_neighbours(distance_LL, linkage)
    else:
        merges = hierarchy.linkage(squareform(distance_LL, checks=False), linkage)
    heights = merges[:, 2]
    if clusters == "auto":
        K, reason = _longest_gap(heights)
    else:
        K, reason = clusters, f"{_count(clusters)}, as asked for"
    groups = tuple(tuple(first_layer + row for row in group) for group in _cut(merges, K))
    return LayerClusters(
        groups=groups,
        medoids=tuple(medoid(cka_LL, group, first_layer=first_layer) for group in groups),
        mean_cka=tuple(_mean_cka(cka_LL, [layer - first_layer for layer in group]) for group in groups),
        linkage=merges,
        threshold=_cut_height(heights, K),
        method=linkage,
        contiguous=contiguous,
        reason=reason,
    )


def check_number_of_clusters(clusters: int, layers: int) -> None:
    """Raise InputError unless 1 <= clusters <= layers."""
    if not 1 <= clusters <= layers:
        raise InputError(f"cannot make {clusters} clusters of {layers} layers; choose 1 to {layers}, or auto")


def medoid(cka_LL: ArrayLike, group: Sequence[int], *, first_layer: int = 0) -> int:
    """The layer of a group that is most similar to the others of it; of equals the deepest.

    In a group of two both are equally similar to the other: the deeper one has seen all that the other has.

    Args:
        cka_LL: similarity of the layers.
        group: layer numbers.
        first_layer: number of the first row.
    """
    rows = np.array(sorted(group)) - first_layer
    similarity = _symmetric(cka_LL)[np.ix_(rows, rows)].sum(1)
    best = np.flatnonzero(similarity >= similarity.max() - 1e-12)[-1]
    return int(rows[best]) + first_layer


def equal_partition(layers: Sequence[int], clusters: int) -> Groups:
    """Divide layers, in their order, into runs of equal length; if that cannot be, the first ones are longer by one.

    Raises:
        InputError: `clusters` is not between 1 and the number of layers.
    """
    check_number_of_clusters(clusters, len(layers))
    return tuple(tuple(int(layer) for layer in part) for part in np.array_split(np.asarray(layers), clusters))


def _symmetric(cka_LL: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(cka_LL, dtype=np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not np.isfinite(values).all():
        raise ValueError(f"CKA must be a square matrix of finite numbers, not {values.shape}")
    return (values + values.T) / 2


def _mean_cka(cka_LL: NDArray[np.float64], rows: list[int]) -> float:
    size = len(rows)
    block = cka_LL[np.ix_(rows, rows)]
    return float((block.sum() - np.trace(block)) / (size * (size - 1))) if size > 1 else 1.0


def _merge_neighbours(distance_LL: NDArray[np.float64], linkage: Linkage) -> NDArray[np.float64]:
    """Merge neighbouring groups only; a linkage matrix with heights that never fall."""
    distance = _LINKAGES[linkage]
    groups = [(row, [row]) for row in range(len(distance_LL))]  # (node of the tree, its rows), in the layers' order
    merges = []
    for node in range(len(groups), 2 * len(groups) - 1):
        gaps = [float(distance(distance_LL[np.ix_(left, right)])) for (_, left), (_, right) in pairwise(groups)]
        at = int(np.argmin(gaps))
        (left_node, left), (right_node, right) = groups[at : at + 2]
        merges.append([*sorted((left_node, right_node)), gaps[at], len(left) + len(right)])
        groups[at : at + 2] = [(node, left + right)]
    matrix = np.array(merges, dtype=np.float64).reshape(-1, 4)
    matrix[:, 2] = np.maximum.accumulate(matrix[:, 2])
    return matrix


def _cut(merges: NDArray[np.float64], K: int) -> Groups:
    """The K groups before the last K - 1 merges: exactly K, where a cut at a height would give fewer among ties."""
    L = len(merges) + 1
    members: dict[int, tuple[int, ...]] = {row: (row,) for row in range(L)}
    for number, (left, right) in enumerate(merges[: L - K, :2].astype(int)):
        members[L + number] = members.pop(left) + members.pop(right)
    return tuple(sorted(tuple(sorted(group)) for group in members.values()))


def _cut_height(heights: NDArray[np.float64], K: int) -> float:
    """Halfway between the merge that led to K clusters and the next one; a little above the last one for K = 1."""
    last = len(heights) - K
    below = heights[last] if last >= 0 else 0.0
    above = heights[last + 1] if K > 1 else 1.1 * below
    return float((below + above) / 2)


def _longest_gap(heights: NDArray[np.float64]) -> tuple[int, str]:
    L = len(heights) + 1
    if L < 4:
        return min(L, 2), f"{_count(min(L, 2))}: {L} layers leave no choice"
    gaps = {K: heights[L - K] - heights[L - K - 1] for K in range(2, L)}
    best, second = sorted(gaps, key=lambda K: -gaps[K])[:2]
    return best, (
        f"{_count(best)}: the largest gap between successive merges, {gaps[best]:.3f}, lies between the heights "
        f"{heights[L - best - 1]:.3f} and {heights[L - best]:.3f}; the runner-up is {_count(second)} with a gap of "
        f"{gaps[second]:.3f}"
    )


def _count(clusters: int) -> str:
    return f"{clusters} cluster{'s' if clusters > 1 else ''}"
