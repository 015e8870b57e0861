"""Getting encoders out of files: one door, `load_encoder`."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

import torch

from ..encoder import Encoder
from ..kernels import attach_kernels
from .checkpoint import Checkpoint
from .hugging_face import commit_of, load_hugging_face, refuse_adapter
from .importing import ImportResult, import_encoder
from .model_files import ModelFiles
from .native import is_native, load_native, read_direction_norm, save_direction_norm
from .single_file import load_file
from .torchaudio import save_torchaudio

__all__ = [
    "Checkpoint",
    "ImportResult",
    "import_encoder",
    "load_encoder",
    "read_checkpoint",
    "read_direction_norm",
    "resolve_revision",
    "save_direction_norm",
    "save_torchaudio",
    "warn_of_assumptions",
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
    """An encoder in evaluation mode from wherever it is, with the operations for CPUs attached (`attach_kernels`).

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
    warn_of_assumptions(os.fspath(source), checkpoint.assumed)
    if length_aware:
        encoder = Encoder.of(encoder.config.replace(length_aware=True), encoder.state_dict()).to(dtype)
    return attach_kernels(encoder).eval()


def read_checkpoint(
    source: str | os.PathLike[str], *, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """The encoder of a source, as of `load_encoder`, with what is to be known of it.

    Our own format comes in `dtype`, all others in float32.

    Raises:
        InputError: nothing there, unknown architecture, damaged or unfitting files.
    """
    checkpoint = _read_checkpoint(source, revision, dtype)
    attach_kernels(checkpoint.encoder)
    return checkpoint


def _read_checkpoint(source: str | os.PathLike[str], revision: str | None, dtype: torch.dtype) -> Checkpoint:
    path = Path(source)
    if os.path.isfile(path):
        if path.name not in IN_FOLDER or not (path.parent / "config.json").is_file():
            return load_file(path)
        path = path.parent
    if not os.path.isdir(path):
        return load_hugging_face(os.fspath(source), revision, dtype)
    refuse_adapter(ModelFiles(str(path)))
    if is_native(path):
        encoder = load_native(path, dtype).eval()
        return Checkpoint(encoder, "skill-speech", direction_norm_K=read_direction_norm(path, encoder.config))
    return load_hugging_face(str(path), revision, dtype)


def resolve_revision(source: str | os.PathLike[str], revision: str | None) -> str | None:
    """The commit on the hub that a branch, a tag, or nothing stands for now; offline, in the cache.

    None for what is not on the hub.

    Raises:
        InputError: nothing there, no such revision, or the hub cannot be reached.
    """
    return None if os.path.exists(source) else commit_of(os.fspath(source), revision)


@lru_cache
def warn_of_assumptions(source: str, assumed: tuple[str, ...]) -> None:
    """Say, once for each source, what it does not."""
    if assumed:
        logger.warning("warning: %s does not state everything; assumed: %s", source, "; ".join(assumed))
