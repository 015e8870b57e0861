"""Our own format: config.json and model.safetensors, what `Encoder.save_pretrained` writes.

Also the same encoder as a Transformers model, exported and perhaps fine-tuned since: there config.json has more keys,
and the names of the weights have a prefix.
"""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encoder import Encoder, EncoderConfig
from ..errors import InputError
from .weights import build, read_weights

MODEL_TYPE = "skill-speech"


def is_native(folder: Path) -> bool:
    """Whether the folder's config.json says that it is ours."""
    return (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") == MODEL_TYPE


def load_native(folder: Path, dtype: torch.dtype = torch.float32) -> Encoder:
    """The encoder in a folder that `Encoder.save_pretrained` or a skill-speech model of Transformers wrote, in `dtype`.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    values = read_json(folder / "config.json")
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


def _without_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's weights under its own names."""
    prefix = "skill_speech.encoder." if any(name.startswith("skill_speech.") for name in weights) else "encoder."
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: the file cannot be read or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: holds no JSON object")
    return values
