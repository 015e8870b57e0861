# SPDX-License-Identifier: Apache-2.0
"""The parts of an encoder in plain torch: scales, norms, front end, position, attention, feed-forward.

Operations that take most of the time are carried out in named places, where what computes the same faster can be put
from outside: `convolve` of `ConvLayer` and `PositionalConv`, `attend` of `Attention`, and every nn.Dropout. Where the
outputs of units are scaled stands a `UnitScale`, which gates replace.

Shapes: B utterances, T samples or frames, T' output frames, C input and O output channels, K kernel steps, D hidden
size, H heads, E head size, U feed-forward units, R offsets of time.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EncoderConfig, LayerConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
"""By Transformers' names."""


class UnitScale(nn.Module):
    """A place where every unit (channel, head, feed-forward unit) of a layer has its output multiplied by a factor.

    Here the factor is 1 and nothing is computed. Gates are attached from outside by replacing this module with one
    whose `forward` returns the factors; a unit is open where its factor is not zero.
    """

    can_close = False  # whether a factor may be zero, which a norm over the units has to know

    def forward(self) -> Tensor | None:
        """Factors of the units (U,), or None for all ones."""
        return None


class LearnedScale(UnitScale):
    """One factor per unit: the part of a gate that surgery cannot fold into the next weight.

    What the gates have learned; training continues without it, as in DPHuBERT (arXiv 2305.17651).
    """

    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(units), requires_grad=False)

    def forward(self) -> Tensor:
        """Factors of the units (U,)."""
        return self.weight


class ChannelNorm(nn.LayerNorm):
    """Layer norm over channels that leaves closed channels out.

    Surgery removes the channels whose gate is closed, and the norm of the pruned model then takes its mean and
    variance over fewer channels. Were they taken over all of them before surgery, the pruned model would not be the
    model that was trained. Example with channels [3, 5, 9] of which the last is closed: mean 4 and variance 1, not
    mean 5.67.
    """

    def forward(self, x_BTC: Tensor, gates_C: Tensor | None = None) -> Tensor:
        """Normalize over the last axis; channels whose gate is zero come out as zero."""
        if gates_C is None:
            return super().forward(x_BTC)
        open_C = (gates_C.detach() != 0).float()
        return standardized(x_BTC.float(), open_C, -1, self.eps) * open_C * self.weight + self.bias * open_C


class TimeNorm(nn.GroupNorm):
    """Normalize every channel over time: a group norm with one channel a group, the front end of Base models."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, channels, eps)

    def forward(self, x_BTC: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Normalize over time; with `valid_BT`, the statistics are those of the valid frames alone."""
        if valid_BT is None:
            return super().forward(x_BTC.transpose(1, 2)).transpose(1, 2)
        x_BTC = standardized(x_BTC.float(), valid_BT[..., None].float(), 1, self.eps) * self.weight + self.bias
        return x_BTC.to(self.weight.dtype)


def standardized(x: Tensor, mask: Tensor, axis: int, eps: float) -> Tensor:
    """`x` with zero mean and unit variance along an axis, both taken where the mask is 1 and not where it is 0."""
    count = mask.sum(axis, keepdim=True).clamp(min=1)
    centered = x - (x * mask).sum(axis, keepdim=True) / count
    variance = (centered * mask).square().sum(axis, keepdim=True) / count
    return centered * torch.rsqrt(variance + eps)


def convolve(
    x_BTC: Tensor,
    conv: nn.Conv1d,
    factors_C: Tensor | None = None,
    norm: ChannelNorm | TimeNorm | None = None,
    of_norm: Tensor | None = None,
) -> Tensor:
    """A convolution over time, channels last, and the norm that follows it: (B, T, C) → (B, T', O).

    Args:
        x_BTC: what is convolved.
        conv: if it is padded, as many frames come out as go in: an even kernel would make one too many.
        factors_C: scale the input. It is the weight that they are multiplied into, which is smaller.
        norm: over channels or over time.
        of_norm: what the norm takes besides: gates (O,), or which frames are valid (B, T').
    """
    kernel, before = conv.kernel_size[0], int(conv.padding[0])
    if before:
        x_BTC = F.pad(x_BTC, (0, 0, before, kernel - 1 - before))
    weight_OCK = conv.weight if factors_C is None else conv.weight * factors_C[:, None].to(conv.weight.dtype)
    x_BCT = F.conv1d(x_BTC.transpose(1, 2), weight_OCK, conv.bias, conv.stride, groups=conv.groups)
    return x_BCT.transpose(1, 2) if norm is None else norm(x_BCT.transpose(1, 2), of_norm)


