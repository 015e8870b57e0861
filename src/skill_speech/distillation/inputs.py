"""What the student hears in training: the clean speech that the teacher hears, or an augmented version of it.

The targets are always those of the clean waveform. Shapes: B utterances, T samples or frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Input = Literal["clean", "masked", "noisy", "masked-noisy"]
DECAY = math.log(1_000)
"""60 dB in amplitude, which is what a reverberation time is of."""


@dataclass(frozen=True)
class InputConfig:
    """How the student's input is augmented.

    Attributes:
        mask_share: Average share of the frames of h_0 to mask (set to zero).
        mask_frames: Frames per masked span; spans may overlap.
        noisy_share: Share of utterances to add noise to.
        snr_low: Lowest signal-to-noise ratio in dB.
        snr_high: Highest signal-to-noise ratio in dB; a ratio is drawn for each utterance.
        speakers_share: Share of noisy utterances whose noise is another utterance of the batch.
        reverberation_share: Share of all utterances to reverberate.
        reverberation_high: Longest reverberation time (RT60) in seconds; the shortest is 0.1.
    """

    mask_share: float = 0.4
    mask_frames: int = 10
    noisy_share: float = 0.8
    snr_low: float = 0.0
    snr_high: float = 20.0
    speakers_share: float = 0.3
    reverberation_share: float = 0.3
    reverberation_high: float = 0.6


class StudentInput:
    """Augments what the student hears; everything is drawn from torch's default CPU generator.

    Args:
        kind: which augmentations.
        config: their strength.
        noise: recordings (T,) at the rate of the waveforms; with none, noise of random color is made.
        rate: samples a second.
    """

    def __init__(
        self, kind: Input = "clean", config: InputConfig | None = None, noise: Sequence[Tensor] = (), rate: int = 16_000
    ) -> None:
        self.kind, self.config, self.noise, self.rate = kind, config or InputConfig(), tuple(noise), rate

    def waveforms(self, waveforms_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Speech in rooms and with noise (B, T), or as it is; padding stays silent.

        Args:
            waveforms_BT: clean speech.
            lengths_B: samples of each utterance; None where none is padded.
        """
        if "noisy" not in self.kind:
            return waveforms_BT
        config, (B, T) = self.config, waveforms_BT.shape
        lengths = [T] * B if lengths_B is None else lengths_B.tolist()
        clean = [row_T[:length] for row_T, length in zip(waveforms_BT.detach().float().cpu(), lengths, strict=True)]
        heard = [self._in_a_room(speech_T) for speech_T in clean]
        heard_BT = torch.zeros(B, T)
        for number, (noisy, speaks, level) in enumerate(torch.rand(B, 3).tolist()):
            length = lengths[number]
            heard_BT[number, :length] = heard[number]
            if noisy >= config.noisy_share:
                continue
            if B > 1 and speaks < config.speakers_share:
                other_T = clean[(number + 1 + int(torch.randint(B - 1, ()))) % B]
                noise_T = other_T.repeat(-(-length // len(other_T)))[:length]
            else:
                noise_T = self._noise(length)
            snr = config.snr_low + level * (config.snr_high - config.snr_low)
            heard_BT[number, :length] += noise_T * factor_for(heard[number], noise_T, snr)
        return heard_BT.to(waveforms_BT)

    def mask(self, frames: int, utterances: int) -> Tensor | None:
        """Which frames are masked (B, T); None for none."""
        if "masked" not in self.kind:
            return None
        length = min(self.config.mask_frames, frames)
        # The chance to be covered by none of the spans is (1 - p)^length, p being that of a span to begin at a frame.
        begins = 1 - (1 - min(self.config.mask_share, 0.99)) ** (1 / length)
        starts_BT = torch.rand(utterances, frames + length - 1) < begins
        return starts_BT.float().unfold(1, length, 1).amax(-1) > 0

    def _in_a_room(self, speech_T: Tensor) -> Tensor:
        """Speech with the echoes of a random room, as loud as before, its first sound where it was."""
        config = self.config
        happens, length = torch.rand(2).tolist()
        if happens >= config.reverberation_share or config.reverberation_high <= 0.1:
            return speech_T
        time = 0.1 + length * (config.reverberation_high - 0.1)
        response_T = room(time, self.rate)
        spoken_T = convolve(speech_T, response_T)
        return spoken_T * factor_for(speech_T, spoken_T, 0.0)

    def _noise(self, samples: int) -> Tensor:
        """A piece of a recording (T,), repeated if it is short, or noise of random color."""
        if not self.noise:
            return colored_noise(samples, float(torch.rand(())) * 2)
        recording_T = self.noise[int(torch.randint(len(self.noise), ()))]
        start = int(torch.randint(max(1, len(recording_T) - samples + 1), ()))
        repeats = -(-samples // len(recording_T))
        return recording_T.repeat(repeats)[start : start + samples] if repeats > 1 else recording_T[start:][:samples]


def factor_for(signal_T: Tensor, noise_T: Tensor, snr: float) -> float:
    """What noise is multiplied by for a ratio in dB of the powers of signal and noise; 0 if one of them is silent."""
    signal, noise = float(signal_T.double().square().mean()), float(noise_T.double().square().mean())
    if signal <= 0 or noise <= 0:
        return 0.0
    return math.sqrt(signal / noise * 10 ** (-snr / 10))


def colored_noise(samples: int, slope: float) -> Tensor:
    """Noise (T,) whose power falls by f^-slope: 0 is white, 1 pink, 2 brown."""
    spectrum_F = torch.fft.rfft(torch.randn(samples))
    frequency_F = torch.arange(len(spectrum_F)).clamp(min=1).float()
    return torch.fft.irfft(spectrum_F * frequency_F ** (-slope / 2), n=samples)


def room(seconds: float, rate: int) -> Tensor:
    """The response (T,) of a room of a reverberation time: the direct sound, and noise that decays by 60 dB."""
    time_T = torch.arange(round(seconds * rate)) / rate
    echoes_T = torch.randn(len(time_T)) * torch.exp(-DECAY * time_T / seconds)
    # As much energy in the echoes as in the direct sound, give or take 6 dB.
    share = 10 ** (float(torch.rand(())) * 1.2 - 0.6)
    echoes_T *= math.sqrt(share / float(echoes_T.square().sum()))
    echoes_T[0] = 1.0
    return echoes_T


def convolve(speech_T: Tensor, response_T: Tensor) -> Tensor:
    """A linear convolution cut to the length of the speech (T,)."""
    size = len(speech_T) + len(response_T) - 1
    spectrum_F = torch.fft.rfft(speech_T, n=size) * torch.fft.rfft(response_T, n=size)
    return torch.fft.irfft(spectrum_F, n=size)[: len(speech_T)]
