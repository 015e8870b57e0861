"""Synthetic speech in LibriSpeech's layout, with phonemes and their times.

    python -m lab.speech --output data/speech --hours 0.5 --seed 0 --jobs 2

Every utterance is a function of the seed and its own number, so the number of processes changes nothing.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import soundfile

from lab.espeak import EspeakVoice
from lab.hibari import HibariVoice
from lab.sentences import random_sentence
from lab.voices import Speaker, Voice

SAMPLE_RATE = 16_000
SECONDS_PER_UTTERANCE = 4.85  # measured mean, to turn hours into utterances
UTTERANCES_PER_CHAPTER = 10
FIRST_SPEAKER = 100

ENGINES: dict[str, type[Voice]] = {"espeak": EspeakVoice, "hibari": HibariVoice}
"""Who can speak."""


@dataclass(frozen=True)
class Chapter:
    """The unit of work: one speaker reads some sentences."""

    folder: Path
    speaker: Speaker
    number: int
    first: int
    utterances: int
    seed: int


def make_speakers(count: int, seed: int, engines: Sequence[str] = ("espeak",)) -> list[Speaker]:
    """So many speakers, of the engines in turn, two at a time; the same for the same seed, no two of them alike."""
    speakers: list[Speaker] = []
    taken = set()
    rng = random.Random(f"speakers/{seed}")
    while len(speakers) < count:
        sex = "FM"[len(speakers) % 2]
        voice = ENGINES[engines[len(speakers) // 2 % len(engines)]].random(rng, sex)
        if voice not in taken:
            taken.add(voice)
            speakers.append(Speaker(FIRST_SPEAKER + len(speakers), sex, voice))
    return speakers


def make_speech(
    output: str | Path,
    *,
    hours: float = 0.5,
    seed: int = 0,
    jobs: int = 2,
    speakers: int = 100,
    subsets: Sequence[str] = ("train-clean-100",),
    engines: Sequence[str] = ("espeak",),
) -> Path:
    """Write a corpus; several subsets share the hours equally and have no speaker in common.

    Beside LibriSpeech's files there is, per chapter, SPK-CHAPTER.phones.txt (utterance and phonemes) and
    SPK-CHAPTER.align.jsonl (per utterance its length and the start of every phoneme, in seconds).

    Args:
        output: where to; the subsets become folders in it.
        hours: of speech, about.
        seed: of everything.
        jobs: processes.
        speakers: how many in all; fewer if there are not enough utterances for them.
        subsets: names of LibriSpeech's folders.
        engines: of ENGINES, who speak in turn; one that is named twice has twice as many speakers.
    """
    output = Path(output)
    total = max(len(subsets), round(hours * 3600 / SECONDS_PER_UTTERANCE))
    chapters_in_all = max(len(subsets), -(-total // UTTERANCES_PER_CHAPTER))
    people = make_speakers(min(max(speakers, len(subsets)), chapters_in_all), seed, engines)
    chapters = []
    lines = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for index, subset in enumerate(subsets):
        here = people[index :: len(subsets)]
        count = total // len(subsets) + (index < total % len(subsets))
        pieces = [
            range(first, min(first + UTTERANCES_PER_CHAPTER, count))
            for first in range(0, count, UTTERANCES_PER_CHAPTER)
        ]
        for number, piece in enumerate(pieces):
            speaker = here[number % len(here)]
            chapter = 10_000 * (index + 1) + number
            folder = output / subset / str(speaker.number) / str(chapter)
            chapters.append(Chapter(folder, speaker, chapter, piece.start, len(piece), seed))
        for speaker in here:
            lines.append(f"{speaker.number:<5}| {speaker.sex} | {subset:<17}| 0     | {speaker.voice}")
    output.mkdir(parents=True, exist_ok=True)
    (output / "SPEAKERS.TXT").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if jobs <= 1:
        for chapter in chapters:
            _write_chapter(chapter)
    else:
        # A fresh process for espeak-ng's global state; torch's threads in the parent do not survive a fork.
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            list(pool.map(_write_chapter, chapters, chunksize=1))
    return output


def _write_chapter(chapter: Chapter) -> None:
    chapter.folder.mkdir(parents=True, exist_ok=True)
    stem = f"{chapter.speaker.number}-{chapter.number}"
    transcripts, phones, alignments = [], [], []
    for index in range(chapter.utterances):
        name = f"{stem}-{index:04}"
        rng = random.Random(f"{chapter.seed}/{chapter.number}/{index}")
        text = random_sentence(rng)
        spoken = chapter.speaker.voice.speak(text)
        audio_T = spoken.audio(SAMPLE_RATE)
        audio_T = np.clip(audio_T * 10 ** (rng.uniform(-8, 2) / 20), -1, 1)
        soundfile.write(chapter.folder / f"{name}.flac", audio_T, SAMPLE_RATE, subtype="PCM_16")
        seconds = len(audio_T) / SAMPLE_RATE
        timed = [(start, phoneme) for start, phoneme in spoken.phonemes if start < seconds]
        transcripts.append(f"{name} {text.upper()}")
        phones.append(f"{name} {' '.join(phoneme for _, phoneme in timed)}")
        alignments.append(json.dumps({"id": name, "seconds": round(seconds, 4), "phonemes": timed}))
    for suffix, rows in ((".trans.txt", transcripts), (".phones.txt", phones), (".align.jsonl", alignments)):
        (chapter.folder / f"{stem}{suffix}").write_text("\n".join(rows) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write synthetic speech in LibriSpeech's layout.")
    parser.add_argument("--output", required=True)
    parser.add_argument("--hours", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--speakers", type=int, default=100)
    parser.add_argument("--subsets", nargs="+", default=["train-clean-100"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=["espeak"])
    arguments = parser.parse_args()
    make_speech(**vars(arguments))


if __name__ == "__main__":
    main()
