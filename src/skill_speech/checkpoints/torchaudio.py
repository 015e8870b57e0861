"""The layout that DPHuBERT and DiariZen share, both ways, and the plain state dicts of TorchAudio that it grew from.

A file holds {"state_dict", "config"}: weights under TorchAudio's names, and the arguments that build their model. Every
layer has its own heads, feed-forward units and channels; a sublayer that lost all of them is absent, its output bias
too. The last convolution's output is multiplied by `dummy_weight`, which is our feature scale, before the feature
projection's norm, whose mean and variance go over the channels that are left, as ours do. A CTC head is the linear
layer `aux`; there is a place for no other head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..encoder import ConvConfig, Encoder, EncoderConfig, LayerConfig
from ..encoder.config import BASE_CONVS
from ..errors import InputError
from ..files import atomic_write
from ..heads import Head
from .checkpoint import Checkpoint
from .gated import apply_gates, apply_layer_gates
from .heads import check_vocabulary, read_head, texts_of
from .hugging_face import convert_weights, direction_norm, weight_names
from .settings import Settings, plain
from .shapes import config_from_shapes
from .weights import StateDict, build

# Both normalize waveforms with torch's layer_norm, whose epsilon this is.
INPUT_NORM_EPS = 1e-5
LAYER = "encoder.transformer.layers."
AUX = "aux"
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
# The flag of a sublayer in the configuration, its weights that read the hidden states, and the one that writes them.
SUBLAYERS = (
    ("encoder_use_attention", tuple(f"attention.{name}" for name in PROJECTIONS), "attention.out_proj"),
    ("encoder_use_feed_forward", ("feed_forward.intermediate_dense",), "feed_forward.output_dense"),
)


def find_encoder(names: Any) -> str | None:
    """What stands in front of an encoder's names: "" for a bare one, "student_model." in DPHuBERT's training.

    None if there is no such encoder; of several, a student goes before its teacher.
    """
    first = "feature_extractor.conv_layers.0.conv.weight"
    prefixes = [str(name).removesuffix(first) for name in names if str(name).endswith(first)]
    prefixes = [prefix for prefix in prefixes if f"{prefix}encoder.transformer.layer_norm.weight" in names]
    return min(prefixes, key=lambda prefix: ("student" not in prefix, len(prefix)), default=None)


def load_torchaudio(weights: dict[Any, Any], config: Any, beside: Any, source: str) -> Checkpoint:
    """The encoder of a state dict that `find_encoder` finds one in, and its CTC head.

    Args:
        weights: under TorchAudio's names, perhaps with a prefix and other models beside it.
        config: DPHuBERT's configuration; None where the file has none.
        beside: what a file written by skill-speech says beside them; None in other files.
        source: for messages.

    Raises:
        InputError: a weight or a setting is missing, of the wrong kind, or not one that the encoder has a place for.
    """
    prefix = find_encoder(weights) or ""
    tensors = _split_projections(_of_encoder(weights, prefix, source))
    gates = {name: tensors.pop(name) for name in list(tensors) if name.endswith("log_alpha")}
    scale = tensors.get("feature_extractor.dummy_weight")
    assumed: list[str] = []
    written = "TorchAudio" if config is None and scale is None else "DPHuBERT"
    if config is None:
        config, assumed = config_from_shapes(tensors | gates, _is_hubert(weights), source)
    settings = Settings(plain(config, source), source)
    settings.bounded("encoder_num_layers", "depth")
    apply_layer_gates(settings.values, tensors, gates)
    theirs = StateDict(tensors, source, torchaudio_name)
    ours = encoder_config(settings, Settings(beside, source), theirs)
    for number, layer in enumerate(ours.layers):
        if theirs[f"encoder.layers.{number}.layer_norm.weight"].shape != (ours.hidden_size,):
            raise InputError(
                f"{source}: the layer norms of layer {number} have a different width from {ours.hidden_size}"
            )
        for flag, inputs, output in SUBLAYERS:
            flags = settings.values.get(flag)
            if isinstance(flags, list) and not flags[number] and f"{LAYER}{number}.{output}.bias" not in tensors:
                tensors |= dict(_empty(f"{LAYER}{number}.", inputs, output, ours.hidden_size))
        const = f"{LAYER}{number}.attention.gru_rel_pos_const"
        if ours.relative_buckets and layer.heads and const in tensors:
            tensors[const] = _of_heads(tensors[const], layer.heads, ours.num_heads, source)
    converted = dict(convert_weights(theirs, ours))
    if scale is not None and not bool((scale == 1).all()):
        ours = ours.replace(feature_scale=True)
        converted[f"convs.{len(ours.convs) - 1}.channel_scale.weight"] = scale
    _refuse_left_weights(theirs, ours)
    encoder = build(ours, converted, source)
    if gates:
        encoder, written = apply_gates(encoder, settings, gates), "DPHuBERT (stage 1, pruned while reading)"
    written = "DiariZen" if prefix == "wavlm_model." else written
    values = Settings(beside, source)
    head = _head(weights, prefix, values, ours)
    files = texts_of(values.take("files", dict, {}), source)
    check_vocabulary(head, files, source)
    return Checkpoint(encoder.eval(), written, tuple(assumed), direction_norm(theirs, ours), head, files)


def _head(weights: dict[Any, Any], prefix: str, beside: Settings, config: EncoderConfig) -> Head | None:
    """The linear layer over tokens, None if there is none; the blank is the first of them, where the file is silent."""
    names = {f"lm_head.{kind}": f"{prefix}{AUX}.{kind}" for kind in ("weight", "bias")}
    found = {ours: weights[theirs] for ours, theirs in names.items() if isinstance(weights.get(theirs), Tensor)}
    values = {"pad_token_id": beside.take("blank", int, 0), "final_dropout": beside.take("final_dropout", float, 0.0)}
    return read_head(values, found, config, beside.source) if found else None


def _of_encoder(weights: dict[Any, Any], prefix: str, source: str) -> dict[str, Tensor]:
    """The weights of the encoder alone, without their prefix."""
    places = (f"{prefix}feature_extractor.", f"{prefix}encoder.")
    names = [name for name in weights if isinstance(name, str) and name.startswith(places)]
    for name in names:
        if not isinstance(weights[name], Tensor):
            raise InputError(f"{source}: {name} is not a tensor")
    return {name.removeprefix(prefix): weights[name] for name in names}


def _is_hubert(names: Any) -> bool:
    """Whether HuBERT's pre-training head, which wav2vec 2.0 does not have, stands beside the encoder."""
    return any(str(name).startswith("logit_generator.") for name in names)


