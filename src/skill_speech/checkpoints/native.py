"""Our own format: config.json and model.safetensors, what `Encoder.save_pretrained` writes.

Also the same encoder as a Transformers model, exported and perhaps fine-tuned since: there config.json has more keys,
and the names of the weights have a prefix.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..encoder import Encoder, EncoderConfig
from ..errors import InputError
from ..files import atomic_write, read_json
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


def load_native(folder: Path, dtype: torch.dtype = torch.float32) -> Encoder:
    """The encoder in a folder that `Encoder.save_pretrained` or a skill-speech model of Transformers wrote, in `dtype`.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    values = read_json(folder / "config.json", MAX_CONFIG)
    values.pop("model_type", None)
    transformers = "transformers_version" in values
    if transformers:
        values = {field.name: values[field.name] for field in fields(EncoderConfig) if field.name in values}
    try:
        config = EncoderConfig.from_dict(values)
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from None
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"{folder}: config.json is there, model.safetensors is not")
    found = read_weights(weights, dtype)
    return build(config, _without_head(found) if transformers else found, str(weights), dtype)


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
        raise InputError(f"{path}: damaged (not one norm for each tap of the positional convolution); get it again")
    return norm_K.float()


def save_direction_norm(folder: Path, direction_norm_K: Tensor | None) -> None:
    """Write what training needs of weight normalisation beside an encoder, whose weight is a plain one."""
    if direction_norm_K is not None:
        with atomic_write(folder / DIRECTION_NORM) as temporary:
            temporary.write_bytes(save({"direction_norm": direction_norm_K.cpu().contiguous()}))


def _without_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights under its own names."""
    prefix = "skill_speech.encoder." if any(name.startswith("skill_speech.") for name in weights) else "encoder."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
