"""One run at a time in a folder."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import InputError
from ..files import not_written
from . import ranks
from .folder import LOCK

logger = logging.getLogger(__name__)

BEAT_SECONDS = 20.0
STALE_SECONDS = 180.0
"""A lock of another machine that has not been touched for so long is of a process that is gone."""

_held: set[Path] = set()
"""By this process: a file's locks do not keep a process out that has them already."""


class RunLock:
    """The right to write into a folder, held by one process on one machine.

    On one machine the kernel keeps it (`lockf` on FOLDER/lock) and lets go when the process ends, however it ends: a
    stale lock does not exist. Network file systems may keep such locks to one machine; therefore the file also says
    who has it and is touched every 20 s, and one of another machine holds for three minutes after the last touch.

    Of several ranks the first one holds it for all: they enter together, and what it is refused, all are.

    Raises:
        InputError: another process has it (says which), or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: int | None = None
        self._done = threading.Event()

    def __enter__(self) -> RunLock:
        ranks.on_first(self._acquire)
        return self

    def _acquire(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise not_written(self.path.parent, error) from None
        try:
            self._take(self._file)
        except BaseException:
            os.close(self._file)
            self._file = None
            raise
        _held.add(self.path.resolve())
        threading.Thread(target=self._beat, args=(self._file,), daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        self._done.set()
        _held.discard(self.path.resolve())
        os.ftruncate(self._file, 0)
        # Closing lets go. The file stays: removing it could remove the lock of whoever comes next.
        os.close(self._file)
        self._file = None

    def _take(self, file: int) -> None:
        holder = _read(file)
        if self.path.resolve() in _held:
            raise self._refusal(holder)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._refusal(holder) from None
        except OSError as error:  # a file system without locks
            logger.warning(
                "%s: file locks do not work there (%s): start only one run at a time", self.path, error.strerror
            )
        host = holder.get("host")
        if host is not None and host != socket.gethostname():
            age = time.time() - os.fstat(file).st_mtime
            if age < STALE_SECONDS:
                raise self._refusal(holder)
            logger.warning(
                "%s: taking over the lock of process %s on %s, which stopped %.0f min ago",
                self.path,
                holder.get("pid"),
                host,
                age / 60,
            )
        content = json.dumps(
            {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        )
        os.ftruncate(file, 0)
        os.pwrite(file, content.encode(), 0)

    def _refusal(self, holder: dict[str, Any]) -> InputError:
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
        return InputError(
            f"{self.path.parent}: in use by another run ({who}): wait for it, stop it, or choose another "
            f"--output. If it no longer exists, wait {STALE_SECONDS / 60:.0f} minutes or delete {self.path}"
        )

    def _beat(self, file: int) -> None:
        while not self._done.wait(BEAT_SECONDS):
            try:
                os.utime(file)
            except OSError:  # closed meanwhile, or the disk has gone: others will say so
                return


def _read(file: int) -> dict[str, Any]:
    """Who is named in a lock; nobody where it is empty or damaged."""
    try:
        values = json.loads(os.pread(file, 4096, 0))
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
