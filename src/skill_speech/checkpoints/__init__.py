"""Getting encoders out of files: one door, `load_encoder`."""

from __future__ import annotations

import os
from pathlib import Path

from ..encoder import Encoder
from ..errors import InputError
from .hugging_face import load_hugging_face
from .native import is_native, load_native

__all__ = ["load_encoder"]


def load_encoder(source: str | os.PathLike[str], *, revision: str | None = None, length_aware: bool = False) -> Encoder:
    """An encoder in evaluation mode, float32, from wherever it is.

    Args:
        source: a folder of ours or of Transformers (any head: its encoder is taken), a weights file in such a folder,
            or a hub id. Hub ids work offline once they are in the cache.
        revision: branch, tag or commit on the hub.
        length_aware: keep padding out of the group norm's statistics and of data2vec's stacked positional convolution,
            so that a padded batch equals its utterances one by one; off, both are as in Transformers.

    Raises:
        InputError: nothing there, unknown architecture, damaged or unfitting files.
    """
    path = Path(source)
    if path.is_file():
        if path.name not in ("model.safetensors", "pytorch_model.bin", "config.json"):
            raise InputError(f"{path}: not a known checkpoint; give a folder with config.json and model.safetensors")
        path = path.parent
    if not path.exists() and (path.is_absolute() or len(path.parts) > 2 or os.fspath(source).startswith((".", "~"))):
        raise InputError(f"{source}: no such file or folder")
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{path}: no config.json there; give a folder that Transformers or skill-speech wrote")
    if path.is_dir() and is_native(path):
        encoder = load_native(path)
    else:
        encoder = load_hugging_face(str(path) if path.exists() else os.fspath(source), revision)
    if length_aware:
        weights = encoder.state_dict()
        encoder = Encoder(encoder.config.replace(length_aware=True))
        encoder.load_state_dict(weights)
    return encoder.eval()
