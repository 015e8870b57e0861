"""The front end for inference: channels last, convolutions as products, the norm over time folded into the first.

Shapes: B utterances, T samples or frames, T' output frames, C input and O output channels, K taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import Encoder
from ..encoder.convolution import convolve_normalized
from ..encoder.frontend import ConvLayer
from ..encoder.normalization import TimeNorm, normalize_waveforms
from .linear import PackedLinear


class FastFrontEnd(nn.Module):
    """What the convolutions of an encoder compute in evaluation mode."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.config = encoder.config
        layers = [layer for layer in encoder.convs if isinstance(layer, ConvLayer)]
        first: nn.Module = FirstConv(layers[0]) if isinstance(layers[0].norm, TimeNorm) else ConvProduct(layers[0])
        self.convs = nn.ModuleList((first, *map(ConvProduct, layers[1:])))

    def forward(self, waveforms_BT: Tensor, lengths_B: Tensor | None) -> Tensor:
        """Waveforms in float32 → (B, T', O) in the type of the weights."""
        config = self.config
        if config.input_normalization:
            valid_BT = None if lengths_B is None else _valid(lengths_B, waveforms_BT.shape[1])
            waveforms_BT = normalize_waveforms(waveforms_BT, valid_BT, config.input_norm_eps)
        x_BTC = waveforms_BT[..., None]
        for conv in self.convs:
            x_BTC = conv(x_BTC[..., 0], self._valid(lengths_B, x_BTC)) if isinstance(conv, FirstConv) else conv(x_BTC)
        return x_BTC

    def _valid(self, lengths_B: Tensor | None, x_BT1: Tensor) -> Tensor | None:
        """The output frames of the first convolution that are not padding, where that matters."""
        if lengths_B is None or not self.config.length_aware:
            return None
        first = self.config.convs[0]
        frames_B = (lengths_B - first.kernel).div(first.stride, rounding_mode="floor") + 1
        return _valid(frames_B, (x_BT1.shape[1] - first.kernel) // first.stride + 1)


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

    def forward(self, x_BTC: Tensor) -> Tensor:
        """(B, T, C) → (B, T', O)."""
        x_BTO = self.product(windows(x_BTC, self.kernel, self.stride).to(self.product.bias_O.dtype))
        if self.norm is not None:
            x_BTO = self.norm(x_BTO)
        if self.activation is not None:
            x_BTO = self.activation(x_BTO)
        return x_BTO if self.factors_O is None else x_BTO.mul_(self.factors_O)


class FirstConv(nn.Module):
    """The first convolution with its norm over time, one product of which the activation overwrites the result."""

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        assert isinstance(layer.norm, TimeNorm)
        self.norm, self.stride, self.activation = layer.norm, layer.conv.stride[0], layer.activation
        # The convolution's own bias is what the norm takes away again.
        self.weight_OK = nn.Parameter(layer.conv.weight.detach()[:, 0], requires_grad=False)
        self.factors_O = layer.channel_scale()

    def forward(self, waveforms_BT: Tensor, valid_BT: Tensor | None) -> Tensor:
        """(B, T) → (B, T', O); the norm's statistics are those of the valid output frames."""
        norm = self.norm
        x_BTO = convolve_normalized(
            waveforms_BT, self.weight_OK, norm.weight, norm.bias, norm.eps, self.stride, valid_BT
        )
        x_BTO = torch.ops.aten.gelu_(x_BTO) if self.activation is F.gelu else self.activation(x_BTO)
        return x_BTO if self.factors_O is None else x_BTO.mul_(self.factors_O)


def windows(x_BTC: Tensor, kernel: int, stride: int) -> Tensor:
    """What every output frame reads, side by side (B, T', K·C): a view of neighbouring frames."""
    x_BTC = x_BTC.contiguous()
    B, T, C = x_BTC.shape
    steps = (T - kernel) // stride + 1
    return x_BTC.as_strided((B, steps, kernel * C), (T * C, stride * C, 1))


def _valid(lengths_B: Tensor, steps: int) -> Tensor:
    return torch.arange(steps, device=lengths_B.device) < lengths_B[:, None]
