"""Who speaks: a voice of some engine, and what it says."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import soxr


@dataclass(frozen=True)
class Word:
    """A word as it was spoken: what stands between two spaces of the text, when (seconds), and its phonemes."""

    text: str
    start: float
    end: float
    phonemes: tuple[str, ...]


@dataclass(frozen=True)
class Spoken:
    """An utterance.

    Attributes:
        samples_T: int16.
        sample_rate: Hz.
        phonemes: (seconds, phoneme) where each phoneme starts.
        words: in order, without the pauses between them. Two that espeak-ng speaks as one ("of the") are one.
    """

    samples_T: npt.NDArray[np.int16]
    sample_rate: int
    phonemes: tuple[tuple[float, str], ...]
    words: tuple[Word, ...]

    def audio(self, sample_rate: int) -> npt.NDArray[np.float32]:
        """The samples (T,) at another rate, 1.0 for the largest."""
        return soxr.resample(self.samples_T.astype(np.float32) / 32768, self.sample_rate, sample_rate)


class Voice(Protocol):
    """How a speaker sounds, of whatever engine; equal voices say equal samples of a text."""

    ENGINE: ClassVar[str]
    """Its name for people."""

    @classmethod
    def random(cls, rng: random.Random, sex: str) -> Voice:
        """Somebody, "F" or "M"."""

    @classmethod
    def reader(cls) -> Voice:
        """The American who reads the words of lexicons."""

    def speak(self, text: str) -> Spoken:
        """Speak a sentence."""

    def varied(self, rng: random.Random) -> Voice:
        """The same person at another moment."""

    def with_prosody(self, pitch: float, pitch_range: float, rate: float) -> Voice:
        """The same person in another mood: pitch and pitch range are added (50: an octave), the rate is a factor."""


@dataclass(frozen=True)
class Speaker:
    """A person of a synthetic corpus: a number, "F" or "M", and a voice."""

    number: int
    sex: str
    voice: Voice
