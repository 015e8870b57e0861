"""Speech Commands v0.01 for ks: thirty words of a second each, background noises, and a test set of its own."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from lab.corpora.casting import cast
from lab.corpora.channel import random_channel
from lab.corpora.work import Clip, Noise, Workers, write_lines
from lab.voices import Voice

TRAINING, TEST = "speech_commands_v0.01", "speech_commands_test_set_v0.01"
NOISE = "_background_noise_"
KEYWORDS = "yes no up down left right on off stop go".split()
OTHERS = "cat five house tree marvin zero one two three four six seven eight nine bed bird dog happy sheila wow".split()
NOISES = {
    "white_noise": (0.0, 0.0),
    "pink_noise": (1.0, 0.0),
    "running_tap": (0.3, 0.0),
    "exercise_bike": (1.5, 60.0),
    "doing_the_dishes": (0.7, 220.0),
    "dude_miaowing": (1.8, 440.0),
}
MOST_IN_A_CLASS = 2**27 - 1


@dataclass(frozen=True)
class Size:
    """How many words besides the keywords, speakers of each split, takes, test clips per class, noises."""

    others: int
    speakers: dict[str, int]
    takes: int
    tests: int
    noises: int
    noise_seconds: float


SIZES = {
    "tiny": Size(4, {"training": 3, "validation": 2, "testing": 2}, 1, 2, 2, 4.0),
    "small": Size(20, {"training": 8, "validation": 3, "testing": 3}, 1, 6, 6, 12.0),
    "full": Size(20, {"training": 30, "validation": 8, "testing": 8}, 1, 20, 6, 30.0),
}


@dataclass(frozen=True)
class _Person:
    name: str
    voice: Voice


def make(root: Path, size: str, seed: int, workers: Workers, engine: str) -> list[Path]:
    """Write the corpus; returns its two folders."""
    sizes, key = SIZES[size], f"speech commands/{seed}"
    people = _people(sizes, key, engine)
    words = KEYWORDS + OTHERS[: sizes.others]
    folder, clips = root / TRAINING, []
    lists: dict[str, list[str]] = {"training": [], "validation": [], "testing": []}
    for split, persons in people.items():
        for person, word, take in product(persons, words, range(sizes.takes)):
            name = f"{word}/{person.name}_nohash_{take}.wav"
            lists[split].append(name)
            clips.append(_clip(folder / name, word, person, f"{key}/{name}"))
    clips += _test_clips(root / TEST, sizes, people["testing"], key)
    noises = [
        Noise(folder / NOISE / f"{name}.wav", sizes.noise_seconds, color, hum, -6.0, f"{key}/{name}")
        for name, (color, hum) in list(NOISES.items())[: sizes.noises]
    ]
    jobs: list[Clip | Noise] = [*clips, *noises, *_silence(root / TEST, sizes, key)]
    workers.do(TRAINING, jobs)
    for split in ("validation", "testing"):
        write_lines(folder / f"{split}_list.txt", lists[split])
    return [folder, root / TEST]


def which_set(name: str) -> str:
    """The split that a speaker belongs to, by the corpus' own rule: a hash of the name, ten per cent each."""
    hashed = int(hashlib.sha1(name.encode()).hexdigest(), 16)
    share = (hashed % (MOST_IN_A_CLASS + 1)) * (100.0 / MOST_IN_A_CLASS)
    return "validation" if share < 10 else "testing" if share < 20 else "training"


def _people(sizes: Size, key: str, engine: str) -> dict[str, list[_Person]]:
    """Speakers whose names hash to their split."""
    rng = random.Random(f"{key}/names")
    voices = iter(cast(sum(sizes.speakers.values()), key, engine))
    people: dict[str, list[_Person]] = {split: [] for split in sizes.speakers}
    while any(len(people[split]) < count for split, count in sizes.speakers.items()):
        name = f"{rng.getrandbits(32):08x}"
        split = which_set(name)
        if len(people[split]) < sizes.speakers[split]:
            people[split].append(_Person(name, next(voices).voice))
    return people


def _clip(path: Path, word: str, person: _Person, seed: str) -> Clip:
    rng = random.Random(seed)
    channel = replace(random_channel(rng), high=rng.uniform(5_000, 7_900), reverberation=rng.uniform(0.02, 0.15))
    return Clip(path, word, person.voice.varied(rng), seed, channel, gain_db=rng.uniform(-8, 4), seconds=1.0)


def _test_clips(folder: Path, sizes: Size, people: list[_Person], key: str) -> list[Clip]:
    """Other takes of the words by the speakers that are kept for testing."""
    clips = []
    for label in [*KEYWORDS, "_unknown_"]:
        for number in range(sizes.tests):
            word = OTHERS[number % sizes.others] if label == "_unknown_" else label
            person = people[number % len(people)]
            name = f"{label}/{person.name}_nohash_{number}.wav"
            clips.append(_clip(folder / name, word, person, f"{key}/test/{name}"))
    return clips


def _silence(folder: Path, sizes: Size, key: str) -> list[Noise]:
    noises = []
    for number in range(sizes.tests):
        rng = random.Random(f"{key}/silence/{number}")
        hum = rng.choice((0.0, rng.uniform(50, 500)))
        path = folder / "_silence_" / f"{number}.wav"
        noises.append(Noise(path, 1.0, rng.uniform(0, 2), hum, rng.uniform(-20, 0), f"{key}/silence/{number}"))
    return noises
