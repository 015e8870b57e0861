"""SpecAugment on features (Park et al. 2019, arXiv 1904.08779), in s3prl's form.

Legend of the tensor suffixes: B utterances, T frames, D features, M masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .protocol import SpecAugmentConfig


def spec_augment(x_BTD: Tensor, lengths: Sequence[int], config: SpecAugmentConfig) -> Tensor:
    """Features warped in time, each utterance in its own way, and masked with zeros over dimensions and over time.

    Draws from torch's global generator of the CPU, so that the same seed draws the same on every device.
    """
    warped = [_warp(x_TD[:length], config.time_warp) for x_TD, length in zip(x_BTD, lengths, strict=True)]
    x_BTD = torch.nn.utils.rnn.pad_sequence(warped, batch_first=True)
    B, T, D = x_BTD.shape
    hidden_BD = _masks(B, D, config.feature_masks, config.feature_width).to(x_BTD.device)
    hidden_BT = _masks(B, T, config.time_masks, config.time_width).to(x_BTD.device)
    return x_BTD.masked_fill(hidden_BD[:, None], 0).masked_fill(hidden_BT[..., None], 0)


def _warp(x_TD: Tensor, window: int) -> Tensor:
    """Stretch what lies before a random frame and squeeze what follows it, or the other way round.

    Example with 100 frames and a window of 5: the frame 40 is drawn from 5 … 94 and goes to 43, drawn from 36 … 45;
    frames 0 … 39 become 43 frames and frames 40 … 99 become 57.
    """
    T = len(x_TD)
    if window == 0 or 2 * window >= T:
        return x_TD
    center = int(torch.randint(window, T - window, ()))
    moved = int(torch.randint(center - window, center + window, ())) + 1
    parts = ((x_TD[:center], moved), (x_TD[center:], T - moved))
    return torch.cat([_resize(part_TD, size) for part_TD, size in parts])


def _resize(x_TD: Tensor, size: int) -> Tensor:
    x_11TD = x_TD[None, None]
    return F.interpolate(x_11TD, (size, x_TD.shape[1]), mode="bicubic", align_corners=False)[0, 0]


def _masks(rows: int, length: int, masks: int, width: int) -> Tensor:
    """True where hidden (rows, length): `masks` stretches per row, each shorter than `width`."""
    if masks == 0 or width == 0:
        return torch.zeros(rows, length, dtype=torch.bool)
    widths_BM = torch.randint(0, width, (rows, masks))
    starts_BM = torch.randint(0, max(1, length - int(widths_BM.max())), (rows, masks))
    places_L = torch.arange(length)
    hidden_BML = (places_L >= starts_BM[..., None]) & (places_L < (starts_BM + widths_BM)[..., None])
    return hidden_BML.any(1)
