"""Where audio that a file names may lie."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from .audio import shown


class Corpus:
    """The folder that files named in a file have to lie in; what the file says of its place counts for nothing.

    Args:
        folder: real paths below it are inside, wherever symbolic links seem to lie.
        anywhere: the user allows files outside.
    """

    def __init__(self, folder: Path, anywhere: bool) -> None:
        self.folder, self.anywhere = os.path.realpath(folder), anywhere
        self.outside = f"which is outside of its corpus, {shown(folder)}: set absolute_paths to true if that is meant"
        # A manifest names many files of a folder one after another.
        self._real_folder = lru_cache(1_000)(os.path.realpath)

    def holds(self, path: str) -> bool:
        """Whether a path is allowed."""
        if self.anywhere:
            return True
        real = os.path.realpath(path) if os.path.islink(path) else self._real_folder(os.path.dirname(path))
        return real == self.folder or real.startswith(os.path.join(self.folder, ""))
