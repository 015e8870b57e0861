"""How OpenMP's threads wait for each other, on a machine that others use too.

Threads of GNU's OpenMP, which torch computes with on Linux, spin for about a millisecond before they sleep. On an idle
machine nothing is faster. Where others compute, a thread spins for a sibling that has no core to run on, all the time
that it has one itself: beside eight others on two cores a step takes ten times as long (docs/performance.md). But these
threads hardly spin when a process has more of them than cores. So while the machine is busy, further teams of threads
are kept beside, asleep. That changes how threads wait, not how many compute: no result depends on it.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from types import TracebackType

import torch

logger = logging.getLogger(__name__)

THREADS = Path("/proc/self/task")
OF_THE_USER = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
"""Variables of the environment by which a user says how threads are to wait."""

SECONDS = 1.0
"""Between looks at the machine."""

BUSY, IDLE = 0.25, 0.05
"""The machine is busy when threads of this process wait longer for a core, in seconds each second, and idle below."""


class PatientThreads:
    """While in its `with` statement, threads spin for each other only as long as there are cores for all of them.

    Does nothing where the user says how threads wait, with a single thread, and on other systems than Linux.

    Attributes:
        more_teams: the threads that have one each, while the machine is busy.
    """

    def __init__(self) -> None:
        self.more_teams: list[threading.Thread] = []
        self._over, self._idle = threading.Event(), threading.Event()
        self._watch: threading.Thread | None = None
        self._said = False

    def __enter__(self) -> PatientThreads:
        if seconds_waited() is not None and torch.get_num_threads() > 1 and not any(map(os.environ.get, OF_THE_USER)):
            self._watch = threading.Thread(target=self._look, name="patience", daemon=True)
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._watch is not None:
            self._watch.join()

    def see(self, waited: float) -> None:
        """Act on what share of a second the threads of this process have waited for a core."""
        if not self.more_teams and waited > BUSY:
            if not self._said:
                logger.info(
                    "the cores are shared with other processes: threads sleep instead of spinning while they are busy "
                    "(set %s to override)",
                    OF_THE_USER[0],
                )
                self._said = True
            self._idle.clear()
            count = len(os.sched_getaffinity(0)) // torch.get_num_threads()
            self.more_teams = [threading.Thread(target=self._have_a_team, daemon=True) for _ in range(max(1, count))]
            for thread in self.more_teams:
                thread.start()
        elif waited < IDLE:
            self._release()

    def _release(self) -> None:
        self._idle.set()
        for thread in self.more_teams:
            thread.join()
        self.more_teams = []

    def _have_a_team(self) -> None:
        # An operation large enough to be shared out makes the team of this thread; it ends with it.
        torch.zeros(1 << 20).add_(1)
        self._idle.wait()

    def _look(self) -> None:
        before = seconds_waited() or 0.0
        while not self._over.wait(SECONDS):
            now = seconds_waited() or 0.0
            self.see(max(0.0, now - before) / SECONDS)  # threads that have ended are no longer counted
            before = now
        self._release()


def seconds_waited() -> float | None:
    """How long the threads of this process have been ready to run without a core, in all; None where unknown."""
    total = 0
    try:
        for thread in THREADS.iterdir():
            try:
                total += int((thread / "schedstat").read_text(encoding="ascii").split()[1])
            except (FileNotFoundError, ProcessLookupError):  # it has just ended
                continue
    except (OSError, ValueError, IndexError):
        return None
    return total / 1e9
