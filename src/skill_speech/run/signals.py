"""Being told to stop: SIGTERM, SIGUSR1, which SLURM can send some time before, and SIGINT, which is Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(SystemExit):
    """The run was told to stop and can be resumed. Exit status: 128 + the signal, 143 for SIGTERM, 138 for SIGUSR1.

    A SystemExit, so that a program that calls the library ends with that status too.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum

    def __str__(self) -> str:
        return signal.Signals(self.signum).name


class StopSignals:
    """While a run is carried out, a stop signal raises Stopped; where that is deferred, it is a request first.

    SIGINT raises KeyboardInterrupt, as Python has it, and a second one, a moment later, does so at once.

    To be used in a `with` statement. In another thread than the main one, Python cannot handle signals: there it does
    nothing.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        """The number of the signal that came, if any."""
        self._deferred, self._asked = False, 0.0
        self._before = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def install(self) -> None:
        """Take the signals, whoever has them now."""
        if threading.current_thread() is threading.main_thread():
            for signum in SIGNALS:
                signal.signal(signum, self._handle)

    def __enter__(self) -> StopSignals:
        self.install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in self._before.items():
                signal.signal(signum, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """In this block a signal only sets `requested`, for which somebody in it looks at a good moment.

        Raises:
            Stopped, KeyboardInterrupt: after the block, if it was requested in it.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.raise_if_requested()

    def raise_if_requested(self) -> None:
        """Raise Stopped, or KeyboardInterrupt, if a signal came."""
        if self.requested is not None:
            raise stopped_by(self.requested)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        # Ranks get the first one twice: from the terminal, and from who started them.
        again = signum == self.requested == signal.SIGINT and time.monotonic() > self._asked + 1
        self.requested, self._asked = signum, time.monotonic()
        if again or not self._deferred:
            raise stopped_by(signum)


def stopped_by(signum: int) -> Stopped | KeyboardInterrupt:
    """What is raised for a signal."""
    return KeyboardInterrupt() if signum == signal.SIGINT else Stopped(signum)
