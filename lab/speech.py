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
import soxr

from lab.espeak import Voice, espeak
from lab.sentences import random_sentence

SAMPLE_RATE = 16_000
SECONDS_PER_UTTERANCE = 4.85  # measured mean, to turn hours into utterances
UTTERANCES_PER_CHAPTER = 10
FIRST_SPEAKER = 100

ACCENTS = ("en", "en-us", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
VARIANTS = {
    "F": "f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda grandma linda steph steph2 steph3".split(),
    "M": (
        "m1 m2 m3 m4 m5 m6 m7 m8 Alex Andy Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael Mike "
        "Reed adam antonio benjamin boris caleb david ed edward gustave ian iven john max michel miguel "
        "norbert pablo paul pedro quincy rob robert sandro shelby travis victor zac"
    ).split(),
}


@dataclass(frozen=True)
class Speaker:
    """A person of the synthetic corpus."""

    number: int
    sex: str
    voice: Voice


@dataclass(frozen=True)
class Chapter:
    """The unit of work: one speaker reads some sentences."""

    folder: Path
    speaker: Speaker
    number: int
    first: int
    utterances: int
    seed: int


def make_speakers(count: int, seed: int) -> list[Speaker]:
    """So many speakers, the same for the same seed, no two of them alike."""
    speakers = []
    taken = set()
    rng = random.Random(f"speakers/{seed}")
    while len(speakers) < count:
        sex = "FM"[len(speakers) % 2]
        voice = Voice(
            accent=rng.choice(ACCENTS),
            variant=rng.choice(VARIANTS[sex]),
            pitch=rng.randint(25, 75),
            pitch_range=rng.randint(25, 75),
            rate=rng.randint(135, 215),
        )
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
    """
    output = Path(output)
    total = max(len(subsets), round(hours * 3600 / SECONDS_PER_UTTERANCE))
    chapters_in_all = max(len(subsets), -(-total // UTTERANCES_PER_CHAPTER))
    people = make_speakers(min(max(speakers, len(subsets)), chapters_in_all), seed)
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
            voice = speaker.voice
            name = f"{voice.accent}+{voice.variant} pitch {voice.pitch} range {voice.pitch_range} rate {voice.rate}"
            lines.append(f"{speaker.number:<5}| {speaker.sex} | {subset:<17}| 0     | {name}")
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
        spoken = espeak().speak(text, chapter.speaker.voice)
        audio_T = soxr.resample(spoken.samples_T.astype(np.float32) / 32768, spoken.sample_rate, SAMPLE_RATE)
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
    arguments = parser.parse_args()
    make_speech(**vars(arguments))


if __name__ == "__main__":
    main()
