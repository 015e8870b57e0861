"""Encoders that SpeechBrain has fine-tuned: weights of a Transformers model, saved by its wrapper of them.

Beside the weights (wav2vec2.ckpt, named as in the model with "model." in front) stands hyperparams.yaml, which names
the Transformers model that the wrapper was made of: its configuration is the encoder's.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..encoder import Encoder
from ..errors import InputError
from ..yaml_values import refuse_repetition
from .checkpoint import Checkpoint
from .hugging_face import load_transformers
from .model_files import ModelFiles
from .torchaudio import INPUT_NORM_EPS

HYPERPARAMS = "hyperparams.yaml"
# What the recipes call the encoder.
WEIGHTS = ("wav2vec2.ckpt", "hubert.ckpt", "wavlm.ckpt", "ssl_model.ckpt")
# The wrappers' classes, as today and before version 1.0.
WRAPPER = re.compile(
    r"!new:speechbrain\.(integrations|lobes)\.[\w.]*(hugging_?face)[\w.]*\.(HuggingFace)?(wav2vec2(Pretrain)?|hubert|wavlm)",
    re.IGNORECASE,
)
REFERENCE = re.compile(r"<([\w.]+)>")


def is_speechbrain(files: ModelFiles) -> bool:
    """Whether SpeechBrain's hyperparams.yaml is there."""
    return files.find(HYPERPARAMS) is not None


def find_weights(files: ModelFiles) -> Path:
    """The encoder's weights in a folder of SpeechBrain.

    Raises:
        InputError: there are none under a name that its recipes use.
    """
    found = next((path for path in map(files.find, WEIGHTS) if path is not None), None)
    if found is None:
        raise InputError(
            f"{files.source}: a folder of SpeechBrain without {', '.join(WEIGHTS)}; give the encoder's file"
        )
    return found


def load_speechbrain(
    files: ModelFiles, weights: dict[Any, Any], source: str, language: str | None = None
) -> Checkpoint:
    """The encoder of a wrapper's weights.

    Args:
        files: of the folder with hyperparams.yaml; a config.json there goes before the model that is named.
        weights: as the wrapper saved them.
        source: of the weights, for messages.
        language: of a model that has adapters for many; None for the one that its weights have.

    Raises:
        InputError: no wrapper of Transformers in hyperparams.yaml, or its model cannot be found.
    """
    settings = files
    if "model_type" not in (files.read("config.json") or {}):
        named = wrapped_model(files)
        try:
            settings = ModelFiles(named)
            settings.config()
        except InputError as error:
            raise InputError(
                f"{source}: the configuration of {named}, which {HYPERPARAMS} names, cannot be found ({error}); put "
                "its config.json and preprocessor_config.json next to it"
            ) from None
    checkpoint = load_transformers(settings, source, weights, language)
    encoder = checkpoint.encoder
    # SpeechBrain normalizes waveforms itself.
    config = encoder.config.replace(input_norm_eps=INPUT_NORM_EPS)
    encoder = Encoder.of(config, encoder.state_dict()).eval()
    return replace(checkpoint, encoder=encoder, format="SpeechBrain")


def wrapped_model(files: ModelFiles) -> str:
    """The hub ID or folder that hyperparams.yaml gives its wrapper of Transformers; nothing of the file is constructed.

    Raises:
        InputError: the file cannot be read, or has no such wrapper.
    """
    path = files.find(HYPERPARAMS)
    assert path is not None
    try:
        text = path.read_text(encoding="utf-8")
        refuse_repetition(text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: cannot be read as YAML ({(str(error).splitlines() or [''])[0]})") from None
    values = _mapping(root)
    for node in values.values():
        if WRAPPER.fullmatch(node.tag):
            source = _mapping(node).get("source")
            found = _resolved(source, values) if isinstance(source, yaml.ScalarNode) else ""
            if found:
                return found
    raise InputError(f"{path}: does not name the Transformers model that it wraps; put its config.json next to it")


def _mapping(node: Any) -> dict[str, Any]:
    """The values of a mapping by name, as nodes; nothing for another node."""
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}


def _resolved(node: yaml.ScalarNode, values: dict[str, Any]) -> str:
    """A text with its references ("!ref <name>") replaced by what has those names; "" if one is no text."""
    if node.tag != "!ref":
        return node.value
    parts = [values.get(name) for name in REFERENCE.findall(node.value)]
    if not all(isinstance(part, yaml.ScalarNode) and part.tag != "!ref" for part in parts):
        return ""
    return REFERENCE.sub(lambda match: values[match[1]].value, node.value)
