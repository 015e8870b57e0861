"""Convolutions over time as matrix products, forward and backward, for CPUs.

Shapes: N sequences, T steps, T' output steps, C input and O output channels, K kernel steps, G groups.

With the channels last, the K steps that one output step reads lie side by side in memory: the windows of a sequence are
a matrix (T', K·C) that is a view of it, and a convolution is one matrix product per sequence. Example with C = 2, a
kernel of 3 and a stride of 2: the sequence [a b | c d | e f | g h | i j] has the windows [a b c d e f] and
[e f g h i j]; rows start 4 numbers apart and overlap. Matrix products run at the processor's full rate in bfloat16,
which torch's conv1d does not reach (on processors with AMX it is seven times slower).

On other devices, and in programs that are compiled or exported, these are the encoder's own operations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..encoder import layers
from ..encoder.layers import ChannelNorm, TimeNorm


def convolve(
    x_BTC: Tensor,
    conv: nn.Conv1d,
    factors_C: Tensor | None = None,
    norm: ChannelNorm | TimeNorm | None = None,
    of_norm: Tensor | None = None,
) -> Tensor:
    """As `encoder.layers.convolve`."""
    if not on_cpu(x_BTC):
        return layers.convolve(x_BTC, conv, factors_C, norm, of_norm)
    kernel, stride, before = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    if before:
        x_BTC = F.pad(x_BTC, (0, 0, before, kernel - 1 - before))
    weight_OCK = conv.weight if factors_C is None else conv.weight * factors_C[:, None].to(conv.weight.dtype)
    if isinstance(norm, TimeNorm) and conv.bias is None:
        of_time = norm.weight, norm.bias, norm.eps
        return convolve_normalized(x_BTC[..., 0], weight_OCK[:, 0], *of_time, stride, of_norm)
    x_BTC = convolve_by_products(x_BTC, weight_OCK, conv.bias, stride, conv.groups)
    return x_BTC if norm is None else norm(x_BTC, of_norm)


def convolve_by_products(
    x_BTC: Tensor, weight_OCK: Tensor, bias_O: Tensor | None, stride: int = 1, groups: int = 1
) -> Tensor:
    """A convolution without padding, channels last: (B, T, C) → (B, T', O).

    `weight_OCK` is laid out as nn.Conv1d has it; with groups, C in it counts the channels of one group.
    """
    dtype = computing_type(x_BTC, weight_OCK)
    B, T, _ = x_BTC.shape
    outputs, C, K = weight_OCK.shape
    outputs //= groups
    weight_GOX = weight_OCK.to(dtype).view(groups, outputs, C, K).transpose(2, 3).reshape(groups, outputs, K * C)
    bias_GO = None if bias_O is None else bias_O.to(dtype).view(groups, outputs)
    x_NTC = x_BTC.to(dtype).view(B, T, groups, C).transpose(1, 2).reshape(B * groups, T, C)
    y_NTO: Tensor = _Convolution.apply(x_NTC, weight_GOX, bias_GO, stride)
    return y_NTO.view(B, groups, -1, outputs).transpose(1, 2).reshape(B, -1, groups * outputs)


def convolve_normalized(
    waveforms_BT: Tensor,
    weight_OK: Tensor,
    scale_O: Tensor,
    shift_O: Tensor,
    eps: float,
    stride: int,
    valid_BT: Tensor | None = None,
) -> Tensor:
    """A convolution of one input channel whose outputs are then normalized over time: (B, T) → (B, T', O).

    Args as of `fold_norm`.
    """
    dtype = computing_type(waveforms_BT, weight_OK)
    constant_B1, weights_BOK, offset_BO = fold_norm(waveforms_BT, weight_OK, scale_O, shift_O, eps, stride, valid_BT)
    x_BT1 = (waveforms_BT - constant_B1)[..., None]
    y_BTO: Tensor = _Convolution.apply(x_BT1.to(dtype), weights_BOK.to(dtype), offset_BO.to(dtype), stride)
    return y_BTO


def fold_norm(
    waveforms_BT: Tensor,
    weight_OK: Tensor,
    scale_O: Tensor,
    shift_O: Tensor,
    eps: float,
    stride: int,
    valid_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The weights of a convolution of one input channel with the norm over time that follows it in them.

    The outputs are linear in the K samples of a window, so their mean and variance follow from the windows' mean m and
    covariance V, which are K and K×K numbers: w·m and w·V·w. The norm is then part of an utterance's weights,
    and the outputs, the largest thing in an encoder, are written once and never read for their statistics. A filter
    that passes what is faint leaves little of large numbers, hence float64 for these few.

    Args:
        waveforms_BT: samples.
        weight_OK: the convolution's.
        scale_O: the norm's.
        shift_O: the norm's.
        eps: the norm's.
        stride: the convolution's.
        valid_BT: the *output* steps that count for the statistics; None for all.

    Returns:
        What to take off the samples (B, 1), and every utterance's weights (B, O, K) and biases (B, O) in float64.
    """
    window_BTK = waveforms_BT.double().unfold(1, weight_OK.shape[-1], stride)
    counted_BTK = window_BTK if valid_BT is None else window_BTK * valid_BT[..., None]
    count = window_BTK.shape[1] if valid_BT is None else valid_BT.sum(-1).double()[:, None, None]
    mean_B1K = counted_BTK.sum(1, keepdim=True) / count
    covariance_BKK = counted_BTK.transpose(1, 2) @ window_BTK / count - mean_B1K.transpose(1, 2) * mean_B1K
    weights_OK = weight_OK.double()
    variance_BO = ((weights_OK @ covariance_BKK) * weights_OK).sum(-1).clamp(min=0)
    factor_BO = scale_O.double() * torch.rsqrt(variance_BO + eps)
    # What is the same for all samples does not outlast the norm. Without it the offset is small: no digits are lost.
    constant_B11 = mean_B1K.mean(-1, keepdim=True)
    offset_BO = shift_O.double() - ((mean_B1K - constant_B11) @ weights_OK.T)[:, 0] * factor_BO
    return constant_B11[..., 0], weights_OK * factor_BO[..., None], offset_BO


def on_cpu(x: Tensor) -> bool:
    """Whether the operations that were written for CPUs are to be used on `x`."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def computing_type(x: Tensor, weight: Tensor) -> torch.dtype:
    """The type that autocast would have a product of the two computed in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def windows(x_TC: Tensor, kernel: int, stride: int) -> Tensor:
    """The steps that each output step reads, side by side (T', K·C): a view."""
    T, C = x_TC.shape
    return x_TC.as_strided(((T - kernel) // stride + 1, kernel * C), (stride * C, 1), x_TC.storage_offset())


def multiply_windows(x_NTC: Tensor, weight_GXO: Tensor, bias_GO: Tensor | None, stride: int) -> Tensor:
    """The windows of sequence n times the weight of group n modulo G: (N, T, C) → (N, T', O)."""
    G, X, outputs = weight_GXO.shape
    N, T, C = x_NTC.shape
    y_NTO = x_NTC.new_empty(N, (T - X // C) // stride + 1, outputs)
    for n, (x_TC, y_TO) in enumerate(zip(x_NTC, y_NTO, strict=True)):
        window_TX, weight_XO = windows(x_TC, X // C, stride), weight_GXO[n % G]
        if bias_GO is None:
            torch.mm(window_TX, weight_XO, out=y_TO)
        else:
            torch.addmm(bias_GO[n % G], window_TX, weight_XO, out=y_TO)
    return y_NTO


class _Convolution(torch.autograd.Function):
    """Sequence n of N = B·G is convolved with the weight of group n modulo G; everything has one type."""

    @staticmethod
    def forward(ctx: Any, x_NTC: Tensor, weight_GOX: Tensor, bias_GO: Tensor | None, stride: int) -> Tensor:
        x_NTC = x_NTC.contiguous()  # of one utterance, groups are a view
        with torch.autocast("cpu", enabled=False):
            y_NTO = multiply_windows(x_NTC, weight_GOX.transpose(1, 2), bias_GO, stride)
        ctx.save_for_backward(x_NTC, weight_GOX)
        ctx.stride, ctx.bias_GO = stride, bias_GO is not None
        return y_NTO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NTO: Tensor) -> tuple[Tensor | None, ...]:
        x_NTC, weight_GOX = ctx.saved_tensors
        grad_NTO = grad_NTO.contiguous()
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):
            G, N, C = len(weight_GOX), len(x_NTC), x_NTC.shape[-1]
            by_group = grad_NTO.unflatten(0, (N // G, G))
            return (
                _grad_input(grad_NTO, weight_GOX, x_NTC.shape[1], C, ctx.stride) if needs_x else None,
                _grad_weight(grad_NTO, x_NTC, G, weight_GOX.shape[-1] // C, ctx.stride) if needs_weight else None,
                by_group.sum((0, 2)) if ctx.bias_GO and needs_bias else None,
                None,
            )


def _grad_weight(grad_NTO: Tensor, x_NTC: Tensor, groups: int, kernel: int, stride: int) -> Tensor:
    """One product per sequence, added up in at least float32."""
    outputs, X = grad_NTO.shape[-1], kernel * x_NTC.shape[-1]
    total_GOX = grad_NTO.new_zeros(groups, outputs, X, dtype=torch.promote_types(grad_NTO.dtype, torch.float32))
    for n, (grad_TO, x_TC) in enumerate(zip(grad_NTO, x_NTC, strict=True)):
        window_TX = windows(x_TC, kernel, stride)
        # The product whose left side has the fewer rows to turn is the faster one where one side is narrow.
        product_OX = torch.mm(grad_TO.t(), window_TX) if outputs <= X else torch.mm(window_TX.t(), grad_TO).t()
        total_GOX[n % groups] += product_OX
    return total_GOX.to(grad_NTO.dtype)


def _grad_input(grad_NTO: Tensor, weight_GOX: Tensor, steps: int, channels: int, stride: int) -> Tensor:
    """A convolution of the gradient for each phase of the stride.

    Step t of the input was read by output t' through tap k where t = t'·stride + k, so the steps of one phase r = t
    modulo stride read the taps r, r + stride, … alone. Example with a kernel of 3 and a stride of 2: step 2m gets
    grad[m]·W0 + grad[m-1]·W2 and step 2m + 1 gets grad[m]·W1.
    """
    N, T, outputs = grad_NTO.shape
    G, _, X = weight_GOX.shape
    kernel = X // channels
    most = (kernel - 1) // stride  # output steps that a step is read by, less one
    padded_NTO = F.pad(grad_NTO, (0, 0, most, most)) if most else grad_NTO
    result_NTC = grad_NTO.new_zeros(N, steps, channels)
    weight_GOKC = weight_GOX.unflatten(2, (kernel, channels))
    for phase in range(min(stride, kernel)):
        taps_GOKC = weight_GOKC[:, :, phase::stride].flip(2)
        taps = taps_GOKC.shape[2]
        taps_GXC = taps_GOKC.transpose(1, 2).reshape(G, taps * outputs, channels)
        places = min(len(range(phase, steps, stride)), T + taps - 1)
        for n in range(N):
            window_TX = windows(padded_NTO[n, most - taps + 1 :], taps, 1)[:places]
            result_NTC[n, phase::stride][:places] = window_TX @ taps_GXC[n % G]
    return result_NTC
