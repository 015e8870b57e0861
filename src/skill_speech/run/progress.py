"""What long work shows of itself: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import logging
import time
import warnings
from functools import cache
from types import TracebackType

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from ..errors import printable
from . import ranks

SECONDS_BETWEEN_LINES = 15.0
SECONDS_OF_ESTIMATE = 600.0
"""The remaining time is estimated from so much of the past: several updates, even if each takes a minute."""

WIDE = 100
"""Columns of a terminal that has room for the elapsed time, too."""


@cache
def terminal() -> Console:
    """stderr, for logs and bars alike: what is logged while there is a bar stands above it."""
    return Console(stderr=True)


def log_to_terminal() -> None:
    """Show what the library says, on stderr."""
    handler: logging.Handler = logging.StreamHandler()
    if terminal().is_terminal:  # elsewhere a line stays a line
        handler = RichHandler(console=terminal(), show_time=False, show_level=False, show_path=False)
    handler.setFormatter(Printable())
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, category, *_: f"{category.__name__}: {message}"
    for name, level in (("skill_speech", logging.INFO), ("py.warnings", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


def print_error(message: str) -> None:
    """Show a user's mistake on stderr, as one line."""
    line = printable(f"skill-speech: {message}")
    terminal().print(line, style="bold red", markup=False, highlight=False, emoji=False, soft_wrap=True)


class Printable(logging.Formatter):
    """Messages that names out of files cannot make anything but a line of text."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The message as one line; a stack trace comes after it."""
        return printable(super().formatMessage(record).strip())


class Meter:
    """Progress of one piece of work with a known number of steps.

    On a terminal it is a bar with the remaining time; in a log it is a line at the start of the work, every fifteen
    seconds, and at the end. Of several ranks the first one shows it. To be used in a `with` statement.
    """

    def __init__(self, what: str, total: int, done: int = 0, console: Console | None = None) -> None:
        self.what, self.total, self.done = what, total, done
        self.console = console or (terminal() if ranks.is_first() else Console(quiet=True))
        self._started = time.monotonic()
        self._first = done
        self._next_line = self._started + SECONDS_BETWEEN_LINES
        self._note = ""
        self._bar: Progress | None = None
        if self.console.is_terminal:
            columns = _columns(self.console.width)
            self._bar = Progress(*columns, console=self.console, speed_estimate_period=SECONDS_OF_ESTIMATE)
            self._task = self._bar.add_task(what, total=total, completed=done, note="")

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif kind is None:
            self._line()

    def advance(self, by: int = 1, note: str = "") -> None:
        """So much more is done; `note` is shown after the bar (the loss, say)."""
        self.done += by
        self._note = note or self._note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note)
        elif time.monotonic() >= self._next_line and self.done < self.total:
            self._line()
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def _line(self) -> None:
        passed = time.monotonic() - self._started
        line = f"{self.what}: {self.done}/{self.total}, {_clock(passed)}"
        fresh = self.done - self._first
        if fresh and self.done < self.total:
            line += f", {_clock(passed / fresh * (self.total - self.done))} left"
        self.console.print(f"  {line}{'  ' + self._note if self._note else ''}", highlight=False)


class _Note(ProgressColumn):
    """What is said after the bar: cut off where the terminal ends."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["note"], no_wrap=True, overflow="ellipsis")


def _columns(width: int) -> list[ProgressColumn]:
    """What the bar shows on a terminal so many columns wide: the bar itself gets what the numbers leave."""
    numbers: list[ProgressColumn] = [MofNCompleteColumn(table_column=_whole())]
    if width >= WIDE:
        numbers.append(TimeElapsedColumn(table_column=_whole()))
    room = width - (80 if width >= WIDE else 70)
    return [
        TextColumn("{task.description:<8}", markup=False, table_column=_whole()),
        BarColumn(bar_width=max(6, min(30, room)), table_column=_whole()),
        *numbers,
        TimeRemainingColumn(table_column=_whole()),
        TextColumn("left", table_column=_whole()),
        _Note(table_column=Column(overflow="ellipsis")),
    ]


def _whole() -> Column:
    """A column that keeps its width: where there is too little room, the note is shortened."""
    return Column(no_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