def encoder_config(settings: Settings, beside: Settings, theirs: StateDict) -> EncoderConfig:
    """Our configuration for theirs, or for TorchAudio's, which gives one number for all layers.

    Raises:
        InputError: a setting is missing or out of range.
    """
    source, depth = settings.source, settings.bounded("encoder_num_layers", "depth")
    if f"encoder.layers.{depth - 1}.layer_norm.weight" not in theirs:
        raise InputError(f"{source}: its configuration has {depth} layers, and there are no weights for the last one")

    def per_layer(name: str, kind: type, *default: Any) -> list[Any]:
        if not isinstance(settings.values.get(name), list):
            return [settings.take(name, kind, *default)] * depth
        values = settings.take(name, list)
        if len(values) != depth or not all(isinstance(value, kind) for value in values):
            raise InputError(f"{source}: {name} in its configuration is not one {kind.__name__} for each layer")
        return values

    width = settings.bounded("encoder_embed_dim", "hidden_size")
    wavlm = "encoder_num_buckets" in settings
    attends = per_layer("encoder_use_attention", bool, True)
    feeds = per_layer("encoder_use_feed_forward", bool, True)
    units = per_layer("encoder_ff_interm_features", int)
    if "encoder_remaining_heads" in settings:
        num_heads = max(per_layer("encoder_total_num_heads", int))
        kept = per_layer("encoder_remaining_heads", list)
    else:
        counts = per_layer("encoder_num_heads", int)
        num_heads = width // max(1, settings.take("encoder_head_dim", int, width // max(1, *counts)))
        if not 1 <= num_heads <= width or max(counts) > num_heads:
            raise InputError(f"{source}: its configuration keeps {max(counts)} heads of {num_heads} in a layer")
        kept = _kept_heads(beside, counts)
    mode = settings.take("extractor_mode", str)
    shapes = settings.take("extractor_conv_layer_config", list, [[c.channels, c.kernel, c.stride] for c in BASE_CONVS])
    if not all(isinstance(shape, list) and [type(number) for number in shape] == [int] * 3 for shape in shapes):
        raise InputError(f"{source}: extractor_conv_layer_config in its configuration is not three numbers for each")
    # Their first layer alone holds the position bias of all, and takes it along when it goes.
    has_bias = wavlm and "encoder.layers.0.attention.rel_attn_embed.weight" in theirs
    try:
        return EncoderConfig(
            family="wavlm" if wavlm else beside.take("family", str, "hubert"),
            hidden_size=width,
            num_heads=num_heads,
            convs=tuple(ConvConfig(*shape) for shape in shapes),
            layers=tuple(
                LayerConfig(tuple(heads) if attends else (), units if feeds else 0)
                for attends, heads, feeds, units in zip(attends, kept, feeds, units, strict=True)
            ),
            conv_norm=mode.removesuffix("_norm"),
            conv_bias=settings.take("extractor_conv_bias", bool),
            pre_norm=settings.take("encoder_layer_norm_first", bool),
            positional_kernel=settings.take("encoder_pos_conv_kernel", int),
            positional_groups=settings.take("encoder_pos_conv_groups", int),
            relative_buckets=settings.take("encoder_num_buckets", int) if has_bias else 0,
            relative_distance=settings.take("encoder_max_distance", int) if has_bias else 0,
            input_normalization=settings.take("normalize_waveform", bool, False),
            input_norm_eps=beside.take("input_norm_eps", float, INPUT_NORM_EPS),
            length_aware=beside.take("length_aware", bool, False),
            hidden_dropout=settings.take("encoder_dropout", float, 0.0),
            attention_dropout=settings.take("encoder_attention_dropout", float, 0.0),
            activation_dropout=settings.take("encoder_ff_interm_dropout", float, 0.0),
            feature_dropout=settings.take("encoder_projection_dropout", float, 0.0),
            layer_dropout=settings.take("encoder_layer_drop", float, 0.0),
        )
    except (ValueError, TypeError) as error:
        raise InputError(f"{source}: its configuration does not describe a valid encoder ({error})") from None


