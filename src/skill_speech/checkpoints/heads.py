"""Heads out of files: of Transformers' checkpoints, of skill-speech, and what else belongs to a fine-tuned model."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encoder import EncoderConfig
from ..errors import InputError
from ..files import read_json
from ..heads import AdapterConfig, Head, HeadConfig, TDNNConfig, make_head
from .weights import check, read_weights, without_memory

logger = logging.getLogger(__name__)

# Files of tokenizers and feature extractors; nothing of them is ever executed.
FILES = (
    "vocab.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "preprocessor_config.json",
    "processor_config.json",
)
MAX_FILE = 64 * 2**20
"""Bytes of such a file; a tokenizer of many languages has a few million."""

# What pre-training has on top, by the first part of its name: of no use to a fine-tuned model.
PRE_TRAINING = {
    *("quantizer", "project_q", "project_hid", "dropout_features", "final_proj", "label_embs_concat"),
    *("ctc_proj", "speaker_proj", "label_embeddings_concat", "layer_norm_for_extract", "masked_spec_embed"),
}
WITH_HEADS = ("ForCTC", "ForSequenceClassification", "ForAudioFrameClassification", "ForXVector")
PROBLEMS = {
    "single_label_classification": "single-label",
    "multi_label_classification": "multi-label",
    "regression": "regression",
}
LANGUAGE = re.compile(r"[\w-]+")


def read_head(
    values: Mapping[str, Any], weights: Mapping[str, Tensor], encoder: EncoderConfig, source: str
) -> Head | None:
    """The head that Transformers' configuration and weights describe, None if there is none.

    Args:
        values: config.json.
        weights: all that is not the encoder's, with "adapter." in front of what stands between encoder and head.
        encoder: the encoder's configuration.
        source: for messages.

    Raises:
        InputError: a head of a known kind whose configuration and weights do not fit.
    """
    names = {name: tensor for name, tensor in weights.items() if name.split(".")[0] not in PRE_TRAINING}
    kind = _kind(names)
    if kind is None:
        if names:
            parts = sorted({name.split(".")[0] for name in names})
            logger.warning("warning: %s: its head is of an unknown kind and is left out: %s", source, ", ".join(parts))
        return None
    try:
        config = _config(kind, values, names)
        with without_memory():
            empty = make_head(config, encoder)
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{source}: config.json does not describe a valid {kind} head ({reason})") from None
    kept = {name: tensor for name, tensor in names.items() if name in empty.state_dict()}
    if "objective.weight" in empty.state_dict():  # Transformers has it, files from elsewhere may not
        kept.setdefault("objective.weight", torch.zeros(config.embedding, config.outputs))
    left = sorted(set(names) - set(kept))
    if left:
        raise InputError(f"{source}: its configuration does not match the head's weight {left[0]}")
    return _fill(config, encoder, kept, source)


def warn_of_missing(values: Mapping[str, Any], head: Head | None, source: str) -> None:
    """Say that a model is stated to have a head which is not in its weights."""
    stated = values.get("architectures")
    named = stated[0] if isinstance(stated, list) and stated and isinstance(stated[0], str) else ""
    if head is None and named.endswith(WITH_HEADS):
        logger.warning("warning: %s: a %s by its config.json, but its weights have no head", source, named)


def read_own_head(folder: Path, encoder: EncoderConfig) -> Head | None:
    """The head that `SpeechModel.save_pretrained` wrote beside an encoder, None if there is none.

    Raises:
        InputError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    path = folder / "head.json"
    if not path.is_file():
        if (folder / "head.safetensors").is_file():
            raise InputError(f"{folder}: head.safetensors is there, head.json is not; get a fresh copy, or remove both")
        return None
    try:
        config = HeadConfig.from_dict(read_json(path, MAX_FILE))
        with without_memory():
            make_head(config, encoder)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: {(str(error).splitlines() or [''])[0]}") from None
    weights = folder / "head.safetensors"
    if not weights.is_file():
        raise InputError(f"{folder}: head.json is there, head.safetensors is not")
    return _fill(config, encoder, read_weights(weights), str(weights))


def read_files(find: Callable[[str], Path | None]) -> dict[str, bytes]:
    """What else belongs to a model, by name.

    Raises:
        InputError: a file is not a JSON object, or too large to be one.
    """
    found = {}
    for name in FILES:
        path = find(name)
        if path is not None:
            read_json(path, MAX_FILE)
            found[name] = path.read_bytes()
    return found


def texts_of(texts: Mapping[Any, Any], source: str) -> dict[str, bytes]:
    """What else belongs to a model, where its files stand as texts in another one.

    Raises:
        InputError: one is not a JSON object.
    """
    found = {}
    for name in FILES:
        if name in texts:
            try:
                found[name] = str(texts[name]).encode()
                fits = isinstance(json.loads(found[name]), dict)
            except (ValueError, RecursionError):
                fits = False
            if not fits:
                raise InputError(f"{source}: {name} in it is not a JSON object")
    return found


def read_language(find: Callable[[str], Path | None], language: str, source: str) -> dict[str, Tensor]:
    """The weights of one language of a model with an adapter for each (MMS).

    Raises:
        InputError: there is none for that language.
    """
    for ending in ("safetensors", "bin"):
        path = find(f"adapter.{language}.{ending}") if LANGUAGE.fullmatch(language) else None
        if path is not None:
            return read_weights(path)
    raise InputError(f"{source}: no adapter for target_lang {language!r} there (adapter.{language}.safetensors)")


