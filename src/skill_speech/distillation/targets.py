"""Which layers the student is to match."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import InputError
from ..limits import shown

if TYPE_CHECKING:
    from ..similarity import LayerClusters

Targets = Literal["skill", "skill-teacher-mean", "medoid", "equal-groups", "dphubert", "all-layers"]
TARGETS: tuple[Targets, ...] = get_args(Targets)
NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Target:
    """Mean of some student layers, through a projection, to match the mean of some teacher layers.

    Layers are numbered 0 … L, 0 being the feature projection's output. Targets with the same number in `projection`
    share one; None is for none: the student's layer itself has to be the teacher's.
    """

    teacher: tuple[int, ...]
    student: tuple[int, ...]
    projection: int | None


def needs_clusters(targets: str) -> bool:
    """Whether such targets ask for the layer clusters."""
    return groups_layers(targets) and targets != "equal-groups"


def groups_layers(targets: str) -> bool:
    """Whether such targets have groups of layers, by their similarity or by their number."""
    return targets not in ("dphubert", "all-layers")


def layer_numbers(said: int | str | Sequence[int] | None) -> tuple[int, ...]:
    """The layers that a setting names, in ascending order: 9, "9,12" or [9, 12]; none for None.

    Raises:
        InputError: anything but whole numbers from 0.
    """
    if said is None:
        return ()
    listed: Any = said.split(",") if isinstance(said, str) else said if isinstance(said, list | tuple) else [said]
    numbers = [int(part) if isinstance(part, str) and NUMBER.fullmatch(part.strip()) else part for part in listed]
    bad = [number for number in numbers if type(number) is not int or not 0 <= number < 10**9]
    if bad or not numbers:
        what = f"names {shown(bad[0])}" if bad else "names no layer"
        raise InputError(f"keep_layers {what}; it must be whole numbers from 0, such as 9,12")
    return tuple(sorted(set(numbers)))


def check_layers(layers: Sequence[int], num_layers: int) -> None:
    """See that a teacher of so many layers has them.

    Raises:
        InputError: it has not.
    """
    for layer in layers:
        if layer > num_layers:
            raise InputError(f"keep_layers names layer {layer}; the teacher's layers are numbered 0 to {num_layers}")


def make_targets(
    targets: Targets,
    num_layers: int,
    clusters: LayerClusters | None = None,
    *,
    count: int | None = None,
    share_projections: bool = False,
    keep: Sequence[int] = (),
) -> list[Target]:
    """The targets of a kind.

    Args:
        targets: "skill": mean of each cluster on both sides. "skill-teacher-mean": mean of the teacher's layers, which
            the student's last layer of the cluster is to match. "medoid": of each cluster the layer most similar to the
            others.
            "equal-groups": as "skill", with `count` runs of neighboring layers of equal length (to one layer) for
            clusters, whatever their similarity.
            "dphubert": layers 0, L/3, 2L/3 and L alone, one projection for layer 0 and one for the rest (arXiv
            2305.17651). "all-layers": every layer alone.
        num_layers: depth L of the teacher.
        clusters: the layer clusters, for the targets that need them.
        count: number of groups, for "equal-groups".
        share_projections: one projection for everything that does not contain layer 0, as DPHuBERT does it.
        keep: layers that are targets of their own beside these, without a projection. What is a target alone anyway
            is not matched twice.

    Raises:
        InputError: unknown targets, equal groups without a number of them from 1 to L + 1, or a layer to keep that the
            teacher does not have.
    """
    check_layers(keep, num_layers)
    pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
    if targets == "dphubert":
        layers = sorted({0, *(round(num_layers * third / 3) for third in (1, 2, 3))})
        pairs, share_projections = [((layer,), (layer,)) for layer in layers], True
    elif targets == "all-layers":
        pairs = [((layer,), (layer,)) for layer in range(num_layers + 1)]
    elif targets == "equal-groups":
        if count is None or not 1 <= count <= num_layers + 1:
            raise InputError(f"equal-groups needs a number of clusters from 1 to {num_layers + 1}, not {count}")
        edges = [round(number * (num_layers + 1) / count) for number in range(count + 1)]
        groups = [tuple(range(first, end)) for first, end in pairwise(edges)]
        pairs = [(group, group) for group in groups]
    elif targets not in TARGETS:
        raise InputError(f"unknown targets {targets!r}; known: {', '.join(TARGETS)}")
    elif clusters is None:
        raise InputError(f"the targets {targets} need layer clusters: run the analysis first")
    elif targets == "skill":
        pairs = [(group, group) for group in clusters.groups]
    elif targets == "skill-teacher-mean":
        pairs = [(group, (group[-1],)) for group in clusters.groups]
    else:
        pairs = [((medoid,), (medoid,)) for medoid in clusters.medoids]
    alone = [((layer,), (layer,)) for layer in keep]
    pairs = [pair for pair in pairs if pair not in alone]
    keys = [int(0 not in student) if share_projections else number for number, (_, student) in enumerate(pairs)]
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}  # without gaps: each is a projection
    made = [Target(*pair, numbers[key]) for pair, key in zip(pairs, keys, strict=True)]
    return made + [Target(*pair, None) for pair in alone]
