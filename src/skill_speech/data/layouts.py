"""Which audio files a source names: a folder of audio, LibriSpeech's layout, a fairseq tsv."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import soundfile

from ..errors import InputError
from .audio import UNREAD_SUFFIXES, shown
from .corpus import Corpus
from .lines import is_regular

logger = logging.getLogger("skill_speech.data")

AUDIO_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
    | {".aif", ".aifc", ".mp2", ".mpga", ".oga", ".opus", ".snd", ".sph", ".wave"}
    | UNREAD_SUFFIXES
)
"""What is tried: files that cannot be read are named and counted, not passed over."""


SAMPLES = re.compile(r"[0-9]{1,15}")


@dataclass(frozen=True)
class AudioFile:
    """One audio file that a source names, with what the source says of it."""

    path: str
    id: str
    text: str | None = None
    speaker: str | None = None
    samples: int | None = None


def list_folder(root: Path) -> list[AudioFile]:
    """All audio below a folder, sorted by path; with transcripts and speakers where it has LibriSpeech's layout.

    LibriSpeech's layout is SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside the audio it transcribes; root may be a
    subset, a folder of subsets, or a part of one. There the ids are LibriSpeech's own (the file's name), elsewhere
    they are the path relative to root, without its suffix. Hidden files are left out.

    Raises InputError for a folder without audio.
    """
    files = sorted(_walk(root))
    audio = [path for path in files if path.suffix.lower() in AUDIO_SUFFIXES]
    suffixes = Counter(path.suffix.lower() or "(none)" for path in files if path.suffix.lower() not in AUDIO_SUFFIXES)
    if not audio:
        found = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(4)) or "nothing"
        raise InputError(
            f"{root}: no audio in this folder (found {found}): give a folder with .wav, .flac, .ogg or .mp3"
        )
    transcripts = _read_transcripts([path for path in files if path.name.endswith(".trans.txt") and is_regular(path)])
    ids = _unique_ids(audio, root, by_name=bool(transcripts))
    listed = []
    for path, file_id in zip(audio, ids, strict=True):
        text = transcripts.pop((path.parent, path.stem), None)
        speaker = path.parent.parent.name if text is not None else None
        listed.append(AudioFile(str(path), file_id, text, speaker))
    if transcripts:
        first = next(utterance for _, utterance in transcripts)
        logger.warning("%s: %d transcripts have no audio file (first: %s)", root, len(transcripts), first)
    return listed


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


def list_tsv(path: Path, absolute_paths: bool = False) -> list[AudioFile]:
    """The files of a fairseq (and DPHuBERT) tsv: the root folder, then `relative path <tab> number of samples`.

    Raises InputError for a line of another form, a root that does not exist, a root outside of the tsv's folder or a
    path that leaves the root (unless `absolute_paths`), or a tsv without files.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as UTF-8 text ({error}): prepare the folder it names instead"
        ) from None
    root = Path(lines[0].strip()) if lines else Path()
    if not lines or "\t" in lines[0] or not lines[0].strip():
        raise InputError(f"{path}: line 1 must be the folder that the paths of a fairseq tsv are relative to")
    # Also for names that no file can have, at which pathlib would raise something.
    if not os.path.isdir(root):
        raise InputError(
            f"{path}: line 1 names the folder {root}, which does not exist: write the audio's folder there"
        )
    corpus = Corpus(path.parent, absolute_paths)
    if not corpus.holds(os.path.join(root, "")):
        raise InputError(f"{path}: line 1 names {shown(root)}, {corpus.outside}")
    corpus = Corpus(root, absolute_paths)
    listed = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        name, _, samples = line.partition("\t")
        if "\0" in name or not SAMPLES.fullmatch(samples.strip()):
            raise InputError(f"{path}: line {number} is not `path <tab> number of samples`: {line[:80]!r}")
        if not corpus.holds(os.path.join(root, name)):
            raise InputError(f"{path}: line {number} names {shown(name)}, {corpus.outside}")
        file_id = Path(name).with_suffix("").as_posix()
        listed.append(AudioFile(str(root / name), file_id, samples=int(samples)))
    if not listed:
        raise InputError(f"{path}: the tsv names no audio files")
    if len({file.id for file in listed}) < len(listed):
        listed = [AudioFile(file.path, os.path.relpath(file.path, root), samples=file.samples) for file in listed]
    return listed
