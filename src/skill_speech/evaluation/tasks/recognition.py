"""Phoneme recognition, speech recognition, slot filling: CTC over phonemes, characters, and characters with slots."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lhotse.cut import Cut
from numpy.typing import NDArray
from torch import Tensor, nn

from ..corpora import TaskData
from ..corpora.snips import OUTSIDE, PUNCTUATION
from ..heads import CTCHead
from ..metrics import phoneme_error_rate, slot_parts, slot_type_f1, slot_value_cer, word_edits, word_error_rate
from ..metrics.bootstrap import Array, Scored, Sums, Values
from ..protocol import RecognitionConfig
from ..spec_augment import spec_augment
from ..vocabulary import BLANK, CHARACTERS, Vocabulary
from .base import Batch, Task


class Recognition(Task):
    """A task whose head is trained by CTC on the symbols of a transcript."""

    config: RecognitionConfig

    def __init__(self, data: TaskData, config: RecognitionConfig, hop: int) -> None:
        super().__init__(data, config, hop)
        self.vocabulary = Vocabulary(self.symbols())
        transcripts = {split: [self.transcript(cut) for cut in cuts] for split, cuts in self.cuts.items()}
        self.targets = [self.target(symbols) for symbols in transcripts["train"]]
        self.transcripts = {
            split: [self.vocabulary.spelled(symbols) for symbols in listed] for split, listed in transcripts.items()
        }

    @abstractmethod
    def symbols(self) -> Sequence[str]:
        """What transcripts are made of."""

    @abstractmethod
    def transcript(self, cut: Cut) -> Sequence[str]:
        """The symbols of an utterance."""

    def target(self, symbols: Sequence[str]) -> list[int]:
        """What CTC learns of a transcript: the numbers of its symbols and of the end."""
        return self.vocabulary.encode(symbols)

    def head(self, width: int) -> nn.Module:
        """Linear layers, with LSTM layers between them where the task has them."""
        config = self.config
        return CTCHead(
            width,
            len(self.vocabulary),
            projection_size=config.projection_size,
            hidden_size=config.hidden_size,
            layers=config.layers,
            dropout=config.dropout,
        )

    def epoch(self, generator: random.Random) -> list[list[int]]:
        """Batches of similar length: "windows" over the order of transcripts, or "buckets" of the order of audio."""
        batches = self._windows() if self.config.bucket == "windows" else self._buckets()
        generator.shuffle(batches)
        return batches

    def loss(self, head: nn.Module, batch: Batch) -> Tensor:
        """CTC, each utterance's divided by its symbols; an utterance with more symbols than frames counts zero."""
        x_BTD = batch.x_BTD
        if self.config.spec_augment is not None:
            x_BTD = spec_augment(x_BTD, batch.lengths_B.tolist(), self.config.spec_augment)
        targets = [self.targets[index] for index in batch.indices]
        return F.ctc_loss(
            head(x_BTD, batch.lengths_B).log_softmax(-1).transpose(0, 1),
            torch.tensor([number for target in targets for number in target], device=x_BTD.device),
            batch.lengths_B,
            torch.tensor([len(target) for target in targets]),
            blank=BLANK,
            zero_infinity=True,
        )

    def predict(self, head: nn.Module, batch: Batch) -> list[list[str]]:
        """The symbols of the best path, without a language model."""
        best_BT = head(batch.x_BTD, batch.lengths_B).argmax(-1).cpu()
        return [
            self.vocabulary.decode(best_T[:length].tolist())
            for best_T, length in zip(best_BT, batch.lengths_B.tolist(), strict=True)
        ]

    def _windows(self) -> list[list[int]]:
        """From every utterance on, the next ones in the order of transcripts, longest first: as many as utterances."""
        order = sorted(range(len(self.targets)), key=lambda index: -len(self.targets[index]))
        size = min(self.config.batch_size, len(order))
        starts = (min(start, len(order) - size) for start in range(len(order)))
        batches = [order[start : start + size] for start in starts]
        cuts = self.cuts["train"]
        return [
            batch[: max(1, size // 2)] if cuts[batch[0]].duration > self.config.long_seconds else batch
            for batch in batches
        ]

    def _buckets(self) -> list[list[int]]:
        """Neighbors in the order of the audio's lengths, longest first; one left over alone is left out."""
        cuts, size = self.cuts["train"], self.config.batch_size
        order = sorted(range(len(cuts)), key=lambda index: -cuts[index].duration)
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches


class PhonemeRecognition(Recognition):
    """PR: phonemes of a lexicon, phoneme error rate."""

    chosen_on = ("dev", "per")
    higher_is_better = False
    headline = ("per",)

    def symbols(self) -> Sequence[str]:
        """Phonemes."""
        return list(self.data.labels)

    def transcript(self, cut: Cut) -> Sequence[str]:
        """Phonemes."""
        return cut.supervisions[0].custom["phonemes"]

    def score(self, split: str, predictions: Sequence[Any]) -> dict[str, Any]:
        """Phoneme error rate."""
        return {"per": phoneme_error_rate(self.transcripts[split], predictions)}

    def scored(self, predictions: Sequence[Any], measures: Mapping[str, Any]) -> Scored:
        """Phoneme error rate."""
        pair = ([" ".join(phones) for phones in side] for side in (self.transcripts["test"], predictions))
        return _rate("per", word_edits(*pair))


class SpeechRecognition(Recognition):
    """ASR: characters, word error rate without a language model."""

    chosen_on = ("dev", "wer")
    higher_is_better = False
    headline = ("wer",)

    def symbols(self) -> Sequence[str]:
        """Letters, apostrophe and space."""
        return CHARACTERS

    def transcript(self, cut: Cut) -> Sequence[str]:
        """Characters, and a space after the last word too."""
        return [*cut.supervisions[0].text.upper(), " "]

    def score(self, split: str, predictions: Sequence[Any]) -> dict[str, Any]:
        """Word error rate."""
        return {"wer": word_error_rate(*self._texts(split, predictions))}

    def scored(self, predictions: Sequence[Any], measures: Mapping[str, Any]) -> Scored:
        """Word error rate."""
        return _rate("wer", word_edits(*self._texts("test", predictions)))

    def _texts(self, split: str, predictions: Sequence[Any]) -> tuple[list[str], list[str]]:
        """References and what was heard."""
        wanted, heard = (["".join(one).strip() for one in side] for side in (self.transcripts[split], predictions))
        return wanted, heard


class SlotFilling(Recognition):
    """SF: characters with marks where a slot begins and ends, F1 of slot types and CER of slot values."""

    chosen_on = ("dev", "slot_f1")
    higher_is_better = True
    headline = ("slot_f1", "slot_cer")

    def symbols(self) -> Sequence[str]:
        """Letters, apostrophe and space, and two marks per slot."""
        return [*CHARACTERS, *(mark for slot in self.data.extra["slots"] for mark in (f"B-{slot} ", f" E-{slot}"))]

    def transcript(self, cut: Cut) -> Sequence[str]:
        """Characters and marks: a slot is a run of words with the same label, in it those that are punctuation.

        Punctuation is left out with the marks that would stand at it, but not before the runs are known. So of
        `NEW YORK ,` with the comma in the slot no mark closes it, and the space stays after what was the last word
        but one: as in s3prl.
        """
        words, slots = cut.supervisions[0].text.upper().split(" "), cut.supervisions[0].custom["slots"]
        last = len(words) - 1
        symbols: list[str] = []
        for number, (word, slot) in enumerate(zip(words, slots, strict=True)):
            if word in PUNCTUATION:
                continue
            if slot != OUTSIDE and (number == 0 or slots[number - 1] != slot):
                symbols.append(f"B-{slot} ")
            symbols.extend(word)
            if slot != OUTSIDE and (number == last or slots[number + 1] != slot):
                symbols.append(f" E-{slot}")
            if number < last:
                symbols.append(" ")
        return symbols

    def target(self, symbols: Sequence[str]) -> list[int]:
        """Of a sentence that ends with punctuation CTC does not learn the end, as in s3prl."""
        return self.vocabulary.encode(symbols)[: -1 if symbols[-1] == " " else None]

    def score(self, split: str, predictions: Sequence[Any]) -> dict[str, Any]:
        """F1 of slot types and character error rate of slot values."""
        texts = self._texts(split, predictions)
        return {"slot_f1": slot_type_f1(*texts), "slot_cer": slot_value_cer(*texts)}

    def scored(self, predictions: Sequence[Any], measures: Mapping[str, Any]) -> Scored:
        """F1 of slot types and character error rate of slot values."""

        def measured(sums_RD: Array, count_R: Array) -> Values:
            return {"slot_f1": 100 * sums_RD[:, 0] / count_R, "slot_cer": 100 * sums_RD[:, 1] / sums_RD[:, 2]}

        return Sums(slot_parts(*self._texts("test", predictions)), measured)

    def _texts(self, split: str, predictions: Sequence[Any]) -> tuple[list[str], list[str]]:
        """References and what was heard, with the marks of slots."""
        wanted, heard = (["".join(symbols) for symbols in side] for side in (self.transcripts[split], predictions))
        return wanted, heard


def _rate(measure: str, parts_N2: NDArray[np.int64]) -> Sums:
    """An error rate, from errors and units of every reference."""
    return Sums(parts_N2.astype(np.float64), lambda sums_RD, count_R: {measure: 100 * sums_RD[:, 0] / sums_RD[:, 1]})
