"""The front end for inference: a part of the frames at a time, as products, with the norm folded into the first.

Shapes: B utterances, T samples or frames, T' output frames, C input and O output channels, K taps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import Encoder
from ..encoder.encoder import first_steps, normalize_waveforms
from ..encoder.layers import ConvLayer, TimeNorm
from .convolution import fold_norm, windows
from .linear import PackedLinear

PART = 128
"""Frames that go through all convolutions together: what lies between two of them then stays in the cache."""


class FastFrontEnd(nn.Module):
    """What the convolutions of an encoder compute in evaluation mode."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.config = encoder.config
        layers = [layer for layer in encoder.convs if isinstance(layer, ConvLayer)]
        first: nn.Module = FirstConv(layers[0]) if isinstance(layers[0].norm, TimeNorm) else ConvProduct(layers[0])
        self.convs = nn.ModuleList((first, *map(ConvProduct, layers[1:])))
        # A frame reads `field` samples; the next one's start `stride` later.
        self.stride, self.field = 1, 1
        for conv in self.config.convs:
            self.field += (conv.kernel - 1) * self.stride
            self.stride *= conv.stride

    def forward(self, waveforms_BT: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Waveforms in float32 → (B, T', O) in the type of the weights."""
        config = self.config
        if config.input_normalization:
            valid_BT = None if lengths_B is None else first_steps(lengths_B, waveforms_BT.shape[1])
            waveforms_BT = normalize_waveforms(waveforms_BT, valid_BT, config.input_norm_eps)
        first, *others = self.convs
        firsts: list[Callable[[Tensor], Tensor]] = [first] * len(waveforms_BT)
        if isinstance(first, FirstConv):
            firsts = first.of_each(waveforms_BT, self._valid(lengths_B, waveforms_BT))
        frames = (waveforms_BT.shape[1] - self.field) // self.stride + 1
        parts = []
        for waveform_T, convolve in zip(waveforms_BT, firsts, strict=True):
            for start, stop in _parts(frames):
                x_TC = waveform_T[start * self.stride : (stop - 1) * self.stride + self.field, None]
                x_TC = convolve(x_TC)
                for conv in others:
                    x_TC = conv(x_TC)
                parts.append(x_TC)
        return torch.cat(parts).unflatten(0, (len(waveforms_BT), frames))

    def _valid(self, lengths_B: Tensor | None, waveforms_BT: Tensor) -> Tensor | None:
        """The output frames of the first convolution that are not padding, where that matters."""
        if lengths_B is None or not self.config.length_aware:
            return None
        first = self.config.convs[0]
        return first_steps(first.num_frames(lengths_B), first.num_frames(waveforms_BT.shape[1]))


class ConvProduct(nn.Module):
    """Convolution, norm over channels if there is one, activation, and the scale of the channels."""

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        self.kernel, self.stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        self.norm = layer.norm
        fused = self.norm is None and layer.activation is F.gelu
        self.activation = None if fused else layer.activation
        self.factors_O = layer.channel_scale()
        weight_OCK, bias_O = layer.conv.weight.detach(), layer.conv.bias
        bias_O = weight_OCK.new_zeros(len(weight_OCK)) if bias_O is None else bias_O
        self.product = PackedLinear(weight_OCK.transpose(1, 2).flatten(1), bias_O, gelu=fused)

    def forward(self, x_TC: Tensor) -> Tensor:
        """(T, C) → (T', O)."""
        x_TO = self.product(windows(x_TC.to(self.product.bias_O.dtype).contiguous(), self.kernel, self.stride))
        if self.norm is not None:
            x_TO = self.norm(x_TO)
        if self.activation is not None:
            x_TO = self.activation(x_TO)
        return x_TO if self.factors_O is None else x_TO.mul_(self.factors_O)


class FirstConv(nn.Module):
    """The first convolution with its norm over time: one product, its weights another in every utterance."""

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        assert isinstance(layer.norm, TimeNorm)
        self.norm, self.stride, self.activation = layer.norm, layer.conv.stride[0], layer.activation
        # The convolution's own bias is what the norm takes away again.
        self.weight_OK = nn.Parameter(layer.conv.weight.detach()[:, 0], requires_grad=False)
        self.factors_O = layer.channel_scale()

    def of_each(self, waveforms_BT: Tensor, valid_BT: Tensor | None) -> list[Callable[[Tensor], Tensor]]:
        """For every utterance what maps some of its samples (T, 1) to (T', O).

        The norm's statistics are those of the valid output frames.
        """
        norm, dtype = self.norm, self.weight_OK.dtype
        constant_B1, weights_BOK, offset_BO = fold_norm(
            waveforms_BT, self.weight_OK, norm.weight, norm.bias, norm.eps, self.stride, valid_BT
        )
        utterances = zip(constant_B1, weights_BOK.to(dtype), offset_BO.to(dtype), strict=True)
        return [partial(self._convolve, *values) for values in utterances]

    def _convolve(self, constant_1: Tensor, weight_OK: Tensor, bias_O: Tensor, x_T1: Tensor) -> Tensor:
        window_TK = windows((x_T1 - constant_1).to(weight_OK.dtype), weight_OK.shape[1], self.stride)
        x_TO = F.linear(window_TK, weight_OK, bias_O)
        x_TO = torch.ops.aten.gelu_(x_TO) if self.activation is F.gelu else self.activation(x_TO)
        return x_TO if self.factors_O is None else x_TO.mul_(self.factors_O)


def _parts(frames: int) -> Iterator[tuple[int, int]]:
    """Where parts of nearly equal size start and stop."""
    count = -(-frames // PART)
    for number in range(count):
        yield frames * number // count, frames * (number + 1) // count
