"""What lies between a mouth and a file: a room, a microphone's band, noise."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len, rfft, rfftfreq
from scipy.signal import butter, fftconvolve, sosfilt

Audio = npt.NDArray[np.float32]

LEVEL_DB = -26.0
"""Root mean square of every utterance before its gain, relative to full scale."""


@dataclass(frozen=True)
class Channel:
    """How a recording was made; the default changes nothing.

    Attributes:
        low, high: edges of the band in Hz; 0 for none.
        tilt_db: of the spectrum from 200 Hz to 4 kHz, positive is brighter.
        reverberation: seconds until a sound has faded by 60 dB.
        snr_db: of the noise; None for no noise.
        color: slope of the noise's spectrum, 0 white, 1 pink, 2 brown.
    """

    low: float = 0.0
    high: float = 0.0
    tilt_db: float = 0.0
    reverberation: float = 0.0
    snr_db: float | None = None
    color: float = 0.0

    def apply(self, audio_T: Audio, sample_rate: int, rng: np.random.Generator) -> Audio:
        """The audio as this channel hands it on, equally long."""
        if self.reverberation:
            audio_T = _reverberate(audio_T, self.reverberation, sample_rate, rng)
        if self.tilt_db:
            audio_T = _tilt(audio_T, self.tilt_db, sample_rate)
        if self.snr_db is not None:
            noise_T = colored_noise(len(audio_T), self.color, sample_rate, rng)
            audio_T = audio_T + noise_T * rms(audio_T) * 10 ** (-self.snr_db / 20)
        if self.low:
            audio_T = sosfilt(butter(2, self.low, "highpass", fs=sample_rate, output="sos"), audio_T)
        if 0 < self.high < sample_rate / 2:
            audio_T = sosfilt(butter(4, self.high, "lowpass", fs=sample_rate, output="sos"), audio_T)
        return audio_T.astype(np.float32)


def random_channel(rng: random.Random) -> Channel:
    """A channel as a video from the internet may have one."""
    return Channel(
        low=rng.uniform(40, 350),
        high=rng.uniform(2_800, 7_600),
        tilt_db=rng.uniform(-8, 8),
        reverberation=rng.choice((0.0, rng.uniform(0.05, 0.4))),
        snr_db=rng.uniform(8, 30),
        color=rng.uniform(0, 2),
    )


def rms(audio_T: npt.NDArray[np.floating]) -> float:
    """Root mean square; tiny instead of zero."""
    return float(np.sqrt(np.mean(np.square(audio_T, dtype=np.float64)) + 1e-12))


def at_level(audio_T: Audio, gain_db: float) -> Audio:
    """The audio at the common level plus a gain, clipped to full scale."""
    return np.clip(audio_T * (10 ** ((LEVEL_DB + gain_db) / 20) / rms(audio_T)), -1, 1).astype(np.float32)


def colored_noise(length: int, color: float, sample_rate: int, rng: np.random.Generator) -> Audio:
    """Noise of root mean square 1 whose power falls with frequency to the power of `color`, above 50 Hz."""
    size = next_fast_len(length, real=True)
    spectrum = rfft(rng.standard_normal(size, dtype=np.float32))
    frequency = np.maximum(rfftfreq(size, 1 / sample_rate), 50.0).astype(np.float32)
    noise_T = irfft(spectrum * frequency ** (-color / 2), size)[:length]
    return (noise_T / rms(noise_T)).astype(np.float32)


def _tilt(audio_T: Audio, tilt_db: float, sample_rate: int) -> Audio:
    size = next_fast_len(len(audio_T), real=True)
    octaves = np.log2(np.clip(rfftfreq(size, 1 / sample_rate), 200, 4_000) / 200)
    gain = 10 ** (tilt_db / 20 * octaves / np.log2(4_000 / 200))
    return irfft(rfft(audio_T, size) * gain.astype(np.float32), size)[: len(audio_T)].astype(np.float32)


def _reverberate(audio_T: Audio, seconds: float, sample_rate: int, rng: np.random.Generator) -> Audio:
    """With an echo that fades, 3 dB below the sound itself."""
    length = max(2, int(seconds * sample_rate))
    echo = rng.standard_normal(length) * 10 ** (-3 * np.arange(length) / length)
    response = echo * np.sqrt(0.5 / np.sum(echo[1:] ** 2))
    response[0] = 1.0
    return fftconvolve(audio_T, response)[: len(audio_T)].astype(np.float32)
