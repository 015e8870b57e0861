"""Our own format: config.json and model.safetensors, what `Encoder.save_pretrained` writes.

Also the same encoder as a Transformers model, exported and perhaps fine-tuned since: there config.json has more keys,
and the names of the weights have a prefix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..encoder import EncoderConfig
from ..errors import InputError
from ..files import atomic_write, read_json
from .checkpoint import Checkpoint
from .heads import check_vocabulary, read_files, read_head, read_own_head
from .weights import build, read_weights

MODEL_TYPE = "skill-speech"
DIRECTION_NORM = "direction_norm.safetensors"
"""`Checkpoint.direction_norm_K`, where it is known."""
MAX_CONFIG = 16 * 2**20
"""Bytes of a JSON file that describes a model, which has thousands."""


def is_native(folder: Path) -> bool:
    """Whether the folder's config.json says that it is ours."""
    path = folder / "config.json"
    return path.is_file() and read_json(path, MAX_CONFIG).get("model_type") == MODEL_TYPE


def load_native(folder: Path, dtype: torch.dtype = torch.float32, language: str | None = None) -> Checkpoint:
    """What `SpeechModel.save_pretrained`, `Encoder.save_pretrained` or a skill-speech model of Transformers wrote.

    Args:
        folder: where.
        dtype: of the encoder's weights.
        language: refused: such a model has one language.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    if language is not None:
        raise InputError(f"{folder}: target_lang is {language!r}, and this model has no adapters for languages")
    written = read_json(folder / "config.json", MAX_CONFIG)
    transformers = "transformers_version" in written
    values = {name: value for name, value in written.items() if name != "model_type"}
    if transformers:
        values = {field.name: values[field.name] for field in fields(EncoderConfig) if field.name in values}
    try:
        config = EncoderConfig.from_dict(values)
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from None
    path = folder / "model.safetensors"
    if not path.is_file():
        raise InputError(f"{folder}: config.json is there, model.safetensors is not")
    weights, head, files = read_weights(path, dtype), read_own_head(folder, config), read_files(_finder(folder))
    if transformers:
        weights, rest = _apart(weights)
        head = read_head(written, rest, config, str(path)) if rest else None
    check_vocabulary(head, files, str(folder))
    encoder = build(config, weights, str(path), dtype).eval()
    norm_K = read_direction_norm(folder, config)
    return Checkpoint(encoder, "skill-speech", direction_norm_K=norm_K, head=head, files=files)


def _finder(folder: Path) -> Callable[[str], Path | None]:
    def find(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    return find


def read_direction_norm(folder: Path, config: EncoderConfig) -> Tensor | None:
    """What `save_direction_norm` wrote beside an encoder of this configuration (K,), if it did.

    Raises:
        InputError: it is damaged.
    """
    path = folder / DIRECTION_NORM
    if not path.is_file():
        return None
    norm_K = read_weights(path).get("direction_norm", torch.empty(0))
    if norm_K.shape != (config.positional_kernel,) or not bool((norm_K.isfinite() & (norm_K >= 0)).all()):
        raise InputError(f"{path}: damaged (not one norm for each tap of the positional convolution); get a fresh copy")
    return norm_K.float()


def save_direction_norm(folder: Path, direction_norm_K: Tensor | None) -> None:
    """Write what training needs of weight normalization beside an encoder, whose weight is a plain one."""
    if direction_norm_K is not None:
        with atomic_write(folder / DIRECTION_NORM) as temporary:
            temporary.write_bytes(save({"direction_norm": direction_norm_K.cpu().contiguous()}))


def _apart(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The encoder's weights under its own names, and those of the head."""
    prefix = "skill_speech.encoder." if any(name.startswith("skill_speech.") for name in weights) else "encoder."
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    return own, {name: tensor for name, tensor in weights.items() if not name.startswith(prefix)}
