"""What a corpus is made of: utterances and noises, each a function of what is written in it, whoever makes it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np
import soundfile
import soxr

from lab.corpora.channel import Audio, Channel, at_level, colored_noise
from lab.speech import SAMPLE_RATE
from lab.voices import Voice, Word
from skill_speech.run.progress import Meter

Result = TypeVar("Result", covariant=True)


class Job(Protocol[Result]):
    """A piece of work for any process; `make` may write files and returns what the corpus' lists say of them."""

    def make(self) -> Result:
        """Do it."""


@dataclass(frozen=True)
class Made:
    """What became of an utterance: its length in seconds and its words in time."""

    seconds: float
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Clip:
    """An utterance in a file.

    Attributes:
        path: of the file; the suffix is its format.
        text: what is said.
        voice: who says it.
        seed: of the noise and the place in a clip of fixed length.
        channel: how it was recorded.
        gain_db: loudness above or below the common level.
        sample_rate: of the file, Hz.
        seconds: a fixed length, the speech somewhere in it; 0 for the speech's own.
    """

    path: Path
    text: str
    voice: Voice
    seed: str
    channel: Channel = field(default_factory=Channel)
    gain_db: float = 0.0
    sample_rate: int = SAMPLE_RATE
    seconds: float = 0.0

    def make(self) -> Made:
        """Write the file."""
        rng = generator(self.seed)
        audio_T, words = say(self.text, self.voice)
        if self.seconds:
            audio_T, words = _placed(only_speech(audio_T, words), round(self.seconds * SAMPLE_RATE), rng), ()
        audio_T = self.channel.apply(audio_T, SAMPLE_RATE, rng)
        return Made(write_audio(self.path, at_level(audio_T, self.gain_db), self.sample_rate), words)


@dataclass(frozen=True)
class Noise:
    """Background noise in a file: colored, swelling and fading, with a hum of some pitch or none."""

    path: Path
    seconds: float
    color: float
    hum: float
    gain_db: float
    seed: str

    def make(self) -> Made:
        """Write the file."""
        rng = generator(self.seed)
        length = round(self.seconds * SAMPLE_RATE)
        time_T = np.arange(length) / SAMPLE_RATE
        swell_T = 1 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.1, 1.5) * time_T + rng.random()))
        noise_T = colored_noise(length, self.color, SAMPLE_RATE, rng) * swell_T
        if self.hum:
            noise_T = noise_T + sum(np.sin(2 * np.pi * self.hum * k * time_T) / k for k in (1, 2, 3))
        return Made(write_audio(self.path, at_level(noise_T.astype(np.float32), self.gain_db), SAMPLE_RATE))


class Workers:
    """Processes that do jobs; the results do not depend on their number. To be used in a `with` statement."""

    def __init__(self, jobs: int) -> None:
        # Fresh processes: torch's threads in a parent do not survive a fork.
        self._pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else None
        self.seconds = 0.0
        """Of audio that was written."""

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def do(self, what: str, jobs: Sequence[Job[Result]]) -> list[Result]:
        """The results in the order of the jobs."""
        results = []
        with Meter(what, len(jobs)) as meter:
            for result in map(_make, jobs) if self._pool is None else self._pool.map(_make, jobs, chunksize=8):
                results.append(result)
                self.seconds += getattr(result, "seconds", 0.0)
                meter.advance()
        return results


def _make(job: Job[Result]) -> Result:
    return job.make()


def generator(seed: str) -> np.random.Generator:
    """NumPy's random numbers from a text."""
    return np.random.default_rng(random.Random(seed).getrandbits(128))


def say(text: str, voice: Voice) -> tuple[Audio, tuple[Word, ...]]:
    """Speech at 16 kHz and its words in time."""
    spoken = voice.speak(text)
    audio_T = spoken.audio(SAMPLE_RATE)
    return audio_T, spoken.words


def only_speech(audio_T: Audio, words: tuple[Word, ...]) -> Audio:
    """Without the silence before the first and after the last word."""
    return audio_T[int(words[0].start * SAMPLE_RATE) : int(words[-1].end * SAMPLE_RATE)]


def write_audio(path: Path, audio_T: Audio, sample_rate: int) -> float:
    """Write 16 kHz audio at the rate of the file; returns its length in seconds."""
    if sample_rate != SAMPLE_RATE:
        audio_T = soxr.resample(audio_T, SAMPLE_RATE, sample_rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.clip(audio_T, -1, 1), sample_rate, subtype="PCM_16")
    return len(audio_T) / sample_rate


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _placed(speech_T: Audio, length: int, rng: np.random.Generator) -> Audio:
    """The speech somewhere in silence, or its middle if it is longer."""
    spare = length - len(speech_T)
    if spare <= 0:
        return speech_T[(len(speech_T) - length) // 2 :][:length]
    before = int(rng.integers(spare + 1))
    return np.pad(speech_T, (before, spare - before))
