"""What a head gets wrong, item by item, and how far its score would move with other items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import numpy.typing as npt
import torch
from lhotse.cut import Cut

from lab.heads.data import label, text
from lab.heads.finetuning import tokenizer_of
from skill_speech.data.audio import load_waveform
from skill_speech.heads import SpeechModel

RESAMPLES = 2_000
LEVEL = 0.95


@dataclass(frozen=True)
class Errors:
    """Of every item, in the order of the manifest.

    Attributes:
        errors: wrong words (substituted, deleted, inserted) of "ctc"; 0 or 1 of a classifier.
        counts: words that were said; 1 of a classifier.
    """

    errors: list[int]
    counts: list[int]

    @property
    def rate(self) -> float:
        """Errors in per cent: WER, or 100 - accuracy."""
        return 100 * sum(self.errors) / sum(self.counts)


def count_errors(model: SpeechModel, cuts: Sequence[Cut]) -> Errors:
    """Decode every cut by itself, unpadded, greedily, and count."""
    assert model.head is not None
    tokenizer, labels = tokenizer_of(model), model.head.config.labels
    errors, counts = [], []
    for cut in cuts:
        with torch.inference_mode():
            best = model([load_waveform(cut)]).logits[0].argmax(-1)
        if tokenizer is None:
            errors.append(int(labels[int(best)] != label(cut)))
            counts.append(1)
            continue
        said = jiwer.process_words(tokenizer.normalize(text(cut)), tokenizer.decode(best.tolist()))
        errors.append(said.substitutions + said.deletions + said.insertions)
        counts.append(said.hits + said.substitutions + said.deletions)
    return Errors(errors, counts)


def resampled_rates(records: Sequence[Errors], seed: int = 0) -> npt.NDArray[np.float64]:
    """Mean rate of several seeds over `RESAMPLES` draws of the items with replacement, in per cent.

    The draws depend on the number of items and the seed alone: those of two routes are paired.
    """
    errors_SN, counts_N = np.array([record.errors for record in records]), np.array(records[0].counts)
    items = len(counts_N)
    drawn_RN = np.random.default_rng(seed).integers(items, size=(RESAMPLES, items))
    return 100 * errors_SN.mean(0)[drawn_RN].sum(1) / counts_N[drawn_RN].sum(1)


def interval(rates: npt.NDArray[np.float64]) -> tuple[float, float]:
    """What `LEVEL` of the draws lie between."""
    low, high = np.quantile(rates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
