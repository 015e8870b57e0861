"""VoxCeleb1 for sid and asv: every video of a speaker has a room, a microphone and noise of its own."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from lab.corpora.casting import cast
from lab.corpora.channel import random_channel
from lab.corpora.sentences import Sentences
from lab.corpora.work import Clip, Workers, write_lines
from lab.voices import Speaker

FOLDER = "VoxCeleb1"
SPLIT_LIST, TRIAL_LIST = "veri_test_class.txt", "voxceleb1_test_v2.txt"
FIRST = {"dev": 10_001, "test": 10_270}
SHORTEST_WORDS = 12  # about four seconds, below which VoxCeleb has nothing
VIDEO_LETTERS = string.ascii_letters + string.digits + "-_"


@dataclass(frozen=True)
class Size:
    """Speakers of dev and test, videos of each, utterances of each video, trials of each kind."""

    dev: int
    test: int
    videos: int
    utterances: int
    trials: int


SIZES = {
    "tiny": Size(dev=4, test=2, videos=3, utterances=2, trials=12),
    "small": Size(dev=8, test=4, videos=4, utterances=2, trials=60),
    "full": Size(dev=40, test=16, videos=5, utterances=4, trials=2_000),
}


@dataclass(frozen=True)
class _Utterance:
    """speaker/video/file.wav, and the split of its video for identification: 1, 2 or 3."""

    speaker: str
    video: str
    name: str
    split: int


def make(root: Path, size: str, seed: int, workers: Workers, engine: str) -> list[Path]:
    """Write the corpus; returns its folder."""
    sizes, key, folder = SIZES[size], f"voxceleb/{seed}", root / FOLDER
    speakers = iter(cast(sizes.dev + sizes.test, key, engine, rates=(140, 190)))
    sentences = Sentences(key)
    clips: list[Clip] = []
    parts: dict[str, list[_Utterance]] = {}
    for part, count in (("dev", sizes.dev), ("test", sizes.test)):
        parts[part] = []
        for number in range(count):
            name = f"id{FIRST[part] + number}"
            spoken = _videos(folder / part / "wav", name, next(speakers), sizes, sentences, key)
            for utterance, clip in spoken:
                parts[part].append(utterance)
                clips.append(clip)
    workers.do(FOLDER, clips)
    everything = sorted(parts["dev"] + parts["test"], key=lambda utterance: utterance.name)
    write_lines(folder / SPLIT_LIST, [f"{utterance.split} {utterance.name}" for utterance in everything])
    write_lines(folder / TRIAL_LIST, _trials(parts["test"], sizes.trials, key))
    return [folder]


def _videos(
    folder: Path, name: str, speaker: Speaker, sizes: Size, sentences: Sentences, key: str
) -> list[tuple[_Utterance, Clip]]:
    """The utterances of a speaker: the last video is to test identification, the one before it to validate."""
    spoken = []
    for number in range(sizes.videos):
        rng = random.Random(f"{key}/{name}/{number}")
        video = "".join(rng.choices(VIDEO_LETTERS, k=11))
        channel = random_channel(rng)
        gain = rng.uniform(-8, 4)
        split = max(1, number + 4 - sizes.videos)
        for index in range(sizes.utterances):
            path = f"{name}/{video}/{index + 1:05}.wav"
            text = sentences.next(shortest=SHORTEST_WORDS)
            clip = Clip(folder / path, text, speaker.voice.varied(rng), f"{key}/{path}", channel, gain)
            spoken.append((_Utterance(name, video, path, split), clip))
    return spoken


def _trials(utterances: list[_Utterance], count: int, key: str) -> list[str]:
    """Pairs of one speaker, never of one video, and pairs of two speakers, in turn; at most `count` of each."""
    rng = random.Random(f"{key}/trials")
    pairs = list(combinations(utterances, 2))
    same = [(a, b) for a, b in pairs if a.speaker == b.speaker and a.video != b.video]
    other = [(a, b) for a, b in pairs if a.speaker != b.speaker]
    count = min(count, len(same), len(other))
    lines = []
    for target, impostor in zip(rng.sample(same, count), rng.sample(other, count), strict=True):
        lines += [f"1 {target[0].name} {target[1].name}", f"0 {impostor[0].name} {impostor[1].name}"]
    return lines
