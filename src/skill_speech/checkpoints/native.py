"""Our own format: config.json and model.safetensors, what `Encoder.save_pretrained` writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..encoder import Encoder, EncoderConfig
from ..errors import InputError
from .weights import build, read_weights

MODEL_TYPE = "skill-speech"


def is_native(folder: Path) -> bool:
    """Whether the folder's config.json says that it is ours."""
    return (folder / "config.json").is_file() and read_json(folder / "config.json").get("model_type") == MODEL_TYPE


def load_native(folder: Path) -> Encoder:
    """The encoder in a folder that `Encoder.save_pretrained` wrote.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    values = read_json(folder / "config.json")
    values.pop("model_type", None)
    try:
        config = EncoderConfig.from_dict(values)
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from None
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise InputError(f"{folder}: config.json is there, model.safetensors is not")
    return build(config, read_weights(weights), str(weights))


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
