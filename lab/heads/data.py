"""What the heads learn and are scored on: sentences with their texts, keywords and emotions with their labels."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.utils import fastcopy

from lab.corpora import make_corpora
from lab.corpora.casting import cast
from lab.corpora.channel import random_channel
from lab.corpora.speech_commands import KEYWORDS, OTHERS
from lab.corpora.work import Clip, Workers
from lab.voices import Speaker
from skill_speech.evaluation.corpora import find_corpora, read_task
from skill_speech.evaluation.corpora.utterances import Utterance, make_cuts
from skill_speech.files import write_json

TASKS = ("ctc", "keywords", "emotions")
SPLITS = ("train", "labeled", "test")
UNKNOWN = "_unknown_"
KEYWORD_SECONDS = 2.0
"""`compress` uses no cut that is shorter."""
LABELED = 0.25
"""The share of the training cuts whose text or label a new head may look at."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything is spoken.

    Attributes:
        corpora: of sentences and emotions, `lab.corpora`'s.
        casts: how many of each, with other speakers and sentences.
        speakers, unseen_speakers: of keywords; each says every keyword once, and half as many others.
    """

    corpora: str = "full"
    casts: int = 3
    speakers: int = 120
    unseen_speakers: int = 40


def make_data(root: Path, sizes: Sizes = Sizes(), jobs: int = 1) -> Path:
    """Write audio, and a manifest of every task and split: ROOT/TASK-SPLIT.jsonl.gz; what is there is not made again.

    A supervision has the text, or the label as custom "label". "train" is what is heard, "labeled" the part of it that
    may be read as well, "test" has other speakers.

    Raises:
        SystemExit: the folder holds data of other sizes.
    """
    done = root / "done.json"
    if done.exists():
        if json.loads(done.read_text(encoding="utf-8")) != asdict(sizes):
            raise SystemExit(f"{root}: holds data of other sizes: give another --output")
        return root
    made = {
        "ctc": _sentences(root, sizes, jobs),
        "keywords": _keywords(root / "keywords", sizes, jobs),
        "emotions": _emotions(root, sizes, jobs),
    }
    for task, (train, test) in made.items():
        order = random.Random(f"heads/{task}").sample(train, len(train))
        splits = {"train": train, "labeled": order[: max(1, round(LABELED * len(order)))], "test": test}
        for split, cuts in splits.items():
            CutSet(cuts).to_file(manifest(root, task, split))
    write_json(done, asdict(sizes))
    return root


def manifest(root: Path, task: str, split: str) -> Path:
    """Where the manifest of a task's split lies."""
    return root / f"{task}-{split}.jsonl.gz"


def read_cuts(root: Path, task: str, split: str) -> list[Cut]:
    """The cuts of a task's split."""
    return list(CutSet.from_file(manifest(root, task, split)))


def labels_of(root: Path, task: str) -> list[str]:
    """The labels of a task in their order; none of "ctc"."""
    return [] if task == "ctc" else sorted({label(cut) for cut in read_cuts(root, task, "train")})


def text(cut: Cut) -> str:
    """What is said in a cut."""
    return str(cut.supervisions[0].text)


def label(cut: Cut) -> str:
    """The class that a cut belongs to."""
    return str(cut.supervisions[0].custom["label"])


def _sentences(root: Path, sizes: Sizes, jobs: int) -> tuple[list[Cut], list[Cut]]:
    """Corpora of SUPERB's asr, in one accent; no sentence is in both.

    In the eight accents of `lab.speech`, two hours of a hundred speakers say too little of how others speak.
    """
    train, test = [], []
    for seed in range(sizes.casts):
        splits = read_task("asr", _corpora(root, "asr", seed, sizes, jobs))[0].splits
        train += _renamed(splits["train"], seed)
        test += _renamed([*splits["dev"], *splits["test"]], seed)
    heard = {text(cut) for cut in train}
    return train, [cut for cut in test if text(cut) not in heard]


def _keywords(root: Path, sizes: Sizes, jobs: int) -> tuple[list[Cut], list[Cut]]:
    """Single words in noise, two seconds each: ten keywords, and the other words as one class."""
    people = cast(sizes.speakers + sizes.unseen_speakers, "heads/keywords")
    splits = {"train": people[: sizes.speakers], "test": people[sizes.speakers :]}
    clips: dict[str, list[Clip]] = {
        split: [clip for speaker in speakers for clip in _said(root / split, speaker)]
        for split, speakers in splits.items()
    }
    with Workers(jobs) as workers:
        workers.do("keywords", [clip for some in clips.values() for clip in some])
    train, test = (list(make_cuts([_utterance(clip) for clip in clips[split]])) for split in splits)
    return train, test


def _said(folder: Path, speaker: Speaker) -> Iterator[Clip]:
    rng = random.Random(f"heads/keywords/{speaker.number}")
    for word in [*KEYWORDS, *rng.sample(OTHERS, len(KEYWORDS) // 2)]:
        voice, channel, gain_db = speaker.voice.varied(rng), random_channel(rng), rng.uniform(-8, 4)
        path = folder / word / f"{speaker.number}-{word}.wav"
        yield Clip(path, word, voice, path.stem, channel, gain_db=gain_db, seconds=KEYWORD_SECONDS)


def _utterance(clip: Clip) -> Utterance:
    said = clip.text if clip.text in KEYWORDS else UNKNOWN
    speaker = clip.path.stem.partition("-")[0]
    return Utterance(clip.path.stem, clip.path, text=clip.text, speaker=speaker, custom={"label": said})


def _emotions(root: Path, sizes: Sizes, jobs: int) -> tuple[list[Cut], list[Cut]]:
    """Corpora of SUPERB's er, of each the first fold: two of its ten actors are left for the test."""
    train, test = [], []
    for seed in range(sizes.casts):
        fold = read_task("er", _corpora(root, "er", seed, sizes, jobs))[0]
        train += _renamed([*fold.splits["train"], *fold.splits["dev"]], seed)
        test += _renamed(fold.splits["test"], seed)
    return train, test


def _corpora(root: Path, task: str, seed: int, sizes: Sizes, jobs: int) -> Path:
    """A task's corpus, made if it is not there."""
    folder = make_corpora(root / f"corpora-{seed}", size=sizes.corpora, seed=seed, tasks=(task,), jobs=jobs)
    return find_corpora(folder)[task]


def _renamed(cuts: Iterable[Cut], seed: int) -> Iterator[Cut]:
    """Corpora have names in common; a manifest may have each only once."""
    for cut in cuts:
        name = f"{seed}-{cut.id}"
        recording = fastcopy(cut.recording, id=name)
        said = [fastcopy(one, id=name, recording_id=name, speaker=f"{seed}-{one.speaker}") for one in cut.supervisions]
        yield fastcopy(cut, id=name, recording=recording, supervisions=said)
