"""The corpora of SUPERB's ten tasks, read in the folder layouts in which they are distributed.

Each corpus has a file of its own, which recognizes its layout and reads it. The readers follow s3prl's SUPERB
downstreams (github.com/s3prl/s3prl, s3prl/downstream); docs/corpora.md says where to get the corpora.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import InputError
from . import fluent_speech_commands, iemocap, librimix, librispeech, quesst, snips, speech_commands, voxceleb
from .task_data import TASKS, TaskData

__all__ = ["MARK", "TASKS", "TaskData", "find_corpora", "missing_reason", "read_task", "synthetic_mark"]

MARK = "SYNTHETIC.json"
"""A file of this name in a corpus' folder says that it is synthetic, and in "title" what it is."""


@dataclass(frozen=True)
class _Corpus:
    """How a task's corpus is recognized and read.

    Attributes:
        layout: what it looks like, in a line.
        is_here: whether a folder has the layout.
        read: from a folder to what the task needs.
        home: where in the folder the corpus' own folder is, which carries its mark.
    """

    layout: str
    is_here: Callable[[Path], bool]
    read: Callable[[Path], TaskData | list[TaskData]]
    home: str = "."


_CORPORA = {
    "pr": _Corpus(librispeech.LAYOUT_WITH_LEXICON, librispeech.is_librispeech_with_lexicon, librispeech.read_phonemes),
    "asr": _Corpus(librispeech.LAYOUT, librispeech.is_librispeech, librispeech.read_recognition),
    "ks": _Corpus(
        speech_commands.LAYOUT,
        speech_commands.is_speech_commands,
        speech_commands.read_keywords,
        home=speech_commands.TRAINING,
    ),
    "qbe": _Corpus(quesst.LAYOUT, quesst.is_quesst, quesst.read_queries),
    "sid": _Corpus(voxceleb.IDENTIFICATION_LAYOUT, voxceleb.is_voxceleb_with_split, voxceleb.read_identification),
    "asv": _Corpus(voxceleb.VERIFICATION_LAYOUT, voxceleb.is_voxceleb_with_trials, voxceleb.read_verification),
    "sd": _Corpus(librimix.LAYOUT, librimix.is_librimix, librimix.read_mixtures),
    "er": _Corpus(iemocap.LAYOUT, iemocap.is_iemocap, iemocap.read_emotions),
    "ic": _Corpus(
        fluent_speech_commands.LAYOUT,
        fluent_speech_commands.is_fluent_speech_commands,
        fluent_speech_commands.read_intents,
    ),
    "sf": _Corpus(snips.LAYOUT, snips.is_snips, snips.read_slots),
}


def find_corpora(root: str | Path) -> dict[str, Path]:
    """The tasks whose corpus is in a folder, each with the corpus' own folder; the other tasks are absent.

    Args:
        root: the folder of corpora: itself, or a folder in it, has the layout.

    Raises:
        InputError: no such folder, or two folders have the layout of one task.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise InputError(f"{root}: no such folder: give the folder with the corpora (docs/corpora.md)")
    candidates = list(_candidates(root))
    found = {}
    for task, corpus in _CORPORA.items():
        folders = [folder for folder in candidates if corpus.is_here(folder)]
        if len(folders) > 1:
            raise InputError(f"{root}: {folders[0]} and {folders[1]} both look like the corpus of {task}: keep one")
        if folders:
            found[task] = folders[0]
    return found


def missing_reason(root: str | Path, task: str) -> str:
    """One line that says which layout `find_corpora` looks for."""
    return f"{task}: {root} and the folders in it have no {_corpus(task).layout}"


def read_task(task: str, folder: str | Path) -> list[TaskData]:
    """What a task learns from and is scored on: one, or five for er (one per fold).

    Audio is not decoded: of every file the header and the last sample are read.

    Args:
        task: one of TASKS.
        folder: the corpus' own, as `find_corpora` gives it.

    Raises:
        InputError: naming the file, its line and the rule, for a corpus that cannot be used as it is: a missing or
            broken file, an empty transcript, a malformed line, a speaker or label of another split that is unseen in
            training, a trial or a match that names what is not there.
    """
    corpus, folder = _corpus(task), Path(folder).expanduser()
    if not corpus.is_here(folder):
        raise InputError(f"{folder}: not {corpus.layout}")
    data = corpus.read(folder)
    synthetic = synthetic_mark(folder / corpus.home)
    return [replace(one, synthetic=synthetic) for one in (data if isinstance(data, list) else [data])]


def synthetic_mark(folder: str | Path) -> str:
    """What a folder's mark says of it: "" if it has none, that is for real data.

    Raises InputError for a mark that cannot be read: what is in doubt is not shown as real.
    """
    path = Path(folder) / MARK
    if not path.exists():
        return ""
    try:
        title = json.loads(path.read_text(encoding="utf-8"))["title"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: marks the corpus as synthetic but cannot be read: make the corpus again") from error
    return str(title)


def _corpus(task: str) -> _Corpus:
    if task not in _CORPORA:
        raise InputError(f"{task}: no such task: choose from {', '.join(TASKS)}")
    return _CORPORA[task]


def _candidates(root: Path) -> Iterator[Path]:
    yield root
    yield from sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
