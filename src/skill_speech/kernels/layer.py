"""A transformer layer for inference: queries, keys and values in one product, and scores of a few frames at a time.

Shapes: B utterances, T frames, D hidden size, H kept heads, E head size, N = B · H, Q queries of a part,
R = 2 T - 1 offsets, U feed-forward units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder.layers import Attention, FeedForward, RelativePositionBias, TransformerLayer

SCORES = 2**17
"""Scores of a head that are computed at a time: those of a few heads fit in a second-level cache."""


AT_ONCE = 128
"""Frames up to which scores are not cut in parts: what is done for each part then takes longer than it saves."""


class OffsetBias(nn.Module):
    """The position bias by offset of time instead of by pair of frames: a thousandth of the memory at 30 s.

    Attention reads row q of the pairs' matrix as T neighboring offsets. Of short utterances it is the matrix, and that
    of the last length is kept.
    """

    def __init__(self, bias: RelativePositionBias) -> None:
        super().__init__()
        self.bias = bias
        self.last: tuple[int, Tensor] | None = None

    def forward(self, frames: int) -> Tensor:
        """The bias of every head at the offsets 1-T … T-1 (H, R); up to `AT_ONCE` frames by pair (H, T, T)."""
        if frames > AT_ONCE:
            offset_R = torch.arange(1 - frames, frames, device=self.bias.embedding.weight.device)
            return self.bias.embedding(self.bias.bucket(offset_R)).T.contiguous()
        last = self.last
        if last is None or last[0] != frames:
            self.last = last = frames, self.bias(frames)
        return last[1]


class FastLayer(nn.Module):
    """What `TransformerLayer` computes in evaluation mode.

    Args:
        layer: taken over; with `FastAttention` and `FastFeedForward` where it has heads and units.
    """

    def __init__(self, layer: TransformerLayer) -> None:
        super().__init__()
        self.pre_norm, self.adapter = layer.pre_norm, layer.adapter
        self.attention, self.feed_forward = layer.attention, layer.feed_forward
        self.attention_norm, self.feed_forward_norm = layer.attention_norm, layer.feed_forward_norm

    def forward(self, x_BTD: Tensor, position: Tensor | None, padding_B11T: Tensor | None) -> Tensor:
        """h_{i-1} → h_i, both (B, T, D); arguments as of `FastAttention`."""
        if self.pre_norm:
            x_BTD = x_BTD + self.attention(_normalized(x_BTD, self.attention_norm), position, padding_B11T)
            x_BTD = x_BTD + self.feed_forward(_normalized(x_BTD, self.feed_forward_norm))
            return x_BTD if self.adapter is None else x_BTD + self.adapter(x_BTD)
        x_BTD = _normalized(x_BTD + self.attention(x_BTD, position, padding_B11T), self.attention_norm)
        return _normalized(x_BTD + self.feed_forward(x_BTD), self.feed_forward_norm)


def _normalized(x_BTD: Tensor, norm: nn.LayerNorm) -> Tensor:
    return torch.layer_norm(x_BTD, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


class FastAttention(nn.Module):
    """What `Attention` computes in evaluation mode, given the bias of `OffsetBias`.

    Args:
        attention: at least one head.
        linear: makes a linear map of a weight (O, I) and a bias (O,).
        gate_inside: whether the gates of the position bias are outputs of the product that makes queries, keys and
            values. They are two numbers a head, each read from a slice of the input: with zeros for the rest.
    """

    def __init__(self, attention: Attention, linear: Callable[..., nn.Module], gate_inside: bool) -> None:
        super().__init__()
        self.num_heads, self.head_size, self.all_heads = attention.num_heads, attention.head_size, attention.all_heads
        self.inner = self.num_heads * self.head_size
        self.kept_heads, self.gated = attention.kept_heads, attention.position_gate is not None
        maps = (attention.query, attention.key, attention.value)
        # The scores' scale goes into the queries.
        scales = (attention.head_size**-0.5, 1.0, 1.0)
        weights = [one.weight.detach() * scale for one, scale in zip(maps, scales, strict=True)]
        biases = [one.bias.detach() * scale for one, scale in zip(maps, scales, strict=True)]
        self.gate: nn.Linear | None = None
        self.minus_one: Tensor
        self.two: Tensor
        if attention.position_gate is not None:
            self.gate = _summed(attention.position_gate)
            self.const_H = nn.Parameter(attention.position_gate_const.detach(), requires_grad=False)
            self.register_buffer("minus_one", self.const_H.new_full((), -1.0), persistent=False)
            self.register_buffer("two", self.const_H.new_full((), 2.0), persistent=False)
            if gate_inside:
                weight_PHD, bias_PH = _by_head(self.gate, attention)
                weights.append(weight_PHD.flatten(0, 1))
                biases.append(bias_PH.flatten())
                self.gate = None
        self.inputs = linear(torch.cat(weights), torch.cat(biases))
        output_DI = attention.output.weight.detach()
        factors_H = attention.head_scale()
        if factors_H is not None:
            output_DI = output_DI * factors_H.detach().repeat_interleave(attention.head_size).to(output_DI.dtype)
        self.output = linear(output_DI, attention.output.bias)

    def forward(self, x_BTD: Tensor, position: Tensor | None, padding_B11T: Tensor | None) -> Tensor:
        """Attend (B, T, D) → (B, T, D).

        Args:
            x_BTD: what the layer reads.
            position: the bias of all heads before pruning by pair (H, T, T) or by offset (H, R).
            padding_B11T: is added to the scores (0 or -inf).
        """
        made_BTO = self.inputs(x_BTD)
        heads = made_BTO[..., : 3 * self.inner].unflatten(-1, (3, self.num_heads, self.head_size))
        query_NTE, key_NTE, value_NTE = heads.permute(2, 0, 3, 1, 4).flatten(1, 2).unbind()
        factor_BHT1 = None
        if self.gated and position is not None:
            factor_BHT1 = self._factor(x_BTD, made_BTO)
            position = position if self.kept_heads is None else position.index_select(0, self.kept_heads)
        attend = self._attend if x_BTD.shape[1] <= AT_ONCE else self._attend_by_parts
        return self.output(attend(query_NTE, key_NTE, value_NTE, position, factor_BHT1, padding_B11T))

    def _factor(self, x_BTD: Tensor, made_BTO: Tensor) -> Tensor:
        """The factor of the position bias (B, H, T, 1), as `Attention.position_factors` computes it."""
        if self.gate is None:
            gates_BTPH = made_BTO[..., 3 * self.inner :].unflatten(-1, (2, self.num_heads))
        else:
            slices_BTHE = x_BTD.unflatten(-1, (self.all_heads, self.head_size))
            if self.kept_heads is not None:
                slices_BTHE = slices_BTHE.index_select(2, self.kept_heads)
            gates_BTPH = self.gate(slices_BTHE).transpose(2, 3)
        update_BTH, reset_BTH = gates_BTPH.sigmoid().unbind(2)
        factor_BTH = torch.addcmul(self.two, update_BTH, torch.addcmul(self.minus_one, reset_BTH, self.const_H))
        return factor_BTH.transpose(1, 2)[..., None]

    def _attend(
        self,
        query_NTE: Tensor,
        key_NTE: Tensor,
        value_NTE: Tensor,
        position_HTT: Tensor | None,
        factor_BHT1: Tensor | None,
        padding_B11T: Tensor | None,
    ) -> Tensor:
        """The context (B, T, H · E) of a short utterance, all scores at once."""
        T = query_NTE.shape[1]
        bias_BHTT = padding_B11T
        if position_HTT is not None and factor_BHT1 is not None:
            bias_BHTT = position_HTT * factor_BHT1
            if padding_B11T is not None:
                bias_BHTT += padding_B11T
        if bias_BHTT is None:
            scores_NTT = torch.bmm(query_NTE, key_NTE.transpose(1, 2))
        else:
            bias_NTT = bias_BHTT.expand(-1, self.num_heads, T, T).flatten(0, 1)
            scores_NTT = torch.baddbmm(bias_NTT, query_NTE, key_NTE.transpose(1, 2))
        context_NTE = torch.bmm(scores_NTT.softmax(-1), value_NTE)
        return context_NTE.unflatten(0, (-1, self.num_heads)).transpose(1, 2).flatten(2)

    def _attend_by_parts(
        self,
        query_NTE: Tensor,
        key_NTE: Tensor,
        value_NTE: Tensor,
        position_HR: Tensor | None,
        factor_BHT1: Tensor | None,
        padding_B11T: Tensor | None,
    ) -> Tensor:
        """The context (B, T, H · E), scores a part at a time."""
        N, T, _ = query_NTE.shape
        B = N // self.num_heads
        # Row r of this view holds the offsets r-(T-1) … r: it belongs to query T-1-r.
        position_HTT = None if position_HR is None or factor_BHT1 is None else position_HR.unfold(1, T, 1)
        context_BTHE = query_NTE.new_empty(B, T, self.num_heads, self.head_size)
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
        return context_BTHE.flatten(2)


def _summed(position_gate: nn.Linear) -> nn.Linear:
    """The gate with two outputs: four numbers of each are only ever summed."""
    gate = nn.Linear(position_gate.in_features, 2)
    with torch.no_grad():
        gate.weight.copy_(position_gate.weight.unflatten(0, (2, 4)).sum(1))
        gate.bias.copy_(position_gate.bias.unflatten(0, (2, 4)).sum(1))
    return gate.to(position_gate.weight).requires_grad_(False)


def _by_head(gate: nn.Linear, attention: Attention) -> tuple[Tensor, Tensor]:
    """The gate of all kept heads as a map of the whole input: weights (P, H, D), P = 2 gates, and biases (P, H)."""
    H, E = attention.num_heads, attention.head_size
    weight_PHKE = gate.weight.new_zeros(2, H, attention.all_heads, E)
    numbers = range(H) if attention.kept_heads is None else attention.kept_heads.tolist()
    for place, number in enumerate(numbers):
        weight_PHKE[:, place, number] = gate.weight
    return weight_PHKE.flatten(2), gate.bias[:, None].expand(2, H)


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