def of_language(files: Mapping[str, bytes], language: str | None, source: str) -> dict[str, bytes]:
    """A tokenizer's files for one of the languages that its vocabulary has; as they are where it has one.

    Raises:
        InputError: the vocabulary does not have the language.
    """
    if "vocab.json" not in files:
        return dict(files)
    vocabulary = json.loads(files["vocab.json"])
    if not vocabulary or not all(isinstance(value, dict) for value in vocabulary.values()):
        return dict(files)
    settings = json.loads(files.get("tokenizer_config.json", b"{}"))
    language = language or settings.get("target_lang") or "eng"
    if language not in vocabulary:
        raise InputError(f"{source}: vocab.json has no entry for target_lang {language!r}")
    settings["target_lang"] = None
    as_bytes = {"vocab.json": vocabulary[language], "tokenizer_config.json": settings}
    return {
        **files,
        **{name: (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode() for name, value in as_bytes.items()},
    }


def check_vocabulary(head: Head | None, files: Mapping[str, bytes], source: str) -> None:
    """See that a CTC head has an output for every token.

    Raises:
        InputError: it has not.
    """
    if head is None or head.config.kind != "ctc" or "vocab.json" not in files:
        return
    tokens = json.loads(files["vocab.json"])
    for token, number in tokens.items():
        if type(number) is not int or not 0 <= number < head.config.outputs:
            raise InputError(
                f"{source}: vocab.json gives the token {token!r} the number {number!r:.40}; the CTC head has "
                f"{head.config.outputs} outputs: the vocabulary is another model's"
            )


def _fill(config: HeadConfig, encoder: EncoderConfig, weights: dict[str, Tensor], source: str) -> Head:
    with without_memory():
        empty = make_head(config, encoder)
    check(empty, weights, source)
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{source}: the weight {name} has numbers that are not finite; the file is unusable")
    head = make_head(config, encoder)
    head.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    return head.eval()


def _kind(names: Mapping[str, Tensor]) -> str | None:
    has = {name.rpartition(".")[0] for name in names}
    if "lm_head" in has:
        return "ctc"
    if "tdnn.0.kernel" in has:
        return "x-vector"
    if "classifier" in has:
        return "sequence" if "projector" in has else "frame"
    return None


def _config(kind: str, values: Mapping[str, Any], weights: Mapping[str, Tensor]) -> HeadConfig:
    """Ours, from Transformers' values and the shapes of the weights.

    Raises:
        ValueError: they do not make one.
    """
    from transformers import Wav2Vec2Config

    defaults = Wav2Vec2Config()

    def take(name: str) -> Any:
        value = values.get(name)
        return getattr(defaults, name) if value is None else value

    outputs = _rows(weights, "lm_head.weight" if kind == "ctc" else "classifier.weight")
    if kind == "x-vector":
        shape = weights["objective.weight"].shape if "objective.weight" in weights else ()
        outputs = shape[1] if len(shape) == 2 else _num_labels(values)
    return HeadConfig(
        kind=kind,
        outputs=outputs,
        labels=() if kind == "ctc" else _labels(values, outputs),
        problem=_problem(values, kind, outputs),
        blank=take("pad_token_id") if kind == "ctc" else 0,
        weighted_layer_sum=kind != "ctc" and bool(take("use_weighted_layer_sum")),
        projection=_rows(weights, "projector.weight") if "projector.weight" in weights else 256,
        tdnn=_tdnn(take("tdnn_dim"), take("tdnn_kernel"), take("tdnn_dilation")) if kind == "x-vector" else (),
        embedding=_rows(weights, "feature_extractor.weight") if kind == "x-vector" else 512,
        adapter=_adapter(values, take) if values.get("add_adapter") else None,
        dropout=take("final_dropout") if kind == "ctc" else 0.0,
    )


def _rows(weights: Mapping[str, Tensor], name: str) -> int:
    shape = weights[name].shape if name in weights else ()
    if len(shape) != 2:
        raise ValueError(f"{name} has the shape {tuple(shape)}; it must be a matrix")
    return shape[0]


def _adapter(values: Mapping[str, Any], take: Callable[[str], Any]) -> AdapterConfig:
    width = values.get("output_hidden_size") or values.get("hidden_size") or take("hidden_size")
    return AdapterConfig(take("num_adapter_layers"), width, take("adapter_kernel_size"), take("adapter_stride"))


def _tdnn(*lists: Any) -> tuple[TDNNConfig, ...]:
    if not all(isinstance(values, list | tuple) for values in lists) or len({len(values) for values in lists}) > 1:
        raise ValueError("tdnn_dim, tdnn_kernel and tdnn_dilation are not lists of equal length")
    return tuple(TDNNConfig(*layer) for layer in zip(*lists, strict=True))


def _num_labels(values: Mapping[str, Any]) -> int:
    named = values.get("id2label")
    return len(named) if isinstance(named, dict) and named else int(values.get("num_labels", 2))


def _labels(values: Mapping[str, Any], outputs: int) -> tuple[str, ...]:
    """The outputs' names in their order; none where no output is named."""
    named = values.get("id2label")
    if not isinstance(named, dict) and isinstance(values.get("label2id"), dict):
        named = {number: label for label, number in values["label2id"].items()}
    if not isinstance(named, dict) or not named:
        return ()
    by_number = {str(number): label for number, label in named.items() if label is not None}
    # What has no name gets Transformers' own for it.
    return tuple(str(by_number.get(str(number), f"LABEL_{number}")) for number in range(outputs))


def _problem(values: Mapping[str, Any], kind: str, outputs: int) -> str:
    stated = values.get("problem_type")
    if stated is not None and stated not in PROBLEMS:
        raise ValueError(f"problem_type is {stated!r:.40}; it must be one of {', '.join(PROBLEMS)}")
    if stated is not None and kind in ("sequence", "frame"):
        return PROBLEMS[stated]
    if kind == "frame":  # several speakers at a time, in the models that there are
        return "multi-label"
    return "regression" if kind == "sequence" and outputs == 1 else "single-label"
