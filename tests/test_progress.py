"""The progress bar: its numbers are whole on any terminal, and log lines stand above it."""

from __future__ import annotations

import io
import logging
import re

import pytest
import torch
from rich.console import Console
from rich.logging import RichHandler

from skill_speech.distillation.stage import _note
from skill_speech.encoder import hubert_config
from skill_speech.pruning import Budget, Exact
from skill_speech.run.progress import Meter

NOTE = "loss -0.461  sparsity 75.7%/75.0%"


def shown(width: int, note: str = NOTE, lines: int = 0) -> list[str]:
    """What is left on a terminal so wide after a hundred updates, and `lines` of a log between them."""
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    logger = logging.Logger("test", logging.INFO)
    logger.addHandler(RichHandler(console=console, show_time=False, show_level=False, show_path=False))
    with Meter("stage1", 50_000, 12_345, console=console) as meter:
        for number in range(100):
            meter.advance(note=note)
            if number < lines:
                logger.info("line %d", number)
    # Before each new picture the cursor returns and the line is erased.
    text = re.sub(r"\x1b\[\?25[lh]|\x1b\[0m", "", written.getvalue())
    return [re.split(r"\r?\x1b\[2K|\r", line)[-1].rstrip() for line in text.split("\n") if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_count_and_remaining_time_are_whole(width: int) -> None:
    last = shown(width)[-1]
    assert len(last) <= width
    assert re.search(r" 12445/50000 (\d:\d\d:\d\d )?(\d:\d\d:\d\d|-:--:--) left loss -0\.461", last)
    assert last.endswith(NOTE if width >= 80 else "…")


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"sparsity": 0.75}, "sparsity"),
        ({"macs": 0.4}, "MACs cut"),
        ({"sparsity": 0.75, "macs": 0.4}, "cut"),
    ],
)
def test_a_share_that_is_removed_is_named_after_what_the_budget_limits(budget: dict[str, float], said: str) -> None:
    control = Exact(Budget.of(hubert_config(), **budget), 1, 10, 0.1)
    values = {"distillation": -0.461, "sparsity_expected": 0.757, "sparsity_target": 0.75}
    note = _note({name: torch.tensor(value) for name, value in values.items()}, control)
    assert note == NOTE.replace("sparsity", said)


def test_a_long_note_is_cut_and_the_numbers_stay() -> None:
    last = shown(80, "loss " + " ".join(["1.234"] * 40))[-1]
    assert re.search(r" 12445/50000 (\d:\d\d:\d\d|-:--:--) left loss 1\.234", last)
    assert len(last) <= 80
    assert last.endswith("…")


def test_log_lines_stand_above_the_bar() -> None:
    lines = shown(80, lines=3)
    assert [line for line in lines if line.startswith("line")] == ["line 0", "line 1", "line 2"]
    assert lines[-1].startswith("stage1")
    assert not [line for line in lines if "line" in line and "stage1" in line]
