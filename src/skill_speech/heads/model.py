"""An encoder and its head: a whole model."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..encoder import Encoder
from ..encoder.encoder import EncoderOutput
from ..files import atomic_write
from .config import HeadConfig
from .heads import Head, HeadOutput, make_head

CONFIG, WEIGHTS = "head.json", "head.safetensors"


class SpeechModel(nn.Module):
    """An encoder, with the head that was fine-tuned on it.

    Args:
        encoder: of any kind.
        head: that stands on it; None for an encoder alone.
        files: what else belongs to the model, by name: tokenizer, vocabulary, feature extractor.
    """

    def __init__(self, encoder: Encoder, head: Head | None = None, files: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        self.encoder, self.head, self.files = encoder, head, dict(files or {})

    def forward(self, waveforms_BT: Any, lengths_B: Any = None) -> HeadOutput:
        """What the head makes of waveforms; arguments as of `Encoder.forward`.

        Raises:
            ValueError: there is no head; a batch that the encoder refuses.
        """
        if self.head is None:
            raise ValueError("the model has no head: call its encoder")
        output: EncoderOutput = self.encoder(waveforms_BT, lengths_B)
        made: HeadOutput = self.head(output)
        return made

    def num_parameters(self) -> int:
        """Of encoder and head."""
        return self.encoder.num_parameters() + (0 if self.head is None else self.head.num_parameters())

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the encoder's files, the head's (head.json, head.safetensors) and what else belongs to the model."""
        self.encoder.save_pretrained(folder)
        if self.head is not None:
            save_head(self.head, Path(folder))
        for name, content in self.files.items():
            _write(Path(folder) / name, content)


def save_head(head: Head, folder: Path) -> None:
    """Write head.safetensors and, when it is there, head.json."""
    from safetensors.torch import save

    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    _write(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
    save_head_config(head.config, folder)


def save_head_config(config: HeadConfig, folder: Path) -> None:
    """Write head.json: what a head is, and what its outputs stand for."""
    _write(folder / CONFIG, (json.dumps(config.to_dict(), indent=1, ensure_ascii=False) + "\n").encode())


def head_of(config: HeadConfig, encoder: Encoder, weights: Mapping[str, Tensor]) -> Head:
    """A head for an encoder with weights by name."""
    head = make_head(config, encoder.config)
    head.load_state_dict(dict(weights))
    return head.eval()


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
