"""Tables of audio: CSV and TSV with a header, Common Voice's splits, JSON lines as NeMo has them."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from ..errors import InputError
from .corpus import NamedFiles
from .listing import Entry, Listing, mark_of_texts, stated_seconds, text_lines

COLUMNS: dict[str, tuple[str, ...]] = {
    "path": tuple(
        "path audio audio_filepath audio_path audio_file audio_filename file file_path filepath file_name filename wav "
        "wav_path wav_file wav_filename clip".split()
    ),
    "text": tuple(
        "text sentence transcript transcription normalized_text raw_text utterance wrd words tgt_text".split()
    ),
    "speaker": tuple("speaker speaker_id client_id spk spk_id spkid".split()),
    "language": tuple("language lang locale".split()),
    "gender": tuple("gender sex".split()),
    "label": tuple("label labels class emotion intent command target category".split()),
    "start": tuple("offset start start_time".split()),
    "seconds": tuple("duration duration_seconds seconds".split()),
    "end": tuple("end end_time".split()),
    "id": tuple("id utt_id utterance_id utt segment_id".split()),
}
"""What is known of an entry → how columns are called that say it, the first that there is; case does not matter."""

MOST_COLUMNS = 1_000

COMMON_VOICE = {"client_id", "path", "sentence"}
"""Columns of every split of Common Voice; its audio lies in the folder clips/ beside it."""


def columns_of(names: Sequence[str]) -> dict[str, str]:
    """What is known of an entry → the column that says it, of those that there are."""
    known = {name.strip().lower(): name for name in reversed(names)}
    return {
        what: known[found] for what, options in COLUMNS.items() if (found := next(filter(known.get, options), None))
    }


def value_in(row: Mapping[str, Any], columns: Mapping[str, str], what: str) -> Any:
    """What a row says of something; None where no column does (a column may be called "", as pandas' index is)."""
    return row.get(columns[what]) if what in columns else None


def fields_of(row: Mapping[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """What a row says of an entry beside its path: arguments of `Entry`.

    Args:
        row: column → value.
        columns: what → column.
        where: for messages.

    Raises:
        InputError: a number of seconds is none, or text is something else.
    """
    found: dict[str, Any] = {}
    for what in ("text", "speaker", "language", "gender"):
        value = value_in(row, columns, what)
        if isinstance(value, bool | list | dict):
            raise InputError(f"{where}: {columns[what]} is {str(value)[:40]}; it must be text: correct it")
        # An empty transcript says that nothing is said, an empty field of another kind nothing.
        if value is not None and (what == "text" or value != ""):
            found[what] = str(value)
    if (label := value_in(row, columns, "label")) not in (None, "", []):
        if not all(isinstance(one, str | int | float) for one in (label if isinstance(label, list) else [label])):
            raise InputError(f"{where}: {columns['label']} is not a class, a number or a list of them: correct it")
        found["label"] = label
    start = value_in(row, columns, "start")
    if start not in (None, ""):
        found["start"] = stated_seconds(start, f"{where}: {columns['start']}")
    for what in ("seconds", "end"):
        value = value_in(row, columns, what)
        if value not in (None, "") and "seconds" not in found:
            seconds = stated_seconds(value, f"{where}: {columns[what]}")
            seconds -= found.get("start", 0.0) if what == "end" else 0.0
            if not seconds > 0:
                raise InputError(
                    f"{where}: {columns[what]} is {value}; the audio would end where it starts: correct it"
                )
            found["seconds"] = seconds
    return found


def first_line(path: Path) -> str:
    """The first line of a text that is not blank; nothing of what is no text."""
    try:
        return next((line for _, line in text_lines(path) if line.strip()), "")
    except InputError:
        return ""


def delimiter_of(header: str) -> str:
    """What separates the fields of a table with this header."""
    return "\t" if "\t" in header else max(",;", key=header.count)


def header_of(path: Path) -> list[str]:
    """The names of a table's columns; nothing of what is no table."""
    line = first_line(path)
    if line[:1] in ("{", "["):
        return []
    delimiter = delimiter_of(line)
    try:
        return [name.strip() for name in next(csv.reader([line], **_dialect(delimiter)), [])][:MOST_COLUMNS]
    except csv.Error:
        return []


def _dialect(delimiter: str) -> Any:
    # A TSV quotes nothing, or transcripts that begin with a quotation mark swallow what follows (Common Voice).
    return {"delimiter": delimiter, "quoting": csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL}


def is_table(path: Path) -> bool:
    """Whether it has a header with a column of paths, or is called .csv or .tsv."""
    return "path" in columns_of(header_of(path)) or path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def is_common_voice(path: Path) -> bool:
    """Whether it is a split of Common Voice, beside its folder of clips."""
    return set(header_of(path)) >= COMMON_VOICE and (path.parent / "clips").is_dir()


def is_json_lines(path: Path) -> bool:
    """Whether its first line is an object that names audio; a lhotse manifest's says otherwise where that is."""
    line = first_line(path)
    if not line.startswith("{"):
        return False
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(item, dict) and "path" in columns_of(list(item)) and not {"recording", "sources"} & set(item)


def list_table(path: Path, absolute_paths: bool = False, column: str | None = None) -> Listing:
    """The entries of a CSV or TSV file with a header.

    Args:
        path: of the table; the audio's paths are relative to its folder.
        absolute_paths: files outside of that folder are allowed.
        column: the one with the paths; by default the first of those that are usually called so.

    Raises:
        InputError: there is no column of paths; while it is gone through, a row of another width, a number that is none
            or a path that is not allowed.
    """
    names = header_of(path)
    return _listing(path, partial(_table_rows, path, names), names, column, NamedFiles(path, absolute_paths))


def list_common_voice(path: Path, absolute_paths: bool = False, column: str | None = None) -> Listing:
    """The entries of a split of Common Voice (train.tsv, validated.tsv …), with transcripts, speakers and languages."""
    names = header_of(path)
    files = NamedFiles(path, absolute_paths, path.parent / "clips")
    return _listing(path, partial(_table_rows, path, names), names, column, files)


def list_json_lines(path: Path, absolute_paths: bool = False, column: str | None = None) -> Listing:
    """The entries of a file with a JSON object in each line, as NeMo has them: audio_filepath, duration, text …"""
    files = NamedFiles(path, absolute_paths)
    return _listing(path, partial(_json_rows, path), list(json.loads(first_line(path))), column, files)


def _with_column(path: Path, names: Sequence[str], column: str | None) -> dict[str, str]:
    """What is known → its column, where that of the paths may be named."""
    columns = columns_of(names)
    shown = ", ".join(names[:20]) or "nothing"
    if column is not None and column not in names:
        raise InputError(f"{path}: has no column {column}: choose one of {shown}")
    if column is None and "path" not in columns:
        raise InputError(
            f"{path}: no column is called {', '.join(COLUMNS['path'][:6])} … (found {shown}): give --column"
        )
    if column is not None:
        columns = {what: name for what, name in columns.items() if name != column} | {"path": column}
    return columns


Rows = Callable[[], Iterator[tuple[int, Mapping[str, Any]]]]


def _listing(path: Path, rows: Rows, names: list[str], column: str | None, files: NamedFiles) -> Listing:
    columns = _with_column(path, names, column)
    details = ", ".join(f"{what}: {name}" for what, name in columns.items())
    read = partial(_entries, rows, columns["path"], files)
    return Listing(str(path), read, partial(mark_of_texts, [path]), details=details)


def _entries(rows: Rows, column: str, files: NamedFiles) -> Iterator[Entry]:
    columns_in = lru_cache(100)(partial(_with_column, files.listing, column=column))  # JSON lines may differ in theirs
    for line, row in rows():
        where = f"{files.listing}: line {line}"
        name = row.get(column)
        if not isinstance(name, str):
            raise InputError(f"{where}: {column} is {str(name)[:40]}; it must be a path: correct it")
        columns = columns_in(tuple(row))
        path = files.find(name.strip(), line)
        said = fields_of(row, columns, where)
        recording = stem(name.strip())
        own = value_in(row, columns, "id")
        if isinstance(own, str | int) and str(own) not in ("", recording):
            said |= {"id": str(own), "recording": recording}
        elif said.get("start") or said.get("seconds"):
            # Several entries may lie in one file; where they do, each is known by where it starts.
            start = said.get("start", 0.0)
            said |= {"id": f"{recording}-{start:g}" if start else recording, "recording": recording}
        yield Entry(path, said.pop("id", recording), **said)


def stem(name: str) -> str:
    """A path without its suffix, as ids have it."""
    return re.sub(r"\.[A-Za-z0-9]{1,5}$", "", name.removeprefix("./")) or name


def _table_rows(path: Path, names: list[str]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    delimiter, line = delimiter_of(first_line(path)), 0

    def counted() -> Iterator[str]:
        nonlocal line
        for line, text in text_lines(path):  # noqa: B007
            yield text + "\n"

    header = True
    try:
        for values in csv.reader(counted(), **_dialect(delimiter)):
            if not any(values):
                continue
            if header:
                header = False
                continue
            if len(values) != len(names):
                raise InputError(
                    f"{path}: line {line} has {len(values)} fields, the header {len(names)}: quote text that has "
                    f"{'tabs' if delimiter == chr(9) else repr(delimiter)} in it"
                )
            yield line, dict(zip(names, values, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path}: cannot be read at or before line {line} ({error}): is a quotation mark open?"
        ) from None


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in text_lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            line.encode()
            json.dumps(row, ensure_ascii=False).encode() if "\\u" in line else None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number} is not a JSON object ({str(error)[:80]}): correct it") from None
        if not isinstance(row, dict):
            raise InputError(f"{path}: line {number} is not a JSON object: correct it")
        yield number, row
