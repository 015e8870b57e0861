"""Scaled-dot-product attention with a gated position bias, head by head, for CPUs.

Shapes: B utterances, T frames, H heads, E head size.

A head's scores (T, T) of ten seconds are half a megabyte in bfloat16 and stay in a core's cache from the product of
queries and keys to that with the values. The bias of a head, a factor per query times an offset's number, is written
where the product is then added to; the bias of all heads and utterances is never in memory, and without a gradient
neither are all scores.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..encoder import layers
from .convolution import on_cpu
from .dropout import clear_dropped, mark_dropped

CHUNK = 2**20
"""Scores that are computed at a time, unless one query alone has more keys."""


def attend(
    query_BTHE: Tensor,
    key_BTHE: Tensor,
    value_BTHE: Tensor,
    factor_BTH: Tensor | None = None,
    position_HTT: Tensor | None = None,
    padding_B11T: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """As `encoder.layers.attend`. Everything has the type of the queries in the end; the padding gets no gradient."""
    if not on_cpu(query_BTHE):
        return layers.attend(query_BTHE, key_BTHE, value_BTHE, factor_BTH, position_HTT, padding_B11T, dropout)
    dtype = query_BTHE.dtype
    factor_BTH = None if factor_BTH is None else factor_BTH.to(dtype)
    position_HTT = None if position_HTT is None else position_HTT.to(dtype)
    padding_B11T = None if padding_B11T is None else padding_B11T.to(dtype)
    context_BTHE: Tensor = _Attention.apply(
        query_BTHE, key_BTHE, value_BTHE, factor_BTH, position_HTT, padding_B11T, dropout
    )
    return context_BTHE


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_BTHE: Tensor,
        key_BTHE: Tensor,
        value_BTHE: Tensor,
        factor_BTH: Tensor | None,
        position_HTT: Tensor | None,
        padding_B11T: Tensor | None,
        dropout: float,
    ) -> Tensor:
        B, T, H, E = query_BTHE.shape
        context_BTHE = torch.empty_like(value_BTHE, memory_format=torch.contiguous_format)
        rows, remember = max(1, CHUNK // T), any(ctx.needs_input_grad)
        weights_BHTT = query_BTHE.new_empty((B, H, T, T) if remember else (1, 1, min(rows, T), T))
        scores_QT = query_BTHE.new_empty(min(rows, T), T)
        with torch.autocast("cpu", enabled=False):
            for b, h, start in ((b, h, start) for b in range(B) for h in range(H) for start in range(0, T, rows)):
                here = slice(start, min(start + rows, T))
                score_QT = scores_QT[: here.stop - start]
                beta = _bias(score_QT, b, h, here, factor_BTH, position_HTT, padding_B11T)
                query_QE, key_ET = query_BTHE[b, here, h], key_BTHE[b, :, h].t()
                torch.addmm(score_QT, query_QE, key_ET, beta=beta, alpha=E**-0.5, out=score_QT)
                weights_QT = weights_BHTT[b, h, here] if remember else weights_BHTT[0, 0, : here.stop - start]
                torch.softmax(score_QT, -1, out=weights_QT)
                if dropout:
                    mark_dropped(weights_QT, dropout)
                    weights_QT = weights_QT.clamp(min=0)
                _product(weights_QT, value_BTHE[b, :, h], context_BTHE[b, here, h], 1 / (1 - dropout))
        if remember:
            tensors = (query_BTHE, key_BTHE, value_BTHE, factor_BTH, position_HTT, weights_BHTT)
            ctx.save_for_backward(*tensors)
            ctx.dropout = dropout
        return context_BTHE

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTHE: Tensor) -> tuple[Tensor | None, ...]:
        query_BTHE, key_BTHE, value_BTHE, factor_BTH, position_HTT, weights_BHTT = ctx.saved_tensors
        B, T, H, E = query_BTHE.shape
        scale, rest = E**-0.5, 1 / (1 - ctx.dropout)
        made = [torch.empty(B, T, H, E, dtype=grad_BTHE.dtype) for _ in range(3)]
        grad_query, grad_key, grad_value = made
        needs_factor, needs_position = ctx.needs_input_grad[3:5]
        grad_factor = torch.empty_like(factor_BTH) if needs_factor else None
        grad_position = torch.zeros_like(position_HTT) if needs_position else None
        grad_TT = grad_BTHE.new_empty(T, T)
        with torch.autocast("cpu", enabled=False):
            for b, h in ((b, h) for b in range(B) for h in range(H)):
                weights_TT, dropped_TT, grad_TE = weights_BHTT[b, h], weights_BHTT[b, h], grad_BTHE[b, :, h]
                _product(grad_TE, value_BTHE[b, :, h].t(), grad_TT, rest)
                if ctx.dropout:
                    clear_dropped(grad_TT, weights_TT)
                    weights_TT, dropped_TT = weights_TT.abs(), weights_TT.clamp(min=0)
                _product(dropped_TT.t(), grad_TE, grad_value[b, :, h], rest)
                score_TT = torch._softmax_backward_data(grad_TT, weights_TT, -1, weights_TT.dtype)
                _product(score_TT, key_BTHE[b, :, h], grad_query[b, :, h], scale)
                _product(score_TT.t(), query_BTHE[b, :, h], grad_key[b, :, h], scale)
                if grad_factor is not None:
                    grad_factor[b, :, h] = torch.linalg.vecdot(score_TT, position_HTT[h])
                if grad_position is not None:
                    grad_position[h].addcmul_(score_TT, factor_BTH[b, :, h, None])
        return grad_query, grad_key, grad_value, grad_factor, grad_position, None, None


def _bias(
    score_QT: Tensor,
    b: int,
    h: int,
    here: slice,
    factor_BTH: Tensor | None,
    position_HTT: Tensor | None,
    padding_B11T: Tensor | None,
) -> float:
    """Write what is added to the product of queries and keys; 0.0 where there is nothing, 1.0 where there is."""
    if position_HTT is not None and factor_BTH is not None:
        torch.mul(position_HTT[h, here], factor_BTH[b, here, h, None], out=score_QT)
        if padding_B11T is not None:
            score_QT += padding_B11T[b, 0]
    elif padding_B11T is not None:
        score_QT.copy_(padding_B11T[b, 0].expand_as(score_QT))
    else:
        return 0.0
    return 1.0


def _product(left: Tensor, right: Tensor, out: Tensor, scale: float) -> None:
    torch.addmm(out, left, right, beta=0.0, alpha=scale, out=out)