def _kept_heads(beside: Settings, counts: list[int]) -> list[list[int]]:
    """The numbers of the kept heads; if they do not matter and the file does not state them, the first ones."""
    told = beside.take("heads", list, [])
    if [len(heads) if isinstance(heads, list) else None for heads in told] == counts:
        return told
    return [list(range(count)) for count in counts]


def torchaudio_name(name: str) -> str:
    """TorchAudio's name for a weight that Transformers calls by `name`."""
    if name.startswith("encoder."):
        return f"encoder.transformer.{name.removeprefix('encoder.')}"
    return f"encoder.{name}" if name.startswith("feature_projection.") else name


def _split_projections(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """TorchAudio's WavLM keeps query, key and value in one matrix; DPHuBERT's does not."""
    split: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        place, _, kind = name.rpartition("attention.attention.in_proj_")
        if place and tensor.ndim and len(tensor) % 3 == 0:
            for projection, part in zip(PROJECTIONS, tensor.chunk(3), strict=True):
                split[f"{place}attention.{projection}.{kind}"] = part
        else:
            split[name.replace("attention.attention.out_proj", "attention.out_proj")] = tensor
    return split


def _empty(place: str, inputs: tuple[str, ...], output: str, width: int) -> Iterator[tuple[str, Tensor]]:
    """The weights of a sublayer that the file leaves out, since here an output bias remains of it."""
    for name in inputs:
        yield f"{place}{name}.weight", torch.zeros(0, width)
        yield f"{place}{name}.bias", torch.zeros(0)
    yield f"{place}{output}.weight", torch.zeros(width, 0)
    yield f"{place}{output}.bias", torch.zeros(width)


def _of_heads(const: Tensor, heads: tuple[int, ...], num_heads: int, source: str) -> Tensor:
    """Theirs has a number for every head of the teacher."""
    if const.numel() != num_heads:
        raise InputError(f"{source}: gru_rel_pos_const has {const.numel()} numbers for {num_heads} heads")
    return const.flatten()[list(heads)]


def _refuse_left_weights(theirs: StateDict, config: EncoderConfig) -> None:
    """Weights of the encoder that nothing has asked for mean that it is not what its configuration says."""
    known = ("feature_extractor.dummy_weight",)
    unused = [f"{LAYER}{number}.attention.gru_rel_pos" for number, layer in enumerate(config.layers)]
    if config.relative_buckets:
        unused = [name for name, layer in zip(unused, config.layers, strict=True) if not layer.heads]
    left = [name for name in theirs.left() if not name.startswith((*known, *unused))]
    if left:
        raise InputError(f"{theirs.source}: its configuration does not match the weight {left[0]}")


def save_torchaudio(
    encoder: Encoder, path: str | Path, head: Head | None = None, files: Mapping[str, bytes] | None = None
) -> None:
    """Write an encoder, and a CTC head on it, as DPHuBERT does, for its own code and DiariZen's.

    A sublayer without heads or units is left out if its output bias is zero, and written with a width of zero
    otherwise. Beside the two parts that their code reads stands what the layout has no place for.

    Args:
        encoder: in evaluation mode.
        path: of the file.
        head: that stands on the encoder.
        files: what else belongs to the model, by name: of a tokenizer, JSON texts.

    Raises:
        InputError: the layout cannot express the encoder, or has no place for the head.
    """
    if head is not None and (head.config.kind != "ctc" or head.adapter is not None):
        what = "add_adapter" if head.config.kind == "ctc" else f"the head {head.config.kind}"
        raise InputError(
            f"a model with {what} cannot be written in the TorchAudio layout, which has CTC heads only; skill-speech "
            "import writes the encoder alone"
        )
    config = encoder.config
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    _check_expressible(config, gated=any(name.endswith("log_alpha") for name in weights))
    state, values = _their_weights(weights, config), _their_config(config)
    for flag, _, output in SUBLAYERS:
        values[flag] = [bool(state[f"{LAYER}{number}.{output}.weight"].numel()) for number in range(config.num_layers)]
        for number, used in enumerate(values[flag]):
            holds_position_bias = number == 0 and config.relative_buckets > 0 and output.startswith("attention")
            if used or holds_position_bias or bool(state[f"{LAYER}{number}.{output}.bias"].any()):
                values[flag][number] = True
            else:
                place = f"{LAYER}{number}.{output.split('.')[0]}."
                state = {name: tensor for name, tensor in state.items() if not name.startswith(place)}
    if head is not None:
        own = {name.replace("lm_head", AUX): tensor.detach().cpu() for name, tensor in head.state_dict().items()}
        state, values["aux_num_out"] = state | own, head.config.outputs
    content = {
        # Cloned, so that no tensor takes a larger one's memory along.
        "state_dict": {name: tensor.clone() for name, tensor in state.items()},
        "config": values,
        "skill_speech": {
            "family": config.family,
            "heads": [list(layer.heads) for layer in config.layers],
            "input_norm_eps": config.input_norm_eps,
            "length_aware": config.length_aware,
            **({} if head is None else {"blank": head.config.blank, "final_dropout": head.config.dropout}),
            **({} if not files else {"files": {name: content.decode() for name, content in files.items()}}),
        },
    }
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)


