"""Speaker verification: x-vectors trained to tell speakers apart, trials scored by the cosine of two of them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import InputError
from ..corpora import TaskData
from ..heads import AdditiveMarginSoftmax, XVector
from ..metrics import equal_error_rate
from ..metrics.bootstrap import Scored, Trials
from ..protocol import VerificationConfig
from .base import Batch, Task, shuffled_batches


class VerificationHead(nn.Module):
    """The x-vector and the loss that it is trained with, whose weights are learned too."""

    def __init__(self, width: int, speakers: int, config: VerificationConfig) -> None:
        super().__init__()
        self.xvector = XVector(width, projection_size=config.projection_size, pooled_size=config.pooled_size)
        self.softmax = AdditiveMarginSoftmax(config.projection_size, speakers, scale=config.scale, margin=config.margin)


class Verification(Task):
    """ASV: the checkpoint is chosen on the test trials, as in s3prl, since VoxCeleb1 has no others."""

    config: VerificationConfig
    chosen_on = ("test", "eer")
    higher_is_better = False
    headline = ("eer",)
    units = "speakers"

    def __init__(self, data: TaskData, config: VerificationConfig, hop: int) -> None:
        super().__init__(data, config, hop)
        self.cuts["train"] = [cut for cut in self.cuts["train"] if cut.duration > config.min_seconds]
        if not self.cuts["train"]:
            raise InputError(f"asv: no training utterance is longer than {config.min_seconds:g} s")
        speakers = sorted({cut.supervisions[0].speaker for cut in self.cuts["train"]})
        numbers = {speaker: number for number, speaker in enumerate(speakers)}
        self.speakers = [numbers[cut.supervisions[0].speaker] for cut in self.cuts["train"]]
        self.num_speakers = len(speakers)

    def head(self, width: int) -> nn.Module:
        """X-vector and additive-margin softmax."""
        return VerificationHead(width, self.num_speakers, self.config)

    def epoch(self, generator: random.Random) -> list[list[int]]:
        """All utterances in random order."""
        return shuffled_batches(len(self.speakers), self.config.batch_size, generator)

    def crop(self, drawn: int, length: float, generator: random.Random) -> tuple[int, int]:
        """At most so many seconds, anywhere in the utterance."""
        frames, longest = round(length), round(self.config.crop_seconds * self.frame_rate)
        start = generator.randint(0, max(0, frames - longest))
        return start, min(frames, start + longest)

    def loss(self, head: nn.Module, batch: Batch) -> Tensor:
        """Additive-margin softmax over the training speakers."""
        assert isinstance(head, VerificationHead)
        x_BTD, lengths_B = _long_enough(batch)
        speakers_B = torch.tensor([self.speakers[index] for index in batch.indices], device=x_BTD.device)
        return head.softmax(head.xvector(x_BTD, lengths_B), speakers_B)

    def predict(self, head: nn.Module, batch: Batch) -> list[Tensor]:
        """Embeddings of length 1."""
        assert isinstance(head, VerificationHead)
        return list(F.normalize(head.xvector.embed(*_long_enough(batch)), dim=1).cpu())

    def score(self, split: str, predictions: Sequence[Any]) -> dict[str, Any]:
        """Equal error rate of the trials."""
        labels = [label for label, _, _ in self.data.extra["trials"]]
        return {"eer": equal_error_rate(labels, self._scores(split, predictions))}

    def scored(self, predictions: Sequence[Any], measures: Mapping[str, Any]) -> Scored:
        """Equal error rate, by the speakers of the trials."""
        speaker_of = {cut.id: cut.supervisions[0].speaker for cut in self.cuts["test"]}
        numbers = {speaker: number for number, speaker in enumerate(sorted(set(speaker_of.values())))}
        pairs = [[numbers[speaker_of[name]] for name in pair] for _, *pair in self.data.extra["trials"]]
        return Trials(len(numbers), np.array(pairs), self._scores("test", predictions))

    def items(self) -> dict[str, int]:
        """Trials, and the speakers that they are of."""
        speakers = {cut.supervisions[0].speaker for cut in self.cuts["test"]}
        return {"trials": len(self.data.extra["trials"]), "speakers": len(speakers)}

    def _scores(self, split: str, predictions: Sequence[Any]) -> NDArray[np.float64]:
        """The cosine of both embeddings of every trial."""
        number_of = {cut.id: number for number, cut in enumerate(self.cuts[split])}
        embeddings_ND = torch.stack(list(predictions))
        _, *sides = zip(*self.data.extra["trials"], strict=True)
        one, other = (embeddings_ND[[number_of[name] for name in names]] for names in sides)
        return np.asarray((one * other).sum(1).numpy(), dtype=np.float64)


def _long_enough(batch: Batch) -> tuple[Tensor, Tensor]:
    """Features and lengths, padded with zeros to at least what the x-vector sees at once."""
    shortest = XVector.context + 1
    x_BTD = F.pad(batch.x_BTD, (0, 0, 0, max(0, shortest - batch.x_BTD.shape[1])))
    return x_BTD, batch.lengths_B.clamp(min=shortest)
