"""The lines of a manifest, one at a time and within bounds, whatever its file holds."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from ..errors import InputError

LONGEST_LINE = 1 << 20
"""Bytes; a cut with all it says takes about a thousand."""

INFLATED_FREELY, INFLATED = 2 << 20, 100
"""Bytes that any gzip file may hold, and how many times what was read of it more: a manifest takes 15 to 80 times."""

BLOCK = 1 << 20


def is_regular(path: Path) -> bool:
    """Whether it is a file that has an end: reading a pipe or a device may block or never end."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def blocks(file: BinaryIO, where: str) -> Iterator[bytes]:
    """The contents of a file, unpacked if its name ends in .gz.

    Raises:
        InputError: what was read of it unpacks to more than any manifest does, said before more work goes into it.
    """
    packed = where.endswith(".gz")
    stream = cast(BinaryIO, gzip.GzipFile(fileobj=file)) if packed else file
    total = 0
    while block := stream.read(BLOCK):
        total += len(block)
        if packed and total > INFLATED_FREELY + INFLATED * file.tell():
            raise InputError(
                f"{where}: unpacks to more than {INFLATED} times its size, which no manifest does: prepare the data "
                "again"
            )
        yield block


def lines(contents: Iterator[bytes], where: str) -> Iterator[bytes]:
    """What is between the line ends.

    Raises:
        InputError: a line is too long to be a cut.
    """
    number, rest = 0, b""
    for block in contents:
        *whole, rest = (rest + block).split(b"\n")
        for line in whole:
            number += 1
            if len(line) > LONGEST_LINE:
                raise _too_long(where, number)
            yield line
        if len(rest) > LONGEST_LINE:
            raise _too_long(where, number + 1)
    if rest:
        yield rest


def _too_long(where: str, number: int) -> InputError:
    return InputError(
        f"{where}: line {number} is longer than {LONGEST_LINE:,} bytes: no cut needs that much; prepare the data again"
    )
