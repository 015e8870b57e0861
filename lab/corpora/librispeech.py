"""LibriSpeech for pr and asr: American English, read; the lexicon is the engine's own pronunciation of every word."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lab.corpora.casting import cast
from lab.corpora.sentences import Sentences
from lab.corpora.work import Clip, Workers, write_lines
from lab.speech import ENGINES
from lab.voices import Speaker, Voice

FOLDER = "LibriSpeech"
# One accent, as in most of LibriSpeech: the lexicon has one pronunciation per word.
ACCENT = "en-us"
# Speakers and utterances of each.
SIZES = {
    "tiny": {"train-clean-100": (4, 4), "dev-clean": (2, 3), "test-clean": (2, 3)},
    "small": {"train-clean-100": (10, 6), "dev-clean": (4, 4), "test-clean": (4, 4)},
    "full": {"train-clean-100": (50, 16), "dev-clean": (10, 9), "test-clean": (10, 9)},
}
UTTERANCES_PER_CHAPTER = 10
LEXICONS = ("librispeech-lexicon-200k-g2p.txt", "librispeech-lexicon-allothers-g2p.txt")
WORDS_PER_JOB = 100


def make(root: Path, size: str, seed: int, workers: Workers, engine: str) -> list[Path]:
    """Write the corpus; returns its folder."""
    folder, subsets = root / FOLDER, SIZES[size]
    key = f"librispeech/{seed}"
    speakers = iter(cast(sum(count for count, _ in subsets.values()), key, engine, accents=[ACCENT]))
    sentences = Sentences(key)
    clips: list[Clip] = []
    vocabulary: set[str] = set()
    lines = [";ID  |SEX| SUBSET           |MINUTES| NAME"]
    for subset, (count, utterances) in subsets.items():
        for speaker in [next(speakers) for _ in range(count)]:
            lines.append(f"{speaker.number:<5}| {speaker.sex} | {subset:<17}| 0     | {speaker.voice}")
            texts = [sentences.next() for _ in range(utterances)]
            vocabulary.update(word for text in texts for word in text.split())
            clips += _read_aloud(folder / subset, speaker, texts, key)
    workers.do(FOLDER, clips)
    write_lines(folder / "SPEAKERS.TXT", lines)
    _write_lexicons(folder, sorted(vocabulary), workers, engine)
    return [folder]


def _read_aloud(folder: Path, speaker: Speaker, texts: list[str], key: str) -> list[Clip]:
    """Write the transcripts of a speaker; returns the clips to make."""
    clips = []
    for first in range(0, len(texts), UTTERANCES_PER_CHAPTER):
        chapter = 10_000 + 100 * speaker.number + first // UTTERANCES_PER_CHAPTER
        transcripts = []
        for number, text in enumerate(texts[first : first + UTTERANCES_PER_CHAPTER]):
            name = f"{speaker.number}-{chapter}-{number:04}"
            rng = random.Random(f"{key}/{name}")
            path = folder / str(speaker.number) / str(chapter) / f"{name}.flac"
            clips.append(Clip(path, text, speaker.voice.varied(rng), f"{key}/{name}", gain_db=rng.uniform(-6, 3)))
            transcripts.append(f"{name} {text.upper()}")
        home = folder / str(speaker.number) / str(chapter)
        write_lines(home / f"{speaker.number}-{chapter}.trans.txt", transcripts)
    return clips


@dataclass(frozen=True)
class Pronounce:
    """Look up how words are spoken within a sentence."""

    words: tuple[str, ...]
    engine: str

    def make(self) -> list[tuple[str, ...]]:
        """The phonemes of each."""
        reader = ENGINES[self.engine].reader()
        return [pronunciation(word, reader) for word in self.words]


def pronunciation(word: str, reader: Voice) -> tuple[str, ...]:
    """The phonemes of a word as an American says it within a sentence, where "a" and "the" are weak."""
    for sentence in (f"they said {word} now", word):
        for spoken in reader.speak(sentence).words:
            if spoken.text == word:
                return spoken.phonemes
    raise ValueError(f"nobody says {word!r}")


def _write_lexicons(folder: Path, vocabulary: list[str], workers: Workers, engine: str) -> None:
    """Two files as the official ones: most words in the first, the rest in the second."""
    chunks = [tuple(vocabulary[i : i + WORDS_PER_JOB]) for i in range(0, len(vocabulary), WORDS_PER_JOB)]
    spoken = [
        phonemes
        for chunk in workers.do("lexicon", [Pronounce(chunk, engine) for chunk in chunks])
        for phonemes in chunk
    ]
    entries = [f"{word.upper()}\t{' '.join(phonemes)}" for word, phonemes in zip(vocabulary, spoken, strict=True)]
    rest = range(19, len(entries), 20)
    write_lines(folder / LEXICONS[0], _without(entries, rest))
    write_lines(folder / LEXICONS[1], [entries[index] for index in rest])


def _without(entries: list[str], left_out: range) -> Iterable[str]:
    return (entry for index, entry in enumerate(entries) if index not in left_out)
