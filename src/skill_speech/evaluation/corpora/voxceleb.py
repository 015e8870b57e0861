"""VoxCeleb1 (Nagrani et al. 2017, arXiv 1706.08612): sid, who speaks, and asv, trials of unknown speakers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...errors import InputError
from .lines import Line, read_lines
from .task_data import TaskData
from .utterances import Utterance, make_cuts, require_seen, require_some

IDENTIFICATION_LISTS = ("veri_test_class.txt", "iden_split.txt")
"""The split of utterances by s3prl's name and by the corpus' own; the same list."""

TRIAL_LISTS = ("voxceleb1_test_v2.txt", "veri_test.txt")
"""The trials by the name that s3prl uses (openslr.org/49) and by the corpus' own; the same list."""

PARTS = ("dev", "test")
SPLITS = {"1": "train", "2": "dev", "3": "test"}
SPLIT_FORM = "SPLIT SPEAKER/VIDEO/FILE.wav"
TRIAL_FORM = "LABEL SPEAKER/VIDEO/FILE.wav SPEAKER/VIDEO/FILE.wav"

LAYOUT = "VoxCeleb1: dev/wav/ and test/wav/ with SPEAKER/VIDEO/*.wav"
IDENTIFICATION_LAYOUT = f"{LAYOUT}; beside them {' or '.join(IDENTIFICATION_LISTS)}"
VERIFICATION_LAYOUT = f"{LAYOUT}; beside them {' or '.join(TRIAL_LISTS)}"


def is_voxceleb_with_split(folder: Path) -> bool:
    """Whether a folder has the layout and the list for identification."""
    return _has_audio(folder) and any((folder / name).is_file() for name in IDENTIFICATION_LISTS)


def is_voxceleb_with_trials(folder: Path) -> bool:
    """Whether a folder has the layout and the trials."""
    return _has_audio(folder) and any((folder / name).is_file() for name in TRIAL_LISTS)


def read_identification(folder: Path) -> TaskData:
    """sid: the supervision's custom "label", which is its speaker."""
    path = _first_of(folder, IDENTIFICATION_LISTS)
    home = _homes(folder)
    splits: dict[str, list[Utterance]] = {split: [] for split in SPLITS.values()}
    for line in read_lines(path):
        code, name = line.fields(SPLIT_FORM)
        if code not in SPLITS:
            raise line.malformed(SPLIT_FORM)
        splits[SPLITS[code]].append(_utterance(folder, home, name, line, SPLIT_FORM))
    for split, utterances in splits.items():
        require_some(utterances, path, f"utterances for {split}")
    labels = require_seen(splits["train"], [*splits["dev"], *splits["test"]], "label", "speaker")
    return TaskData("sid", {split: make_cuts(utterances) for split, utterances in splits.items()}, labels)


def read_verification(folder: Path) -> TaskData:
    """asv: everything in dev/wav to train on, and the utterances of the trials, which are `extra["trials"]`.

    A trial is (1 for the same speaker or 0, id, id). SUPERB has no trials for development (s3prl reports the best
    checkpoint on the test's). labels are the speakers that are trained on.
    """
    home = _homes(folder)
    training = require_some(_training(folder), folder / "dev" / "wav", "audio (SPEAKER/VIDEO/*.wav)")
    trials: list[tuple[int, str, str]] = []
    tested: dict[str, Utterance] = {}
    for line in read_lines(_first_of(folder, TRIAL_LISTS)):
        label, *names = line.fields(TRIAL_FORM)
        if label not in ("0", "1"):
            raise line.malformed(TRIAL_FORM)
        pair = [_utterance(folder, home, name, line, TRIAL_FORM) for name in names]
        for utterance in pair:
            tested.setdefault(utterance.id, utterance)
        trials.append((int(label), pair[0].id, pair[1].id))
    splits = {"train": make_cuts(training), "test": make_cuts(sorted(tested.values(), key=lambda u: u.id))}
    speakers = sorted({str(utterance.speaker) for utterance in training})
    return TaskData("asv", splits, speakers, extra={"trials": trials})


def _has_audio(folder: Path) -> bool:
    return all((folder / part / "wav").is_dir() for part in PARTS)


def _first_of(folder: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: neither {' nor '.join(names)} is here: put one of them beside dev/ and test/")


def _homes(folder: Path) -> dict[str, Path]:
    """Speaker to the folder that the speaker's videos are in."""
    return {path.name: path for part in PARTS for path in sorted((folder / part / "wav").iterdir()) if path.is_dir()}


def _utterance(folder: Path, homes: dict[str, Path], name: str, line: Line, form: str) -> Utterance:
    speaker, slash, below = name.partition("/")
    if not slash:
        raise line.malformed(form)
    if speaker not in homes:
        raise InputError(f"{line}: {name}: no such file in dev/wav/ or test/wav/ of {folder}: complete the corpus")
    return _at(homes[speaker] / below, line)


def _training(folder: Path) -> Iterator[Utterance]:
    for path in sorted((folder / "dev" / "wav").glob("*/*/[!.]*.wav")):
        yield _at(path, None)


def _at(path: Path, line: Line | None) -> Utterance:
    speaker, video = path.parent.parent.name, path.parent.name
    return Utterance(f"{speaker}/{video}/{path.stem}", path, line, speaker=speaker, custom={"label": speaker})
