"""What every trained task says of itself, so that one loop can train and score them all.

Legend of the tensor suffixes: B utterances, T frames, L hidden states, D features.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from lhotse.cut import Cut
from torch import Tensor, nn

from ...data import SAMPLE_RATE
from ..corpora import TaskData
from ..metrics.bootstrap import Scored
from ..protocol import TrainingConfig
from ..states import Reduction


class Batch(NamedTuple):
    """Utterances and their features.

    Attributes:
        split: where they are from.
        indices: which of it they are; of a training batch, what was drawn.
        x_BTD: features, zeros in the padding.
        lengths_B: how many are valid, on the CPU.
        weights_BT: how much of a frame, or of a second, each stands for: 1, less for the last second of an utterance, 0
            for padding.
    """

    split: str
    indices: list[int]
    x_BTD: Tensor
    lengths_B: Tensor
    weights_BT: Tensor


class Task(ABC):
    """A task on its data: what is drawn for training, what is learned, what is counted.

    Attributes:
        reduction: what is kept of the hidden states.
        chosen_on: the split, and the measure on it, that the checkpoint and the learning rate are chosen by.
        higher_is_better: of that measure.
        headline: the measures on the test split that SUPERB reports.
        units: what is drawn at random for an interval.
        cuts: the utterances of every split, in a fixed order.
    """

    reduction: Reduction = "frames"
    chosen_on: ClassVar[tuple[str, str]]
    higher_is_better: ClassVar[bool]
    headline: ClassVar[tuple[str, ...]]
    units: ClassVar[str] = "utterances"

    def __init__(self, data: TaskData, config: TrainingConfig, hop: int) -> None:
        self.data, self.config, self.hop = data, config, hop
        self.cuts: dict[str, list[Cut]] = {split: list(cuts) for split, cuts in data.splits.items()}

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return SAMPLE_RATE / self.hop

    @abstractmethod
    def head(self, width: int) -> nn.Module:
        """A fresh head on features of so many dimensions, from torch's global generator."""

    @abstractmethod
    def epoch(self, generator: random.Random) -> list[list[int]]:
        """The batches of one pass over the training split: numbers of what is drawn, mostly of utterances."""

    def utterance(self, drawn: int) -> int:
        """The training utterance of what is drawn."""
        return drawn

    def crop(self, drawn: int, length: float, generator: random.Random) -> tuple[float, float]:
        """Start and end of what is trained on this time, of an utterance of such a length.

        All are in the tensors along time that are kept, frames or seconds. A border may lie within one, which then
        counts for the share that is on this side of it.
        """
        return 0, length

    @abstractmethod
    def loss(self, head: nn.Module, batch: Batch) -> Tensor:
        """Mean loss of a training batch."""

    @abstractmethod
    def predict(self, head: nn.Module, batch: Batch) -> list[Any]:
        """What the head makes of each utterance."""

    @abstractmethod
    def score(self, split: str, predictions: Sequence[Any]) -> dict[str, Any]:
        """The measures of a split, from the predictions of all its utterances in order."""

    @abstractmethod
    def scored(self, predictions: Sequence[Any], measures: Mapping[str, Any]) -> Scored:
        """The headline measures of the test split as functions of how often each utterance counts, for intervals.

        Args:
            predictions: of all its utterances in order.
            measures: what `score` made of them.
        """

    def items(self) -> dict[str, int]:
        """How many things of which kinds are scored, the first ones those that a measure is a mean over."""
        return {"utterances": len(self.cuts["test"])}


def shuffled_batches(count: int, size: int, generator: random.Random, *, drop_last: bool = False) -> list[list[int]]:
    """0 … count-1 in random order, so many at a time."""
    order = list(range(count))
    generator.shuffle(order)
    batches = [order[start : start + size] for start in range(0, count, size)]
    return batches[:-1] if drop_last and len(batches) > 1 and len(batches[-1]) < size else batches
