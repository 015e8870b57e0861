"""Getting encoders out of files: one door, `load_encoder`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import torch

from ..encoder import Encoder
from ..errors import InputError
from .checkpoint import Checkpoint
from .hugging_face import commit_of, load_hugging_face
from .importing import ImportResult, import_encoder
from .native import is_native, load_native
from .single_file import load_file
from .torchaudio import save_torchaudio

__all__ = [
    "Checkpoint",
    "ImportResult",
    "import_encoder",
    "load_encoder",
    "read_checkpoint",
    "resolve_revision",
    "save_torchaudio",
]

logger = logging.getLogger(__name__)

# Files that stand for the folder they are in.
IN_FOLDER = ("model.safetensors", "pytorch_model.bin", "config.json")


def load_encoder(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    length_aware: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Encoder:
    """An encoder in evaluation mode from wherever it is.

    Args:
        source: a folder of ours or of Transformers (any head: its encoder is taken), a weights file in such a folder, a
            hub id, or a file of DPHuBERT, DiariZen, TorchAudio, fairseq, WavLM or s3prl. Hub ids work offline once they
            are in the cache.
        revision: branch, tag or commit on the hub.
        length_aware: keep padding out of the group norm's statistics and of data2vec's stacked positional convolution,
            so that a padded batch equals its utterances one by one; off, both are as in Transformers.
        dtype: of the weights. For an encoder that `optimize` makes bf16 or int8 of, torch.bfloat16 gives the same
            and halves the memory that loading takes.

    Raises:
        InputError: nothing there, unknown architecture, damaged or unfitting files.
    """
    checkpoint = read_checkpoint(source, revision=revision, dtype=dtype)
    encoder = checkpoint.encoder.to(dtype)
    if checkpoint.assumed:
        logger.warning("%s does not say, and is taken to have: %s", source, "; ".join(checkpoint.assumed))
    if length_aware:
        weights = encoder.state_dict()
        encoder = Encoder(encoder.config.replace(length_aware=True)).to(dtype)
        encoder.load_state_dict(weights)
    return encoder.eval()


def read_checkpoint(
    source: str | os.PathLike[str], *, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """The encoder of a source with what is to be known of it; `load_encoder` says what a source may be.

    Our own format comes in `dtype`, all others in float32.

    Raises:
        InputError: nothing there, unknown architecture, damaged or unfitting files.
    """
    path = Path(source)
    if path.is_file():
        if path.name not in IN_FOLDER or not (path.parent / "config.json").is_file():
            return load_file(path)
        path = path.parent
    _refuse_missing(source)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{path}: no config.json there; give a folder that Transformers or skill-speech wrote")
    if path.is_dir() and is_native(path):
        return Checkpoint(load_native(path, dtype).eval(), "skill-speech")
    return load_hugging_face(str(path) if path.exists() else os.fspath(source), revision, dtype)


def resolve_revision(source: str | os.PathLike[str], revision: str | None) -> str | None:
    """The commit on the hub that a branch, a tag, or nothing stands for now; offline, in the cache.

    None for what is not on the hub.

    Raises:
        InputError: nothing there, no such revision, or the hub cannot be reached.
    """
    path = Path(source)
    _refuse_missing(source)
    return None if path.exists() else commit_of(os.fspath(source), revision)


def _refuse_missing(source: str | os.PathLike[str]) -> None:
    """Raise InputError for what can only be a path, and is not there."""
    path = Path(source)
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or os.fspath(source).startswith((".", "~"))):
        raise InputError(f"{source}: no such file or folder")
