"""Getting models out of files: `load_encoder`, and `load_model` for an encoder with its head."""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from pathlib import Path

import torch

from ..encoder import Encoder
from ..errors import InputError
from ..heads import SpeechModel, head_of
from ..kernels import attach_kernels
from .checkpoint import Checkpoint
from .hugging_face import has_weights, load_hugging_face, refuse_adapter
from .importing import ImportResult, import_encoder
from .model_files import ModelFiles
from .native import is_native, load_native, read_direction_norm, save_direction_norm
from .single_file import load_file
from .speechbrain import find_weights, is_speechbrain, load_speechbrain
from .torchaudio import save_torchaudio
from .weights import read_weights

__all__ = [
    "Checkpoint",
    "ImportResult",
    "import_encoder",
    "load_encoder",
    "load_model",
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
    target_lang: str | None = None,
) -> Encoder:
    """An encoder in evaluation mode from wherever it is, with the operations for CPUs attached (`attach_kernels`).

    Args:
        source: a folder of skill-speech, Transformers (any head: its encoder is read) or SpeechBrain, a file of weights
            in such a folder, a hub ID, or a file of DPHuBERT, DiariZen, TorchAudio, fairseq, fairseq2, WavLM or s3prl.
            Hub ids work offline once they are in the cache.
        revision: branch, tag or commit on the hub.
        length_aware: keep padding out of the group norm's statistics and of data2vec's stacked positional convolution,
            so that a padded batch equals its utterances one by one; off, both are as in Transformers.
        dtype: of the weights. For an encoder that `optimize` makes bf16 of, torch.bfloat16 gives the same and halves
            the memory that loading takes.
        target_lang: of a model that has adapters for many (MMS), by its code; None for the one that its weights have.

    Raises:
        InputError: nothing there, unknown architecture, damaged or unfitting files, a language that it does not have.
    """
    checkpoint = read_checkpoint(source, revision=revision, dtype=dtype, target_lang=target_lang)
    if checkpoint.head is not None and checkpoint.head.adapter is not None:
        raise InputError(
            f"{os.fspath(source)}: add_adapter in its config.json is not supported in an encoder alone: its head reads "
            "the adapter; load_model has both"
        )
    encoder = checkpoint.encoder.to(dtype)
    warn_of_assumptions(os.fspath(source), checkpoint.assumed)
    if length_aware:
        encoder = Encoder.of(encoder.config.replace(length_aware=True), encoder.state_dict()).to(dtype)
    return attach_kernels(encoder).eval()


def load_model(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    length_aware: bool = False,
    target_lang: str | None = None,
) -> SpeechModel:
    """An encoder with the head that was fine-tuned on it, in evaluation mode; its `head` is None if there is none.

    Args:
        source: as of `load_encoder`; a head comes from a folder of skill-speech or Transformers, or from the hub.
        revision: branch, tag or commit on the hub.
        length_aware: keep padding out of everything, as of `load_encoder`.
        target_lang: of a model that has adapters for many (MMS), by its code; None for the one that its weights have.

    Raises:
        InputError: nothing there, unknown architecture, damaged or unfitting files, a language that it does not have.
    """
    checkpoint = read_checkpoint(source, revision=revision, target_lang=target_lang)
    warn_of_assumptions(os.fspath(source), checkpoint.assumed)
    encoder, head = checkpoint.encoder, checkpoint.head
    if length_aware:
        encoder = Encoder.of(encoder.config.replace(length_aware=True), encoder.state_dict())
        head = None if head is None else head_of(head.config, encoder, head.state_dict())
    return SpeechModel(attach_kernels(encoder), head, checkpoint.files).eval()


def read_checkpoint(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    target_lang: str | None = None,
) -> Checkpoint:
    """The encoder and the head of a source, as of `load_encoder` and `load_model`, with what is to be known of them.

    Our own format comes in `dtype`, all others in float32.

    Raises:
        InputError: nothing there, unknown architecture, damaged or unfitting files.
    """
    checkpoint = _read_checkpoint(source, revision, dtype, target_lang)
    attach_kernels(checkpoint.encoder)
    return checkpoint


def _read_checkpoint(
    source: str | os.PathLike[str], revision: str | None, dtype: torch.dtype, target_lang: str | None
) -> Checkpoint:
    path = Path(source)
    if os.path.isfile(path):
        if path.name not in IN_FOLDER or not (path.parent / "config.json").is_file():
            return load_file(path, target_lang)
        source = path = path.parent
    files = ModelFiles(os.fspath(source), revision)
    refuse_adapter(files)
    if os.path.isdir(path) and is_native(path):
        return load_native(path, dtype, target_lang)
    if is_speechbrain(files) and not has_weights(files):
        weights = find_weights(files)
        return load_speechbrain(files, read_weights(weights), str(weights), target_lang)
    return load_hugging_face(files, dtype, target_lang)


def resolve_revision(source: str | os.PathLike[str], revision: str | None) -> str | None:
    """The commit on the hub that a branch, a tag, or nothing stands for now; offline, in the cache.

    None for what is not on the hub.

    Raises:
        InputError: nothing there, no such revision, or the hub cannot be reached.
    """
    if os.path.exists(source):
        return None
    files = ModelFiles(os.fspath(source), revision)
    if not is_speechbrain(files):
        files.config()
    return files.revision


@lru_cache
def warn_of_assumptions(source: str, assumed: tuple[str, ...]) -> None:
    """Say, once for each source, what it does not."""
    if assumed:
        logger.warning("warning: %s does not state everything; assumed: %s", source, "; ".join(assumed))
