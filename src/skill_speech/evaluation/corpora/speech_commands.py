"""Speech Commands v0.01 (arXiv 1804.03209): ks, twelve classes.

Ten words are classes, the other twenty are `_unknown_`, and `_silence_` is background noise. The training and the
validation split are the corpus' own lists, which name what s3prl finds by hashing the speaker; what is in the list for
testing is left out, because the test set is a corpus of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ...data.audio import read_header
from ...errors import InputError
from .lines import Line, index, read_lines
from .task_data import TaskData
from .utterances import Utterance, make_cuts, require_seen, require_some

TRAINING, TEST = "speech_commands_v0.01", "speech_commands_test_set_v0.01"
VALIDATION_LIST, TESTING_LIST = "validation_list.txt", "testing_list.txt"
NOISE = "_background_noise_"
UNKNOWN, SILENCE = "_unknown_", "_silence_"
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
CLASSES = (*WORDS, UNKNOWN, SILENCE)
NOISE_SECONDS = 1.0

LAYOUT = (
    f"Speech Commands: {TRAINING}/ with WORD/*.wav, {NOISE}/*.wav, {VALIDATION_LIST} and {TESTING_LIST}, and beside it "
    f"{TEST}/ with CLASS/*.wav"
)


def is_speech_commands(folder: Path) -> bool:
    """Whether a folder has the layout."""
    training = folder / TRAINING
    files = [training / VALIDATION_LIST, training / TESTING_LIST]
    return all(path.is_file() for path in files) and (training / NOISE).is_dir() and (folder / TEST).is_dir()


def read_keywords(folder: Path) -> TaskData:
    """ks: the supervision's custom "label".

    s3prl cuts a second out of a random place of a background noise whenever it draws one; here each second of it is an
    utterance, in training and in validation as in s3prl.
    """
    training, validation = _train_and_validation(folder / TRAINING)
    noise = list(_noise(folder / TRAINING))
    splits = {
        "train": require_some(training + noise, folder / TRAINING, "utterances to train on"),
        "dev": require_some(validation + noise, folder / TRAINING / VALIDATION_LIST, "utterances to validate on"),
        "test": require_some(_test(folder / TEST), folder / TEST, "utterances"),
    }
    labels = require_seen(splits["train"], [*splits["dev"], *splits["test"]], "label")
    return TaskData("ks", {split: make_cuts(utterances) for split, utterances in splits.items()}, labels)


def _train_and_validation(folder: Path) -> tuple[list[Utterance], list[Utterance]]:
    validation, testing = (
        index(read_lines(folder / name), lambda line: folder / line.text.strip())
        for name in (VALIDATION_LIST, TESTING_LIST)
    )
    paths = {path for path in folder.glob("[!.]*/[!.]*.wav") if path.parent.name != NOISE}
    training = [_spoken(folder, path, None) for path in sorted(paths - validation.keys() - testing.keys())]
    return training, [_spoken(folder, path, line) for path, line in sorted(validation.items())]


def _spoken(folder: Path, path: Path, line: Line | None) -> Utterance:
    word = path.parent.name
    return Utterance(
        path.relative_to(folder.parent).with_suffix("").as_posix(),
        path,
        line,
        text=word,
        speaker=path.name.partition("_nohash_")[0],
        custom={"label": word if word in WORDS else UNKNOWN},
    )


def _noise(folder: Path) -> Iterator[Utterance]:
    for path in sorted((folder / NOISE).glob("[!.]*.wav")):
        header = read_header(path)
        for number in range(int(header.samples / header.sample_rate / NOISE_SECONDS)):
            name = f"{path.relative_to(folder.parent).with_suffix('').as_posix()}-{number:03}"
            start = number * NOISE_SECONDS
            yield Utterance(name, path, custom={"label": SILENCE}, start=start, duration=NOISE_SECONDS)


def _test(folder: Path) -> Iterator[Utterance]:
    for path in sorted(folder.glob("[!.]*/[!.]*.wav")):
        label = path.parent.name
        if label not in CLASSES:
            raise InputError(f"{path}: {label} is not one of the classes {', '.join(CLASSES)}: remove the folder")
        name = path.relative_to(folder.parent).with_suffix("").as_posix()
        yield Utterance(name, path, custom={"label": label})
