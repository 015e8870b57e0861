"""Groups of similar layers: agglomerative clustering on the distance 1 - CKA."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import comb
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.cluster import hierarchy
from scipy.spatial.distance import squareform

from ..errors import InputError

Linkage = Literal["average", "complete", "single"]

FIRM = 0.9
"""Adjusted Rand index from which on two ways to group layers are said to agree."""
Groups = tuple[tuple[int, ...], ...]

# Distance of two groups, from the distances of their members.
_LINKAGES: dict[str, Callable[..., np.floating[Any]]] = {"average": np.mean, "complete": np.max, "single": np.min}
METHODS: tuple[str, ...] = tuple(_LINKAGES)


@dataclass(frozen=True)
class Borders:
    """Whether the borders between clusters would be drawn again.

    Attributes:
        halves: mean adjusted Rand index between the groups and as many of half of the audio; None if not measured.
        other_view: adjusted Rand index between the groups and as many by the other similarity (normalized frames if
            these are of features as they are); None if there is none.
    """

    halves: float | None = None
    other_view: float | None = None

    @property
    def firm(self) -> bool | None:
        """Whether both are at least 0.9; None if nothing was measured."""
        known = [index for index in (self.halves, self.other_view) if index is not None]
        return min(known) >= FIRM if known else None

    def __str__(self) -> str:
        if self.firm is None:
            return "whether the borders are firm was not measured"
        said = []
        if self.halves is not None:
            said.append(f"{self.halves:.2f} between the clusters of all audio and of half of it")
        if self.other_view is not None:
            said.append(f"{self.other_view:.2f} between those of raw and of normalized frames")
        return f"borders are {'firm' if self.firm else 'not firm'}: adjusted Rand index {', '.join(said)}"


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
        contiguous: only neighboring groups were allowed to merge.
        reason: a sentence that says how many groups there are and why.
        borders: how firm they are.
    """

    groups: Groups
    medoids: tuple[int, ...]
    mean_cka: tuple[float, ...]
    linkage: NDArray[np.float64] = field(compare=False, repr=False)
    threshold: float
    method: str
    contiguous: bool
    reason: str
    borders: Borders = Borders()

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
            "borders": asdict(self.borders) | {"firm": self.borders.firm},
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
            borders=Borders(*(values.get("borders", {}).get(name) for name in ("halves", "other_view"))),
        )


