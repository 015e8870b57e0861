"""Encoders out of Transformers checkpoints: configuration, preprocessor and weights of the wav2vec 2.0 family."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encoder import ConvConfig, EncoderConfig, full_layers
from ..encoder.config import check_value
from ..errors import InputError
from .checkpoint import Checkpoint
from .heads import FILES, check_vocabulary, of_language, read_files, read_head, read_language, warn_of_missing
from .model_files import ModelFiles
from .native import MODEL_TYPE, load_native
from .weights import MERGE, StateDict, build, read_weights

# Transformers' model_type and the prefix under which a model with a head keeps its encoder.
PREFIXES = {
    "hubert": "hubert.",
    "wavlm": "wavlm.",
    "wav2vec2": "wav2vec2.",
    "unispeech": "unispeech.",
    "unispeech-sat": "unispeech_sat.",
    "data2vec-audio": "data2vec_audio.",
    "mert_model": "mert_model.",
}
# What code outside of Transformers computes as one of its own.
SAME_NETWORK = {"mert_model": "hubert"}
CONFORMER = (
    "they would need two feed-forward modules, a convolution module and relative or rotary positions in each layer"
)
# What is not supported, and what it would need.
UNSUPPORTED = {
    "wav2vec2-conformer": f"its layers are Conformer layers: {CONFORMER}",
    "wav2vec2-bert": f"its input are log-mel features, and its layers are Conformer layers: {CONFORMER}",
}
# Options that make another network of a known one; only MERT has them.
OPTIONS = {
    "feature_extractor_cqt": "a constant-Q transform beside the convolutions' output",
    "deepnorm": "scaled residual connections",
}

SHARD = re.compile(r"[\w-][\w.-]*")
# Our name of a value and theirs, for all that are the same in both.
NAMES = {
    "hidden_size": "hidden_size",
    "num_heads": "num_attention_heads",
    "conv_norm": "feat_extract_norm",
    "conv_bias": "conv_bias",
    "conv_activation": "feat_extract_activation",
    "activation": "hidden_act",
    "feature_norm": "feat_proj_layer_norm",
    "pre_norm": "do_stable_layer_norm",
    "positional_kernel": "num_conv_pos_embeddings",
    "positional_groups": "num_conv_pos_embedding_groups",
    "positional_affine": "conv_pos_batch_norm",
    "norm_eps": "layer_norm_eps",
    "hidden_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "activation_dropout": "activation_dropout",
    "feature_dropout": "feat_proj_dropout",
    "layer_dropout": "layerdrop",
}
# What a family calls otherwise, or has in place of a setting.
OF_FAMILY = {
    "wavlm": {"relative_buckets": "num_buckets", "relative_distance": "max_bucket_distance"},
    "data2vec-audio": {"positional_kernel": "conv_pos_kernel_size", "positional_depth": "num_conv_pos_embeddings"},
}
FIRST = "feature_extractor.conv_layers.0.conv.weight"
# What a weight of an encoder is called; what stands beside it belongs to heads and pre-training.
PARTS = ("encoder.", "feature_extractor.", "feature_projection.", "adapter.")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
CONVS = ("conv_dim", "conv_kernel", "conv_stride")
# Where Transformers keeps the settings of a feature extractor, in the order in which it looks.
EXTRACTORS = (("processor_config.json", "feature_extractor"), ("preprocessor_config.json", None))


def load_hugging_face(files: ModelFiles, dtype: torch.dtype = torch.float32, language: str | None = None) -> Checkpoint:
    """An encoder from a hub ID or a folder, with the head that was trained on it; a skill-speech one too, in `dtype`.

    Args:
        files: of the hub ID or the folder.
        dtype: of the weights of our own format.
        language: of a model that has adapters for many; None for the one that its weights have.

    Raises:
        InputError: nothing there, unknown architecture, weights that do not fit, a language that it does not have.
    """
    values = files.config()
    if values.get("model_type") == MODEL_TYPE:
        for name in ("head.json", "head.safetensors", *FILES):
            files.find(name)
        return load_native(_folder_of_ours(files), dtype, language)
    return load_transformers(files, files.source, language=language)


def load_transformers(
    files: ModelFiles, source: str, weights: Mapping[Any, Any] | None = None, language: str | None = None
) -> Checkpoint:
    """The encoder of weights under Transformers' names, with the head that was trained on it.

    Args:
        files: where the configuration is, and what else belongs to the model.
        source: of the weights, for messages.
        weights: of a bare encoder or of a model with a head, perhaps inside another module; None for those in `files`.
        language: as of `load_hugging_face`.

    Raises:
        InputError: as of `load_hugging_face`.
    """
    values = files.config()
    config, assumed = encoder_config(values, _extractor(files), files.source)
    theirs = _weights(files) if weights is None else weights
    if language is not None:
        refuse_language(language, config, source)
        theirs = {**theirs, **read_language(files.find, language, source)}
    inner, rest = _parts(theirs, PREFIXES[values["model_type"]], source)
    own = of_language(read_files(files.find), language, source)
    head = None
    if rest:
        rest |= {name: tensor for name, tensor in inner.items() if name.startswith("adapter.")}
        head = read_head(values, rest, config, source)
        check_vocabulary(head, own, source)
    else:
        warn_of_missing(values, head, source)
    if values.get("add_adapter") and head is None:
        raise InputError(
            f"{source}: add_adapter in its config.json is not supported without a head of a known kind that reads it; "
            "use the model without the adapter"
        )
    named = StateDict(inner, source)
    converted = dict(convert_weights(named, config))
    parts = PARTS if head is None else tuple(part for part in PARTS if part != "adapter.")
    left = [name for name in named.left() if name.startswith(parts) and not name.endswith("num_batches_tracked")]
    if left:
        raise InputError(f"{source}: its configuration does not match the weight {left[0]}")
    encoder, norm_K = build(config, converted, source).eval(), direction_norm(named, config)
    return Checkpoint(encoder, "Transformers", assumed, norm_K, head, own)


def _parts(weights: Mapping[Any, Any], prefix: str, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The weights of the encoder, and those of what stands on it, by the names that both have in their model.

    The model may be a part of another module ("model." in one of Lightning or SpeechBrain), whose other parts are left
    out.
    """
    weights = {name: tensor for name, tensor in weights.items() if isinstance(name, str)}
    places = [name.removesuffix(FIRST) for name in weights if name.endswith(FIRST)]
    if len(places) > 1:
        raise InputError(f"{source}: several encoders in it, {', '.join(places[:3])}; keep the weights of one of them")
    place = places[0] if places else ""
    inner = {name.removeprefix(place): tensor for name, tensor in weights.items() if name.startswith(place)}
    if not f".{place}".endswith(f".{prefix}"):
        return inner, {}
    outer = place.removesuffix(prefix)
    names = [name for name in weights if name.startswith(outer) and not name.startswith(place)]
    return inner, {name.removeprefix(outer): weights[name] for name in names}


