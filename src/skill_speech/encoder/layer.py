"""One transformer layer: attention and feed-forward, before or after their norms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attend import attend, attend_by_torch
from .config import EncoderConfig, LayerConfig
from .convolution import by_products
from .dropout import Dropout
from .frontend import activation_function
from .scale import UnitScale


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
        """As nn.Linear where there is something to initialise, a zero bias where there is not."""
        if self.weight.numel():
            super().reset_parameters()
        elif self.bias is not None:
            nn.init.zeros_(self.bias)


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

    def number_heads(self) -> None:
        """Write the numbers of the kept heads where indexing finds them."""
        if self.kept_heads is not None:
            with torch.no_grad():
                self.kept_heads.copy_(torch.tensor(self.heads))

    def forward(self, x_BTD: Tensor, position_HTT: Tensor | None, padding_B11T: Tensor | None) -> Tensor:
        """Attend (B, T, D) → (B, T, D).

        `position_HTT` is the bias of all heads before pruning; `padding_B11T` is added to the scores (0 or -inf).
        """
        # Drawn gates are asked for whether or not a head is left, so that those behind them draw the same.
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
        operation = attend if by_products(x_BTD) else attend_by_torch
        context_BTHE = operation(query_BTHE, key_BTHE, value_BTHE, factor_BTH, position_HTT, padding_B11T, dropout)
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
        self.activation = activation_function(config.activation)
        self.dropout = Dropout(config.activation_dropout)
        self.unit_scale = UnitScale()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        factors_U = self.unit_scale()
        if self.input.out_features == 0:
            return self.output(x_BTD[..., :0])
        inner_BTU = self.dropout(self.activation(self.input(x_BTD)))
        return self.output(inner_BTU) if factors_U is None else self.output(inner_BTU, factors_U)


class TransformerLayer(nn.Module):
    """Attention and feed-forward with residuals; the norms stand after each (post-norm) or before it (pre-norm)."""

    def __init__(self, config: EncoderConfig, layer: LayerConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = Attention(config, layer)
        self.attention_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.feed_forward = FeedForward(config, layer.units)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(self, x_BTD: Tensor, position_HTT: Tensor | None, padding_B11T: Tensor | None) -> Tensor:
        """h_{i-1} → h_i, both (B, T, D)."""
        if self.pre_norm:
            x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), position_HTT, padding_B11T))
            return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))
        x_BTD = self.attention_norm(x_BTD + self.dropout(self.attention(x_BTD, position_HTT, padding_B11T)))
        return self.feed_forward_norm(x_BTD + self.dropout(self.feed_forward(x_BTD)))
