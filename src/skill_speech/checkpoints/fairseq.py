"""Checkpoints of fairseq, of the original WavLM, and s3prl's conversions and DistilHuBERT, read without any of them.

They name their weights alike. fairseq keeps a configuration of everything ("cfg", or "args" in older files), in
which "model" describes the network and "task" the input; a fine-tuned model keeps the pre-trained one's inside its own.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import torch

from ..encoder import ConvConfig, EncoderConfig, full_layers
from ..encoder.config import BASE_CONVS
from ..errors import InputError
from .checkpoint import Checkpoint
from .hugging_face import CONFORMER, convert_weights, direction_norm
from .settings import Settings, plain
from .torchaudio import INPUT_NORM_EPS
from .weights import StateDict, as_state_dict, build

# fairseq's names of models ("_name", or "arch" in older files), with what was fine-tuned of them.
FAMILIES = {
    "hubert": "hubert",
    "wav2vec2": "wav2vec2",
    "data2vec_audio": "data2vec-audio",
    # HuBERT's network in code of their own: of speech without its speaker, and of music.
    "contentvec": "hubert",
    "mert": "hubert",
}
# Options of MERT's code and of s3prl's distiller, with the values that leave the network HuBERT's.
AS_HUBERT: dict[str, tuple[Any, ...]] = {
    "audio_extract_type": ("w2v_conv",),
    "wav_normalize": (False,),
    "feature_extractor_cqt": (False,),  # a constant-Q transform beside the convolutions' output
    "do_cnn_feat_stable_layernorm": (False,),
    "deepnorm": (False,),
    "subln": (False,),
    "attention_type": ("original",),
    "task_emb_type": ("none", "expand-last", "concat-last", "self-hidden"),
}
# Settings that only one of them has, for s3prl's files, which do not keep the name.
TELLTALES = {"average_top_k_layers": "data2vec_audio", "label_rate": "hubert", "untie_final_proj": "hubert"}
ACTIVATIONS = {"gelu": "gelu", "gelu_accurate": "gelu_new", "gelu_fast": "gelu_new", "relu": "relu", "swish": "silu"}
NORMS = {"default": "group", "layer_norm": "layer"}
MAX_CONVS = 64
QUERY = "encoder.layers.0.self_attn.q_proj.weight"

# Transformers' names to fairseq's, first match wins. Index 2 of a convolution is its norm, after the dropout.
RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^feature_extractor\.conv_layers\.(\d+)\.conv\.", r"feature_extractor.conv_layers.\1.0."),
        (r"^feature_projection\.layer_norm\.", r"layer_norm."),
        (r"^feature_projection\.projection\.", r"post_extract_proj."),
        (r"^encoder\.pos_conv_embed\.layers\.(\d+)\.conv\.", r"encoder.pos_conv.\1.0."),
        (r"\.attention\.rel_attn_embed\.", r".self_attn.relative_attention_bias."),
        (r"\.attention\.gru_rel_pos_linear\.", r".self_attn.grep_linear."),
        (r"\.attention\.gru_rel_pos_const$", r".self_attn.grep_a"),
        (r"^(encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
        (r"^(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
        (r"\.feed_forward\.intermediate_dense\.", r".fc1."),
        (r"\.feed_forward\.output_dense\.", r".fc2."),
    )
]


def load_fairseq(values: dict[Any, Any], source: str) -> Checkpoint:
    """The encoder of a file with "model" and "cfg" or "args", or with one of s3prl's pairs of weights and settings.

    These are "model_weight" with "model_cfg" of its conversions and "Distiller" with "Config" of DistilHuBERT.

    Raises:
        InputError: another architecture, or a weight or a setting that is missing or of the wrong kind.
    """
    model, task, written = _configurations(values, source)
    weights = next((values[name] for name in ("model_weight", "Distiller", "model") if name in values), None)
    if not isinstance(weights, dict):
        raise InputError(f"{source}: contains no weights")
    tensors = _of_encoder(as_state_dict(weights, source), source)
    family = "wavlm" if written == "WavLM" else _family(model)
    tensors = _without_speakers(tensors, model)
    config = encoder_config(model, task, family, tensors)
    if "Distiller" in values:
        config = config.replace(feature_norm=False)  # DistilHuBERT's only difference
    width = config.hidden_size
    # Not before a weight of that size is seen: its size is the square of the width.
    square = isinstance(query := tensors.get(QUERY), torch.Tensor) and query.shape == (width, width)
    if square and "post_extract_proj.weight" not in tensors and _width(tensors.get("layer_norm.weight")) == width:
        # Where the widths are equal there is no projection, and the identity is the same.
        tensors["post_extract_proj.weight"] = torch.eye(width)
        tensors["post_extract_proj.bias"] = torch.zeros(width)
    theirs = StateDict(tensors, source, Renaming(config))
    converted = dict(convert_weights(theirs, config))
    left = [name for name in theirs.left() if name.startswith(("feature_extractor.", "encoder."))]
    left = [name for name in left if not name.endswith("num_batches_tracked")]
    if left:
        raise InputError(f"{source}: its configuration does not match the weight {left[0]}")
    norm_K = direction_norm(theirs, config)
    return Checkpoint(build(config, converted, source).eval(), written, direction_norm_K=norm_K)


def _configurations(values: dict[Any, Any], source: str) -> tuple[Settings, Settings, str]:
    """The settings of the network, those of its input, and who writes such files."""
    if "model_weight" in values:
        model, task = plain(values.get("model_cfg"), source), plain(values.get("task_cfg"), source)
        return Settings(model, source), Settings(task, source), "s3prl"
    if "Distiller" in values:
        model = dict(Settings(plain(values.get("Config"), source), source).within("distiller").values)
        model["conv_feature_layers"] = model.pop("extractor_conv_feature_layers", "")
        return Settings(model | {"_name": "hubert"}, source), Settings({}, source), "s3prl"
    whole = plain(values.get("args") if values.get("cfg") is None else values["cfg"], source)
    if not isinstance(whole, dict):
        raise InputError(f"{source}: contains no configuration (cfg or args)")
    if isinstance(whole.get("model"), dict):
        settings = Settings(whole, source)
        model, task = settings.within("model"), settings.within("task")
    else:
        model = task = Settings(whole, source)
        if "_name" not in model and "arch" not in model:
            return model, task, "WavLM"
    inner = model.values.get("w2v_args")
    if isinstance(inner, dict):
        whole = Settings(inner, source)
        model = whole.within("model") if isinstance(inner.get("model"), dict) else whole
        # Fine-tuning takes over how the input of pre-training was treated.
        task = whole.within("task") if isinstance(inner.get("task"), dict) else task
    elif "w2v_path" in model:
        raise InputError(f"{source}: a fine-tuned model without the settings of the model it started from (w2v_args)")
    return model, task, "fairseq"


def _width(weight: Any) -> int | None:
    return weight.numel() if isinstance(weight, torch.Tensor) else None


def _family(model: Settings) -> str:
    name = model.take("_name" if "_name" in model else "arch", str, None)
    if name is None:
        name = next((name for setting, name in TELLTALES.items() if setting in model.values), "wav2vec2")
    if name not in FAMILIES:
        raise InputError(f"{model.source}: unknown architecture {name!r}; known are WavLM, {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _of_encoder(weights: dict[Any, Any], source: str) -> dict[str, Any]:
    """The encoder's weights without what stands around them ("w2v_encoder.w2v_model." in a fine-tuned model)."""
    first = "feature_extractor.conv_layers.0.0.weight"
    prefixes = [name.removesuffix(first) for name in weights if isinstance(name, str) and name.endswith(first)]
    if len(prefixes) != 1:
        raise InputError(f"{source}: the weight {first} is missing")
    (prefix,) = prefixes
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in weights.items()
        if isinstance(name, str) and name.startswith(prefix)
    }


