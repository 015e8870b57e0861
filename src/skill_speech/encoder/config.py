# SPDX-License-Identifier: Apache-2.0
"""What has to be known to rebuild an encoder, pruned or not."""

from __future__ import annotations

import dataclasses
import reprlib
from dataclasses import dataclass
from typing import Any, NamedTuple

FAMILIES = ("hubert", "wavlm", "wav2vec2", "unispeech", "unispeech-sat", "data2vec-audio")
DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feature_dropout", "layer_dropout")


class Range(NamedTuple):
    """Numbers from `low` to `high`; where `kind` is float, whole ones too."""

    kind: type
    low: float
    high: float


# What a value of a configuration can be: one of some words, true or false, or a number in a range. The upper ends are
# far beyond any encoder there is; they bound what is done with a number before it is compared with the weights.
ALLOWED: dict[str, Any] = {
    "family": FAMILIES,
    "depth": Range(int, 1, 256),
    "hidden_size": Range(int, 1, 2**16),
    "num_heads": Range(int, 1, 2**12),
    "units": Range(int, 0, 2**20),
    "num_convs": Range(int, 1, 64),
    "channels": Range(int, 1, 2**16),
    "kernel": Range(int, 1, 2**16),
    "stride": Range(int, 1, 2**16),
    "receptive_field": Range(int, 1, 2**20),
    "conv_norm": ("group", "layer"),
    "positional_kernel": Range(int, 1, 2**16),
    "positional_groups": Range(int, 1, 2**16),
    "positional_depth": Range(int, 0, 64),
    "relative_buckets": Range(int, 0, 2**16),
    "relative_distance": Range(int, 0, 2**20),
    "language_adapter": Range(int, 0, 2**16),
    "sampling_rate": Range(int, 1_000, 384_000),
    **dict.fromkeys(("activation", "conv_activation"), ("gelu", "gelu_new", "relu", "silu")),
    **dict.fromkeys(("conv_bias", "feature_norm", "feature_scale", "pre_norm", "positional_affine"), bool),
    **dict.fromkeys(("input_normalization", "length_aware"), bool),
    **dict.fromkeys(("norm_eps", "input_norm_eps"), Range(float, 1e-20, 1.0)),
    **dict.fromkeys(DROPOUTS, Range(float, 0.0, 1.0)),
}


def check_value(name: str, value: Any, called: str | None = None) -> None:
    """See that a value of a configuration is of the type and in the range that `ALLOWED` gives for it.

    Args:
        name: in `ALLOWED`.
        value: from anywhere.
        called: its name where it comes from, for the message.

    Raises:
        ValueError: it is not.
    """
    check(called or name, value, ALLOWED[name])


def check(name: str, value: Any, allowed: Any) -> None:
    """See that a value is what is allowed: `bool`, a `Range`, or one of some words.

    Raises:
        ValueError: it is not.
    """
    if allowed is bool:
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(allowed, Range):
        number = isinstance(value, (int, allowed.kind)) and not isinstance(value, bool)
        fits = number and allowed.low <= value <= allowed.high
        wanted = f"a {'whole ' * (allowed.kind is int)}number from {allowed.low:.7g} to {allowed.high:.7g}"
    else:
        fits, wanted = isinstance(value, str) and value in allowed, f"one of {', '.join(allowed)}"
    if not fits:
        raise ValueError(f"{name} is {reprlib.repr(value)}; it must be {wanted}")


