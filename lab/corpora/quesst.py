"""QUESST 2014 for qbe: spoken phrases and the documents that contain them, at 8 kHz as telephones have it.

Documents and queries in five other languages, which SUPERB leaves out but its scoring counts, are numbers read aloud.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lab.corpora.casting import cast
from lab.corpora.channel import Channel
from lab.corpora.sentences import Sentences
from lab.corpora.work import Clip, Made, Workers, write_lines
from lab.espeak import VARIANTS, EspeakVoice
from lab.sentences import ADJECTIVES, CONJUNCTIONS, NOUNS, plural, random_clause

FOLDER = "quesst14Database"
SETS = ("dev", "eval")
ENGLISH = "nnenglish"
FOREIGN = {"albanian": "sq", "basque": "eu", "czech": "cs", "romanian": "ro", "slovak": "sk"}
SAMPLE_RATE = 8_000
TELEPHONE = (250.0, 3_500.0)
PHRASES_PER_DOCUMENT = 2


@dataclass(frozen=True)
class Size:
    """Documents and queries (of each set) in English and in other languages, and speakers."""

    documents: int
    queries: int
    foreign_documents: int
    foreign_queries: int
    speakers: int


SIZES = {
    "tiny": Size(documents=8, queries=3, foreign_documents=2, foreign_queries=1, speakers=6),
    "small": Size(documents=40, queries=10, foreign_documents=5, foreign_queries=1, speakers=12),
    "full": Size(documents=150, queries=30, foreign_documents=15, foreign_queries=3, speakers=40),
}


@dataclass(frozen=True)
class Spoken:
    """A document or a query: its name, language, text and the clip to make of it."""

    name: str
    language: str
    clip: Clip

    @property
    def words(self) -> tuple[str, ...]:
        """The text in words."""
        return tuple(self.clip.text.split())


def make(root: Path, size: str, seed: int, workers: Workers, engine: str) -> list[Path]:
    """Write the corpus; returns its folder."""
    sizes, key, folder = SIZES[size], f"quesst/{seed}", root / FOLDER
    rng = random.Random(key)
    phrases = _phrases(rng, len(SETS) * sizes.queries)
    numbers = [_number(rng) for _ in range(len(SETS) * sizes.foreign_queries)]
    queries = {}
    for place, name in enumerate(SETS):
        english = phrases[place * sizes.queries :][: sizes.queries]
        foreign = numbers[place * sizes.foreign_queries :][: sizes.foreign_queries]
        texts = [(ENGLISH, text) for text in english] + [(_language(text), text) for text in foreign]
        queries[name] = _spoken(
            folder / f"{name}_queries", f"quesst14_{name}_", 4, texts, sizes, f"{key}/{name}", engine
        )
    documents = _spoken(
        folder / "Audio",
        "quesst14_",
        5,
        [(ENGLISH, text) for text in _documents(rng, sizes.documents, phrases, key)]
        + [(_language(number), f"{_number(rng)} {number} {_number(rng)}") for number in _repeated(numbers, sizes)],
        sizes,
        f"{key}/documents",
        engine,
    )
    made = workers.do(FOLDER, [document.clip for document in documents])
    workers.do(f"{FOLDER} queries", [query.clip for listed in queries.values() for query in listed])
    _write_scoring(folder / "scoring", documents, made, queries)
    return [folder]


def occurrences(query: tuple[str, ...], document: tuple[str, ...]) -> list[int]:
    """Where in a document's words a query begins."""
    return [i for i in range(len(document) - len(query) + 1) if document[i : i + len(query)] == query]


def _phrases(rng: random.Random, count: int) -> list[str]:
    """Phrases of two words, no noun in two of them."""
    nouns = rng.sample([noun for noun in NOUNS if plural(noun) != noun], count)
    return [f"{rng.choice(ADJECTIVES)} {noun}" for noun in nouns]


