"""Libri2Mix for sd: two speakers who partly talk over each other, with noise; the turns are exact."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab.corpora.casting import cast
from lab.corpora.channel import at_level, colored_noise, rms
from lab.corpora.sentences import Sentences
from lab.corpora.work import Workers, generator, only_speech, say, write_audio, write_lines
from lab.speech import SAMPLE_RATE
from lab.voices import Speaker, Voice

AUDIO, FOLDER = "Libri2Mix", "diarization"
SUBSETS = {"train": "train-100", "dev": "dev", "test": "test"}
# Mixtures and speakers.
SIZES = {
    "tiny": {"train": (6, 4), "dev": (2, 2), "test": (2, 2)},
    "small": {"train": (24, 8), "dev": (6, 4), "test": (6, 4)},
    "full": {"train": (300, 60), "dev": (40, 16), "test": (40, 16)},
}


@dataclass(frozen=True)
class Saying:
    """A sentence in a mixture, `pause` seconds after the same speaker's sentence before it (or the beginning)."""

    speaker: int
    text: str
    voice: Voice
    pause: float
    gain_db: float


@dataclass(frozen=True)
class MadeMixture:
    """The length of a mixture and its turns (speaker, start, end), in seconds."""

    seconds: float
    turns: tuple[tuple[int, float, float], ...]


@dataclass(frozen=True)
class Mixture:
    """What two speakers say at once; it ends with the longer one, as LibriMix' `max`."""

    path: Path
    name: str
    sayings: tuple[Saying, ...]
    snr_db: float
    color: float
    seed: str

    def make(self) -> MadeMixture:
        """Write the file."""
        rng = generator(self.seed)
        placed, turns = [], []
        clock: dict[int, int] = {}
        for saying in self.sayings:
            speech_T = at_level(only_speech(*say(saying.text, saying.voice)), saying.gain_db)
            start = clock.get(saying.speaker, 0) + round(saying.pause * SAMPLE_RATE)
            end = clock[saying.speaker] = start + len(speech_T)
            placed.append((start, speech_T))
            turns.append((saying.speaker, start / SAMPLE_RATE, end / SAMPLE_RATE))
        length = max(clock.values()) + round(0.3 * SAMPLE_RATE)
        mixed_T = np.zeros(length, np.float32)
        for start, speech_T in placed:
            mixed_T[start : start + len(speech_T)] += speech_T
        noise_T = colored_noise(length, self.color, SAMPLE_RATE, rng) * rms(mixed_T) * 10 ** (-self.snr_db / 20)
        return MadeMixture(write_audio(self.path, mixed_T + noise_T, SAMPLE_RATE), tuple(turns))


def make(root: Path, size: str, seed: int, workers: Workers, engine: str) -> list[Path]:
    """Write the corpus; returns the folder of the audio and the one of the Kaldi folders."""
    key = f"librimix/{seed}"
    sentences = Sentences(key)
    speakers = cast(sum(count for _, count in SIZES[size].values()), key, engine)
    for split, (mixtures, count) in SIZES[size].items():
        here, speakers = speakers[:count], speakers[count:]
        audio = root / AUDIO / "wav16k" / "max" / SUBSETS[split] / "mix_both"
        planned = [_plan(audio, here, sentences, f"{key}/{split}/{number}", number) for number in range(mixtures)]
        made = workers.do(f"{AUDIO} {split}", planned)
        _write_kaldi(root / FOLDER / split, planned, made)
    return [root / AUDIO, root / FOLDER]


def _plan(folder: Path, speakers: list[Speaker], sentences: Sentences, seed: str, number: int) -> Mixture:
    rng = random.Random(seed)
    pair = rng.sample(speakers, 2)
    sayings = []
    for place, speaker in enumerate(pair):
        level = rng.uniform(-5, 3)
        # The second speaker comes in late as often as not, so that each is heard alone somewhere.
        pause = rng.uniform(0.1, 0.5) if place == 0 else rng.uniform(0.1, 3.0)
        for _ in range(rng.choice((1, 2, 2))):
            text = sentences.next(longest=14)
            sayings.append(Saying(speaker.number, text, speaker.voice.varied(rng), pause, level))
            pause = rng.uniform(0.4, 1.8)
    # As LibriMix names them, after the two utterances: here the same number for both.
    name = "_".join(f"{speaker.number}-{10_000 + number}-{place:04}" for place, speaker in enumerate(pair))
    snr, color = rng.uniform(12, 28), rng.uniform(0.3, 2)
    return Mixture(folder / f"{name}.wav", name, tuple(sayings), snr, color, seed)


def _write_kaldi(folder: Path, planned: list[Mixture], made: list[MadeMixture]) -> None:
    """The six files that s3prl's preparation writes; times to the sample, paths relative to the folder."""
    files: dict[str, list[str]] = {name: [] for name in ("wav.scp", "utt2spk", "segments", "rttm", "reco2dur")}
    of_speaker: dict[int, list[str]] = {}
    for mixture, result in zip(planned, made, strict=True):
        files["wav.scp"].append(f"{mixture.name} {os.path.relpath(mixture.path, folder)}")
        files["reco2dur"].append(f"{mixture.name} {result.seconds}")
        for speaker, start, end in result.turns:
            segment = f"{mixture.name}_{speaker}_{start * 1000:06.0f}_{end * 1000:06.0f}"
            files["segments"].append(f"{segment} {mixture.name} {start} {end}")
            files["utt2spk"].append(f"{segment} {speaker}")
            files["rttm"].append(f"SPEAKER\t{mixture.name}\t1\t{start}\t{end - start}\t<NA>\t<NA>\t{speaker}\t<NA>")
            of_speaker.setdefault(speaker, []).append(segment)
    files["spk2utt"] = [f"{speaker} {' '.join(segments)}" for speaker, segments in of_speaker.items()]
    for name, lines in files.items():
        write_lines(folder / name, lines)
