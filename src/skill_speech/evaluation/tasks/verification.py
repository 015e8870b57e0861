"""Speaker verification: x-vectors trained to tell speakers apart, trials scored by the cosine of two of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import InputError
from ..corpora import TaskData
from ..heads import AdditiveMarginSoftmax, XVector
from ..metrics import equal_error_rate
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
        number_of = {cut.id: number for number, cut in enumerate(self.cuts[split])}
        labels, one, other = zip(*self.data.extra["trials"], strict=True)
        embeddings_ND = torch.stack(list(predictions))
        pairs = [embeddings_ND[[number_of[name] for name in names]] for names in (one, other)]
        return {"eer": equal_error_rate(labels, (pairs[0] * pairs[1]).sum(1).numpy())}


def _long_enough(batch: Batch) -> tuple[Tensor, Tensor]:
    """Features and lengths, padded with zeros to at least what the x-vector sees at once."""
    shortest = XVector.context + 1
    x_BTD = F.pad(batch.x_BTD, (0, 0, 0, max(0, shortest - batch.x_BTD.shape[1])))
    return x_BTD, batch.lengths_B.clamp(min=shortest)
