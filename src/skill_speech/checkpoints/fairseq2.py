"""Checkpoints of fairseq2, such as Omnilingual wav2vec 2.0: weights alone, whose configuration is a name in its code.

What the shapes of the weights do not tell is the same in all of its waveform encoders (`Wav2Vec2EncoderConfig`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..encoder import ConvConfig, EncoderConfig, full_layers
from ..encoder.config import BASE_CONVS, check_value
from ..errors import InputError
from .checkpoint import Checkpoint
from .hugging_face import CONFORMER, convert_weights, direction_norm
from .shapes import HEAD_SIZE, NUM_HEADS, Shapes
from .torchaudio import INPUT_NORM_EPS
from .weights import StateDict, build

FIRST = "encoder_frontend.feature_extractor.layers.0.conv.weight"
CONVS = "encoder_frontend.feature_extractor.layers."
PARTS = ("encoder_frontend.", "encoder.")

# Transformers' names to fairseq2's, all that match.
RENAMES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^feature_extractor\.conv_layers\.", CONVS),
        (r"^feature_projection\.layer_norm\.", "encoder_frontend.post_extract_layer_norm."),
        (r"^feature_projection\.projection\.", "encoder_frontend.model_dim_proj."),
        (r"^encoder\.pos_conv_embed\.", "encoder_frontend.pos_encoder."),
        (r"^(encoder\.layers\.\d+)\.attention\.out_proj\.", r"\1.self_attn.output_proj."),
        (r"^(encoder\.layers\.\d+)\.attention\.", r"\1.self_attn."),
        (r"^(encoder\.layers\.\d+)\.layer_norm\.", r"\1.self_attn_layer_norm."),
        (r"\.final_layer_norm\.", ".ffn_layer_norm."),
        (r"\.feed_forward\.intermediate_dense\.", ".ffn.inner_proj."),
        (r"\.feed_forward\.output_dense\.", ".ffn.output_proj."),
    )
]


def is_fairseq2(names: Any) -> bool:
    """Whether weights are named as fairseq2 does, by its front end."""
    return any(".encoder_frontend." in f".{name}" for name in names)


def load_fairseq2(weights: Mapping[Any, Any], source: str) -> Checkpoint:
    """The wav2vec 2.0 encoder of a file of fairseq2, pre-trained or below a decoder or a CTC head.

    Args:
        weights: the state dict, perhaps of another module around the model.
        source: for messages.

    Raises:
        InputError: another encoder of fairseq2, or a weight that is missing or of the wrong kind.
    """
    names = [name for name in weights if isinstance(name, str)]
    place = next((name.removesuffix(FIRST) for name in names if name.endswith(FIRST)), "")
    tensors = {name.removeprefix(place): weights[name] for name in names if name.startswith(place)}
    tensors = {name: tensor for name, tensor in tensors.items() if name.startswith(PARTS)}
    config = _config(tensors, source)
    theirs = StateDict(tensors, source, Renaming(config))
    converted = dict(convert_weights(theirs, config))
    left = next(theirs.left(), None)
    if left is not None:
        raise InputError(f"{source}: its shapes do not match the weight {left}")
    style = "Large" if config.conv_norm == "layer" else "Base"
    assumed = (
        "the usual strides of the convolutions",
        f"heads of {config.head_size}",
        f"waveforms {'to be' if config.input_normalization else 'not'} normalized, as in {style} models",
    )
    encoder = build(config, converted, source).eval()
    return Checkpoint(encoder, "fairseq2", assumed, direction_norm(theirs, config))


class Renaming:
    """fairseq2's name for a weight that Transformers calls by another."""

    def __init__(self, config: EncoderConfig) -> None:
        self.norm = "layer_norm" if config.conv_norm == "layer" else "group_norm"
        # In post-norm models the norm before the first layer belongs to the front end.
        self.first_norm = "encoder" if config.pre_norm else "encoder_frontend"

    def __call__(self, name: str) -> str:
        """The name in the file."""
        name = re.sub(r"^encoder\.layer_norm\.", f"{self.first_norm}.layer_norm.", name)
        name = re.sub(r"^(feature_extractor\.conv_layers\.\d+)\.layer_norm\.", rf"\1.{self.norm}.", name)
        for pattern, replacement in RENAMES:
            name = pattern.sub(replacement, name)
        return name


def _config(tensors: dict[str, Any], source: str) -> EncoderConfig:
    """What the shapes tell, and what fairseq2's encoders have in common.

    Raises:
        InputError: an encoder of another kind, or shapes that make none.
    """
    shapes = Shapes(tensors, source)
    if any(".ffn1." in name for name in tensors):
        raise InputError(f"{source}: Conformer layers of fairseq2 are not supported: {CONFORMER}")
    if FIRST not in shapes:
        raise InputError(f"{source}: {FIRST} is missing; only fairseq2 encoders of waveforms are supported")
    convs = [shapes.of(f"{CONVS}{n}.conv.weight", 3) for n in range(shapes.count(f"{CONVS}{{}}.conv.weight"))]
    if [kernel for _, _, kernel in convs] != [conv.kernel for conv in BASE_CONVS]:
        raise InputError(f"{source}: convolutions with other kernels than wav2vec 2.0's, whose strides are not known")
    width, group, kernel = shapes.of("encoder_frontend.pos_encoder.conv.weight_v", 3)
    units, _ = shapes.of("encoder.layers.0.ffn.inner_proj.weight", 2)
    depth = shapes.count("encoder.layers.{}.ffn.inner_proj.weight")
    pre_norm = "encoder.layer_norm.weight" in shapes
    large = f"{CONVS}0.layer_norm.weight" in shapes
    try:
        check_value("hidden_size", width)
        heads = NUM_HEADS.get(width, max(1, width // HEAD_SIZE))
        return EncoderConfig(
            family="wav2vec2",
            hidden_size=width,
            num_heads=heads,
            convs=tuple(
                ConvConfig(channels, conv.kernel, conv.stride)
                for (channels, _, _), conv in zip(convs, BASE_CONVS, strict=True)
            ),
            layers=full_layers(depth, heads, units),
            conv_norm="layer" if large else "group",
            conv_bias=f"{CONVS}0.conv.bias" in shapes,
            pre_norm=pre_norm,
            positional_kernel=kernel,
            positional_groups=width // group,
            input_normalization=large,
            input_norm_eps=INPUT_NORM_EPS,
        )
    except ValueError as error:
        raise InputError(f"{source}: its shapes do not match any encoder ({error})") from None
