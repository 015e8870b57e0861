"""Checkpoints that are one file: which format it is, and its encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import InputError
from .checkpoint import Checkpoint
from .fairseq import load_fairseq
from .fairseq2 import is_fairseq2, load_fairseq2
from .hugging_face import FIRST, load_transformers, refuse_language
from .model_files import ModelFiles
from .pickles import Record
from .speechbrain import is_speechbrain, load_speechbrain
from .torchaudio import find_encoder, load_torchaudio
from .weights import as_state_dict, read_file

KNOWN = "files of DPHuBERT, DiariZen, TorchAudio, fairseq, fairseq2, WavLM and s3prl"
# Under which names training code keeps the weights in its checkpoints: Lightning the first, DeepSpeed the last.
WEIGHTS = ("state_dict", "model_state_dict", "model", "module")


def load_file(path: Path, language: str | None = None) -> Checkpoint:
    """The encoder in a file, whatever of the known formats it is in.

    Args:
        path: of the file.
        language: of a model that has adapters for many; None for the one that its weights have.

    Raises:
        InputError: damaged, with code in it, of an unknown format, or without that language.
    """
    source, content = str(path), read_file(path)
    if isinstance(content, Record):
        raise InputError(f"{path}: holds an object of {content.name}, not its weights; save its state_dict() instead")
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds a {type(content).__name__}, not a checkpoint; supported: {KNOWN}")
    inner = next((content[name] for name in WEIGHTS if isinstance(content.get(name), dict)), None)
    if _is_fairseqs(content, inner):
        checkpoint = load_fairseq(content, source)
    else:
        weights = as_state_dict(content if inner is None else inner, source)
        beside = ModelFiles(str(path.parent))
        if is_transformers(weights) and is_speechbrain(beside):
            return load_speechbrain(beside, weights, source, language)
        if is_transformers(weights) and beside.find("config.json"):
            return load_transformers(beside, source, weights, language)
        if is_fairseq2(weights):
            checkpoint = load_fairseq2(weights, source)
        elif find_encoder(weights) is not None:
            config = None if inner is None else content.get("config")
            checkpoint = load_torchaudio(weights, config, content.get("skill_speech"), source)
        else:
            raise InputError(f"{path}: {_what_it_is(weights)}")
    refuse_language(language, checkpoint.encoder.config, source)
    return checkpoint


def is_transformers(weights: Any) -> bool:
    """Whether weights are named as in Transformers, whatever stands in front of the names."""
    return any(str(name).endswith(FIRST) for name in weights) and find_encoder(weights) is None


def _is_others(weights: dict[Any, Any]) -> bool:
    return is_transformers(weights) or is_fairseq2(weights) or find_encoder(weights) is not None


def _is_fairseqs(content: dict[Any, Any], weights: Any) -> bool:
    """Whether a file has the parts of fairseq's or s3prl's; other training code has "model" and "args", too."""
    if "model_weight" in content or "Distiller" in content:
        return True
    others = isinstance(weights, dict) and _is_others(weights)
    return "model" in content and ("cfg" in content or "args" in content) and not others


def _what_it_is(weights: Any) -> str:
    """Why weights that look like something cannot be loaded, and what to do."""
    names = [name for name in weights if isinstance(name, str)] if isinstance(weights, dict) else []
    if any(name.endswith("feature_extractor.conv_layers.0.0.weight") for name in names):
        return "weights of fairseq without its configuration; give the file that fairseq wrote, with cfg or args"
    if any(name.endswith("feature_extractor.conv_layers.0.conv.weight") for name in names):
        return "weights of Transformers without a configuration; put it next to its config.json"
    if names and all(isinstance(weight, Tensor) for weight in weights.values()):
        return f"weights of no known speech encoder ({names[0]}, …); supported: {KNOWN}"
    return f"not a known checkpoint; supported: {KNOWN}"
