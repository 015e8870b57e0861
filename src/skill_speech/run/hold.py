"""Holding a folder while something is carried out in it: the same for every command that works for long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files import refuse_full_disk
from .lock import RunLock
from .patience import PatientThreads
from .signals import StopSignals


@contextmanager
def held(folder: Path) -> Iterator[StopSignals]:
    """In this block the folder is this process's: no other run writes there, and a stop signal raises Stopped.

    Yields:
        who knows of stop signals, for work that defers them.

    Raises:
        InputError: another process has the folder, it cannot be written, or the disk is full.
        Stopped: the process was told to stop.
    """
    with refuse_full_disk(folder), RunLock(folder), PatientThreads(), StopSignals() as stop:
        yield stop
