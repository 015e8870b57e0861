"""Kaldi's data directories: wav.scp, with and without segments, text, utt2spk, spk2gender, utt2lang.

lhotse's own reader runs commands that wav.scp names, opens all audio in another process before it returns, and holds
everything; this one is a listing like the others. The tests compare the two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InputError
from .corpus import NamedFiles
from .listing import Entry, Listing, mark_of_texts, stated_seconds, text_lines

SCP = "wav.scp"
FILES = (SCP, "segments", "text", "utt2spk", "spk2gender", "utt2lang")

ARCHIVE = re.compile(r"\.ark(:[0-9]+)?$")


def is_kaldi(path: Path) -> bool:
    """Whether a folder is a data directory of Kaldi."""
    return path.is_dir() and any((path / name).is_file() for name in (SCP, "feats.scp"))


def list_kaldi(path: Path, absolute_paths: bool = False) -> Listing:
    """The utterances of a data directory of Kaldi, with transcripts, speakers, genders and languages.

    Raises:
        InputError: there is no wav.scp; while it is gone through, a command or an archive instead of a file, a segment
            of an unknown recording, or a line of another form.
    """
    if not (path / SCP).is_file():
        raise InputError(f"{path}: a Kaldi directory of features, without {SCP}: audio is needed; give one that has it")
    there = [path / name for name in FILES if (path / name).is_file()]
    details = ", ".join(one.name for one in there)
    return Listing(str(path), partial(_entries, path, absolute_paths), partial(mark_of_texts, there), details=details)


def _entries(folder: Path, absolute_paths: bool) -> Iterator[Entry]:
    texts, speakers, languages = (_Column(folder / name) for name in ("text", "utt2spk", "utt2lang"))
    gender_of = {key: value for _, key, value in _pairs(folder / "spk2gender")}

    def said(utterance: str) -> dict[str, Any]:
        speaker = speakers.find(utterance)
        gender = gender_of.get(speaker or "")
        return {
            "text": texts.find(utterance),
            "speaker": speaker,
            "gender": gender,
            "language": languages.find(utterance),
        }

    if not (folder / "segments").is_file():
        for recording, path in _recordings(folder, absolute_paths):
            yield Entry(path, recording, **said(recording))
        return
    path_of = dict(_recordings(folder, absolute_paths))
    segments = folder / "segments"
    for number, utterance, rest in _pairs(segments):
        where, fields = f"{segments}: line {number}", rest.split()
        if len(fields) != 3:
            raise InputError(f"{where} is not `utterance recording start end`: correct it")
        recording, start = fields[0], stated_seconds(fields[1], f"{where}: the start")
        if recording not in path_of:
            raise InputError(f"{where}: {recording} is no recording of {SCP}: correct or remove it")
        # -1 means the end of the recording.
        seconds = None if _number(fields[2]) == -1 else stated_seconds(fields[2], f"{where}: the end") - start
        if seconds is not None and not seconds > 0:
            raise InputError(f"{where}: {utterance} ends at {fields[2]} s, before it starts: correct it")
        yield Entry(path_of[recording], utterance, recording=recording, start=start, seconds=seconds, **said(utterance))


def _number(text: str) -> float | None:
    """The number that a text is."""
    try:
        return float(text)
    except ValueError:
        return None


def _recordings(folder: Path, absolute_paths: bool) -> Iterator[tuple[str, str]]:
    scp = folder / SCP
    files = NamedFiles(scp, absolute_paths)
    for number, recording, value in _pairs(scp):
        if value.endswith("|") or value.startswith("|"):
            raise InputError(
                f"{scp}: line {number}: {recording} is the output of a command, which is never run: write it to a "
                "file and name that file"
            )
        if ARCHIVE.search(value):
            raise InputError(
                f"{scp}: line {number}: {recording} is in a Kaldi archive: write it to a file and name that file"
            )
        yield recording, files.find(value, number)


def _pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """(number, key, the rest of the line); nothing where there is no such file."""
    if not os.path.lexists(path):
        return
    for number, line in text_lines(path):
        key, _, value = line.strip().replace("\t", " ", 1).partition(" ")
        if key:
            yield number, key, value.strip()


class _Column:
    """A file of `key value` lines, asked for one key after another.

    Kaldi keeps its files in the same order, so that no more of one is held than the others are ahead; in any other
    order, and for keys that are missing, more of it is.
    """

    def __init__(self, path: Path) -> None:
        self.pairs, self.passed = _pairs(path), dict[str, str]()

    def find(self, key: str) -> str | None:
        """The value of a key, each of which is asked for once."""
        if key in self.passed:
            return self.passed.pop(key)
        for _, other, value in self.pairs:
            if other == key:
                return value
            self.passed[other] = value
        return None
