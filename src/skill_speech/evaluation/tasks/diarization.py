"""Speaker diarization: who of two speakers is active in which frame.

Legend of the tensor suffixes: B utterances, T frames, S speakers, P permutations.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lhotse.cut import Cut
from numpy.typing import NDArray
from scipy.ndimage import median_filter
from torch import Tensor, nn

from ...data import SAMPLE_RATE
from ..corpora import TaskData
from ..corpora.utterances import Turn
from ..heads import DiarizationHead
from ..metrics import diarization_error, diarization_parts, frame_accuracy, turns_of
from ..metrics.bootstrap import Scored, Sums
from ..protocol import DiarizationConfig
from .base import Batch, Task, shuffled_batches

SPEAKERS = 2


class Diarization(Task):
    """SD: frames are labeled at the upstream's own rate."""

    config: DiarizationConfig
    chosen_on = ("dev", "frame_accuracy")
    higher_is_better = True
    headline = ("der",)

    def __init__(self, data: TaskData, config: DiarizationConfig, hop: int) -> None:
        super().__init__(data, config, hop)
        self.active = {split: [self._activity(cut) for cut in cuts] for split, cuts in self.cuts.items()}
        self.turns = {cut.id: _turns(cut) for cut in self.cuts["test"]}
        self.chunks = [
            (index, start)
            for index, active_TS in enumerate(self.active["train"])
            for start in range(0, len(active_TS), config.chunk_frames)
        ]

    def head(self, width: int) -> nn.Module:
        """One LSTM in time's direction."""
        return DiarizationHead(width, SPEAKERS, hidden_size=self.config.hidden_size, layers=self.config.layers)

    def epoch(self, generator: random.Random) -> list[list[int]]:
        """All chunks of all recordings in random order."""
        return shuffled_batches(len(self.chunks), self.config.batch_size, generator)

    def utterance(self, drawn: int) -> int:
        """The recording of a chunk."""
        return self.chunks[drawn][0]

    def crop(self, drawn: int, length: float, generator: random.Random) -> tuple[int, int]:
        """The chunk; the last one may have a frame or two less than its labels."""
        frames, start = round(length), self.chunks[drawn][1]
        return min(start, frames - 1), min(start + self.config.chunk_frames, frames)

    def loss(self, head: nn.Module, batch: Batch) -> Tensor:
        """Binary cross-entropy of the better order of the speakers, mean over frames and speakers."""
        active = [self._chunk(drawn) for drawn in batch.indices]
        lengths_B = torch.tensor([len(active_TS) for active_TS in active])
        scores_BTS = head(_matched(batch, lengths_B))
        losses = [
            _permuted_losses(scores_TS[: len(active_TS)], active_TS.to(scores_TS.device)).min()
            for scores_TS, active_TS in zip(scores_BTS, active, strict=True)
        ]
        return torch.stack(losses).sum() / lengths_B.sum()

    def predict(self, head: nn.Module, batch: Batch) -> list[Tensor]:
        """Scores (T, S) of every labeled frame; the LSTM state is reset at every chunk."""
        lengths_B = torch.tensor([len(self.active[batch.split][index]) for index in batch.indices])
        parts = _matched(batch, lengths_B).split(self.config.chunk_frames, dim=1)
        scores_BTS = torch.cat([head(part_BTD) for part_BTD in parts], dim=1).cpu()
        return [scores_TS[:length] for scores_TS, length in zip(scores_BTS, lengths_B.tolist(), strict=True)]

    def score(self, split: str, predictions: Sequence[Any]) -> dict[str, Any]:
        """Accuracy of frames; on the test split the error rate for the best pair of threshold and median filter too."""
        accuracies = []
        for scores_TS, active_TS in zip(predictions, self.active[split], strict=True):
            best = _permuted_losses(scores_TS, active_TS).argmin()
            order = list(permutations(range(SPEAKERS)))[int(best)]
            accuracies.append(frame_accuracy((scores_TS > 0).numpy(), active_TS[:, order].bool().numpy()))
        measures: dict[str, Any] = {"frame_accuracy": float(np.mean(accuracies))}
        return measures | self._error_rates(predictions) if split == "test" else measures

    def scored(self, predictions: Sequence[Any], measures: Mapping[str, Any]) -> Scored:
        """Diarization error rate with the threshold and the median filter that were chosen."""
        found = self._found(predictions, measures["threshold"], measures["median"])
        return Sums(
            diarization_parts(self.turns, found),
            lambda sums_RD, count_R: {"der": 100 * sums_RD[:, 0] / sums_RD[:, 1]},
        )

    def _error_rates(self, predictions: Sequence[Tensor]) -> dict[str, Any]:
        rates = {
            (threshold, median): diarization_error(self.turns, self._found(predictions, threshold, median))
            for threshold in self.config.thresholds
            for median in self.config.medians
        }
        best = min(rates, key=lambda pair: rates[pair])
        return {
            "der": rates[best],
            "threshold": best[0],
            "median": best[1],
            "der_by_threshold_and_median": {f"{pair[0]:g}, {pair[1]}": rate for pair, rate in rates.items()},
        }

    def _found(self, predictions: Sequence[Tensor], threshold: float, median: int) -> dict[str, list[Turn]]:
        """The turns of every test recording."""
        return {
            cut.id: turns_of(_active(scores_TS, threshold, median), self.hop / SAMPLE_RATE)
            for cut, scores_TS in zip(self.cuts["test"], predictions, strict=True)
        }

    def _chunk(self, drawn: int) -> Tensor:
        index, start = self.chunks[drawn]
        return self.active["train"][index][start : start + self.config.chunk_frames]

    def _activity(self, cut: Cut) -> Tensor:
        """Who is active in which frame (T, S): 1 or 0."""
        active_TS = torch.zeros(math.floor(cut.duration * self.frame_rate + 1e-6), SPEAKERS)
        speakers = sorted({supervision.speaker for supervision in cut.supervisions})
        for turn in _turns(cut):
            first, last = round(turn.start * self.frame_rate), round(turn.end * self.frame_rate)
            active_TS[max(0, first) : last, speakers.index(turn.speaker)] = 1
        return active_TS


def _turns(cut: Cut) -> list[Turn]:
    return [Turn(part.speaker, part.start, part.end) for part in cut.supervisions]


def _active(scores_TS: Tensor, threshold: float, median: int) -> NDArray[np.bool_]:
    active_TS = (scores_TS.sigmoid() > threshold).numpy()
    return active_TS if median == 1 else median_filter(active_TS, size=(median, 1), mode="constant")


def _matched(batch: Batch, lengths_B: Tensor) -> Tensor:
    """Features (B, T, D) as long as the labels: cut off, or the last frame repeated."""
    rows = []
    for x_TD, valid, wanted in zip(batch.x_BTD, batch.lengths_B.tolist(), lengths_B.tolist(), strict=True):
        places_T = torch.arange(wanted, device=x_TD.device).clamp(max=valid - 1)
        rows.append(x_TD[places_T])
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def _permuted_losses(scores_TS: Tensor, active_TS: Tensor) -> Tensor:
    """The loss, summed over frames and averaged over speakers, for every order of the speakers (P,)."""
    return torch.stack(
        [
            F.binary_cross_entropy_with_logits(scores_TS, active_TS[:, list(order)], reduction="sum") / SPEAKERS
            for order in permutations(range(SPEAKERS))
        ]
    )
