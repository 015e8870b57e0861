"""Where audio that a file names may lie."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from ..errors import InputError
from .audio import shown


class Corpus:
    """The folder that files named in a file have to lie in; what the file says of its place counts for nothing.

    Args:
        folder: real paths below it are inside, wherever symbolic links seem to lie.
        anywhere: the user allows files outside.
    """

    def __init__(self, folder: Path, anywhere: bool) -> None:
        self.folder, self.anywhere = os.path.realpath(folder), anywhere
        self.outside = f"which is outside its corpus, {shown(folder)}: set absolute_paths to true to allow it"
        # A manifest names many files of a folder one after another.
        self._real_folder = lru_cache(1_000)(os.path.realpath)

    def holds(self, path: str) -> bool:
        """Whether a path is allowed."""
        if self.anywhere:
            return True
        real = os.path.realpath(path) if os.path.islink(path) else self._real_folder(os.path.dirname(path))
        return real == self.folder or real.startswith(os.path.join(self.folder, ""))


class NamedFiles:
    """The audio files that a listing names: where they are, and whether they may be there.

    Args:
        listing: the file that names them.
        absolute_paths: they may lie anywhere.
        folder: what relative paths are relative to; else the listing's own, or the working folder if only there is such
            a file.
    """

    def __init__(self, listing: Path, absolute_paths: bool, folder: Path | None = None) -> None:
        self.listing, self.folder = listing, folder
        self.corpus = Corpus(listing.parent if folder is None else folder, absolute_paths)

    def find(self, name: str, line: int) -> str:
        """The absolute path of the file that a line names.

        Raises:
            InputError: it is no path, or one that leads out of the corpus.
        """
        where = f"{self.listing}: line {line} names {shown(name)}"
        if not name:
            raise InputError(f"{self.listing}: line {line} names no file: correct or remove it")
        if "://" in name:
            raise InputError(f"{where}, an address: only files are read; download it, and give its path")
        name = os.path.expanduser(name)
        own = os.path.join(self.folder or self.listing.parent, name)
        found = os.path.normpath(own)
        if self.folder is None and not os.path.isabs(name) and not os.path.exists(own) and os.path.exists(name):
            found = os.path.abspath(name)
        if not self.corpus.holds(found):
            raise InputError(f"{where}, {self.corpus.outside}")
        return found
