"""Encoders out of Transformers checkpoints: configuration, preprocessor and weights of the wav2vec 2.0 family."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encoder import ConvConfig, EncoderConfig, full_layers
from ..errors import InputError
from .checkpoint import Checkpoint
from .native import MODEL_TYPE, load_native
from .weights import StateDict, build, read_weights

logger = logging.getLogger(__name__)

# Transformers' model_type and the prefix under which a model with a head keeps its encoder.
PREFIXES = {
    "hubert": "hubert.",
    "wavlm": "wavlm.",
    "wav2vec2": "wav2vec2.",
    "unispeech": "unispeech.",
    "unispeech-sat": "unispeech_sat.",
    "data2vec-audio": "data2vec_audio.",
}


COMMIT = re.compile("[0-9a-f]{40}")


def load_hugging_face(source: str, revision: str | None, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """An encoder from a hub id or a folder, whatever head was trained on it; one of ours too, in `dtype`.

    Raises:
        InputError: nothing there, unknown architecture, weights that do not fit.
    """
    values = _config_values(source, revision)
    if values.get("model_type") == MODEL_TYPE:
        return Checkpoint(load_native(_folder_of_ours(source, revision), dtype).eval(), "skill-speech")
    config = encoder_config(values, _preprocessor(source, revision, values), source)
    theirs, prefix = _weights(source, revision), PREFIXES[config.family]
    if any(name.startswith(prefix) for name in theirs):
        theirs = {name.removeprefix(prefix): tensor for name, tensor in theirs.items() if name.startswith(prefix)}
    encoder = build(config, dict(convert_weights(StateDict(theirs, source), config)), source)
    return Checkpoint(encoder.eval(), "Transformers")


def _folder_of_ours(source: str, revision: str | None) -> Path:
    """Where the files of a skill-speech model on the hub are, once they are here."""
    from transformers.utils import cached_file

    try:
        paths = [cached_file(source, name, revision=revision) for name in ("config.json", "model.safetensors")]
    except OSError as error:
        raise InputError(f"{source}: cannot be had ({_first_line(error)})") from None
    return Path(paths[0]).parent


def commit_of(source: str, revision: str | None) -> str | None:
    """The commit that a revision of a hub id stands for now; the revision itself where a cache does not know it.

    Raises:
        InputError: there is no such model or revision, or the hub cannot be reached.
    """
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(source, "config.json", revision=revision))
    except (OSError, ValueError) as error:  # all of the hub's own errors are one of them
        raise InputError(f"{source}: no model there, neither on disk nor on the hub ({_first_line(error)})") from None
    return path.parent.name if COMMIT.fullmatch(path.parent.name) else revision


def encoder_config(values: dict[str, Any], preprocessor: dict[str, Any] | None, source: str) -> EncoderConfig:
    """Our configuration from the contents of Transformers' config.json and preprocessor_config.json.

    Raises:
        InputError: an architecture, or an option of a known one, that the encoder does not have.
    """
    from transformers import CONFIG_MAPPING

    family = values.get("model_type")
    if family not in PREFIXES:
        raise InputError(f"{source}: unknown architecture {family!r}; known are {', '.join(sorted(PREFIXES))}")
    theirs = CONFIG_MAPPING[family].from_dict(values)
    if getattr(theirs, "adapter_attn_dim", None) is not None:
        raise InputError(f"{source}: attention adapters (adapter_attn_dim) are not supported; use the model without")
    data2vec = family == "data2vec-audio"
    # data2vec's front end has layer norms only, and Transformers does not say so in the configuration.
    conv_norm = "layer" if data2vec else theirs.feat_extract_norm
    if preprocessor is None:
        normalize = conv_norm == "layer"
        logger.warning("%s has no preprocessor_config.json: input normalisation taken as %s", source, normalize)
    else:
        normalize = preprocessor.get("do_normalize", True)
        if preprocessor.get("sampling_rate", 16_000) != 16_000:
            raise InputError(f"{source}: expects {preprocessor['sampling_rate']} Hz; only 16,000 Hz encoders are known")
    wavlm = family == "wavlm"
    try:
        return EncoderConfig(
            family=family,
            hidden_size=theirs.hidden_size,
            num_heads=theirs.num_attention_heads,
            convs=tuple(
                ConvConfig(*shape)
                for shape in zip(theirs.conv_dim, theirs.conv_kernel, theirs.conv_stride, strict=True)
            ),
            layers=full_layers(theirs.num_hidden_layers, theirs.num_attention_heads, theirs.intermediate_size),
            conv_norm=conv_norm,
            conv_bias=theirs.conv_bias,
            conv_activation=theirs.feat_extract_activation,
            activation=theirs.hidden_act,
            feature_norm=getattr(theirs, "feat_proj_layer_norm", True),
            pre_norm=getattr(theirs, "do_stable_layer_norm", False),
            positional_kernel=theirs.conv_pos_kernel_size if data2vec else theirs.num_conv_pos_embeddings,
            positional_groups=theirs.num_conv_pos_embedding_groups,
            positional_depth=theirs.num_conv_pos_embeddings if data2vec else 0,
            positional_affine=getattr(theirs, "conv_pos_batch_norm", False),
            relative_buckets=theirs.num_buckets if wavlm else 0,
            relative_distance=theirs.max_bucket_distance if wavlm else 0,
            norm_eps=theirs.layer_norm_eps,
            input_normalization=normalize,
            hidden_dropout=theirs.hidden_dropout,
            attention_dropout=theirs.attention_dropout,
            activation_dropout=theirs.activation_dropout,
            feature_dropout=theirs.feat_proj_dropout,
            layer_dropout=theirs.layerdrop,
        )
    except ValueError as error:
        raise InputError(f"{source}: {error}") from None


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
        variance, mean = theirs[f"{root}.batch_norm.running_var"], theirs[f"{root}.batch_norm.running_mean"]
        scale = theirs[f"{root}.batch_norm.weight"] * torch.rsqrt(variance + 1e-5)
        yield "positional_conv.input_scale", scale
        yield "positional_conv.input_shift", theirs[f"{root}.batch_norm.bias"] - mean * scale
        yield "positional_conv.convs.0.weight", theirs[f"{root}.conv.weight"]
        return
    names = "weight_g", "weight_v"  # written by torch < 2.0 and by most checkpoints on the hub
    if f"{root}.conv.weight_g" not in theirs:
        names = "parametrizations.weight.original0", "parametrizations.weight.original1"
    magnitude_11K, direction_DCK = (theirs[f"{root}.conv.{name}"].float() for name in names)
    if direction_DCK.ndim != 3 or magnitude_11K.shape != (1, 1, direction_DCK.shape[2]):
        shapes = f"{tuple(magnitude_11K.shape)} and {tuple(direction_DCK.shape)}"
        raise InputError(f"{theirs.source}: the weights of the positional convolution have the shapes {shapes}")
    yield "positional_conv.convs.0.weight", fold_weight_norm(magnitude_11K, direction_DCK)


def fold_weight_norm(magnitude_11K: Tensor, direction_DCK: Tensor) -> Tensor:
    """The weight (D, C, K) of a convolution that is kept as a direction and a magnitude per step of its kernel."""
    own_11K = torch.norm_except_dim(direction_DCK, 2, 2)
    # A weight that was split to be written is its own direction, and comes back to the bit.
    if torch.allclose(magnitude_11K, own_11K, rtol=1e-6, atol=0):
        return direction_DCK
    return torch._weight_norm(direction_DCK, magnitude_11K, 2)


def _config_values(source: str, revision: str | None) -> dict[str, Any]:
    from transformers import PretrainedConfig

    try:
        values, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: no model there, neither on disk nor on the hub ({_first_line(error)})") from None
    if not values:
        raise InputError(f"{source}: no config.json found there")
    return values


def _preprocessor(source: str, revision: str | None, values: dict[str, Any]) -> dict[str, Any] | None:
    from transformers import AutoFeatureExtractor
    from transformers.utils import cached_file

    if values.get("model_type") not in PREFIXES:
        return None
    path = cached_file(
        source, "preprocessor_config.json", revision=revision, _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        return None
    try:
        return dict(AutoFeatureExtractor.from_pretrained(source, revision=revision).to_dict())
    except (OSError, ValueError) as error:
        raise InputError(f"{source}: preprocessor_config.json cannot be read ({_first_line(error)})") from None


def _weights(source: str, revision: str | None) -> dict[str, Tensor]:
    """The whole state dict, from the first file found of the names that Transformers writes."""
    import json

    from transformers.utils import cached_file

    def find(name: str) -> Path | None:
        try:
            path = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            raise InputError(f"{source}: {name} cannot be had ({_first_line(error)})") from None
        return None if path is None else Path(path)

    for name in ("model.safetensors", "pytorch_model.bin"):
        if path := find(name):
            return read_weights(path)
        if index := find(f"{name}.index.json"):
            try:
                shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (ValueError, KeyError, AttributeError):
                raise InputError(f"{index}: not an index of sharded weights") from None
            weights: dict[str, Tensor] = {}
            for shard in shards:
                path = find(shard)
                if path is None:
                    raise InputError(f"{source}: the shard {shard} named in {index.name} is missing")
                weights |= read_weights(path)
            return weights
    raise InputError(f"{source}: no model.safetensors and no pytorch_model.bin there")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
