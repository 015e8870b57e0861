"""The loop that every head is trained with: a teacher's on its encoder, a new one on a student.

Shapes: B utterances, T frames, V outputs.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lhotse.cut import Cut
from torch import Tensor

from lab.heads.data import label, text
from lab.pretraining import Log, train
from skill_speech.checkpoints.tokenizers import Tokenizer
from skill_speech.data.audio import load_waveform
from skill_speech.encoder import Encoder
from skill_speech.heads import HeadConfig, SpeechModel, make_head

VOCABULARY = ("<pad>", "<s>", "</s>", "<unk>", "|", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'")
"""Characters, the blank first; "|" stands between words."""
LENGTHS_MIXED = 0.2
"""Neighbors by length share a batch; a length counts as up to so much more than it is, so that batches differ."""


@dataclass(frozen=True)
class FinetuningConfig:
    """How a head and its encoder are trained.

    Attributes:
        updates: of AdamW; the rate rises for a tenth of them, then falls linearly to zero.
        batch_seconds: of audio, padding counted.
        learning_rate: its peak, of encoder and head.
        seed: of the head and the batches.
    """

    updates: int
    batch_seconds: float = 12.0
    learning_rate: float = 5e-4
    seed: int = 0


def with_new_head(encoder: Encoder, task: str, labels: Sequence[str], seed: int) -> SpeechModel:
    """An encoder with a head that knows nothing yet: characters for "ctc", else a sequence classifier's labels."""
    config = (
        HeadConfig("ctc", len(VOCABULARY), blank=VOCABULARY.index("<pad>"))
        if task == "ctc"
        else HeadConfig("sequence", len(labels), labels=tuple(labels))
    )
    torch.manual_seed(seed)
    return SpeechModel(encoder, make_head(config, encoder.config), processor_files(task, encoder))


def processor_files(task: str, encoder: Encoder) -> dict[str, bytes]:
    """What Transformers reads beside a model, by name: the feature extractor and, for "ctc", the tokenizer."""
    from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if task == "ctc":
            written = folder / "characters.json"
            written.write_text(json.dumps({token: number for number, token in enumerate(VOCABULARY)}))
            Wav2Vec2CTCTokenizer(str(written)).save_pretrained(folder)
            written.unlink()
        normalizes = encoder.config.input_normalization
        Wav2Vec2FeatureExtractor(do_normalize=normalizes, return_attention_mask=True).save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Batches:
    """Batches of cuts of about the same length, a function of the seed and the batch's number.

    Args:
        cuts: to draw from, each once an epoch.
        batch_seconds: the most audio in a batch, padding counted; a longer cut is a batch by itself.
        seed: of the order.
    """

    def __init__(self, cuts: Sequence[Cut], batch_seconds: float, seed: int) -> None:
        self.cuts, self.batch_seconds, self.seed = cuts, batch_seconds, seed
        self._drawn: list[list[Cut]] = []
        self._epochs = 0

    def __getitem__(self, number: int) -> list[Cut]:
        while len(self._drawn) <= number:
            self._drawn += self._epoch()
        return self._drawn[number]

    def _epoch(self) -> list[list[Cut]]:
        rng = np.random.default_rng([self.seed, self._epochs])
        self._epochs += 1
        seconds = np.array([cut.duration for cut in self.cuts])
        batches: list[list[Cut]] = []
        longest = 0.0
        for index in np.argsort(seconds * rng.uniform(1, 1 + LENGTHS_MIXED, len(seconds)), kind="stable"):
            longest = max(longest, seconds[index])
            if not batches or longest * (len(batches[-1]) + 1) > self.batch_seconds:
                batches.append([])
                longest = seconds[index]
            batches[-1].append(self.cuts[index])
        return [batches[index] for index in rng.permutation(len(batches))]


def loss_of(model: SpeechModel, batch: Sequence[Cut], tokenizer: Tokenizer | None) -> Tensor:
    """CTC's loss or cross-entropy of a padded batch.

    Args:
        model: encoder and head.
        batch: cuts with texts, or with labels.
        tokenizer: of a CTC head; None for a classifier.
    """
    assert model.head is not None
    made, config = model([load_waveform(cut) for cut in batch]), model.head.config
    if tokenizer is None:
        return F.cross_entropy(made.logits.float(), torch.tensor([config.labels.index(label(cut)) for cut in batch]))
    assert made.lengths_B is not None
    targets = [tokenizer.encode(text(cut)) for cut in batch]
    return F.ctc_loss(
        made.logits.float().log_softmax(-1).transpose(0, 1),
        torch.tensor([token for tokens in targets for token in tokens]),
        made.lengths_B,
        torch.tensor([len(tokens) for tokens in targets]),
        blank=config.blank,
        zero_infinity=True,
    )


def tokenizer_of(model: SpeechModel) -> Tokenizer | None:
    """Of a CTC head; None for a classifier."""
    assert model.head is not None
    config = model.head.config
    return Tokenizer(model.files, config, "the model") if config.kind == "ctc" else None


def finetune(
    model: SpeechModel, cuts: Sequence[Cut], config: FinetuningConfig, folder: Path, name: str = "finetuning"
) -> list[float]:
    """Train head and encoder, in place, in float32; the convolutions stay as they are. A killed training goes on.

    Args:
        model: encoder and head.
        cuts: with texts, or with labels.
        config: how.
        folder: gets the log and the checkpoint.
        name: of both.

    Returns:
        mean losses along the way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Too few labels to learn how to hear from, and the costliest layers to train (arXiv 2006.11477, section 4.3).
    model.encoder.convs.requires_grad_(False)
    batches, tokenizer = Batches(cuts, config.batch_seconds, config.seed), tokenizer_of(model)
    log = Log(folder / f"{name}.csv")
    train(
        model,
        lambda step: (loss_of(model, batches[step], tokenizer), {}),
        name=name,
        steps=config.updates,
        learning_rate=config.learning_rate,
        warmup_steps=max(1, math.ceil(0.1 * config.updates)),
        folder=folder,
        log=log,
        bfloat16=False,
        audio_per_step=config.batch_seconds,
        checkpoint_every=250,
    )
    model.requires_grad_(True).eval()
    return [float(row["loss"]) for row in log.rows]
