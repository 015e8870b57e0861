"""What a source turned out to hold."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..encoder import Encoder


@dataclass(frozen=True)
class Checkpoint:
    """An encoder, and what is to be known of where it came from.

    Attributes:
        encoder: in evaluation mode.
        format: who writes such files.
        assumed: what the source does not say and was taken to be so, one sentence each.
        direction_norm_K: where the source keeps the positional convolution under weight normalisation, as g v / ‖v‖,
            the ‖v‖ of every tap: nothing that an output depends on, but training does.
    """

    encoder: Encoder
    format: str
    assumed: tuple[str, ...] = ()
    direction_norm_K: Tensor | None = None
