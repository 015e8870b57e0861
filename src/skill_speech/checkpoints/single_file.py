"""Checkpoints that are one file: which format it is, and its encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from .checkpoint import Checkpoint
from .fairseq import load_fairseq
from .pickles import Record
from .torchaudio import find_encoder, load_torchaudio
from .weights import as_state_dict, read_file

KNOWN = "files of DPHuBERT, DiariZen, TorchAudio, fairseq, WavLM and s3prl"


def load_file(path: Path) -> Checkpoint:
    """The encoder in a file, whatever of the known formats it is in.

    Raises:
        InputError: damaged, with code in it, or of an unknown format.
    """
    source, content = str(path), read_file(path)
    if isinstance(content, Record):
        raise InputError(f"{path}: holds an object of {content.name}, not its weights; save its state_dict() instead")
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a checkpoint; known are {KNOWN}")
    if "model_weight" in content or ("model" in content and ("cfg" in content or "args" in content)):
        return load_fairseq(content, source)
    weights = content.get("state_dict", content)
    config = content.get("config") if weights is not content else None
    if isinstance(weights, dict):
        weights = as_state_dict(weights, source)
    if isinstance(weights, dict) and find_encoder(weights) is not None:
        return load_torchaudio(weights, config, content.get("skill_speech"), source)
    raise InputError(f"{path}: {_what_it_is(weights)}")


def _what_it_is(weights: Any) -> str:
    """Why weights that look like something cannot be loaded, and what to do."""
    names = [name for name in weights if isinstance(name, str)] if isinstance(weights, dict) else []
    if any(name.endswith("feature_extractor.conv_layers.0.0.weight") for name in names):
        return "weights of fairseq without its configuration; give the file that fairseq wrote, with cfg or args"
    if any(name.endswith("feature_extractor.conv_layers.0.conv.weight") for name in names):
        return "weights of Transformers without a configuration; put it beside its config.json and give the folder"
    if names and all(isinstance(weight, Tensor) for weight in weights.values()):
        return f"weights of no known speech encoder ({names[0]}, …); known are {KNOWN}"
    return f"not a known checkpoint; known are {KNOWN}"
