"""Datasets of Hugging Face: saved to disk (Arrow), Parquet files, and the hub as a stream.

Audio is decoded here like any other, never by `datasets`. Of Arrow files, which are not packed, the place of a row's
audio in the file is kept, and read by those who decode it; rows of Parquet files and of the hub are passed on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .corpus import NamedFiles
from .lines import is_regular
from .listing import Entry, Listing
from .rows import columns_of, fields_of, value_in

ADDRESS = re.compile(
    r"hf://datasets/(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w.-]+))?(?::(?P<config>[\w.+-]+))??(?::(?P<split>[\w.+-]+))?"
)
"""hf://datasets/OWNER/NAME[@REVISION][:CONFIG][:SPLIT]; with one name after a colon, it is the split."""

ROWS_AT_ONCE = 16
"""Of a Parquet file: some megabytes of audio."""

TIMES = ("start", "seconds", "end")
"""Of a row that has its audio in it they say where that lay in another recording."""


def is_hub_address(address: str) -> bool:
    """Whether this names a dataset of the hub, and no file in one."""
    return ADDRESS.fullmatch(address) is not None


def is_saved(path: Path) -> bool:
    """Whether a folder is what `save_to_disk` writes."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def is_parquet(path: Path) -> bool:
    """Whether it is a Parquet file."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def has_parquet(path: Path) -> bool:
    """Whether a folder holds Parquet files, itself or in its folder data/."""
    return any(_parquet_files(path))


def _parquet_files(path: Path) -> list[Path]:
    return sorted([*path.glob("*.parquet"), *path.glob("data/*.parquet")])


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise InputError(f"Hugging Face datasets are read by {package}: pip install datasets pyarrow")


def _check_regular(paths: Iterable[Path]) -> None:
    for path in paths:
        if not is_regular(path):
            raise InputError(f"{path}: no such file, or a pipe, a device or a folder: copy the dataset again")


def list_saved(path: Path, absolute_paths: bool = False, column: str | None = None) -> Listing:
    """The rows of a dataset that `save_to_disk` has written.

    Raises:
        InputError: it has several splits, no column of audio, or pyarrow is not installed.
    """
    _need("pyarrow")
    if (path / "dataset_dict.json").is_file():
        splits = sorted(one.name for one in path.iterdir() if (one / "state.json").is_file())
        raise InputError(
            f"{path}: a dataset with splits: give one of them: {', '.join(str(path / one) for one in splits)}"
        )
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        names = [Path(one["filename"]).name for one in state["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path / 'state.json'}: cannot be read ({error}): save the dataset again") from None
    _check_regular([path / name for name in names])
    files = NamedFiles(path / "state.json", absolute_paths)
    for name in names:
        files.find(name, 1)
    return Listing(
        str(path),
        partial(_saved_rows, path, names, files, column),
        details=f"{len(names)} Arrow file{'s' if len(names) > 1 else ''}",
    )


def _saved_rows(path: Path, names: Sequence[str], files: NamedFiles, column: str | None) -> Iterator[Entry]:
    import pyarrow as pa

    number = 0
    for name in names:
        where = path / name
        try:
            with pa.memory_map(str(where)) as mapped:
                base = mapped.read_buffer(1).address if mapped.size() else 0
                mapped.seek(0)
                reader = pa.ipc.open_stream(mapped)
                columns = _Columns.of_schema(reader.schema, str(where), column)
                for batch in reader:
                    batch.validate(full=True)  # of a damaged file, offsets lead anywhere in memory
                    audio = batch.column(columns.audio)
                    places = _places(audio, base, mapped.size(), where) if columns.embedded else [None] * len(audio)
                    paths = audio.field("path") if columns.embedded else audio
                    others = batch.select(columns.others).to_pylist()
                    for place, stated, row in zip(places, paths.to_pylist(), others, strict=True):
                        yield columns.entry(number, row, stated, place and (str(where), *place), files=files)
                        number += 1
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise InputError(
                f"{where}: cannot be read as an Arrow file ({_one_line(error)}): save the dataset again"
            ) from None


def _places(audio: Any, base: int, size: int, where: Path) -> list[tuple[int, int] | None]:
    """Where in the file the bytes of each row are; None for rows without."""
    contents = audio.field("bytes")
    if not len(contents) or contents.buffers()[2] is None:
        return [None] * len(contents)
    _, offsets, data = contents.buffers()
    wide = np.int64 if str(contents.type).startswith("large") else np.int32
    first = contents.offset + audio.offset
    bounds = (
        np.frombuffer(offsets, dtype=wide)[first : first + len(contents) + 1].astype(np.int64) + data.address - base
    )
    if len(bounds) and not (bounds[0] >= 0 and bounds[-1] <= size):
        raise InputError(f"{where}: its columns are compressed: save the dataset again, with save_to_disk")
    return [
        (int(start), int(stop)) if valid and stop > start else None
        for start, stop, valid in zip(bounds[:-1], bounds[1:], contents.is_valid().to_pylist(), strict=True)
    ]


def list_parquet_folder(path: Path, absolute_paths: bool = False, column: str | None = None) -> Listing:
    """The rows of the Parquet files of a folder, as the hub has them.

    Raises:
        InputError: they belong to several splits.
    """
    paths = _parquet_files(path)
    # train-00000-of-00010.parquet, as the hub names them.
    splits = sorted({re.sub(r"(-\d+-of-\d+.*)?\.parquet$", "", one.name) for one in paths})
    if len(splits) > 1:
        first = f"{paths[0].parent / splits[0]}*"
        raise InputError(
            f"{path}: Parquet files of several splits ({', '.join(splits[:6])}): give one of them, as '{first}'"
        )
    return list_parquet(paths, str(path), absolute_paths, column)


def list_parquet(
    paths: Sequence[Path], source: str, absolute_paths: bool = False, column: str | None = None
) -> Listing:
    """The rows of Parquet files with a column of audio.

    Raises:
        InputError: pyarrow is not installed; while they are gone through: a damaged file, or no column of audio.
    """
    _need("pyarrow")
    _check_regular(paths)
    files = NamedFiles(paths[0], absolute_paths)
    read = partial(_parquet_rows, paths, files, column)
    mark = partial(_parquet_mark, paths)
    return Listing(source, read, mark, stream=True, details=f"{len(paths)} Parquet file{'s' if len(paths) > 1 else ''}")


def _parquet_rows(paths: Sequence[Path], files: NamedFiles, column: str | None) -> Iterator[Entry]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    for path in paths:
        try:
            file = pq.ParquetFile(str(path))
            columns = _Columns.of_schema(file.schema_arrow, str(path), column)
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[columns.audio, *columns.others]):
                batch.validate(full=True)
                for row in batch.to_pylist():
                    yield columns.of_row(number, row, files)
                    number += 1
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise InputError(f"{path}: cannot be read as a Parquet file ({_one_line(error)}): copy it again") from None


