"""From an encoder to one that only runs, faster."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..encoder import Encoder, EncoderConfig, EncoderOutput
from ..encoder.layers import TransformerLayer
from ..errors import InputError
from ..hardware import multiplies_bfloat16
from .frontend import FastFrontEnd
from .layer import FastAttention, FastFeedForward, FastLayer, OffsetBias
from .linear import Int8Linear, PackedLinear
from .position import SMALLEST_KERNEL, GroupedProduct, SpectralConv, convolve_or_run
from .rounding import ZERO_AFTER_ACTIVATION

Precision = Literal["auto", "float32", "bf16", "int8", "int8-float32"]


class OptimizedEncoder(nn.Module):
    """An encoder that runs and cannot be trained; called like `Encoder`, and its output is float32 in any precision.

    Attributes:
        config: of the encoder.
        precision: "float32", "bf16", "int8" or "int8-float32".
    """

    def __init__(self, encoder: Encoder, precision: Literal["float32", "bf16", "int8", "int8-float32"]) -> None:
        super().__init__()
        self.precision = precision
        self._size = encoder.num_parameters()
        encoder.eval().requires_grad_(False)
        float32 = precision.endswith("float32")
        if precision.startswith("int8"):  # before the rest is cast: weights are rounded once
            _replace_layers(encoder, Int8Linear, partial(Int8Linear, zero=ZERO_AFTER_ACTIVATION))
        encoder.to(torch.float32 if float32 else torch.bfloat16)
        self.front_end = FastFrontEnd(encoder)
        encoder.convs = nn.ModuleList()
        projection = encoder.projection.projection
        encoder.projection.register_module("projection", PackedLinear(projection.weight, projection.bias))
        for number, conv in enumerate(encoder.positional_conv.convs):
            if isinstance(conv, nn.Conv1d) and conv.kernel_size[0] >= SMALLEST_KERNEL:
                made = SpectralConv(conv) if float32 else GroupedProduct(conv)
                encoder.positional_conv.convs[number] = made
        encoder.positional_conv.convolve = convolve_or_run
        if encoder.position_bias is not None:
            encoder.register_module("position_bias", OffsetBias(encoder.position_bias))
        if not precision.startswith("int8"):
            _replace_layers(encoder, PackedLinear, PackedLinear)
        for number, layer in enumerate(encoder.layers):
            assert isinstance(layer, TransformerLayer)
            encoder.layers[number] = FastLayer(layer)
        self.encoder = encoder

    @property
    def config(self) -> EncoderConfig:
        """Of the encoder."""
        return self.encoder.config

    def num_parameters(self) -> int:
        """Parameters of the encoder that it was made of."""
        return self._size

    @torch.no_grad()
    def forward(self, waveforms_BT: Tensor, lengths_B: Tensor | None = None) -> EncoderOutput:
        """Encode waveforms, as `Encoder.forward`."""
        waveforms_BT, lengths_B = self.encoder.as_batch(waveforms_BT, lengths_B)
        frames_B = None if lengths_B is None else self.encoder.num_frames(lengths_B)
        with torch.autocast(waveforms_BT.device.type, enabled=False):  # the types are the weights'
            x_BTC = self.front_end(waveforms_BT.float(), lengths_B)
            return self.encoder.context(self.encoder.projection(x_BTC, None), frames_B, torch.float32)


def _replace_layers(
    encoder: Encoder, linear: Callable[..., nn.Module], after_activation: Callable[..., nn.Module]
) -> None:
    """Have the layers compute as in `layer`, with these linear maps."""
    for layer in encoder.layers:
        assert isinstance(layer, TransformerLayer)
        if layer.attention.num_heads:
            # A gate is a few numbers, and rounding them to 8 bits would change more than it saves.
            layer.register_module("attention", FastAttention(layer.attention, linear, linear is PackedLinear))
        if layer.feed_forward.input.out_features:
            layer.register_module("feed_forward", FastFeedForward(layer.feed_forward, linear, after_activation))


def optimize(encoder: Encoder, precision: Precision = "auto") -> OptimizedEncoder:
    """Make an encoder fast for inference. It is taken over: use it no more, or give a copy (`copy.deepcopy`).

    The result computes the same function: weights are laid out for the processor's matrix instructions, queries, keys
    and values are one product, scores are computed a part at a time, the first norm is folded into the first
    convolution, and the positional convolution goes by way of the frequency domain with a tenth of the multiplications
    (in float32; in bfloat16 the plain products are as fast and smaller).

    Args:
        encoder: without gates.
        precision: "float32" differs from the encoder by rounding (1e-5 of a hidden state's size); "bf16" has weights
            and activations in bfloat16 (about one per cent); "int8" also has 8-bit weights and inputs in the
            transformer's linear maps, "int8-float32" has those and float32 elsewhere (below one per cent, of a student
            of `--quantization int8` about half of one; both need a CPU); "auto" is bf16 where the device has
            instructions for it, else float32.

    Raises:
        InputError: an unknown precision, or one that this torch or device cannot do.
    """
    if precision not in get_args(Precision):
        raise InputError(f"precision is {precision!r}; it can be {', '.join(get_args(Precision))}")
    device = next(encoder.parameters()).device
    if precision == "auto":
        precision = "bf16" if multiplies_bfloat16(device) else "float32"
    return OptimizedEncoder(encoder, precision)
