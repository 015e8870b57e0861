"""A disk that is full at a chosen file."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest


def full_at(patch: pytest.MonkeyPatch, wanted: Path) -> list[Path]:
    """Have the disk full when a file is synced that is to be called so: everything that is written is synced.

    Returns:
        where that happened, once it has.
    """
    met: list[Path] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.with_name(re.sub(r"^\.\d+\.", "", path.name)) == wanted.resolve() and path.name.startswith("."):
            met.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        original(descriptor)

    patch.setattr(os, "fsync", fsync)
    return met