def _their_weights(weights: dict[str, Tensor], config: EncoderConfig) -> dict[str, Tensor]:
    """Our weights under their names, all sublayers still there."""
    state = {torchaudio_name(theirs): weights[ours] for ours, theirs in weight_names(config)}
    direction = weights["positional_conv.convs.0.weight"]
    root = torchaudio_name("encoder.pos_conv_embed.conv")
    state[f"{root}.bias"] = weights["positional_conv.convs.0.bias"]
    state[f"{root}.weight_g"] = torch.norm_except_dim(direction, 2, 2)
    state[f"{root}.weight_v"] = direction
    ones = torch.ones(config.convs[-1].channels)
    state["feature_extractor.dummy_weight"] = weights.get(f"convs.{len(config.convs) - 1}.channel_scale.weight", ones)
    for number, layer in enumerate(config.layers if config.relative_buckets else ()):
        place, const = f"{LAYER}{number}.attention", torch.ones(config.num_heads)
        if layer.heads:
            const[list(layer.heads)] = weights[f"layers.{number}.attention.position_gate_const"]
        else:  # unused; their model has them
            state[f"{place}.gru_rel_pos_linear.weight"] = torch.zeros(8, config.head_size)
            state[f"{place}.gru_rel_pos_linear.bias"] = torch.zeros(8)
        state[f"{place}.gru_rel_pos_const"] = const.view(1, -1, 1, 1)
    return state


