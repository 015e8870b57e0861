"""The configuration of a state dict that comes without one: most of it stands in the shapes of its weights."""

from __future__ import annotations

from itertools import count
from typing import Any

from torch import Tensor

from ..encoder.config import BASE_CONVS
from ..errors import InputError
from .diarizen import published_heads

# Heads by hidden size in the published models of the family; head size in the others.
NUM_HEADS = {768: 12, 1024: 16, 1280: 16, 1920: 16, 2048: 16}
HEAD_SIZE = 64
MAX_DISTANCE = 800
LAYERS = "encoder.transformer.layers."
CONVS = "feature_extractor.conv_layers."


class Shapes:
    """Shapes of the weights of a file, by its names."""

    def __init__(self, tensors: dict[str, Any], source: str) -> None:
        self.tensors, self.source = tensors, source

    def __contains__(self, name: str) -> bool:
        return isinstance(self.tensors.get(name), Tensor)

    def of(self, name: str, axes: int, smallest: int = 1) -> tuple[int, ...]:
        """The shape of a weight with that many axes."""
        if name not in self:
            raise InputError(f"{self.source}: the weight {name} is missing")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != axes or min(shape) < smallest:
            raise InputError(f"{self.source}: the weight {name} has the shape {shape}, which is impossible")
        return shape

    def count(self, pattern: str) -> int:
        """How many weights of such a name there are, numbered from 0."""
        return next(number for number in count() if pattern.format(number) not in self)


def config_from_shapes(tensors: dict[str, Any], is_hubert: bool, source: str) -> tuple[dict[str, Any], list[str]]:
    """DPHuBERT's configuration for a state dict under TorchAudio's names, and what had to be assumed for it.

    Args:
        tensors: the weights of one encoder, and its gates if it has any.
        is_hubert: whether HuBERT's pre-training head stands beside the encoder.
        source: for messages.

    Raises:
        InputError: the shapes do not tell enough.
    """
    shapes = Shapes(tensors, source)
    (width,) = shapes.of("encoder.transformer.layer_norm.weight", 1)
    depth = shapes.count(f"{LAYERS}{{}}.layer_norm.weight")
    large = f"{CONVS}1.layer_norm.weight" in shapes
    weight = "encoder.transformer.pos_conv_embed.conv.weight_v"
    if weight not in shapes:
        weight = "encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1"
    _, group, kernel = shapes.of(weight, 3)
    values: dict[str, Any] = {
        "extractor_mode": "layer_norm" if large else "group_norm",
        "extractor_conv_layer_config": _convs(shapes),
        "extractor_conv_bias": f"{CONVS}0.conv.bias" in shapes,
        "encoder_embed_dim": width,
        "encoder_pos_conv_kernel": kernel,
        "encoder_pos_conv_groups": width // group,
        "encoder_num_layers": depth,
        "encoder_use_attention": [f"{LAYERS}{n}.attention.q_proj.weight" in shapes for n in range(depth)],
        "encoder_use_feed_forward": [f"{LAYERS}{n}.feed_forward.output_dense.weight" in shapes for n in range(depth)],
        "encoder_layer_norm_first": large,
        "normalize_waveform": large,
    }
    assumed = [
        "the usual strides of the convolutions",
        f"layer norms {'before' if large else 'after'} each sublayer, as in {'Large' if large else 'Base'} models",
        f"waveforms {'to be' if large else 'not'} normalized, as in {'Large' if large else 'Base'} models",
    ]
    values["encoder_ff_interm_features"] = [
        shapes.of(f"{LAYERS}{number}.feed_forward.intermediate_dense.weight", 2, 0)[0] if used else 0
        for number, used in enumerate(values["encoder_use_feed_forward"])
    ]
    heads, more = _heads(shapes, values, is_hubert)
    return values | heads, assumed + more


def _convs(shapes: Shapes) -> list[list[int]]:
    """Channels and kernels as they are, strides as in every model of the family."""
    found = [shapes.of(f"{CONVS}{n}.conv.weight", 3) for n in range(shapes.count(f"{CONVS}{{}}.conv.weight"))]
    kernels = [kernel for _, _, kernel in found]
    if kernels != [conv.kernel for conv in BASE_CONVS]:
        raise InputError(f"{shapes.source}: strides of convolutions with kernels {kernels} are not known; {_WAY_OUT}")
    return [[channels, conv.kernel, conv.stride] for (channels, _, _), conv in zip(found, BASE_CONVS, strict=True)]


def _heads(shapes: Shapes, values: dict[str, Any], is_hubert: bool) -> tuple[dict[str, Any], list[str]]:
    width, depth = values["encoder_embed_dim"], values["encoder_num_layers"]
    embedding = f"{LAYERS}0.attention.rel_attn_embed.weight"
    gates = f"{LAYERS}0.attention.hard_concrete_for_heads.log_alpha"
    wavlm = embedding in shapes
    buckets, num_heads = shapes.of(embedding, 2) if wavlm else (0, NUM_HEADS.get(width, width // HEAD_SIZE))
    if gates in shapes:
        (num_heads,) = shapes.of(gates, 1)
    if not num_heads or width % num_heads:
        raise InputError(f"{shapes.source}: how many heads a hidden size of {width} has is not known; {_WAY_OUT}")
    head_size = width // num_heads
    counts = [
        shapes.of(f"{LAYERS}{number}.attention.q_proj.weight", 2, 0)[0] // head_size if used else 0
        for number, used in enumerate(values["encoder_use_attention"])
    ]
    if max(counts, default=0) > num_heads:
        raise InputError(f"{shapes.source}: a layer has {max(counts)} heads of {num_heads}; {_WAY_OUT}")
    if not wavlm:
        assumed = [
            *([] if gates in shapes else [f"heads of {head_size}"]),
            *([] if is_hubert else ["HuBERT; wav2vec 2.0 is the same network"]),
        ]
        return {"encoder_num_heads": counts, "encoder_head_dim": head_size}, assumed
    assumed = [f"position bias up to a distance of {MAX_DISTANCE}"]
    kept: Any = [list(range(number)) for number in counts]
    if any(number not in (0, num_heads) for number in counts):
        name, kept = published_heads(counts, values["encoder_ff_interm_features"])
        if kept is None:
            raise InputError(f"{shapes.source}: only a configuration says which heads of WavLM were kept; {_WAY_OUT}")
        assumed.append(f"the kept heads of {name}, which has the same widths")
    position = {"encoder_num_buckets": buckets, "encoder_max_distance": MAX_DISTANCE}
    return {"encoder_total_num_heads": [num_heads] * depth, "encoder_remaining_heads": kept} | position, assumed


_WAY_OUT = 'save {"state_dict": …, "config": …} as DPHuBERT does'