@dataclass(frozen=True)
class ConvConfig:
    """One convolution of the front end: output channels, kernel and stride in input steps."""

    channels: int
    kernel: int
    stride: int

    def num_frames(self, samples: Any) -> Any:
        """Steps that come out when so many go in: a number, or a tensor of numbers."""
        return (samples - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class LayerConfig:
    """What is left of one transformer layer.

    `heads` are the teacher's numbers of the attention heads that are kept: WavLM's position bias belongs to a head by
    number, and a reader wants to know which survived. `units` is the feed-forward width. Either may be empty: the
    sublayer then adds only its output bias.
    """

    heads: tuple[int, ...]
    units: int


@dataclass(frozen=True)
class EncoderConfig:
    """A speech encoder of the wav2vec 2.0 kind: convolutions, positional convolution, transformer.

    The same class describes a teacher and its pruned student; every width is per layer.

    Attributes:
        family: where the architecture comes from, one of `FAMILIES`; for people and exports, the network does not
            branch on it.
        hidden_size: width D of the transformer.
        num_heads: heads per layer before pruning; `hidden_size / num_heads` is the head's width.
        convs: the front end, first layer first.
        layers: the transformer, first layer first.
        conv_norm: "group" (per-channel statistics over time after the first convolution, Base models) or "layer" (layer
            norm over channels after each convolution, Large models).
        conv_bias: whether the convolutions have a bias.
        conv_activation: activation after each convolution, the positional one included.
        activation: activation of the feed-forward units.
        feature_norm: layer norm over channels before the feature projection.
        feature_scale: one learned factor per channel of the last convolution, what surgery leaves of its gates.
        pre_norm: layer norms before each sublayer ("stable" layer norm) instead of after it.
        positional_kernel, positional_groups: shape of the positional convolution.
        positional_depth: 0 for the single convolution; n for data2vec's stack of n convolutions, each followed by a
            layer norm without parameters.
        positional_affine: a per-channel scale and shift in front of the positional convolution (a frozen batch norm).
        relative_buckets, relative_distance: WavLM's gated relative position bias; 0 buckets for none.
        language_adapter: width of what each layer of a pre-norm model adds for one language (MMS); 0 for nothing.
        norm_eps: epsilon of the layer norms over hidden states and before the feature projection.
        input_normalization: bring every utterance to zero mean and unit variance first, as the checkpoint's
            preprocessor does.
        input_norm_eps: what is added to the variance then: 1e-7 in Transformers, 1e-5 in fairseq and TorchAudio, which
            shows on quiet recordings.
        length_aware: keep padding out of everything, so that a padded batch equals its utterances one by one. Off, the
            group norm's statistics see the padding, as they do in Transformers.
        sampling_rate: Hz of the input.
        hidden_dropout, attention_dropout, activation_dropout, feature_dropout: probabilities while training.
        layer_dropout: probability of skipping a whole layer while training.
    """

    family: str
    hidden_size: int
    num_heads: int
    convs: tuple[ConvConfig, ...]
    layers: tuple[LayerConfig, ...]
    conv_norm: str = "group"
    conv_bias: bool = False
    conv_activation: str = "gelu"
    activation: str = "gelu"
    feature_norm: bool = True
    feature_scale: bool = False
    pre_norm: bool = False
    positional_kernel: int = 128
    positional_groups: int = 16
    positional_depth: int = 0
    positional_affine: bool = False
    relative_buckets: int = 0
    relative_distance: int = 0
    language_adapter: int = 0
    norm_eps: float = 1e-5
    input_normalization: bool = False
    input_norm_eps: float = 1e-7
    length_aware: bool = False
    sampling_rate: int = 16_000
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    feature_dropout: float = 0.0
    layer_dropout: float = 0.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.name in ALLOWED:
                check_value(field.name, getattr(self, field.name))
        if not self.convs or not self.layers:
            raise ValueError("an encoder needs at least one convolution and one transformer layer")
        check_value("num_convs", len(self.convs), "the number of convolutions")
        check_value("depth", len(self.layers), "the number of layers")
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.relative_buckets and not self.relative_distance > self.relative_buckets // 4 > 0:
            buckets, distance = self.relative_buckets, self.relative_distance
            raise ValueError(f"{buckets} buckets of a position bias do not cover a distance of {distance}")
        if self.language_adapter and not self.pre_norm:
            raise ValueError("language adapters require pre-norm layers")
        for number, conv in enumerate(self.convs):
            for field in dataclasses.fields(conv):
                check_value(field.name, getattr(conv, field.name), f"{field.name} of convolution {number}")
        check_value("receptive_field", self.receptive_field, "the number of samples that one frame sees")
        for number, layer in enumerate(self.layers, start=1):
            check_value("units", layer.units, f"units of layer {number}")
            if not _are_heads(layer.heads, self.num_heads):
                raise ValueError(
                    f"layer {number} keeps the heads {reprlib.repr(layer.heads)}: they must be distinct, ascending "
                    f"whole numbers from 0 to {self.num_heads - 1}"
                )

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_layers(self) -> int:
        """Depth L of the transformer."""
        return len(self.layers)

    @property
    def positional_weight_norm(self) -> bool:
        """Whether such models train their positional convolution under weight normalization (all but data2vec do)."""
        return not self.positional_depth and not self.positional_affine

    @property
    def receptive_field(self) -> int:
        """Samples that one frame sees, the shortest input that gives a frame (400 for the usual front end)."""
        field = 1
        for conv in reversed(self.convs):
            field = (field - 1) * conv.stride + conv.kernel
        return field

    @property
    def hop(self) -> int:
        """Samples from one frame to the next (320 for the usual front end)."""
        hop = 1
        for conv in self.convs:
            hop *= conv.stride
        return hop

    def num_frames(self, samples: Any) -> Any:
        """Frames that the front end makes of so many samples: a number, or a tensor of numbers."""
        for conv in self.convs:
            samples = conv.num_frames(samples)
        return samples

    def replace(self, **changes: Any) -> EncoderConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def without_dropout(self) -> EncoderConfig:
        """A copy in which nothing is dropped while training."""
        return self.replace(**dict.fromkeys(DROPOUTS, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> EncoderConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: a key is missing or unknown, or a value is out of range.
        """
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown keys in the encoder configuration: {', '.join(unknown)}")
        try:
            convs = tuple(ConvConfig(**conv) for conv in values["convs"])
            layers = tuple(LayerConfig(tuple(layer["heads"]), layer["units"]) for layer in values["layers"])
            return cls(**{**values, "convs": convs, "layers": layers})
        except (KeyError, TypeError) as error:
            raise ValueError(f"incomplete encoder configuration: {error}") from None


def _are_heads(heads: tuple[Any, ...], num_heads: int) -> bool:
    return all(type(head) is int and before < head < num_heads for before, head in zip((-1, *heads), heads))


BASE_CONVS = tuple(
    ConvConfig(512, kernel, stride) for kernel, stride in zip((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2))
)


def full_layers(depth: int, num_heads: int, units: int) -> tuple[LayerConfig, ...]:
    """`depth` unpruned layers.

    Raises:
        ValueError: a number is out of range.
    """
    for name, value in (("depth", depth), ("num_heads", num_heads), ("units", units)):
        check_value(name, value)
    return tuple(LayerConfig(tuple(range(num_heads)), units) for _ in range(depth))


def hubert_config(
    *,
    hidden_size: int = 768,
    depth: int = 12,
    num_heads: int = 12,
    units: int = 3072,
    channels: int = 512,
    **changes: Any,
) -> EncoderConfig:
    """HuBERT Base, or the same architecture in another size."""
    values: dict[str, Any] = {
        "family": "hubert",
        "hidden_size": hidden_size,
        "num_heads": num_heads,
        "convs": tuple(dataclasses.replace(conv, channels=channels) for conv in BASE_CONVS),
        "layers": full_layers(depth, num_heads, units),
    }
    return EncoderConfig(**{**values, **changes})


def wavlm_config(**changes: Any) -> EncoderConfig:
    """WavLM Base (and Base+), or the same architecture in another size; takes what `hubert_config` takes."""
    return hubert_config(**{"family": "wavlm", "relative_buckets": 320, "relative_distance": 800, **changes})