def refuse_language(language: str | None, config: EncoderConfig, source: str) -> None:
    """Raise InputError for a language where there are no adapters for languages."""
    if language is not None and not config.language_adapter:
        raise InputError(f"{source}: target_lang is {language!r}, and this model has no adapters for languages")


def refuse_adapter(files: ModelFiles) -> None:
    """Raise InputError for a folder of PEFT, which holds an adapter and at most names its model."""
    if files.find("adapter_config.json"):
        raise InputError(f"{files.source}: an adapter (adapter_config.json), not a whole model; {MERGE}")


def _folder_of_ours(files: ModelFiles) -> Path:
    """Where the files of a skill-speech model are, once they are here."""
    config, weights = files.find("config.json"), files.find("model.safetensors")
    if config is None or weights is None:
        raise InputError(f"{files.source}: config.json is there, model.safetensors is not")
    return config.parent


def encoder_config(
    values: dict[str, Any], extractor: dict[str, Any] | None, source: str
) -> tuple[EncoderConfig, tuple[str, ...]]:
    """Our configuration from Transformers' config.json and its feature extractor's, and what had to be assumed for it.

    Raises:
        InputError: an architecture, or an option of a known one, that the encoder does not have; a value of the wrong
            type or out of range.
    """
    from transformers import CONFIG_MAPPING

    kind = values.get("model_type")
    if isinstance(kind, str) and kind in UNSUPPORTED:
        raise InputError(f"{source}: {kind} is not supported; {UNSUPPORTED[kind]}")
    if not isinstance(kind, str) or kind not in PREFIXES:
        raise InputError(f"{source}: unknown architecture {kind!r}; supported: {', '.join(sorted(PREFIXES))}")
    for name, what in OPTIONS.items():
        if values.get(name):
            raise InputError(f"{source}: {name} in its config.json is not supported; it is {what}")
    family = SAME_NETWORK.get(kind, kind)
    defaults = CONFIG_MAPPING[family]()  # of nothing that the file says

    def take(theirs: str) -> Any:
        return values.get(theirs, getattr(defaults, theirs))

    def taken(ours: str, theirs: str) -> Any:
        check_value(ours, take(theirs), theirs)
        return take(theirs)

    # Transformers has them in pre-norm layers alone, whatever is written.
    adapts = values.get("adapter_attn_dim") is not None and bool(values.get("do_stable_layer_norm"))
    names = {ours: theirs for ours, theirs in NAMES.items() if hasattr(defaults, theirs)} | OF_FAMILY.get(family, {})
    try:
        common = {ours: taken(ours, theirs) for ours, theirs in names.items()}
        if family == "data2vec-audio":  # its front end has layer norms only, and its configuration does not say so
            common["conv_norm"] = "layer"
        extractor = extractor or {}
        normalize, assumed = _normalization(extractor, common["conv_norm"])
        depth, units = taken("depth", "num_hidden_layers"), taken("units", "intermediate_size")
        config = EncoderConfig(
            **common,
            family=family,
            convs=_convs(*map(take, CONVS)),
            layers=full_layers(depth, common["num_heads"], units),
            input_normalization=normalize,
            sampling_rate=extractor.get("sampling_rate", values.get("sample_rate", 16_000)),
            language_adapter=taken("language_adapter", "adapter_attn_dim") if adapts else 0,
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{source}: config.json does not describe a valid encoder ({error})") from None
    return config, assumed


def _convs(*values: Any) -> tuple[ConvConfig, ...]:
    """The front end's convolutions, of the lists of channels, kernels and strides."""
    for name, value in zip(CONVS, values, strict=True):
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} is {value!r:.60}; it must be a list of numbers")
    if len({len(value) for value in values}) > 1:
        raise ValueError(f"{', '.join(CONVS)} are not of equal length")
    return tuple(ConvConfig(*shape) for shape in zip(*values, strict=True))


