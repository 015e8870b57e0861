"""Where in time: the positional convolution and WavLM's relative position bias."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import EncoderConfig
from .convolution import convolve
from .frontend import activation_function


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
        self.activation = activation_function(config.conv_activation)
        self.length_aware = config.length_aware

    def forward(self, x_BTD: Tensor, valid_BT1: Tensor | None) -> Tensor:
        """What is to be added to the features (B, T, D)."""
        if self.input_scale is not None and self.input_shift is not None:
            x_BTD = x_BTD * self.input_scale + self.input_shift
        for conv in self.convs:
            assert isinstance(conv, nn.Conv1d)
            # Alone, an utterance has zeros beyond its end in front of every convolution, not only the first one.
            if valid_BT1 is not None and self.length_aware:
                x_BTD = x_BTD * valid_BT1
            # An even kernel would make one frame too many.
            before = conv.kernel_size[0] // 2
            x_BTD = F.pad(x_BTD, (0, 0, before, conv.kernel_size[0] - 1 - before))
            x_BTD = convolve(x_BTD, conv.weight, conv.bias, groups=conv.groups)
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
