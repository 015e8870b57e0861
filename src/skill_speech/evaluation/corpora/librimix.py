"""Libri2Mix (arXiv 2005.11262) for sd: mixtures of two speakers, in the Kaldi folders that s3prl prepares.

A path in wav.scp that is not absolute is relative to the folder of its wav.scp. A command (`sox … |`), which Kaldi
allows there, is refused: nothing from a file is run.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from .lines import Line, index, read_lines
from .task_data import TaskData
from .utterances import Turn, Utterance, make_cuts, require_some

SPLITS = ("train", "dev", "test")
FILES = ("wav.scp", "segments", "utt2spk", "rttm")
SPEAKERS = 2
SAME_SECONDS = 0.01
"""By so much may the times of rttm and segments differ: they are the same numbers, printed twice."""

SCP_FORM = "RECORDING PATH"
SEGMENT_FORM = "SEGMENT RECORDING START END"
SPEAKER_FORM = "SEGMENT SPEAKER"
RTTM_FORM = "SPEAKER RECORDING CHANNEL START DURATION <NA> <NA> SPEAKER …"

LAYOUT = f"LibriMix as Kaldi folders: train/, dev/ and test/, in each {', '.join(FILES)}"


def is_librimix(folder: Path) -> bool:
    """Whether a folder has the layout."""
    return all((folder / split / name).is_file() for split in SPLITS for name in FILES)


def read_mixtures(folder: Path) -> TaskData:
    """sd: one supervision per turn (start, duration, speaker) on the cut of its mixture."""
    return TaskData("sd", {split: make_cuts(_mixtures(folder / split)) for split in SPLITS})


def _mixtures(folder: Path) -> list[Utterance]:
    turns = _segments(folder)
    _require_same(folder, turns, _rttm(folder))
    listed = []
    for line in read_lines(folder / "wav.scp"):
        recording, path = line.fields(SCP_FORM, rest=True)
        if path.rstrip().endswith("|"):
            raise InputError(f"{line}: a command instead of a file: write the audio to a file and name it")
        if recording not in turns:
            raise InputError(f"{line}: {recording} has no turn in {folder / 'segments'}: complete the corpus")
        listed.append(Utterance(recording, folder / path.strip(), line, turns=tuple(turns[recording])))
    for recording in turns.keys() - {utterance.id for utterance in listed}:
        raise InputError(f"{folder / 'segments'}: {recording} is not in wav.scp: complete the corpus")
    return require_some(listed, folder / "wav.scp", "recordings")


def _segments(folder: Path) -> dict[str, list[Turn]]:
    """Recording to its turns, in order of time."""
    lines = index(read_lines(folder / "utt2spk"), lambda line: line.text.split()[0])
    speakers = dict(line.fields(SPEAKER_FORM) for line in lines.values())
    turns: dict[str, list[Turn]] = {}
    for line in read_lines(folder / "segments"):
        segment, recording, *times = line.fields(SEGMENT_FORM)
        if segment not in speakers:
            raise InputError(f"{line}: {segment} has no speaker in {folder / 'utt2spk'}: complete the corpus")
        start, end = (line.number_in(time, SEGMENT_FORM) for time in times)
        turn = _turn(line, speakers[segment], start, end)
        turns.setdefault(recording, []).append(turn)
        if len({turn.speaker for turn in turns[recording]}) > SPEAKERS:
            raise InputError(f"{line}: a third speaker in {recording}: SUPERB's mixtures have {SPEAKERS}")
    return {recording: sorted(listed, key=lambda turn: turn.start) for recording, listed in turns.items()}


def _rttm(folder: Path) -> dict[str, list[Turn]]:
    """The same from rttm, which is what scoring tools compare with."""
    turns: dict[str, list[Turn]] = {}
    for line in read_lines(folder / "rttm"):
        fields = line.text.split()
        if fields[0] != "SPEAKER" or len(fields) < len(RTTM_FORM.split()) - 1:
            raise line.malformed(RTTM_FORM)
        start, duration = (line.number_in(field, RTTM_FORM) for field in fields[3:5])
        turns.setdefault(fields[1], []).append(_turn(line, fields[7], start, start + duration))
    return turns


def _turn(line: Line, speaker: str, start: float, end: float) -> Turn:
    if not 0 <= start < end:
        raise InputError(f"{line}: a turn from {start:g} to {end:g} s: restore the corpus' own file")
    return Turn(speaker, start, end)


def _require_same(folder: Path, segments: dict[str, list[Turn]], rttm: dict[str, list[Turn]]) -> None:
    for recording in sorted(segments.keys() | rttm.keys()):
        # By speaker first: of one speaker no two turns start together, whatever the rounding.
        one, other = (sorted(turns.get(recording, []), key=_speaker_and_start) for turns in (segments, rttm))
        if len(one) != len(other) or not all(map(_same, one, other)):
            raise InputError(f"{folder}: segments and rttm name different turns of {recording}: prepare it again")


def _speaker_and_start(turn: Turn) -> tuple[str, float]:
    return turn.speaker, turn.start


def _same(one: Turn, other: Turn) -> bool:
    apart = max(abs(one.start - other.start), abs(one.end - other.end))
    return one.speaker == other.speaker and apart < SAME_SECONDS
