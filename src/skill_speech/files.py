"""Writing files whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What a system says where there is no room: on the disk, in a quota, or below a limit of a file's size."""

LEFTOVER = re.compile(r"\.\d+\..+")
"""Names of temporary files: a dot, the process that writes them, and the name they are to have."""


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, that file is synced and takes its place.

    The temporary name keeps the suffix, because some writers choose a format by it. Who may read the file is what the
    umask says, whatever the writer thinks of it.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    temporary.touch()
    mode = stat.S_IMODE(temporary.stat().st_mode)
    temporary.unlink()  # some writers take no file that exists
    try:
        yield temporary
        _set_mode(temporary, mode)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends well, that folder takes its place.

    Who may read what is in it is what the umask says, whatever the writers think of it.

    Raises:
        InputError: something is there already.
    """
    path = Path(os.path.abspath(path))  # the working folder's own name, for one, is not in "."
    refuse_existing(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    temporary.mkdir()
    mode = stat.S_IMODE(temporary.stat().st_mode)
    try:
        yield temporary
        for inside in temporary.rglob("*"):
            # safetensors, for one, writes files that only their owner can read.
            _set_mode(inside, mode if inside.is_dir() else mode & 0o666)
            _sync(inside)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _set_mode(path: Path, mode: int) -> None:
    if stat.S_IMODE(path.stat().st_mode) != mode:  # some file systems have one mode for all and refuse to change it
        path.chmod(mode)


def _sync(path: Path) -> None:
    """Have a file's contents, or a folder's names, on the disk: a rename alone may get there before what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process was writing anywhere below a folder. Nobody else may be writing there."""
    for path in list(folder.rglob(".*")):
        if LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Raise InputError unless `path` is free or an empty folder."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise InputError(f"{path}: already exists: remove it or choose another folder")


def read_json(path: Path, most: int | None = None) -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        path: the file.
        most: bytes that it may have, where somebody else wrote it.

    Raises:
        InputError: the file cannot be read, is too large, or not a JSON object.
    """
    try:
        if most is not None and path.stat().st_size > most:
            raise InputError(f"{path}: larger than the limit of {most >> 20} MiB; get a fresh copy")
        values = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{path}: cannot be read as JSON (nested too deeply)") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a JSON object")
    return values


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Write `values` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def not_written(path: str | os.PathLike[str], error: OSError) -> InputError:
    """What to tell a user of a file or a folder that could not be written."""
    if error.errno in FULL:
        return InputError(f"{path}: the disk is full: free some space and rerun the same command to resume")
    return InputError(f"{path}: cannot be written ({error.strerror}); choose another --output")


@contextmanager
def refuse_full_disk(folder: Path) -> Iterator[None]:
    """In this block a full disk is a user's mistake, whatever was being written; `folder` is where that is.

    Raises:
        InputError: instead of the OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise not_written(folder, error) from None


def require_space(folder: Path, needed: int, what: str) -> None:
    """See that so many bytes are free where a folder is, or is going to be.

    Raises:
        InputError: they are not.
    """
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if free < needed:
        raise InputError(
            f"{folder}: {size(free)} are free and {what} needs {size(needed)}: free some space and rerun the same "
            "command"
        )


def size(count: float) -> str:
    """Bytes as a person reads them: 1.5 GiB."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