class ConvLayer(nn.Module):
    """Convolution, norm, activation, and the scale of its channels."""

    def __init__(self, config: EncoderConfig, number: int) -> None:
        super().__init__()
        here, inputs = config.convs[number], config.convs[number - 1].channels if number else 1
        self.conv = nn.Conv1d(inputs, here.channels, here.kernel, here.stride, bias=config.conv_bias)
        self.norm: ChannelNorm | TimeNorm | None = None
        if config.conv_norm == "layer":
            self.norm = ChannelNorm(here.channels)
        elif number == 0:
            self.norm = TimeNorm(here.channels)
        self.activation = ACTIVATIONS[config.conv_activation]
        scaled = config.feature_scale and number == len(config.convs) - 1
        self.channel_scale = LearnedScale(here.channels) if scaled else UnitScale()
        self.convolve: Callable[..., Tensor] = convolve

    def forward(
        self, x_BTC: Tensor, valid_BT: Tensor | None, factors_C: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output (B, T', O) before it is scaled, and the factors (O,) it is to be scaled by, if any.

        Args:
            x_BTC: what the layer before made, not yet scaled.
            valid_BT: masks the *output* frames; given only when the norm over time must not see the padding.
            factors_C: the factors of the layer before.
        """
        factors_O = self.channel_scale()
        gates_O = factors_O if self.channel_scale.can_close else None
        of_norm = valid_BT if isinstance(self.norm, TimeNorm) else gates_O
        return self.activation(self.convolve(x_BTC, self.conv, factors_C, self.norm, of_norm)), factors_O


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


class PositionalConv(nn.Module):
    """A wide grouped convolution over time whose output is added to the features.

    One convolution as in wav2vec 2.0 (weight norm already folded), or data2vec's stack of them, each with a layer norm
    without parameters.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width, kernel = config.hidden_size, config.positional_kernel
        self.normalize = config.positional_depth > 0
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.positional_groups)
            for _ in range(max(1, config.positional_depth))
        )
        self.input_scale = nn.Parameter(torch.ones(width)) if config.positional_affine else None
        self.input_shift = nn.Parameter(torch.zeros(width)) if config.positional_affine else None
        self.activation = ACTIVATIONS[config.conv_activation]
        self.length_aware = config.length_aware
        self.convolve: Callable[..., Tensor] = convolve

    def forward(self, x_BTD: Tensor, valid_BT1: Tensor | None) -> Tensor:
        """What is to be added to the features (B, T, D)."""
        if self.input_scale is not None and self.input_shift is not None:
            x_BTD = x_BTD * self.input_scale + self.input_shift
        for conv in self.convs:
            # Alone, an utterance has zeros beyond its end in front of every convolution, not only the first one.
            if valid_BT1 is not None and self.length_aware:
                x_BTD = x_BTD * valid_BT1
            x_BTD = self.convolve(x_BTD, conv)
            if self.normalize:
                x_BTD = F.layer_norm(x_BTD, x_BTD.shape[-1:])
            x_BTD = self.activation(x_BTD)
        return x_BTD