def _normalization(extractor: dict[str, Any], conv_norm: str) -> tuple[bool, tuple[str, ...]]:
    """Whether waveforms are normalized first, and what to say where no file states it."""
    if "do_normalize" in extractor:
        check_value("input_normalization", extractor["do_normalize"], "do_normalize")
        return extractor["do_normalize"], ()
    usual = conv_norm == "layer"
    files = " nor ".join(name for name, _ in reversed(EXTRACTORS))
    return usual, (
        f"waveforms {'to be' if usual else 'not'} normalized, as is usual with {conv_norm} norms in the front end: "
        f"neither {files} states do_normalize, and all outputs depend on it",
    )


def convert_weights(theirs: StateDict, config: EncoderConfig) -> Iterator[tuple[str, Tensor]]:
    """Our names and tensors for the state dict of an encoder.

    Raises:
        InputError: a weight that the configuration asks for is missing.
    """
    for ours, name in weight_names(config):
        yield ours, theirs[name]
    yield from _positional_conv(theirs, config)
    for number, layer in enumerate(config.layers):
        if config.relative_buckets and layer.heads:
            const = theirs[f"encoder.layers.{number}.attention.gru_rel_pos_const"]
            yield f"layers.{number}.attention.position_gate_const", const.flatten()


def weight_names(config: EncoderConfig) -> Iterator[tuple[str, str]]:
    """Pairs of our name and Transformers' name, for all weights that are the same tensor in both."""

    def both(ours: str, theirs: str, bias: bool = True) -> Iterator[tuple[str, str]]:
        yield f"{ours}.weight", f"{theirs}.weight"
        if bias:
            yield f"{ours}.bias", f"{theirs}.bias"

    for number in range(len(config.convs)):
        theirs = f"feature_extractor.conv_layers.{number}"
        yield from both(f"convs.{number}.conv", f"{theirs}.conv", config.conv_bias)
        if config.conv_norm == "layer" or number == 0:
            yield from both(f"convs.{number}.norm", f"{theirs}.layer_norm")
    if config.feature_norm:
        yield from both("projection.norm", "feature_projection.layer_norm")
    yield from both("projection.projection", "feature_projection.projection")
    yield from both("norm", "encoder.layer_norm")
    if config.relative_buckets:
        yield from both("position_bias.embedding", "encoder.layers.0.attention.rel_attn_embed", bias=False)
    for number, layer in enumerate(config.layers):
        ours, theirs = f"layers.{number}", f"encoder.layers.{number}"
        for mine, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "out_proj")):
            yield from both(f"{ours}.attention.{mine}", f"{theirs}.attention.{name}")
        if config.relative_buckets and layer.heads:
            yield from both(f"{ours}.attention.position_gate", f"{theirs}.attention.gru_rel_pos_linear")
        yield from both(f"{ours}.attention_norm", f"{theirs}.layer_norm")
        yield from both(f"{ours}.feed_forward.input", f"{theirs}.feed_forward.intermediate_dense")
        yield from both(f"{ours}.feed_forward.output", f"{theirs}.feed_forward.output_dense")
        yield from both(f"{ours}.feed_forward_norm", f"{theirs}.final_layer_norm")
        if config.language_adapter:
            for mine, name in (("norm", "norm"), ("input", "linear_1"), ("output", "linear_2")):
                yield from both(f"{ours}.adapter.{mine}", f"{theirs}.adapter_layer.{name}")


