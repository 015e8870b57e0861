"""Log-mel filterbanks, the baseline of SUPERB: 80 bands with deltas and delta-deltas, normalized per utterance.

Legend of the tensor suffixes: T samples or frames, D features.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from lhotse.features.kaldi.layers import Wav2LogFilterBank
from torch import Tensor, nn

from ..data import SAMPLE_RATE

BANDS, WINDOW, HOP = 80, 400, 160
DELTA_WINDOW = 5
EPSILON = 1e-10


class Filterbanks(nn.Module):
    """Kaldi's filterbanks (25 ms every 10 ms, 80 mel bands from 20 Hz to 8 kHz, Povey window, no dither).

    First and second differences over five frames are appended, and each of the 240 features is brought to zero mean and
    unit variance over the utterance, as s3prl's `fbank` does.
    """

    width = 3 * BANDS

    def __init__(self) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*snip_edges.*")  # about lhotse's own feature manifests
            self.log_mel = Wav2LogFilterBank(
                sampling_rate=SAMPLE_RATE,
                frame_length=WINDOW / SAMPLE_RATE,
                frame_shift=HOP / SAMPLE_RATE,
                snip_edges=True,
                low_freq=20.0,
                high_freq=0.0,  # counted from the Nyquist frequency
                num_filters=BANDS,
            )

    def forward(self, waveform_T: Tensor) -> Tensor:
        """Samples (T,) → features (frames, 240)."""
        static_TD = self.log_mel(waveform_T[None])[0]
        first_TD = deltas(static_TD)
        features_TD = torch.cat([static_TD, first_TD, deltas(first_TD)], dim=-1)
        if len(features_TD) == 1:  # no variance to speak of
            return features_TD - features_TD.mean(0)
        return (features_TD - features_TD.mean(0)) / (EPSILON + features_TD.std(0))


def deltas(x_TD: Tensor) -> Tensor:
    """Slope of the regression line over five frames, the edges repeated.

    At frame t: (x[t+1] - x[t-1] + 2 (x[t+2] - x[t-2])) / 10.
    """
    reach = DELTA_WINDOW // 2
    offsets = torch.arange(-reach, reach + 1, dtype=x_TD.dtype, device=x_TD.device)
    kernel_11K = (offsets / offsets.square().sum())[None, None]
    padded_D1T = F.pad(x_TD.T[:, None], (reach, reach), mode="replicate")
    return F.conv1d(padded_D1T, kernel_11K)[:, 0].T