def cluster_layers(
    cka_LL: ArrayLike,
    clusters: int | Literal["auto"],
    *,
    linkage: Linkage = "average",
    contiguous: bool = False,
    first_layer: int = 0,
    halves: Sequence[ArrayLike] = (),
    other_view: ArrayLike | None = None,
) -> LayerClusters:
    """Group layers by agglomerative clustering on 1 - CKA.

    "auto" takes as many clusters as the audio can distinguish: the largest K, up to half of the layers, for which the
    groups of half of the audio are the same as those of all (mean adjusted Rand index at least 0.9). A gap in the
    dendrogram would not do: the largest one is nearly always the one between h_0 and all other layers.

    Later contiguous merges can be lower, when two layers far apart are more similar than their neighbors are;
    such a merge is given the height of the one before it, so that the dendrogram can be drawn. The groups follow the
    order of the merges and do not depend on it.

    Args:
        cka_LL: similarity of the layers.
        clusters: number of clusters K, or "auto".
        linkage: distance of two groups: mean, largest or smallest distance of their members.
        contiguous: only neighboring groups may merge, so that each is a run of layers.
        first_layer: number of the first row: 1 when h_0 was left out.
        halves: similarity by halves of the audio, to see how firm the borders are.
        other_view: similarity of the same layers by the other kind of CKA.

    Raises:
        InputError: K is not between 1 and the number of layers, the linkage is unknown, or "auto" without halves.
    """
    cka_LL = _symmetric(cka_LL)
    L = len(cka_LL)
    if linkage not in _LINKAGES:
        raise InputError(f"unknown linkage {linkage!r}; known: {', '.join(METHODS)}")
    if clusters != "auto":
        check_number_of_clusters(clusters, L)
    merges = _merge(cka_LL, linkage, contiguous)
    of_halves = [_merge(_symmetric(half_LL), linkage, contiguous) for half_LL in halves]

    def firmness(K: int) -> float:
        own = _cut(merges, K)
        return float(np.mean([agreement(own, _cut(half, K)) for half in of_halves]))

    if clusters == "auto":
        if L > 3 and not of_halves:
            raise InputError(
                'clusters "auto" takes as many as half of the audio confirms, which the minibatch estimator measures '
                "on 8 utterances or more: give more audio, or the number of clusters"
            )
        K, reason = _most_that_are_firm(
            {K: firmness(K) for K in range(2, L // 2 + 1)} if L > 3 else {min(L, 2): 1.0}, L
        )
    else:
        K, reason = clusters, f"{_count(clusters)}, as set" + (": one for each layer" if clusters == L else "")
    borders = Borders(
        firmness(K) if of_halves else None,
        None
        if other_view is None
        else agreement(_cut(merges, K), _cut(_merge(_symmetric(other_view), linkage, contiguous), K)),
    )
    groups = tuple(tuple(first_layer + row for row in group) for group in _cut(merges, K))
    return LayerClusters(
        groups=groups,
        medoids=tuple(medoid(cka_LL, group, first_layer=first_layer) for group in groups),
        mean_cka=tuple(_mean_cka(cka_LL, [layer - first_layer for layer in group]) for group in groups),
        linkage=merges,
        threshold=_cut_height(merges[:, 2], K),
        method=linkage,
        contiguous=contiguous,
        reason=reason,
        borders=borders,
    )


def agreement(groups: Groups, others: Groups) -> float:
    """Adjusted Rand index of two ways to group the same items: 1 if they are the same, about 0 by chance.

    Hubert and Arabie, Comparing partitions, 1985.
    """
    together = [[len({*group} & {*other}) for other in others] for group in groups]
    pairs = sum(comb(number, 2) for row in together for number in row)
    own, theirs = (sum(comb(len(group), 2) for group in way) for way in (groups, others))
    expected = own * theirs / max(1, comb(sum(map(len, groups)), 2))
    largest = (own + theirs) / 2
    return 1.0 if largest == expected else (pairs - expected) / (largest - expected)


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


def _merge(cka_LL: NDArray[np.float64], linkage: Linkage, contiguous: bool) -> NDArray[np.float64]:
    """The merges, as a linkage matrix."""
    distance_LL = np.clip(1 - cka_LL, 0, 2)
    np.fill_diagonal(distance_LL, 0)
    if contiguous or len(cka_LL) == 1:
        return _merge_neighbors(distance_LL, linkage)
    return hierarchy.linkage(squareform(distance_LL, checks=False), linkage)


def _merge_neighbors(distance_LL: NDArray[np.float64], linkage: Linkage) -> NDArray[np.float64]:
    """Merge neighboring groups only; a linkage matrix with heights that never fall."""
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


def _most_that_are_firm(firmness: dict[int, float], layers: int) -> tuple[int, str]:
    """K by K's firmness, and why."""
    if len(firmness) < 2:
        K = next(iter(firmness))
        return K, f"{_count(K)}: {layers} layers leave no choice"
    firm = [K for K, index in firmness.items() if index >= FIRM]
    K = max(firm) if firm else max(firmness, key=lambda K: firmness[K])
    index = f"adjusted Rand index {firmness[K]:.2f}"
    why = (
        f"half of the audio gives the same groups ({index})"
        if firm
        else f"no number is firm, this one is the firmest ({index} with half of the audio)"
    )
    if max(firmness) == K:
        return K, f"{_count(K)}, the most that is tried for {layers} layers: {why}"
    return K, f"{_count(K)}: {why}; {_count(K + 1)}: {firmness[K + 1]:.2f}"


def _count(clusters: int) -> str:
    return f"{clusters} cluster{'s' if clusters > 1 else ''}"
