"""The front end for inference: channels last, convolutions as products, the norm over time folded into the first.

Shapes: B utterances, T samples or frames, T' output frames, C input and O output channels, K taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder import Encoder
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
            if isinstance(conv, FirstConv):
                frames_B = None
                if lengths_B is not None and config.length_aware:
                    first = config.convs[0]
                    frames_B = (lengths_B - first.kernel).div(first.stride, rounding_mode="floor") + 1
                x_BTC = conv(x_BTC, frames_B)
            else:
                x_BTC = conv(x_BTC)
        return x_BTC


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
    """The first convolution and its norm over time as one product.

    The mean and variance that a channel has over time follow from those of the K samples that a frame reads: with
    their mean m and covariance Σ and the channel's taps w they are w·m and wᵀ Σ w. So they are known before the
    convolution is computed, and scale and shift its weights instead of its output.
    """

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        assert isinstance(layer.norm, TimeNorm)
        self.kernel, self.stride = layer.conv.kernel_size[0], layer.conv.stride[0]
        self.eps, self.activation = layer.norm.eps, layer.activation
        self.dtype = layer.conv.weight.dtype
        # The convolution's own bias is what the norm takes away again.
        self.weight_OK = layer.conv.weight.detach()[:, 0].double()
        self.gain_O, self.shift_O = (one.detach().double() for one in (layer.norm.weight, layer.norm.bias))
        self.factors_O = layer.channel_scale()

    def forward(self, x_BT1: Tensor, frames_B: Tensor | None) -> Tensor:
        """(B, T, 1) → (B, T', O); with `frames_B`, the statistics are those of so many frames alone."""
        windows_BTK = windows(x_BT1, self.kernel, self.stride)
        seen_BTK = windows_BTK.double()
        valid_BT1 = None if frames_B is None else _valid(frames_B, windows_BTK.shape[1])[..., None].double()
        count: Tensor | int = windows_BTK.shape[1]
        if valid_BT1 is not None:
            count = valid_BT1.sum(1, keepdim=True)
            mean_B1K = (seen_BTK * valid_BT1).sum(1, keepdim=True) / count
            seen_BTK = (seen_BTK - mean_B1K) * valid_BT1
        else:
            mean_B1K = seen_BTK.mean(1, keepdim=True)
            seen_BTK = seen_BTK - mean_B1K
        covariance_BKK = seen_BTK.transpose(1, 2) @ seen_BTK / count
        variance_BO = ((self.weight_OK @ covariance_BKK) * self.weight_OK).sum(-1)
        gain_BO = self.gain_O * torch.rsqrt(variance_BO + self.eps)
        weight_BKO = (self.weight_OK * gain_BO[..., None]).transpose(1, 2)
        bias_B1O = self.shift_O - mean_B1K @ weight_BKO
        x_BTO = torch.baddbmm(bias_B1O.to(self.dtype), windows_BTK.to(self.dtype), weight_BKO.to(self.dtype))
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