class RelativePositionBias(nn.Module):
    """One number per head and bucket of time offset, shared by all layers (WavLM, arXiv 2110.13900, eq. 2)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.buckets, self.max_distance = config.relative_buckets, config.relative_distance
        self.embedding = nn.Embedding(self.buckets, config.num_heads)

    def bucket(self, offset_R: Tensor) -> Tensor:
        """Bucket of each offset (key minus query) in frames.

        Half of the buckets are for each sign. Of those, half are exact: with 320 buckets the offsets 0 … 79 have their
        own, and from 80 to `max_distance` they widen logarithmically.
        """
        half = self.buckets // 2
        exact = half // 2
        distance_R = offset_R.abs()
        share_R = torch.log(distance_R.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far_R = (exact + share_R * (half - exact)).long().clamp(max=half - 1)
        return (offset_R > 0).long() * half + torch.where(distance_R < exact, distance_R, far_R)

    def forward(self, frames: int) -> Tensor:
        """The bias of every head (H, T, T), rows are queries."""
        offset_R = torch.arange(1 - frames, frames, device=self.embedding.weight.device)
        values_HR = self.embedding(self.bucket(offset_R)).T
        # Row q wants the offsets -q … T-1-q. Example with T = 3: values at offsets [-2 -1 0 1 2], so row 0 reads
        # places 2 3 4, row 1 places 1 2 3 and row 2 places 0 1 2.
        time_T = torch.arange(frames, device=offset_R.device)
        place_TT = time_T - time_T[:, None] + frames - 1
        return values_HR.index_select(1, place_TT.flatten()).unflatten(1, (frames, frames))


class Linear(nn.Linear):
    """nn.Linear that may have no input or no output features left, without a warning."""

    def forward(self, x: Tensor, input_factors: Tensor | None = None) -> Tensor:
        """Without input features, the bias alone, in the type of `x`.

        `input_factors` (in_features,) scale the input; it is the weight that they are multiplied into.
        """
        if self.in_features or self.bias is None:
            weight = self.weight if input_factors is None else self.weight * input_factors.to(self.weight.dtype)
            return F.linear(x, weight, self.bias)
        return self.bias.to(x.dtype).expand(*x.shape[:-1], self.out_features)

    def reset_parameters(self) -> None:
        """As nn.Linear where there is something to initialize, a zero bias where there is not."""
        if self.weight.numel():
            super().reset_parameters()
        elif self.bias is not None:
            nn.init.zeros_(self.bias)


def attend(
    query_BTHE: Tensor,
    key_BTHE: Tensor,
    value_BTHE: Tensor,
    factor_BTH: Tensor | None = None,
    position_HTT: Tensor | None = None,
    padding_B11T: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(query · key / √E + factor · position + padding), dropped out, · value: (B, T, H, E)."""
    bias = padding_B11T
    if factor_BTH is not None and position_HTT is not None:
        bias_BHTT = factor_BTH.transpose(1, 2)[..., None] * position_HTT
        bias = bias_BHTT if padding_B11T is None else bias_BHTT + padding_B11T
    query_BHTE, key_BHTE, value_BHTE = (x.transpose(1, 2) for x in (query_BTHE, key_BTHE, value_BTHE))
    bias = None if bias is None else bias.to(query_BTHE.dtype)
    context_BHTE = F.scaled_dot_product_attention(query_BHTE, key_BHTE, value_BHTE, attn_mask=bias, dropout_p=dropout)
    return context_BHTE.transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention over any subset of the heads, with WavLM's gated position bias where there is one."""

    def __init__(self, config: EncoderConfig, layer: LayerConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, len(layer.heads) * config.head_size
        self.num_heads, self.head_size, self.all_heads = len(layer.heads), config.head_size, config.num_heads
        self.dropout = config.attention_dropout
        self.query = Linear(width, inner)
        self.key = Linear(width, inner)
        self.value = Linear(width, inner)
        self.output = Linear(inner, width)
        self.head_scale = UnitScale()
        self.position_gate: nn.Linear | None = None
        if config.relative_buckets and layer.heads:
            self.position_gate = nn.Linear(config.head_size, 8)
            self.position_gate_const = nn.Parameter(torch.ones(self.num_heads))
        self.heads = layer.heads
        some = 0 < len(layer.heads) < config.num_heads
        self.register_buffer("kept_heads", torch.empty(len(layer.heads)).long() if some else None, persistent=False)
        self.kept_heads: Tensor | None
        self.number_heads()
        self.attend: Callable[..., Tensor] = attend

    def number_heads(self) -> None:
        """Write the numbers of the kept heads where indexing finds them."""
        if self.kept_heads is not None:
            with torch.no_grad():
                self.kept_heads.copy_(torch.tensor(self.heads))

    def forward(self, x_BTD: Tensor, position_HTT: Tensor | None, padding_B11T: Tensor | None) -> Tensor:
        """Attend (B, T, D) → (B, T, D).

        `position_HTT` is the bias of all heads before pruning; `padding_B11T` is added to the scores (0 or -inf).
        """
        # Drawn gates are asked for whether or not a head is left, so that those after them draw the same.
        factors_H = self.head_scale()
        if self.num_heads == 0:
            return self.output(x_BTD[..., :0])
        shape_BTHE = (*x_BTD.shape[:2], self.num_heads, self.head_size)
        query_BTHE, key_BTHE, value_BTHE = (f(x_BTD).view(shape_BTHE) for f in (self.query, self.key, self.value))
        factor_BTH = None
        if self.position_gate is not None and position_HTT is not None:
            factor_BTH = self.position_factors(x_BTD)
            position_HTT = position_HTT if self.kept_heads is None else position_HTT.index_select(0, self.kept_heads)
        dropout = self.dropout if self.training else 0.0
        context_BTHE = self.attend(query_BTHE, key_BTHE, value_BTHE, factor_BTH, position_HTT, padding_B11T, dropout)
        context_BTX = context_BTHE.flatten(2)
        if factors_H is None:  # then whatever stands in the place of the linear map will do
            return self.output(context_BTX)
        return self.output(context_BTX, factors_H.repeat_interleave(self.head_size))

    def position_factors(self, x_BTD: Tensor) -> Tensor:
        """WavLM's gate on the position bias (arXiv 2110.13900, eq. 3–5): factors (B, T, H) of the kept heads.

        The gate of a head reads that head's slice of the layer's input, so the slices go by the teacher's numbers.
        """
        assert self.position_gate is not None
        slices_BTHE = x_BTD.unflatten(-1, (self.all_heads, self.head_size))
        if self.kept_heads is not None:
            slices_BTHE = slices_BTHE.index_select(2, self.kept_heads)
        gates_BTH2 = self.position_gate(slices_BTHE).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        update_BTH, reset_BTH = gates_BTH2.unbind(-1)
        return update_BTH * (reset_BTH * self.position_gate_const - 1) + 2


class FeedForward(nn.Module):
    """Two linear layers around an activation, any number of units."""

    def __init__(self, config: EncoderConfig, units: int) -> None:
        super().__init__()
        self.input = Linear(config.hidden_size, units)
        self.output = Linear(units, config.hidden_size)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = nn.Dropout(config.activation_dropout)
        self.unit_scale = UnitScale()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        factors_U = self.unit_scale()
        if self.input.out_features == 0:
            return self.output(x_BTD[..., :0])
        inner_BTU = self.dropout(self.activation(self.input(x_BTD)))
        return self.output(inner_BTU) if factors_U is None else self.output(inner_BTU, factors_U)


class LanguageAdapter(nn.Module):
    """What a language has of its own in a layer: a norm and two linear layers (MMS, arXiv 2305.13516)."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size)
        self.input = nn.Linear(config.hidden_size, config.language_adapter)
        self.output = nn.Linear(config.language_adapter, config.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D), to be added."""
        return self.output(F.relu(self.input(self.norm(x_BTD))))


class TransformerLayer(nn.Module):
    """Attention and feed-forward with residuals; the norms stand after each (post-norm) or before it (pre-norm)."""

    def __init__(self, config: EncoderConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = Attention(config, layer)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config, layer.units)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.adapter = LanguageAdapter(config) if config.language_adapter else None

    def forward(self, x_BTD: Tensor, position_HTT: Tensor | None, padding_B11T: Tensor | None) -> Tensor:
        """h_{i-1} → h_i, both (B, T, D)."""
        if self.pre_norm:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), position_HTT, padding_B11T))
            x_BTD = x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
            return x_BTD if self.adapter is None else x_BTD + self.adapter(x_BTD)
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, position_HTT, padding_B11T)))
        return self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))
