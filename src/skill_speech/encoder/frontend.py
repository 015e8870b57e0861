"""From samples to frames: the strided convolutions and the feature projection."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ConvConfig, EncoderConfig
from .convolution import by_products, convolve, convolve_normalized
from .dropout import Dropout
from .normalization import ChannelNorm, TimeNorm
from .scale import LearnedScale, UnitScale


def activation_function(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of that name in Transformers' spelling."""
    if name == "gelu_new":
        return lambda x: F.gelu(x, approximate="tanh")
    functions: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}
    return functions[name]


class ConvLayer(nn.Module):
    """Convolution, norm, activation, and the scale of its channels."""

    def __init__(self, config: EncoderConfig, number: int) -> None:
        super().__init__()
        here: ConvConfig = config.convs[number]
        last = number == len(config.convs) - 1
        inputs = config.convs[number - 1].channels if number else 1
        self.stride = here.stride
        self.conv = nn.Conv1d(inputs, here.channels, here.kernel, here.stride, bias=config.conv_bias)
        self.norm: TimeNorm | ChannelNorm | None = None
        if config.conv_norm == "layer":
            self.norm = ChannelNorm(here.channels)
        elif number == 0:
            self.norm = TimeNorm(here.channels)
        self.activation = activation_function(config.conv_activation)
        self.channel_scale = LearnedScale(here.channels) if last and config.feature_scale else UnitScale()

    def forward(
        self, x_BTC: Tensor, valid_BT: Tensor | None, factors_C: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output (B, T', C') before it is scaled, and the factors (C',) it is to be scaled by, if any.

        Args:
            x_BTC: what the layer before made, not yet scaled.
            valid_BT: masks the *output* frames; given only when the norm over time must not see the padding.
            factors_C: the factors of the layer before. They scale the weight here, which is smaller than its input.
        """
        factors = self.channel_scale()
        weight_OCK, bias_O = self.conv.weight, self.conv.bias
        if factors_C is not None:
            weight_OCK = weight_OCK * factors_C[:, None].to(weight_OCK.dtype)
        if isinstance(self.norm, TimeNorm) and bias_O is None and by_products(x_BTC):
            x_BTC = convolve_normalized(
                x_BTC[..., 0], weight_OCK[:, 0], self.norm.weight, self.norm.bias, self.norm.eps, self.stride, valid_BT
            )
        else:
            x_BTC = convolve(x_BTC, weight_OCK, bias_O, self.stride)
            if isinstance(self.norm, ChannelNorm):
                x_BTC = self.norm(x_BTC, factors if self.channel_scale.can_close else None)
            elif self.norm is not None:
                x_BTC = self.norm(x_BTC, valid_BT)
        return self.activation(x_BTC), factors


class FeatureProjection(nn.Module):
    """Layer norm over the last convolution's channels, then a projection to the transformer's width."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        channels = config.convs[-1].channels
        self.norm = ChannelNorm(channels, config.norm_eps) if config.feature_norm else None
        self.projection = nn.Linear(channels, config.hidden_size)
        self.dropout = Dropout(config.feature_dropout)

    def forward(self, x_BTC: Tensor, gates_C: Tensor | None) -> Tensor:
        """Features h_0 (B, T, D); `gates_C` tells which channels are open."""
        if self.norm is not None:
            x_BTC = self.norm(x_BTC, gates_C)
        return self.dropout(self.projection(x_BTC))