def _parquet_mark(paths: Sequence[Path]) -> tuple[int, str]:
    import hashlib

    import pyarrow.parquet as pq

    digest, count = hashlib.sha256(), 0
    for path in paths:
        size = path.stat().st_size
        rows = pq.ParquetFile(str(path)).metadata.num_rows
        with path.open("rb") as file:
            file.seek(max(0, size - (64 << 10)))  # its footer, which describes all of it
            digest.update(json.dumps([path.name, size, rows]).encode() + file.read())
        count += rows
    return count, digest.hexdigest()


def list_hub(address: str, column: str | None = None) -> Listing:
    """The rows of a dataset of the hub, as a stream.

    Raises:
        InputError: `datasets` is not installed, the dataset cannot be opened, or it has several splits or
            configurations and none was named.
    """
    _need("datasets")
    found = ADDRESS.fullmatch(address)
    assert found is not None
    rows = _open_hub(address, found["name"], found["config"], found["split"], found["revision"])
    columns = _Columns.of_features(dict(rows.features or {}), address, column)
    mark = (rows.info.splits or {}).get(str(rows.split))
    count = int(mark.num_examples) if mark is not None else 0
    read = partial(_hub_rows, rows, columns, address)
    return Listing(address, read, lambda: (count, address), stream=True, details=f"split {rows.split}")


def _open_hub(address: str, name: str, config: str | None, split: str | None, revision: str | None) -> Any:
    import datasets

    try:
        found = load(name, config, revision)
        if isinstance(found, dict):
            if split is None and len(found) > 1:
                raise InputError(
                    f"{address}: has the splits {', '.join(found)}: give one, as {address}:{next(iter(found))}"
                )
            if split is not None and split not in found:
                raise InputError(f"{address}: has no split {split}: give one of {', '.join(found)}")
            found = found[split] if split is not None else next(iter(found.values()))
        for column, kind in (found.features or {}).items():
            if isinstance(kind, datasets.Audio):
                found = found.cast_column(column, datasets.Audio(decode=False))
        return found
    except InputError:
        raise
    # What is wrong with a name, a connection or a file of the hub depends on where it is noticed.
    except Exception as error:
        raise InputError(f"{address}: cannot be opened ({_one_line(error)[:300]})") from None


