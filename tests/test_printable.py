"""What reaches a terminal: names out of files as one line of bounded length, with nothing in it that acts."""

from __future__ import annotations

import io
import json
import logging
import pickle
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from skill_speech import InputError
from skill_speech.cli import main
from skill_speech.errors import SHOWN, printable
from skill_speech.run import progress
from skill_speech.run.progress import log_to_terminal

EVIL = "\x1b[2J\x1b]0;owned\x07 a\nskill-speech: all is well\r\x9b31m\u202egnp.\ud800\u2028"
SHOWN_EVIL = r"\x1b[2J\x1b]0;owned\x07 a\nskill-speech: all is well\r\x9b31m\u202egnp.\ud800\u2028"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """A stderr that is a terminal."""
    screen = io.StringIO()

    def console(**options: object) -> Console:
        return Console(
            file=screen, force_terminal=True, width=100, color_system=None, soft_wrap=bool(options.get("soft_wrap"))
        )

    monkeypatch.setattr(progress, "Console", console)
    progress.terminal.cache_clear()
    formatting = warnings.formatwarning
    yield screen
    progress.terminal.cache_clear()
    warnings.formatwarning = formatting
    logging.captureWarnings(False)
    for name in ("skill_speech", "py.warnings"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


def test_every_character_that_acts_is_shown_as_its_escape():
    assert printable(EVIL) == SHOWN_EVIL
    acting = [chr(code) for code in [*range(32), 127, *range(128, 160), 0x200E, 0x202A, 0x2066, 0xFEFF, 0xDC80]]
    for char in acting:
        shown = printable(f"a{char}b")
        assert shown.isprintable()
        assert char not in shown
        assert shown.startswith("a\\")
    assert printable("mödel 模型 … × → 'a'") == "mödel 模型 … × → 'a'"


def test_a_long_text_keeps_its_beginning_and_its_end():
    text = f"file: the name {'x' * 10_000_000} is wrong; do this"
    shown = printable(text)
    assert len(shown) < SHOWN + 10
    assert shown.startswith("file: the name xxx")
    assert shown.endswith("xxx is wrong; do this")
    assert len(printable("\x00" * 10_000_000)) < 5 * SHOWN


def test_an_input_error_is_one_line_wherever_it_goes():
    error = InputError(f"{EVIL}: no such file")
    assert str(error) == f"{error}" == f"{SHOWN_EVIL}: no such file"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_errors_logs_and_warnings_on_a_terminal(terminal: io.StringIO):
    # Once another test has had warnings captured, logging takes them for captured, though pytest has undone that.
    logging.captureWarnings(False)
    log_to_terminal()
    logging.getLogger("skill_speech.checkpoints").warning("%s is odd", EVIL)
    warnings.warn(f"{EVIL} is old", stacklevel=1)
    progress.print_error(f"{EVIL} is wrong")
    said = terminal.getvalue()
    assert not [char for char in said if not char.isprintable() and char != "\n"]
    assert len([line for line in said.splitlines() if line.startswith("skill-speech:")]) == 1
    joined = said.replace("\n", "")
    for words in ("is odd", "is old", "is wrong"):
        assert words in joined


@pytest.mark.parametrize("where", ["tensor", "storage", "family", "file"])
def test_names_out_of_files_on_the_command_line(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    name = EVIL.replace("\ud800", "")
    path = tmp_path / (f"{name.replace('/', '')}.pt" if where == "file" else "m.pt")
    content = {"tensor": {name * 100_000: torch.ones(1)}, "storage": {name: {}}, "family": 1, "file": []}[where]
    torch.save(content, path)
    if where == "family":
        path = tmp_path
        (path / "config.json").write_text(json.dumps({"model_type": EVIL}))
    assert main(["import", str(path), "--output", str(tmp_path / "x")]) == 2
    printed, said = capsys.readouterr()
    assert not printed
    [line] = said.splitlines()
    assert line.isprintable()
    assert len(line) < 2 * SHOWN


def test_a_mistyped_path_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for path in (f"runs/{EVIL}", "runs/" + "x" * 100_000, "runs/:smile:[red]"):
        assert main(["import", path, "--output", "x"]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert line.isprintable()
        assert len(line) < 3 * SHOWN
        assert ":smile:[red]" in line or "smile" not in path
