"""Log-mel filterbanks and MFCC on the encoder's frames: 25 ms windows every 20 ms."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import dct
from torch import Tensor

SAMPLE_RATE = 16_000
WINDOW, HOP, FFT = 400, 320, 512


def mel_filters(bands: int = 40) -> Tensor:
    """Triangular filters (bands, FFT/2 + 1), equally spaced in mel from 20 Hz to 8 kHz (HTK's formula)."""

    def to_mel(hertz: float) -> float:
        return 2595 * np.log10(1 + hertz / 700)

    edges = 700 * (10 ** (np.linspace(to_mel(20), to_mel(8_000), bands + 2) / 2595) - 1)
    bins = np.arange(FFT // 2 + 1) * SAMPLE_RATE / FFT
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling))).float()


def log_mel(waveforms_BT: Tensor, bands: int = 40) -> Tensor:
    """Log energies (B, frames, bands), frame for frame with the encoder's output."""
    windows = waveforms_BT.unfold(-1, WINDOW, HOP) * torch.hann_window(WINDOW)
    power = torch.fft.rfft(windows, FFT).abs().square()
    return (power @ mel_filters(bands).T + 1e-6).log()


def mfcc(waveform_T: Tensor, coefficients: int = 13) -> npt.NDArray[np.float32]:
    """MFCC with first and second differences (frames, 3 · coefficients), as HuBERT's first iteration uses them."""
    static = dct(log_mel(waveform_T[None])[0].numpy(), type=2, norm="ortho", axis=-1)[:, :coefficients]
    first = np.gradient(static, axis=0)
    return np.concatenate([static, first, np.gradient(first, axis=0)], axis=-1).astype(np.float32)
