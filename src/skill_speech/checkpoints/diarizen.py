"""DiariZen's published encoders (arXiv 2505.24111, 2506.18623): whole diarization models without a configuration.

Their weights tell every width, but not which heads of WavLM are left, and each head has its own position bias. The
numbers are those of DiariZen's configurations of the same names.
"""

from __future__ import annotations

# Kept heads and feed-forward units of every layer.
PUBLISHED: dict[str, tuple[list[list[int]], list[int]]] = {
    "wavlm_base_s80_md": (
        [
            [1, 6],
            [5, 7, 8],
            [0, 3, 9],
            [0, 1, 4, 8, 11],
            [6, 8],
            [0],
            [7, 8, 10, 11],
            [0, 1, 4, 8],
            [],
            [],
            [4, 7],
            [5],
        ],
        [666, 660, 649, 1080, 237, 299, 437, 573, 53, 80, 211, 334],
    ),
    "wavlm_large_s80_md": (
        [
            *([1, 2, 4, 5, 6], [9, 10, 14], [0, 1, 2, 4, 5, 7], [1, 4, 7, 12, 13, 14], [0, 2, 3, 4, 13]),
            *([1, 7, 13, 14, 15], [11, 13, 15], [2, 3, 4, 8, 15], [2, 5, 6, 15], [], [0, 1], [1, 3, 5, 12], []),
            *([4, 7, 11], [6, 9], [11], [], [], [14], [5, 15], [0, 2, 8, 11, 13, 15], [0, 1, 3, 4, 5, 6, 7, 10, 13]),
            *([0, 1, 3, 6, 7, 9, 10, 11, 12, 14], [1, 2, 3, 4, 7, 13, 14, 15]),
        ],
        [
            *(1092, 925, 759, 646, 745, 615, 684, 958, 286, 294, 406, 377),
            *(463, 542, 298, 236, 96, 104, 134, 211, 473, 1011, 1770, 1316),
        ],
    ),
}


def published_heads(counts: list[int], units: list[int]) -> tuple[str, list[list[int]] | None]:
    """Name and kept heads of the published encoder with these widths; None if there is none."""
    for name, (heads, widths) in PUBLISHED.items():
        if [len(kept) for kept in heads] == counts and widths == units:
            return name, heads
    return "", None
