"""Which layers the student is to match: one list of targets per method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, get_args

from ..errors import InputError

if TYPE_CHECKING:
    from ..similarity import LayerClusters

Method = Literal["skill", "skill-teacher-mean", "medoid", "equal-groups", "dphubert", "all-layers"]
METHODS: tuple[str, ...] = get_args(Method)


@dataclass(frozen=True)
class Target:
    """Mean of some student layers, through a projection, to match the mean of some teacher layers.

    Layers are numbered 0 … L, 0 being the feature projection's output. Targets with the same number in `projection`
    share one.
    """

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    projection: int


def needs_clusters(method: str) -> bool:
    """Whether the method asks for the layer clusters."""
    return groups_layers(method) and method != "equal-groups"


def groups_layers(method: str) -> bool:
    """Whether the method has groups of layers, by their similarity or by their number."""
    return method not in ("dphubert", "all-layers")


def make_targets(
    method: Method,
    num_layers: int,
    clusters: LayerClusters | None = None,
    *,
    count: int | None = None,
    share_projections: bool = False,
) -> list[Target]:
    """The targets of a method.

    Args:
        method: "skill": mean of each cluster on both sides. "skill-teacher-mean": mean of the teacher's layers, matched
            by the student's last layer of the cluster. "medoid": of each cluster the layer most similar to the others.
            "equal-groups": as "skill", with `count` runs of neighbouring layers of equal length (to one layer) for
            clusters, whatever their similarity.
            "dphubert": layers 0, L/3, 2L/3 and L alone, one projection for layer 0 and one for the rest (arXiv
            2305.17651). "all-layers": every layer alone.
        num_layers: depth L of the teacher.
        clusters: the layer clusters, for the methods that need them.
        count: number of groups, for "equal-groups".
        share_projections: one projection for everything that does not contain layer 0, as DPHuBERT does it.

    Raises:
        InputError: unknown method, or equal groups without a number of them from 1 to L + 1.
    """
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    if method == "dphubert":
        layers = sorted({0, *(round(num_layers * third / 3) for third in (1, 2, 3))})
        pairs, share_projections = [((layer,), (layer,)) for layer in layers], True
    elif method == "all-layers":
        pairs = [((layer,), (layer,)) for layer in range(num_layers + 1)]
    elif method == "equal-groups":
        if count is None or not 1 <= count <= num_layers + 1:
            raise InputError(f"equal-groups needs a number of clusters from 1 to {num_layers + 1}, not {count}")
        edges = [round(number * (num_layers + 1) / count) for number in range(count + 1)]
        groups = [tuple(range(first, end)) for first, end in pairwise(edges)]
        pairs = [(group, group) for group in groups]
    elif method not in METHODS:
        raise InputError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    elif clusters is None:
        raise InputError(f"the method {method} needs layer clusters: run the analysis first")
    elif method == "skill":
        pairs = [(group, group) for group in clusters.groups]
    elif method == "skill-teacher-mean":
        pairs = [(group, (group[-1],)) for group in clusters.groups]
    else:
        pairs = [((medoid,), (medoid,)) for medoid in clusters.medoids]
    return [
        Target(teacher, student, int(0 not in student) if share_projections else number)
        for number, (teacher, student) in enumerate(pairs)
    ]
