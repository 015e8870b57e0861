"""Normalisation over channels of which some may be closed, and over time of which some may be padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.Module):
    """Layer norm over channels that leaves closed channels out.

    Surgery removes the channels whose gate is closed, and the norm of the pruned model then takes its mean and
    variance over fewer channels. Were they taken over all of them before surgery, the pruned model would not be the
    model that was trained. Example with channels [3, 5, 9] of which the last is closed: mean 4 and variance 1, not
    mean 5.67.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x_BTC: Tensor, gates_C: Tensor | None = None) -> Tensor:
        """Normalise over the last axis; channels whose gate is zero come out as zero."""
        if gates_C is None:
            return F.layer_norm(x_BTC, self.weight.shape, self.weight, self.bias, self.eps)
        open_C = (gates_C.detach() != 0).float()
        count = open_C.sum().clamp(min=1)
        x_BTC = x_BTC.float() * open_C
        mean_BT1 = x_BTC.sum(-1, keepdim=True) / count
        centred_BTC = (x_BTC - mean_BT1) * open_C
        variance_BT1 = centred_BTC.square().sum(-1, keepdim=True) / count
        return centred_BTC * torch.rsqrt(variance_BT1 + self.eps) * self.weight + self.bias * open_C


class TimeNorm(nn.Module):
    """Normalise every channel over time: a group norm with one channel a group, the front end of Base models."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x_BTC: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Normalise over time; with `valid_BT`, the statistics are those of the valid frames alone."""
        if valid_BT is None:
            x_BCT = F.group_norm(x_BTC.transpose(1, 2), len(self.weight), self.weight, self.bias, self.eps)
            return x_BCT.transpose(1, 2)
        valid_BT1 = valid_BT[..., None].float()
        count_B11 = valid_BT1.sum(1, keepdim=True)
        x_BTC = x_BTC.float()
        mean_B1C = (x_BTC * valid_BT1).sum(1, keepdim=True) / count_B11
        centred_BTC = x_BTC - mean_B1C
        variance_B1C = (centred_BTC * valid_BT1).square().sum(1, keepdim=True) / count_B11
        x_BTC = centred_BTC * torch.rsqrt(variance_B1C + self.eps) * self.weight + self.bias
        return x_BTC.to(self.weight.dtype)


def normalize_waveforms(waveforms_BT: Tensor, valid_BT: Tensor | None = None, eps: float = 1e-7) -> Tensor:
    """Zero mean and unit variance per utterance, zeros in the padding, as Transformers' feature extractor does it."""
    given = waveforms_BT.dtype
    # The sums of seconds of samples do not fit half precision.
    waveforms_BT = waveforms_BT.to(torch.promote_types(given, torch.float32))
    if valid_BT is None:
        mean_B1 = waveforms_BT.mean(-1, keepdim=True)
        variance_B1 = waveforms_BT.var(-1, keepdim=True, correction=0)
        return ((waveforms_BT - mean_B1) * torch.rsqrt(variance_B1 + eps)).to(given)
    valid_BT = valid_BT.to(waveforms_BT.dtype)
    count_B1 = valid_BT.sum(-1, keepdim=True)
    mean_B1 = (waveforms_BT * valid_BT).sum(-1, keepdim=True) / count_B1
    centred_BT = (waveforms_BT - mean_B1) * valid_BT
    variance_B1 = centred_BT.square().sum(-1, keepdim=True) / count_B1
    return (centred_BT * torch.rsqrt(variance_B1 + eps)).to(given)