def _positional_conv(theirs: StateDict, config: EncoderConfig) -> Iterator[tuple[str, Tensor]]:
    root = "encoder.pos_conv_embed"
    for number in range(config.positional_depth):
        for kind in ("weight", "bias"):
            yield f"positional_conv.convs.{number}.{kind}", theirs[f"{root}.layers.{number}.conv.{kind}"]
    if config.positional_depth:
        return
    yield "positional_conv.convs.0.bias", theirs[f"{root}.conv.bias"]
    if config.positional_affine:
        # A batch norm in evaluation is one scale and one shift per channel.
        parts = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, variance = (theirs[f"{root}.batch_norm.{part}"] for part in parts)
        if any(tensor.shape != (config.hidden_size,) for tensor in (weight, bias, mean, variance)):
            raise InputError(f"{theirs.source}: the batch norm of the positional convolution has a different width")
        scale = weight * torch.rsqrt(variance + 1e-5)
        yield "positional_conv.input_scale", scale
        yield "positional_conv.input_shift", bias - mean * scale
        yield "positional_conv.convs.0.weight", theirs[f"{root}.conv.weight"]
        return
    magnitude_11K, direction_DCK = _magnitude_and_direction(theirs)
    if direction_DCK.ndim != 3 or magnitude_11K.shape != (1, 1, direction_DCK.shape[2]):
        shapes = f"{tuple(magnitude_11K.shape)} and {tuple(direction_DCK.shape)}"
        raise InputError(f"{theirs.source}: the weights of the positional convolution have the shapes {shapes}")
    yield "positional_conv.convs.0.weight", fold_weight_norm(magnitude_11K, direction_DCK)


def direction_norm(theirs: StateDict, config: EncoderConfig) -> Tensor | None:
    """‖v‖ (K,) of an encoder's positional convolution, where it is kept under weight normalization."""
    if not config.positional_weight_norm:
        return None
    return torch.norm_except_dim(_magnitude_and_direction(theirs)[1], 2, 2).flatten()


def _magnitude_and_direction(theirs: StateDict) -> tuple[Tensor, Tensor]:
    conv = "encoder.pos_conv_embed.conv"
    names = "weight_g", "weight_v"  # written by torch < 2.0 and by most checkpoints on the hub
    if f"{conv}.weight_g" not in theirs:
        names = "parametrizations.weight.original0", "parametrizations.weight.original1"
    magnitude_11K, direction_DCK = (theirs[f"{conv}.{name}"].float() for name in names)
    return magnitude_11K, direction_DCK


def fold_weight_norm(magnitude_11K: Tensor, direction_DCK: Tensor) -> Tensor:
    """The weight (D, C, K) of a convolution that is kept as a direction and a magnitude per step of its kernel."""
    own_11K = torch.norm_except_dim(direction_DCK, 2, 2)
    # A weight that was split to be written is its own direction, and comes back to the bit.
    if torch.allclose(magnitude_11K, own_11K, rtol=1e-6, atol=0):
        return direction_DCK
    return torch._weight_norm(direction_DCK, magnitude_11K, 2)


def _extractor(files: ModelFiles) -> dict[str, Any] | None:
    """The settings of the feature extractor, as data: Transformers' own reading may run code that they name."""
    for name, key in EXTRACTORS:
        values = files.read(name)
        if values is not None and key is not None:
            values = values.get(key)
        if values is None:
            continue
        if not isinstance(values, dict):
            raise InputError(f"{files.source}: {key} in {name} is not a JSON object")
        return values
    return None


def has_weights(files: ModelFiles) -> bool:
    """Whether weights are there under a name that Transformers writes."""
    return any(files.find(name) or files.find(f"{name}.index.json") for name in WEIGHTS)


def _weights(files: ModelFiles) -> dict[str, Tensor]:
    """The whole state dict, from the first file found of the names that Transformers writes."""
    for name in WEIGHTS:
        if path := files.find(name):
            return read_weights(path)
        index = files.read(f"{name}.index.json")
        if index is not None:
            return _shards(files, index, f"{name}.index.json")
    raise InputError(f"{files.source}: no model.safetensors and no pytorch_model.bin there")


def _shards(files: ModelFiles, index: dict[str, Any], name: str) -> dict[str, Tensor]:
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise InputError(f"{files.source}: {name} is not an index of sharded weights; get a fresh copy")
    weights: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        # A file beside the index, and nothing else: a path could lead anywhere.
        path = files.find(shard) if SHARD.fullmatch(shard) else None
        if path is None:
            raise InputError(f"{files.source}: the shard {shard} named in {name} is missing")
        weights |= read_weights(path)
    return weights
