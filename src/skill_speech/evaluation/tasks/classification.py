"""Keywords, speakers, emotions and intents: one label per utterance, or three for an intent."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lhotse.cut import Cut
from torch import Tensor, nn

from ..corpora import TaskData
from ..heads import PooledHead
from ..metrics.bootstrap import Scored, Sums
from ..protocol import ClassificationConfig
from ..states import Reduction, block_frames
from .base import Batch, Task, shuffled_batches


class Classification(Task):
    """Labels of whole utterances; an utterance is right when all its labels are.

    The head begins with linear maps and a mean over time, so that the means over time of the hidden states are all that
    it needs: a few kilobytes per utterance.
    """

    config: ClassificationConfig
    chosen_on = ("dev", "accuracy")
    higher_is_better = True
    headline = ("accuracy",)

    def __init__(self, data: TaskData, config: ClassificationConfig, hop: int) -> None:
        super().__init__(data, config, hop)
        self.reduction: Reduction = "seconds" if config.crop_seconds else "mean"
        inventories = data.labels if isinstance(data.labels, Mapping) else {"label": data.labels}
        self.sizes = [len(values) for values in inventories.values()]
        numbers = {slot: {value: place for place, value in enumerate(values)} for slot, values in inventories.items()}
        self.labels = {
            split: [[numbers[slot][self._label(cut, slot)] for slot in inventories] for cut in cuts]
            for split, cuts in self.cuts.items()
        }

    def head(self, width: int) -> nn.Module:
        """Linear layer, mean over time, linear layer; the scores of all slots side by side."""
        return PooledHead(width, sum(self.sizes), projection_size=self.config.projection_size)

    def epoch(self, generator: random.Random) -> list[list[int]]:
        """All utterances in random order, or as many as there are, drawn so that classes come equally often."""
        labels, size = self.labels["train"], self.config.batch_size
        if not self.config.balanced:
            return shuffled_batches(len(labels), size, generator)
        counts = Counter(label for (label,) in labels)
        weights = [1 / counts[label] for (label,) in labels]
        drawn = generator.choices(range(len(labels)), weights=weights, k=len(labels))
        batches = [drawn[start : start + size] for start in range(0, len(drawn), size)]
        return batches[:-1] if len(batches) > 1 and len(batches[-1]) < size else batches

    def crop(self, drawn: int, length: float, generator: random.Random) -> tuple[float, float]:
        """So many seconds of an utterance that is longer, from anywhere on; all of another."""
        if not self.config.crop_seconds:
            return 0.0, length
        longest = self.config.crop_seconds * self.frame_rate / block_frames(self.hop)
        start = generator.uniform(0.0, max(0.0, length - longest))
        return start, min(length, start + longest)

    def loss(self, head: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy, summed over slots."""
        labels_BS = torch.tensor([self.labels["train"][index] for index in batch.indices])
        scores = self._scores(head, batch)
        losses = [
            F.cross_entropy(scores_BC, labels_B.to(scores_BC.device))
            for scores_BC, labels_B in zip(scores, labels_BS.T, strict=True)
        ]
        return torch.stack(losses).sum()

    def predict(self, head: nn.Module, batch: Batch) -> list[list[int]]:
        """The best label of every slot."""
        return torch.stack([scores_BC.argmax(1) for scores_BC in self._scores(head, batch)], dim=1).tolist()

    def score(self, split: str, predictions: Sequence[Any]) -> dict[str, Any]:
        """Share of utterances that are right; on dev the mean over classes where training draws classes equally often.

        s3prl draws the dev utterances so too; this is what comes out on average.
        """
        right = [list(found) == list(label) for found, label in zip(predictions, self.labels[split], strict=True)]
        if self.config.balanced and split == "dev":
            per_class: dict[int, list[bool]] = {}
            for hit, (label,) in zip(right, self.labels[split], strict=True):
                per_class.setdefault(label, []).append(hit)
            return {"accuracy": 100 * sum(sum(hits) / len(hits) for hits in per_class.values()) / len(per_class)}
        return {"accuracy": 100 * sum(right) / len(right)}

    def scored(self, predictions: Sequence[Any], measures: Mapping[str, Any]) -> Scored:
        """Accuracy."""
        right = [list(found) == list(label) for found, label in zip(predictions, self.labels["test"], strict=True)]
        parts_N1 = np.array(right, dtype=np.float64)[:, None]
        return Sums(parts_N1, lambda sums_RD, count_R: {"accuracy": 100 * sums_RD[:, 0] / count_R})

    def _scores(self, head: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
        """Scores (B, C) of every slot."""
        return head(batch.x_BTD, batch.weights_BT).split(self.sizes, dim=1)

    def _label(self, cut: Cut, slot: str) -> str:
        return cut.supervisions[0].custom[slot]
