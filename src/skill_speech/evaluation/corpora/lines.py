"""The text files of corpora, line by line, each line knowing where it stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ...errors import InputError

Key = TypeVar("Key")


@dataclass(frozen=True)
class Line:
    """A line of a file that is not blank; as a string it says where it stands."""

    path: Path
    number: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}: line {self.number}"

    def fields(self, form: str, separator: str | None = None, *, rest: bool = False) -> list[str]:
        """Its fields, as many as the words of `form`; with `rest`, the last one is all that remains (and may be "").

        Raises InputError for a line with fewer or more.
        """
        count = len(form.split())
        fields = self.text.split(separator, count - 1 if rest else -1)
        if rest and len(fields) == count - 1:
            fields.append("")
        if len(fields) != count:
            raise self.malformed(form)
        return fields

    def number_in(self, field: str, form: str) -> float:
        """A field as a number.

        Raises InputError for anything else.
        """
        try:
            return float(field)
        except ValueError:
            raise self.malformed(form) from None

    def malformed(self, form: str) -> InputError:
        """The error to raise for a line that is not of the given form."""
        return InputError(f"{self} is not `{form}`: {self.text[:80]!r}: restore the corpus' own file")


def read_lines(path: Path) -> list[Line]:
    """The lines of a text file without the blank ones.

    Raises InputError for a file that is missing, no text, or has no lines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: complete the corpus") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}): restore the corpus' own file") from error
    # Not splitlines(): that also breaks at characters that may stand inside a line.
    lines = [Line(path, number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise InputError(f"{path}: empty: restore the corpus' own file")
    return lines


def index(lines: Iterable[Line], key: Callable[[Line], Key]) -> dict[Key, Line]:
    """The lines by their keys.

    Raises InputError for two lines of the same key.
    """
    indexed: dict[Key, Line] = {}
    for line in lines:
        first = indexed.setdefault(key(line), line)
        if first is not line:
            raise InputError(f"{line}: {key(line)} is already in line {first.number} of {first.path}: keep one of them")
    return indexed
