"""Audio SNIPS (Lai et al. 2021, arXiv 2010.13105) for sf, as s3prl prepares it: eight, four and four of its voices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from .lines import Line, index, read_lines
from .task_data import TaskData
from .utterances import Utterance, make_cuts, require_some

TRANSCRIPTS, SLOTS = "all.iob.snips.txt", "slots.txt"
SPEAKERS = {
    "train": ("Ivy", "Joanna", "Joey", "Justin", "Kendra", "Kimberly", "Matthew", "Salli"),
    "dev": ("Aditi", "Amy", "Geraint", "Nicole"),
    "test": ("Brian", "Emma", "Raveena", "Russell"),
}
FOLDERS = {"train": "train", "dev": "valid", "test": "test"}
OUTSIDE = "O"
PUNCTUATION = "?!.,;-"
"""As in s3prl a word that is a part of this string is punctuation, the empty word too."""

FORM = "SPEAKER-snips-SPLIT-NUMBER BOS WORD … EOS<tab>O SLOT … INTENT"

LAYOUT = f"SNIPS as s3prl prepares it: train/, valid/ and test/ with *.wav, {TRANSCRIPTS} and {SLOTS}"


def is_snips(folder: Path) -> bool:
    """Whether a folder has the layout."""
    files = [folder / TRANSCRIPTS, folder / SLOTS]
    return all(path.is_file() for path in files) and all((folder / name).is_dir() for name in FOLDERS.values())


def read_slots(folder: Path) -> TaskData:
    """sf: the upper-case transcript as text, custom "slots" (one for each word, "O" outside) and "intent".

    `extra["slots"]` is the inventory of slots. "&" is "AND". Words that are punctuation (`PUNCTUATION`) are still
    there: nobody says them, but as in s3prl they have a say in where a slot begins and ends.
    """
    slots = [line.text.strip() for line in read_lines(folder / SLOTS)]
    transcripts = index(read_lines(folder / TRANSCRIPTS), lambda line: line.text.split(" ", 1)[0])
    splits = {split: list(_utterances(folder, split, transcripts, set(slots))) for split in SPEAKERS}
    for split, utterances in splits.items():
        require_some(utterances, folder / FOLDERS[split], f"*.wav of {', '.join(SPEAKERS[split])}")
    inventory = [slot for slot in slots if slot != OUTSIDE]
    cuts = {split: make_cuts(utterances) for split, utterances in splits.items()}
    return TaskData("sf", cuts, extra={"slots": inventory})


def _utterances(folder: Path, split: str, transcripts: dict[str, Line], slots: set[str]) -> Iterator[Utterance]:
    """What the split's speakers say in the split's folder, in order of their ids."""
    audio = {path.stem: path for path in (folder / FOLDERS[split]).rglob("[!.]*.wav")}
    named = {name for name in transcripts if name.split("-")[2:3] == [FOLDERS[split]]}
    for name in sorted(audio.keys() | named):
        speaker = name.split("-")[0]
        if speaker not in SPEAKERS[split]:
            continue
        if name not in transcripts:
            raise InputError(f"{audio[name]}: {TRANSCRIPTS} has no line for it: complete the corpus")
        words, tags, intent = _parse(transcripts[name])
        for slot in set(tags) - slots:
            raise InputError(f"{transcripts[name]}: the slot {slot!r} is not in {SLOTS}: restore the corpus' own files")
        path = audio.get(name, folder / FOLDERS[split] / f"{name}.wav")
        custom = {"slots": tags, "intent": intent}
        yield Utterance(name, path, transcripts[name], " ".join(words), speaker, custom)


def _parse(line: Line) -> tuple[list[str], list[str], str]:
    """Words, the slot of each, and the intent."""
    sentence, tab, annotation = line.text.strip().partition("\t")
    words, tags = sentence.split(" ")[2:-1], annotation.split(" ")[1:-1]
    if not tab or sentence.split(" ")[1:2] != ["BOS"] or not sentence.endswith(" EOS") or len(words) != len(tags):
        raise line.malformed(FORM)
    if all(word in PUNCTUATION for word in words):
        raise InputError(f"{line}: empty transcript: complete the line, or remove it with its audio")
    return ["AND" if word == "&" else word for word in words], tags, annotation.rpartition(" ")[2]
