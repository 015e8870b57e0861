"""What pictures of clusters are made of: colors, runs of layers, the places in a dendrogram."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

INK, TRUNK, RULE = "#22262a", "#8d939a", "#dfe2e7"
"""Words, branches above the cut and lines of a grid, on white: `inline_svg` gives them the colors of a page."""

# Told apart on white, on a dark page and beside the heat map's colors; beyond ten clusters they repeat, and the
# numbers tell.
CLUSTER_COLORS = (
    "#d1495b",
    "#00798c",
    "#c57a12",
    "#7d5fa8",
    "#3a7d44",
    "#b5467f",
    "#3b6fb6",
    "#8c5a2b",
    "#5b6770",
    "#6b8801",
)


def cluster_color(number: int) -> str:
    """Color of a cluster, counted from 0."""
    return CLUSTER_COLORS[number % len(CLUSTER_COLORS)]


def readable_on(color: Any) -> str:
    """Black or white, whichever stands out more on a color (WCAG's relative luminance): at least 4.5 to 1."""
    channels = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(color)]
    luminance = float(np.dot(channels, (0.2126, 0.7152, 0.0722)))
    return "#ffffff" if 1.05 / (luminance + 0.05) >= (luminance + 0.05) / 0.05 else "#000000"


def runs_of(rows: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and row == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], row)
        else:
            runs.append((row, row))
    return runs


class Foot(NamedTuple):
    """Where a branch of the tree starts: its node in the linkage matrix, one of its rows, its place and height."""

    node: int
    row: int
    x: float
    y: float


def tree_layout(linkage: NDArray[np.float64]) -> tuple[list[int], list[tuple[Foot, Foot, float]]]:
    """The rows from left to right, and of each merge its left and right branch and its height.

    Of two branches the one whose layers are earlier on average stands left.
    """
    L = len(linkage) + 1
    rows = {row: [row] for row in range(L)}
    children = {}
    for node, (a, b) in enumerate(linkage[:, :2].astype(int).tolist(), start=L):
        first, second = children[node] = sorted((a, b), key=lambda child: float(np.mean(rows[child])))
        rows[node] = rows[first] + rows[second]
    order = rows[2 * L - 2]
    feet = {row: Foot(row, row, float(place), 0.0) for place, row in enumerate(order)}
    merges = []
    for (node, (first, second)), height in zip(children.items(), linkage[:, 2].tolist(), strict=True):
        left, right = feet[first], feet[second]
        feet[node] = Foot(node, left.row, (left.x + right.x) / 2, height)
        merges.append((left, right, height))
    return order, merges
