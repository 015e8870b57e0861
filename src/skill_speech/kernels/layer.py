"""A transformer layer for inference: queries, keys and values in one product, and scores of a few frames at a time.

Shapes: B utterances, T frames, D hidden size, H kept heads, E head size, N = B · H, Q queries of a part,
R = 2 T - 1 offsets, U feed-forward units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder.layers import Attention, FeedForward, RelativePositionBias

SCORES = 2**17
"""Scores of a head that are computed at a time: those of a few heads fit in a second-level cache."""


class OffsetBias(nn.Module):
    """The position bias by offset of time instead of by pair of frames: a thousandth of the memory at 30 s.

    Attention reads row q of the pairs' matrix as T neighboring offsets.
    """

    def __init__(self, bias: RelativePositionBias) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, frames: int) -> Tensor:
        """The bias of every head at the offsets 1-T … T-1 (H, R)."""
        offset_R = torch.arange(1 - frames, frames, device=self.bias.embedding.weight.device)
        return self.bias.embedding(self.bias.bucket(offset_R)).T.contiguous()


class FastAttention(nn.Module):
    """What `Attention` computes in evaluation mode, given the bias by offset (`OffsetBias`).

    Args:
        attention: at least one head.
        linear: makes a linear map of a weight (O, I) and a bias (O,).
    """

    def __init__(self, attention: Attention, linear: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.num_heads, self.head_size, self.all_heads = attention.num_heads, attention.head_size, attention.all_heads
        maps = (attention.query, attention.key, attention.value)
        # The scores' scale goes into the queries.
        scales = (attention.head_size**-0.5, 1.0, 1.0)
        weight_OI = torch.cat([one.weight.detach() * scale for one, scale in zip(maps, scales, strict=True)])
        bias_O = torch.cat([one.bias.detach() * scale for one, scale in zip(maps, scales, strict=True)])
        self.inputs = linear(weight_OI, bias_O)
        output_DI = attention.output.weight.detach()
        factors_H = attention.head_scale()
        if factors_H is not None:
            output_DI = output_DI * factors_H.detach().repeat_interleave(attention.head_size).to(output_DI.dtype)
        self.output = linear(output_DI, attention.output.bias)
        self.kept_heads = attention.kept_heads
        self.gate: nn.Linear | None = None
        if attention.position_gate is not None:
            # Four numbers of each gate are only ever summed.
            self.gate = nn.Linear(attention.head_size, 2)
            with torch.no_grad():
                self.gate.weight.copy_(attention.position_gate.weight.unflatten(0, (2, 4)).sum(1))
                self.gate.bias.copy_(attention.position_gate.bias.unflatten(0, (2, 4)).sum(1))
            self.gate.to(attention.position_gate.weight)
            self.gate_const_H11 = nn.Parameter(attention.position_gate_const.detach()[:, None, None])

    def forward(self, x_BTD: Tensor, position_HR: Tensor | None, padding_B11T: Tensor | None) -> Tensor:
        """Attend (B, T, D) → (B, T, D); `padding_B11T` is added to the scores (0 or -inf)."""
        B, T, _ = x_BTD.shape
        heads = self.inputs(x_BTD).view(B, T, 3, self.num_heads, self.head_size)
        query_NTE, key_NTE, value_NTE = heads.permute(2, 0, 3, 1, 4).flatten(1, 2)
        position_HTT, factor_BHT1 = None, None
        if self.gate is not None and position_HR is not None:
            if self.kept_heads is not None:
                position_HR = position_HR.index_select(0, self.kept_heads)
            # Row r of this view holds the offsets r-(T-1) … r: it belongs to query T-1-r.
            position_HTT, factor_BHT1 = position_HR.unfold(1, T, 1), self._gate(x_BTD)
        context_BTHE = heads.new_empty(B, T, self.num_heads, self.head_size)
        for start, stop in _parts(T):
            # The queries of a part go backwards, and with them everything up to the context: then the rows of the
            # position bias are a view.
            query_NQE = query_NTE[:, start:stop].flip(1)
            if position_HTT is not None and factor_BHT1 is not None:
                bias_BHQT = position_HTT[:, T - stop : T - start] * factor_BHT1[:, :, start:stop].flip(2)
                if padding_B11T is not None:
                    bias_BHQT += padding_B11T
                scores_NQT = torch.baddbmm(bias_BHQT.flatten(0, 1), query_NQE, key_NTE.transpose(1, 2))
            else:
                scores_NQT = torch.bmm(query_NQE, key_NTE.transpose(1, 2))
                if padding_B11T is not None:
                    scores_NQT.view(B, self.num_heads, -1, T).add_(padding_B11T)
            context_NQE = torch.bmm(scores_NQT.softmax(-1), value_NTE).flip(1)
            context_BTHE[:, start:stop] = context_NQE.unflatten(0, (B, -1)).transpose(1, 2)
        return self.output(context_BTHE.flatten(2))

    def _gate(self, x_BTD: Tensor) -> Tensor:
        """The factor of the position bias (B, H, T, 1), as in `Attention.gated_position_bias`."""
        assert self.gate is not None
        slices_BTHE = x_BTD.unflatten(-1, (self.all_heads, self.head_size))
        if self.kept_heads is not None:
            slices_BTHE = slices_BTHE.index_select(2, self.kept_heads)
        update_BHT1, reset_BHT1 = self.gate(slices_BTHE).sigmoid().transpose(1, 2).split(1, dim=-1)
        return update_BHT1 * (reset_BHT1 * self.gate_const_H11 - 1) + 2


def _parts(frames: int) -> Iterator[tuple[int, int]]:
    """Where parts of nearly equal size start and stop."""
    count = -(-frames * frames // SCORES)
    for number in range(count):
        yield frames * number // count, frames * (number + 1) // count


class FastFeedForward(nn.Module):
    """What `FeedForward` computes in evaluation mode.

    Args:
        feed_forward: at least one unit.
        linear: makes a linear map of a weight (O, I), a bias (O,) and whether a gelu follows.
        after_activation: makes one whose inputs come from the activation.
    """

    def __init__(
        self, feed_forward: FeedForward, linear: Callable[..., nn.Module], after_activation: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        gelu = feed_forward.activation is F.gelu
        self.activation = None if gelu else feed_forward.activation
        output_DU, factors_U = feed_forward.output.weight.detach(), feed_forward.unit_scale()
        if factors_U is not None:
            output_DU = output_DU * factors_U.detach().to(output_DU.dtype)
        self.input = linear(feed_forward.input.weight, feed_forward.input.bias, gelu)
        self.output = after_activation(output_DU, feed_forward.output.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        inner_BTU = self.input(x_BTD)
        return self.output(inner_BTU if self.activation is None else self.activation(inner_BTU))
