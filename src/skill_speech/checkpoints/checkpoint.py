"""What a source turned out to hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..encoder import Encoder
from ..heads import Head


@dataclass(frozen=True)
class Checkpoint:
    """An encoder, and what is to be known of where it came from.

    Attributes:
        encoder: in evaluation mode.
        format: who writes such files.
        assumed: what the source does not say and was taken to be so, one sentence each.
        direction_norm_K: where the source keeps the positional convolution under weight normalization, as g v / ‖v‖,
            the ‖v‖ of every tap: nothing that an output depends on, but training does.
        head: what was fine-tuned on top of the encoder, where it is of a known kind.
        files: what else belongs to the model, by name: tokenizer, vocabulary, feature extractor.
    """

    encoder: Encoder
    format: str
    assumed: tuple[str, ...] = ()
    direction_norm_K: Tensor | None = None
    head: Head | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
