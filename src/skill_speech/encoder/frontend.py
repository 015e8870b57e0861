"""From samples to frames: the strided convolutions and the feature projection."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ConvConfig, EncoderConfig
from .normalization import ChannelNorm, TimeNorm
from .scale import LearnedScale, UnitScale, scaled


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
        self.conv = nn.Conv1d(inputs, here.channels, here.kernel, here.stride, bias=config.conv_bias)
        self.norm: TimeNorm | ChannelNorm | None = None
        if config.conv_norm == "layer":
            self.norm = ChannelNorm(here.channels)
        elif number == 0:
            self.norm = TimeNorm(here.channels)
        self.activation = activation_function(config.conv_activation)
        self.channel_scale = LearnedScale(here.channels) if last and config.feature_scale else UnitScale()

    def forward(self, x_BCT: Tensor, valid_BT: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The layer's output (B, C', T') and, where channels can be closed, the factors (C',) that it was scaled by.

        `valid_BT` masks the *output* frames and is given only when the norm over time must not see the padding.
        """
        factors_C = self.channel_scale()
        gates_C = factors_C if self.channel_scale.can_close else None
        x_BCT = self.conv(x_BCT)
        if isinstance(self.norm, ChannelNorm):
            x_BCT = self.norm(x_BCT.transpose(1, 2), gates_C).transpose(1, 2)
        elif self.norm is not None:
            x_BCT = self.norm(x_BCT, valid_BT)
        x_BCT = self.activation(x_BCT)
        return scaled(x_BCT.transpose(1, 2), factors_C).transpose(1, 2), gates_C


class FeatureProjection(nn.Module):
    """Layer norm over the last convolution's channels, then a projection to the transformer's width."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        channels = config.convs[-1].channels
        self.norm = ChannelNorm(channels, config.norm_eps) if config.feature_norm else None
        self.projection = nn.Linear(channels, config.hidden_size)
        self.dropout = nn.Dropout(config.feature_dropout)

    def forward(self, x_BTC: Tensor, gates_C: Tensor | None) -> Tensor:
        """Features h_0 (B, T, D); `gates_C` tells which channels are open."""
        if self.norm is not None:
            x_BTC = self.norm(x_BTC, gates_C)
        return self.dropout(self.projection(x_BTC))
