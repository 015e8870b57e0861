"""Audio files by their names: a folder of audio, LibriSpeech's layout, single files, a text of paths, a fairseq tsv."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import soundfile

from ..errors import InputError
from .audio import UNREAD_SUFFIXES, shown
from .corpus import Corpus, NamedFiles
from .lines import is_regular
from .listing import Entry, Listing, mark_of_texts, text_lines
from .media import MEDIA_SUFFIXES
from .rows import first_line, stem

logger = logging.getLogger("skill_speech.data")

AUDIO_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
    | {".aif", ".aifc", ".mp2", ".mpga", ".oga", ".opus", ".snd", ".sph", ".wave"}
    | MEDIA_SUFFIXES
    | UNREAD_SUFFIXES
)
"""What is tried: files that cannot be read are named and counted, not passed over."""


SAMPLES = re.compile(r"[0-9]{1,15}")


def list_folder(root: Path, absolute_paths: bool = False) -> Listing:
    """All audio below a folder, sorted by path; with transcripts and speakers where it has LibriSpeech's layout.

    LibriSpeech's layout is SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside the audio it transcribes; root may be a
    subset, a folder of subsets, or a part of one. There the ids are LibriSpeech's own (the file's name), elsewhere
    they are the path relative to root, without its suffix. Hidden files are left out.

    Raises InputError for a folder without audio.
    """
    files = sorted(_walk(root))
    audio = list(filter(is_audio, files))
    suffixes = Counter(path.suffix.lower() or "(none)" for path in files if path.suffix.lower() not in AUDIO_SUFFIXES)
    if not audio:
        found = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(4)) or "nothing"
        raise InputError(
            f"{root}: no audio in this folder (found {found}): give a folder with .wav, .flac, .ogg or .mp3"
        )
    transcripts = _read_transcripts([path for path in files if path.name.endswith(".trans.txt") and is_regular(path)])
    ids = _unique_ids(audio, root, by_name=bool(transcripts))
    listed = []
    details = f"LibriSpeech, {len(transcripts):,} transcripts" if transcripts else ""
    for path, file_id in zip(audio, ids, strict=True):
        text = transcripts.pop((path.parent, path.stem), None)
        speaker = path.parent.parent.name if text is not None else None
        listed.append(Entry(str(path), file_id, text, speaker))
    if transcripts:
        first = next(utterance for _, utterance in transcripts)
        logger.warning("%s: %d transcripts have no audio file (first: %s)", root, len(transcripts), first)
    return Listing(str(root), listed.copy, details=details)


def _walk(root: Path) -> Iterator[Path]:
    """The files below a folder, hidden ones aside; each folder once, wherever links lead in circles."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _read_transcripts(paths: list[Path]) -> dict[tuple[Path, str], str]:
    transcripts = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            utterance, _, text = line.strip().partition(" ")
            if utterance:
                transcripts[path.parent, utterance] = text.strip()
    return transcripts


def _unique_ids(paths: list[Path], root: Path, *, by_name: bool) -> list[str]:
    """The shortest kind of name that tells all files apart."""
    relative = [path.relative_to(root) for path in paths]
    kinds = [[path.with_suffix("").as_posix() for path in relative], [path.as_posix() for path in relative]]
    if by_name:
        kinds.insert(0, [path.stem for path in relative])
    return next((ids for ids in kinds if len(set(ids)) == len(ids)), kinds[-1])


def is_audio(path: Path) -> bool:
    """Whether it is called like an audio file."""
    return path.suffix.lower() in AUDIO_SUFFIXES


def list_files(paths: Sequence[Path], source: str) -> Listing:
    """Audio files by their names; the ids are their paths below the folder that all of them are in."""
    root = Path(os.path.commonpath([path.parent for path in paths]))
    ids = _unique_ids(list(paths), root, by_name=False)
    listed = [Entry(str(path), file_id) for path, file_id in zip(paths, ids, strict=True)]
    return Listing(source, listed.copy, details=f"{len(listed):,} of them" if len(listed) > 1 else "")


def is_list(path: Path) -> bool:
    """Whether a text's first line is the path of an audio file, and nothing else."""
    line = first_line(path).strip()
    return "\t" not in line and Path(line).suffix.lower() in AUDIO_SUFFIXES


def list_paths(path: Path, absolute_paths: bool = False) -> Listing:
    """The files of a text with a path in each line, relative to its own folder, or else to the working folder.

    Raises:
        InputError: while it is gone through: a path that is not allowed.
    """
    return Listing(str(path), partial(_named, path, absolute_paths), partial(mark_of_texts, [path]))


def _named(path: Path, absolute_paths: bool) -> Iterator[Entry]:
    files = NamedFiles(path, absolute_paths)
    for number, line in text_lines(path):
        if name := line.strip():
            yield Entry(files.find(name, number), stem(name))


def is_tsv(path: Path) -> bool:
    """Whether it is fairseq's: called .tsv, and without a header."""
    _, tab, second = first_line(path).partition("\t")
    return path.name.endswith(".tsv") and (not tab or SAMPLES.fullmatch(second.strip()) is not None)


def list_tsv(path: Path, absolute_paths: bool = False) -> Listing:
    """The files of a fairseq (and DPHuBERT) tsv: the root folder, then `relative path <tab> number of samples`.

    A root that begins with ~ is below the home folder; a relative one is relative to the tsv's folder, or else to the
    working folder.

    Raises:
        InputError: a root that does not exist or, unless `absolute_paths`, is outside of the tsv's folder; while it is
            gone through, a line of another form or a path that leaves the root.
    """
    name = next((line for _, line in text_lines(path)), "").strip()
    if not name or "\t" in name:
        raise InputError(
            f"{path}: line 1 must be the folder that the paths of a fairseq tsv are relative to, or a header that "
            "names a column of paths, such as path or audio"
        )
    own = os.path.normpath(os.path.join(path.parent, os.path.expanduser(name)))
    root = own if os.path.isdir(own) else os.path.abspath(os.path.expanduser(name))
    # Also for names that no file can have, at which pathlib would raise something.
    if not os.path.isdir(root):
        raise InputError(
            f"{path}: line 1 names the folder {name}, which does not exist: write the audio's folder there"
        )
    corpus = Corpus(path.parent, absolute_paths)
    if not corpus.holds(os.path.join(root, "")):
        raise InputError(f"{path}: line 1 names {shown(root)}, {corpus.outside}")
    read = partial(_tsv_entries, path, Path(root), absolute_paths)
    return Listing(str(path), read, partial(mark_of_texts, [path]), details=f"root {root}")


def _tsv_entries(path: Path, root: Path, absolute_paths: bool) -> Iterator[Entry]:
    corpus = Corpus(root, absolute_paths)
    for number, line in text_lines(path):
        if number == 1 or not line.strip():
            continue
        name, _, samples = line.partition("\t")
        if not name or not SAMPLES.fullmatch(samples.strip()):
            raise InputError(f"{path}: line {number} is not `path <tab> number of samples`: {line[:80]!r}")
        if not corpus.holds(os.path.join(root, name)):
            raise InputError(f"{path}: line {number} names {shown(name)}, {corpus.outside}")
        yield Entry(str(root / name), stem(name), samples=int(samples.strip()))