def load(name: str, config: str | None, revision: str | None) -> Any:
    """All splits of a dataset of the hub, as streams; no code of its own runs."""
    import datasets

    return datasets.load_dataset(name, config, revision=revision, streaming=True)


def _hub_rows(rows: Iterable[Any], columns: _Columns, address: str) -> Iterator[Entry]:
    try:
        for number, row in enumerate(rows):
            yield columns.of_row(number, row, None)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{address}: cannot be read further ({_one_line(error)[:300]}): rerun the command") from None


class _Columns:
    """Which columns of a dataset are the audio and what is known of it.

    Attributes:
        audio: the name of the audio's column.
        embedded: it holds {bytes, path}, not only a path.
        others: the names of those that are read too.
    """

    def __init__(self, names: list[str], audio: str, embedded: bool, features: dict[str, Any]) -> None:
        self.audio, self.embedded = audio, embedded
        self.what = {what: name for what, name in columns_of(names).items() if what != "path" and name != audio}
        if embedded:
            self.what = {what: name for what, name in self.what.items() if what not in TIMES}
        self.others = list(self.what.values())
        self.classes = {
            name: list(kind["names"])
            for name, kind in features.items()
            if isinstance(kind, dict) and kind.get("_type") == "ClassLabel" and name in self.others
        }

    @classmethod
    def of_schema(cls, schema: Any, where: str, column: str | None) -> _Columns:
        """Of an Arrow schema, with the features that `datasets` writes beside it."""
        try:
            written = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            features = written.get("info", {}).get("features", {}) or {}
        except (ValueError, AttributeError, RecursionError):
            features = {}
        names = list(schema.names)
        has_bytes = [name for name in names if _is_audio(schema.field(name).type)]
        return cls(names, *_audio_column(names, has_bytes, where, column), features)

    @classmethod
    def of_features(cls, features: dict[str, Any], where: str, column: str | None) -> _Columns:
        """Of the features that a dataset has."""
        kinds = {
            name: {"_type": type(kind).__name__, "names": getattr(kind, "names", None)}
            for name, kind in features.items()
        }
        has_bytes = [name for name, kind in kinds.items() if kind["_type"] == "Audio"]
        return cls(list(features), *_audio_column(list(features), has_bytes, where, column), kinds)

    def of_row(self, number: int, row: dict[str, Any], files: NamedFiles | None) -> Entry:
        """The entry of a row with all its columns."""
        audio = row[self.audio]
        audio = audio if isinstance(audio, dict) else {"path": audio}
        return self.entry(number, row, audio.get("path"), None, contents=audio.get("bytes"), files=files)

    def entry(
        self,
        number: int,
        row: dict[str, Any],
        path: str | None,
        place: tuple[str, int, int] | None,
        *,
        contents: bytes | None = None,
        files: NamedFiles | None,
    ) -> Entry:
        """The entry of a row: its audio is in it, or in the file that it names."""
        for name, names in self.classes.items():
            value = row.get(name)
            if isinstance(value, int) and 0 <= value < len(names):
                row = row | {name: names[value]}
        where = f"row {number}"
        said = fields_of(row, self.what, where)
        own = value_in(row, self.what, "id")
        entry_id = str(own) if isinstance(own, str | int) and str(own) else f"{number:08}"
        if place is not None or contents is not None:
            return Entry(f"{where} ({path or 'no name'})", entry_id, place=place, contents=contents, **said)
        if not isinstance(path, str | None):
            raise InputError(f"{where}: {self.audio} is neither audio nor a path: give the column with --column")
        if not path or files is None:
            return Entry(f"{where} (no audio)", entry_id, contents=b"", **said)
        return Entry(files.find(path, number + 1), entry_id, recording=entry_id, **said)


def _is_audio(kind: Any) -> bool:
    names = {kind.field(index).name for index in range(kind.num_fields)} if str(kind).startswith("struct") else set()
    return {"bytes", "path"} <= names


def _audio_column(names: list[str], has_bytes: list[str], where: str, column: str | None) -> tuple[str, bool]:
    shown = ", ".join(names[:20]) or "nothing"
    if column is not None and column not in names:
        raise InputError(f"{where}: has no column {column}: choose one of {shown}")
    if column is None and len(has_bytes) > 1:
        raise InputError(f"{where}: has several columns of audio ({', '.join(has_bytes)}): give --column")
    chosen = column or (has_bytes[0] if has_bytes else columns_of(names).get("path"))
    if chosen is None:
        raise InputError(f"{where}: has no column of audio (found {shown}): give --column")
    return chosen, chosen in has_bytes


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