def _check_expressible(config: EncoderConfig, gated: bool) -> None:
    problem = None
    if gated:
        problem = "gates (prune it first)"
    elif config.positional_depth or config.positional_affine:
        problem = "another positional convolution"
    elif not config.feature_norm:
        problem = "no norm before the feature projection"
    elif (config.activation, config.conv_activation) != ("gelu", "gelu"):
        problem = f"the activation {config.activation}"
    elif config.norm_eps != 1e-5:
        problem = f"norms with an epsilon of {config.norm_eps:g}"
    if problem:
        raise InputError(f"a {config.family} encoder with {problem} cannot be written in the TorchAudio layout")


def _their_config(config: EncoderConfig) -> dict[str, Any]:
    values: dict[str, Any] = {
        "extractor_mode": f"{config.conv_norm}_norm",
        "extractor_conv_layer_config": [(conv.channels, conv.kernel, conv.stride) for conv in config.convs],
        "extractor_conv_bias": config.conv_bias,
        "encoder_embed_dim": config.hidden_size,
        "encoder_projection_dropout": config.feature_dropout,
        "encoder_pos_conv_kernel": config.positional_kernel,
        "encoder_pos_conv_groups": config.positional_groups,
        "encoder_num_layers": config.num_layers,
        "encoder_attention_dropout": config.attention_dropout,
        "encoder_ff_interm_features": [layer.units for layer in config.layers],
        "encoder_ff_interm_dropout": config.activation_dropout,
        "encoder_dropout": config.hidden_dropout,
        "encoder_layer_norm_first": config.pre_norm,
        "encoder_layer_drop": config.layer_dropout,
        "aux_num_out": None,
        "normalize_waveform": config.input_normalization,
    }
    if config.relative_buckets:
        values |= {
            "encoder_total_num_heads": [config.num_heads] * config.num_layers,
            "encoder_remaining_heads": [list(layer.heads) for layer in config.layers],
            "encoder_num_buckets": config.relative_buckets,
            "encoder_max_distance": config.relative_distance,
        }
    else:
        values |= {
            "encoder_num_heads": [len(layer.heads) for layer in config.layers],
            "encoder_head_dim": config.head_size,
        }
    for place in ("attention_heads", "attention_layer", "feed_forward_intermediate", "feed_forward_layer"):
        values[f"encoder_prune_{place}"] = False
    return values | {"extractor_prune_conv_channels": False}
