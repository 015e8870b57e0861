"""Libri2Mix (arXiv 2005.11262) for sd: mixtures of two speakers, in the Kaldi folders that s3prl prepares.

The turns are those of `rttm`, which scoring compares with. s3prl trains on `segments` and `utt2spk`, which are made of
the same turns but name them by their times alone: in one mixture of the training set two turns share a name there.

A path in wav.scp that is not absolute is relative to the folder of its wav.scp. A command (`sox … |`), which Kaldi
allows there, is refused: nothing from a file is run.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from .lines import Line, index, read_lines
from .task_data import TaskData
from .utterances import Turn, Utterance, make_cuts

SPLITS = ("train", "dev", "test")
FILES = ("wav.scp", "rttm")
SPEAKERS = 2

SCP_FORM = "RECORDING PATH"
RTTM_FORM = "SPEAKER RECORDING CHANNEL START DURATION <NA> <NA> SPEAKER …"

LAYOUT = f"LibriMix as Kaldi folders: train/, dev/ and test/, in each {' and '.join(FILES)}"


def is_librimix(folder: Path) -> bool:
    """Whether a folder has the layout."""
    return all((folder / split / name).is_file() for split in SPLITS for name in FILES)


def read_mixtures(folder: Path) -> TaskData:
    """sd: one supervision per turn (start, duration, speaker) on the cut of its mixture, in order of time."""
    return TaskData("sd", {split: make_cuts(_mixtures(folder / split)) for split in SPLITS})


def _mixtures(folder: Path) -> list[Utterance]:
    turns = _turns(folder / "rttm")
    recordings = index(read_lines(folder / "wav.scp"), lambda line: line.text.split()[0])
    for recording in turns.keys() - recordings.keys():
        raise InputError(f"{folder / 'rttm'}: {recording} is not in wav.scp: complete the corpus")
    listed = []
    for recording, line in recordings.items():
        _, path = line.fields(SCP_FORM, rest=True)
        if path.rstrip().endswith("|"):
            raise InputError(f"{line}: a command instead of a file: write the audio to a file and name it")
        if recording not in turns:
            raise InputError(f"{line}: {recording} has no turn in {folder / 'rttm'}: complete the corpus")
        in_time = sorted(turns[recording], key=lambda turn: turn.start)
        listed.append(Utterance(recording, folder / path.strip(), line, turns=tuple(in_time)))
    return listed


def _turns(path: Path) -> dict[str, list[Turn]]:
    """Recording to its turns."""
    turns: dict[str, list[Turn]] = {}
    for line in read_lines(path):
        fields = line.text.split()
        if fields[0] != "SPEAKER" or len(fields) < len(RTTM_FORM.split()) - 1:
            raise line.malformed(RTTM_FORM)
        start, duration = (line.number_in(field, RTTM_FORM) for field in fields[3:5])
        of_recording = turns.setdefault(fields[1], [])
        of_recording.append(_turn(line, fields[7], start, duration))
        if len({turn.speaker for turn in of_recording}) > SPEAKERS:
            raise InputError(f"{line}: a third speaker in {fields[1]}: SUPERB's mixtures have {SPEAKERS}")
    return turns


def _turn(line: Line, speaker: str, start: float, duration: float) -> Turn:
    if start < 0 or duration <= 0:
        raise InputError(f"{line}: a turn of {duration:g} s at {start:g} s: restore the corpus' own file")
    return Turn(speaker, start, start + duration)
