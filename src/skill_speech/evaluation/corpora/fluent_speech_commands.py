"""Fluent Speech Commands (Lugosch et al. 2019, arXiv 1904.03670): ic, an action, an object and a location."""

from __future__ import annotations

import csv
from pathlib import Path

from ...errors import InputError
from .lines import Line, read_lines
from .task_data import TaskData
from .utterances import Utterance, make_cuts, require_seen, require_some

TABLES = {"train": "train_data.csv", "dev": "valid_data.csv", "test": "test_data.csv"}
SLOTS = ("action", "object", "location")
COLUMNS = ("path", "speakerId", "transcription", *SLOTS)

LAYOUT = f"Fluent Speech Commands: wavs/speakers/SPEAKER/*.wav, and data/ with {', '.join(TABLES.values())}"


def is_fluent_speech_commands(folder: Path) -> bool:
    """Whether a folder has the layout."""
    return (folder / "wavs").is_dir() and all((folder / "data" / name).is_file() for name in TABLES.values())


def read_intents(folder: Path) -> TaskData:
    """ic: the supervision's custom "action", "object" and "location"; labels are the values of each."""
    splits = {split: _utterances(folder, folder / "data" / name) for split, name in TABLES.items()}
    others = [*splits["dev"], *splits["test"]]
    labels = {slot: require_seen(splits["train"], others, slot) for slot in SLOTS}
    return TaskData("ic", {split: make_cuts(utterances) for split, utterances in splits.items()}, labels)


def _utterances(folder: Path, table: Path) -> list[Utterance]:
    header, *rows = ((line, next(csv.reader([line.text]))) for line in read_lines(table))
    columns = header[1]
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise InputError(f"{table}: no column {', '.join(missing)}: restore the corpus' own file")
    return require_some((_utterance(folder, line, columns, row) for line, row in rows), table, "utterances")


def _utterance(folder: Path, line: Line, columns: list[str], row: list[str]) -> Utterance:
    values = dict(zip(columns, row, strict=False))
    if len(row) != len(columns) or not all(values[name] for name in ("path", *SLOTS)):
        raise line.malformed(",".join(columns))
    return Utterance(
        id=Path(values["path"]).with_suffix("").as_posix(),
        path=folder / values["path"],
        named_in=line,
        text=values["transcription"],
        speaker=values["speakerId"],
        custom={slot: values[slot] for slot in SLOTS},
    )
