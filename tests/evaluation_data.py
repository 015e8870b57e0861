"""Data of all ten tasks made of tones: what sounds like what is known, and a good feature solves each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from skill_speech.evaluation.corpora import TASKS, TaskData
from skill_speech.evaluation.corpora.utterances import Turn, Utterance, make_cuts

RATE = 16_000
PITCHES = {letter: 220.0 * 2 ** (number / 2.2) for number, letter in enumerate("ABCDEFGH")}
"""A letter is a tone of 0.12 s."""

LETTER_SECONDS = 0.12
SIZES = {"train": 12, "dev": 6, "test": 6}


def tone(pitch: float, seconds: float, rng: np.random.Generator, loudness: float = 0.2) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return loudness * np.sin(2 * np.pi * pitch * time + rng.uniform(0, 6)) + 0.003 * rng.standard_normal(len(time))


def spelled(text: str, rng: np.random.Generator, shift: float = 1.0) -> np.ndarray:
    parts = [
        tone(PITCHES[letter] * shift, LETTER_SECONDS, rng) if letter != " " else tone(1.0, 0.08, rng, 0.0)
        for letter in text
    ]
    return np.concatenate(parts)


class Tones:
    """Writes utterances under a folder and makes the data of a task of them."""

    def __init__(self, folder: Path, seed: int = 0, sizes: Mapping[str, int] = SIZES) -> None:
        self.folder, self.seed, self.sizes = folder, seed, sizes
        self.rng = np.random.default_rng(seed)

    def data(self, task: str) -> list[TaskData]:
        """The same at every call."""
        self.rng = np.random.default_rng([self.seed, TASKS.index(task)])
        made = getattr(self, f"_{task}")()
        return made if isinstance(made, list) else [made]

    def _utterance(self, name: str, samples: np.ndarray, **what: Any) -> Utterance:
        path = self.folder / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples.astype(np.float32), RATE)
        return Utterance(name, path, **what)

    def _splits(self, make: Callable[[str, int], Utterance]) -> dict[str, Any]:
        return {split: make_cuts([make(split, n) for n in range(count)]) for split, count in self.sizes.items()}

    def _text(self, words: int = 3) -> str:
        return " ".join("".join(self.rng.choice(list(PITCHES), self.rng.integers(2, 4))) for _ in range(words))

    def _pr(self) -> TaskData:
        def make(split: str, n: int) -> Utterance:
            text = self._text()
            phonemes = list(text.replace(" ", ""))
            return self._utterance(f"pr/{split}-{n}", spelled(text, self.rng), text=text, custom={"phonemes": phonemes})

        return TaskData("pr", self._splits(make), sorted(PITCHES))

    def _asr(self) -> TaskData:
        def make(split: str, n: int) -> Utterance:
            text = self._text()
            return self._utterance(f"asr/{split}-{n}", spelled(text, self.rng), text=text)

        return TaskData("asr", self._splits(make))

    def _labeled(self, task: str, labels: Mapping[str, str], seconds: float = 0.5) -> dict[str, Any]:
        def make(split: str, n: int) -> Utterance:
            label = sorted(labels)[n % len(labels)]
            samples = np.concatenate([tone(PITCHES[labels[label]], seconds, self.rng)])
            return self._utterance(f"{task}/{split}-{n}", samples, custom={"label": label}, speaker=label)

        return self._splits(make)

    def _ks(self) -> TaskData:
        labels = {"yes": "A", "no": "D", "_silence_": "H"}
        return TaskData("ks", self._labeled("ks", labels), sorted(labels))

    def _sid(self) -> TaskData:
        labels = {"id1": "A", "id2": "C", "id3": "F"}
        return TaskData("sid", self._labeled("sid", labels, seconds=2.3), sorted(labels))

    def _er(self) -> list[TaskData]:
        labels = {"ang": "A", "hap": "D", "neu": "F", "sad": "H"}
        return [
            TaskData("er", self._labeled(f"er{fold}", labels), sorted(labels), fold=f"fold{fold}") for fold in (1, 2)
        ]

    def _ic(self) -> TaskData:
        slots = {"action": "AB", "object": "CD", "location": "EF"}

        def make(split: str, n: int) -> Utterance:
            values = {slot: letters[n >> place & 1] for place, (slot, letters) in enumerate(slots.items())}
            return self._utterance(f"ic/{split}-{n}", spelled("".join(values.values()) * 2, self.rng), custom=values)

        return TaskData("ic", self._splits(make), {slot: list(letters) for slot, letters in slots.items()})

    def _sf(self) -> TaskData:
        def make(split: str, n: int) -> Utterance:
            words = ["AB", self._text(1), "HG", self._text(1)]
            custom = {"slots": ["O", "city", "city", "O"], "intent": "go"}
            return self._utterance(
                f"sf/{split}-{n}", spelled(" ".join(words), self.rng), text=" ".join(words), custom=custom
            )

        return TaskData("sf", self._splits(make), extra={"slots": ["city", "date"]})

    def _sd(self) -> TaskData:
        def make(split: str, n: int) -> Utterance:
            one = tone(PITCHES["A"], 1.5, self.rng)
            other = tone(PITCHES["F"], 1.5, self.rng)
            samples = np.zeros(round(2.2 * RATE))
            samples[: len(one)] += one
            samples[-len(other) :] += other
            turns = (Turn("a", 0.0, 1.5), Turn("b", 0.7, 2.2))
            return self._utterance(f"sd/{split}-{n}", samples, turns=turns)

        return TaskData("sd", self._splits(make))

    def _asv(self) -> TaskData:
        def speak(name: str, letter: str) -> Utterance:
            return self._utterance(f"asv/{name}", tone(PITCHES[letter], 2.4, self.rng), speaker=letter)

        train = [speak(f"{letter}-{n}", letter) for letter in "ACEG" for n in range(3)]
        test = {name: speak(f"test-{name}", name[0]) for name in ("B1", "B2", "D1", "D2")}
        trials = [(int(one[0] == other[0]), one, other) for one in test for other in test if one < other]
        trials = [(label, test[one].id, test[other].id) for label, one, other in trials]
        splits = {"train": make_cuts(train), "test": make_cuts(list(test.values()))}
        return TaskData("asv", splits, sorted("ACEG"), extra={"trials": trials})

    def _qbe(self) -> TaskData:
        words = ["ADG", "HEB", "CFA"]
        documents = {
            f"doc{n}": f"{self._text(1)} {word} {self._text(1)}" if word else "HH HH HH"
            for n, word in enumerate([*words, *words, None, None])
        }
        splits = {"documents": [self._utterance(f"qbe/{n}", spelled(t, self.rng)) for n, t in documents.items()]}
        matches = {}
        for split in ("dev", "test"):
            splits[f"queries_{split}"] = [self._utterance(f"qbe/{split}{w}", spelled(w, self.rng)) for w in words]
            matches[split] = {(f"qbe/{split}{w}", f"qbe/{n}") for w in words for n, t in documents.items() if w in t}
        extra = {
            "documents": [f"qbe/{name}" for name in documents],
            "queries": {split: [f"qbe/{split}{word}" for word in words] for split in matches},
            "matches": matches,
        }
        return TaskData("qbe", {split: make_cuts(listed) for split, listed in splits.items()}, extra=extra)
