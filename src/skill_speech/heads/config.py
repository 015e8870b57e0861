# SPDX-License-Identifier: Apache-2.0
"""What has to be known to rebuild the head of a fine-tuned model."""

from __future__ import annotations

import dataclasses
import reprlib
from dataclasses import dataclass
from typing import Any

from ..encoder.config import Range, check

KINDS = ("ctc", "sequence", "frame", "x-vector")
PROBLEMS = ("single-label", "multi-label", "regression")
WIDTH = Range(int, 1, 2**20)
ALLOWED: dict[str, Any] = {
    "kind": KINDS,
    "problem": PROBLEMS,
    "weighted_layer_sum": bool,
    "dropout": Range(float, 0.0, 1.0),
    "blank": Range(int, 0, 2**20),
    "num_tdnn": Range(int, 1, 64),
    "layers": Range(int, 0, 64),
    "kernel": Range(int, 1, 2**12),
    "stride": Range(int, 1, 2**12),
    "dilation": Range(int, 1, 2**12),
    **dict.fromkeys(("outputs", "projection", "embedding", "width"), WIDTH),
}


@dataclass(frozen=True)
class TDNNConfig:
    """One layer of an x-vector's time-delay network: output width, frames in its kernel, and how far apart they are."""

    width: int
    kernel: int
    dilation: int


@dataclass(frozen=True)
class AdapterConfig:
    """Convolutions with gated linear units between encoder and head, which shorten the sequence.

    Attributes:
        layers: how many.
        width: of what comes out; a linear map and a layer norm bring another hidden size to it.
        kernel, stride: of each convolution, in frames.
    """

    layers: int
    width: int
    kernel: int
    stride: int


@dataclass(frozen=True)
class HeadConfig:
    """What stands on top of an encoder.

    Attributes:
        kind: "ctc" (characters, phonemes, … frame by frame), "sequence" (one decision for an utterance), "frame" (one
            for each frame), or "x-vector" (a speaker embedding).
        outputs: tokens, labels, or the speakers that an x-vector was trained with.
        labels: the names of the outputs, where they are known.
        problem: whether exactly one label holds, any number of them, or the outputs are numbers to be predicted.
        blank: the output that is CTC's blank.
        weighted_layer_sum: the head reads a learned mean of all hidden states instead of the last.
        projection: width of what is pooled ("sequence"), or of what the time-delay network reads ("x-vector").
        tdnn: layers of the time-delay network.
        embedding: width of the speaker embedding.
        adapter: convolutions in front of the head; None for none.
        dropout: probability in front of a CTC head while training.
    """

    kind: str
    outputs: int
    labels: tuple[str, ...] = ()
    problem: str = "single-label"
    blank: int = 0
    weighted_layer_sum: bool = False
    projection: int = 256
    tdnn: tuple[TDNNConfig, ...] = ()
    embedding: int = 512
    adapter: AdapterConfig | None = None
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _check_fields(self)
        for part in (*self.tdnn, *([] if self.adapter is None else [self.adapter])):
            _check_fields(part)
        if self.kind == "x-vector":
            check("num_tdnn", len(self.tdnn), ALLOWED["num_tdnn"])
        if self.kind == "ctc" and self.blank >= self.outputs:
            raise ValueError(f"blank is {self.blank}; there are {self.outputs} outputs")
        if self.labels and len(self.labels) != self.outputs:
            raise ValueError(f"there are {len(self.labels)} labels for {self.outputs} outputs")
        if not all(isinstance(label, str) for label in self.labels):
            raise ValueError(f"labels are {reprlib.repr(self.labels)}; they must be text")
        if self.adapter is not None and self.kind in ("sequence", "frame"):
            raise ValueError(f"a {self.kind} classifier takes no adapter")

    def number_of(self, label: Any) -> int | None:
        """The output that a label stands for: that of this name, or of this number; None for others."""
        if str(label) in self.labels:
            return self.labels.index(str(label))
        return label if type(label) is int and 0 <= label < self.outputs else None

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeadConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown, or a value is out of range.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown keys in the head's configuration: {', '.join(unknown)}")
        try:
            tdnn = tuple(TDNNConfig(**layer) for layer in values.get("tdnn", ()))
            adapter = values.get("adapter")
            return cls(
                **{
                    **values,
                    "tdnn": tdnn,
                    "labels": tuple(values.get("labels", ())),
                    "adapter": None if adapter is None else AdapterConfig(**adapter),
                }
            )
        except (AttributeError, TypeError) as error:
            raise ValueError(f"incomplete configuration of a head: {error}") from None


def _check_fields(config: Any) -> None:
    for field in dataclasses.fields(config):
        if field.name in ALLOWED:
            check(field.name, getattr(config, field.name), ALLOWED[field.name])