def _documents(rng: random.Random, count: int, phrases: list[str], key: str) -> list[str]:
    """Sentences with one or two of the phrases, each phrase about equally often.

    None has a phrase in the plural: whether "old rivers" contains "old river" would be a matter of opinion.
    """
    sentences = Sentences(key, random_clause)
    plurals = [f"{adjective} {plural(noun)}" for adjective, noun in map(str.split, phrases)]
    texts: list[str] = []
    order: list[str] = []
    while len(texts) < count:
        clauses = [sentences.next()]
        for _ in range(rng.randint(1, PHRASES_PER_DOCUMENT)):
            order = order or rng.sample(phrases, len(phrases))
            clauses.append(f"they {rng.choice(('saw', 'liked', 'found', 'wanted'))} the {order.pop()}")
        rng.shuffle(clauses)
        text = f" {rng.choice(CONJUNCTIONS)} ".join(clauses)
        if not any(f" {phrase} " in f" {text} " for phrase in plurals):
            texts.append(text)
    return texts


def _number(rng: random.Random) -> str:
    """Two numbers of two digits, which every language reads in its own way."""
    return f"{rng.randint(21, 99)} {rng.randint(21, 99)}"


def _language(number: str) -> str:
    """A language for a text of numbers, the same for the same beginning."""
    return list(FOREIGN)[int(number.split()[0]) % len(FOREIGN)]


def _repeated(numbers: list[str], sizes: Size) -> list[str]:
    return [numbers[index % len(numbers)] for index in range(sizes.foreign_documents)]


def _spoken(
    folder: Path, stem: str, digits: int, texts: list[tuple[str, str]], sizes: Size, key: str, engine: str
) -> list[Spoken]:
    """Clips of the texts in random order, by speakers of their languages; espeak-ng alone knows others than English."""
    rng = random.Random(key)
    rng.shuffle(texts)
    speakers = cast(sizes.speakers, key, engine)
    listed = []
    for number, (language, text) in enumerate(texts, start=1):
        name = f"{stem}{number:0{digits}}"
        voice = rng.choice(speakers).voice.varied(rng)
        if language != ENGLISH:
            pitch = voice.pitch if isinstance(voice, EspeakVoice) else rng.randint(25, 75)
            voice = EspeakVoice(FOREIGN[language], rng.choice(VARIANTS["F"] + VARIANTS["M"]), pitch, 50, 160)
        channel = Channel(*TELEPHONE, tilt_db=rng.uniform(-8, 8), snr_db=rng.uniform(6, 25), color=rng.uniform(0, 2))
        path = folder / f"{name}.wav"
        clip = Clip(path, text, voice, f"{key}/{name}", channel, rng.uniform(-5, 5), SAMPLE_RATE)
        listed.append(Spoken(name, language, clip))
    return listed


def _write_scoring(folder: Path, documents: list[Spoken], made: list[Made], queries: dict[str, list[Spoken]]) -> None:
    """The lists of languages and, per set of queries, every occurrence with its time."""
    write_lines(folder / "language_key_utterances.lst", [_key_line(document) for document in documents])
    for name, listed in queries.items():
        write_lines(folder / f"language_key_{name}.lst", [_key_line(query) for query in listed])
        lines = []
        for query in listed:
            for document, result in zip(documents, made, strict=True):
                if document.language == query.language:
                    for first in occurrences(query.words, document.words):
                        start, end = _when(result, document.words, first, first + len(query.words) - 1)
                        lines.append(
                            f"LEXEME {document.name} 1 {start:.3f} {end - start:.3f} {query.name} lex <NA> <NA>"
                        )
        write_lines(folder / f"groundtruth_quesst14_{name}" / f"quesst14_{name}.rttm", lines)


def _key_line(spoken: Spoken) -> str:
    return f"{FOLDER}/{spoken.clip.path.parent.name}/{spoken.clip.path.name} {spoken.language}"


def _when(made: Made, words: tuple[str, ...], first: int, last: int) -> tuple[float, float]:
    """Start of one word and end of another; two words that espeak-ng spoke as one share its times."""
    times, place = [], 0
    for word in made.words:
        index = words.index(word.text, place)
        times.append((index, word))
        place = index + 1
    start = max((word.start for index, word in times if index <= first), default=0.0)
    end = min((word.end for index, word in times if index >= last), default=made.seconds)
    return start, end