def _without_speakers(tensors: dict[str, Any], model: Settings) -> dict[str, Any]:
    """The weights without the layers on top of ContentVec's that know the speaker: only pre-training has them."""
    if "encoder_layers_1" not in model:
        return tensors
    depth, more = model.bounded("encoder_layers", "depth", 12), model.bounded("encoder_layers_1", "units")
    left_out = ("encoder.cond_layer_norm.", *(f"encoder.layers.{depth + number}." for number in range(min(more, 256))))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(left_out)}


def encoder_config(model: Settings, task: Settings, family: str, tensors: dict[str, Any]) -> EncoderConfig:
    """Our configuration for theirs; defaults are fairseq's.

    Raises:
        InputError: an option that the encoder does not have, or a setting that is missing or out of range.
    """
    source = model.source
    layers = model.take("layer_type", str, "transformer")
    if layers != "transformer":
        needed = f": {CONFORMER}" if layers == "conformer" else ""
        raise InputError(f"{source}: layers of type {layers} are not supported{needed}")
    for name, values in AS_HUBERT.items():
        if (value := model.take(name, type(values[0]), values[0])) not in values:
            raise InputError(f"{source}: {name} {value} in its configuration describes a network that is not supported")
    if model.take("quantize_input", bool, False):
        raise InputError(f"{source}: quantized inputs (quantize_input) are not supported")
    activation, mode = model.take("activation_fn", str, "gelu"), model.take("extractor_mode", str, "default")
    if activation not in ACTIVATIONS or mode not in NORMS:
        raise InputError(f"{source}: activation {activation} with extractor mode {mode} is not supported")
    relative = model.take("relative_position_embedding", bool, False)
    if relative and not model.take("gru_rel_pos", bool, False):
        raise InputError(f"{source}: a position bias without its gate (gru_rel_pos) is not supported")
    depth, heads = model.bounded("encoder_layers", "depth", 12), model.take("encoder_attention_heads", int, 12)
    if f"encoder.layers.{depth - 1}.fc1.weight" not in tensors or f"encoder.layers.{depth}.fc1.weight" in tensors:
        raise InputError(f"{source}: its configuration has {depth} layers, and its weights have another number")
    stacked = model.take("pos_conv_depth", int, 1)
    stacked = stacked if stacked > 1 else 0
    width = model.take("encoder_embed_dim", int, 768)
    kernel = model.take("conv_pos", int, 128)
    try:
        return EncoderConfig(
            family=family,
            hidden_size=width,
            num_heads=heads,
            convs=parse_convs(model),
            layers=full_layers(depth, min(heads, width), model.take("encoder_ffn_embed_dim", int, 3072)),
            conv_norm=NORMS[mode],
            conv_bias=model.take("conv_bias", bool, False),
            activation=ACTIVATIONS[activation],
            pre_norm=model.take("layer_norm_first", bool, False),
            positional_kernel=max(3, kernel // stacked) if stacked else kernel,
            positional_groups=model.take("conv_pos_groups", int, 16),
            positional_depth=stacked,
            positional_affine=model.take("conv_pos_batch_norm", bool, False),
            relative_buckets=model.take("num_buckets", int, 320) if relative else 0,
            relative_distance=model.take("max_distance", int, 1280) if relative else 0,
            input_normalization=task.take("normalize", bool, False),
            input_norm_eps=INPUT_NORM_EPS,
            sampling_rate=task.take("sample_rate", int, 16_000),
            hidden_dropout=model.take("dropout", float, 0.1),
            attention_dropout=model.take("attention_dropout", float, 0.1),
            activation_dropout=model.take("activation_dropout", float, 0.0),
            feature_dropout=model.take("dropout_input", float, 0.0),
            layer_dropout=model.take("encoder_layerdrop", float, 0.0),
        )
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{source}: its configuration does not describe a valid encoder ({error})") from None


def parse_convs(model: Settings) -> tuple[ConvConfig, ...]:
    """The convolutions that fairseq describes in Python, "[(512,10,5)] + [(512,3,2)] * 4", without running any.

    Raises:
        InputError: anything but lists of three numbers, added and repeated.
    """
    text = model.take("conv_feature_layers", str, "")
    if not text:
        return BASE_CONVS
    try:
        return tuple(ConvConfig(*shape) for shape in _shapes(ast.parse(text[:1_000].strip(), mode="eval").body))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise InputError(
            f"{model.source}: conv_feature_layers in its configuration is not a list: {text[:80]!r}"
        ) from None


def _shapes(node: ast.expr) -> list[tuple[int, int, int]]:
    match node:
        case ast.List() | ast.Tuple():
            shapes = [tuple(shape) for shape in ast.literal_eval(node)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            shapes = _shapes(left) + _shapes(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int(times))) if times <= MAX_CONVS:
            shapes = _shapes(left) * times
        case _:
            raise ValueError
    if not 0 < len(shapes) <= MAX_CONVS or any([type(number) for number in shape] != [int] * 3 for shape in shapes):
        raise ValueError
    return shapes


class Renaming:
    """fairseq's name for a weight that Transformers calls by another."""

    def __init__(self, config: EncoderConfig) -> None:
        # A layer norm stands between two transpositions, and a batch norm in front of its convolution.
        self.norm = "2.1" if config.conv_norm == "layer" else "2"
        self.affine = config.positional_affine

    def __call__(self, name: str) -> str:
        """The name in the file."""
        place, _, kind = name.partition(".pos_conv_embed.conv.")
        if kind:
            return f"{place}.pos_conv.{int(self.affine)}.{kind}"
        name = name.replace(".pos_conv_embed.batch_norm.", ".pos_conv.0.")
        name = re.sub(r"^(feature_extractor\.conv_layers\.\d+)\.layer_norm", rf"\1.{self.norm}", name)
        for pattern, replacement in RENAMES:
            name, found = pattern.subn(replacement, name)
            if found:
                break
        return name
