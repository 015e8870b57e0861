"""Damaged files of every kind are read or refused; and what is opened with them is known to do harm elsewhere."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from lab import fuzz

# An InputError shows its message as one line, whatever it is: only one that does not can have several.
SEVERAL_LINES = """
from skill_speech import InputError
class Raw(InputError):
    __str__ = Exception.__str__
raise Raw('two\\nlines')
"""


@pytest.mark.fuzz
def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    result = fuzz.fuzz(tmp_path / "files", audio=32, others=45, seed=1)
    assert not result["failures"]
    assert result["read"] + result["refused"] == 77
    assert result["refused"] > 20  # or the damage does none
    assert result["read"] > 10


@pytest.mark.fuzz
@pytest.mark.slow
def test_thousands_of_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    result = fuzz.record(tmp_path, audio=2000, others=500, seed=int(time.time()))
    assert not result["failures"], (tmp_path / "fuzz.json").read_text()


def test_what_must_not_happen_is_seen(tmp_path: Path) -> None:
    """The harness finds what it looks for: each of these readers does one thing that is forbidden."""
    (tmp_path / "good").mkdir()
    jobs = [
        (0, "a", "import os; os.system('true')", b""),
        (1, "a", "raise KeyError('x')", b""),
        (2, "a", "import os; os.kill(os.getpid(), 9)", b""),
        (3, "a", "x = bytearray(2**33)", b""),
        (4, "a", "while True: pass", b""),
        (5, "a", SEVERAL_LINES, b""),
        (6, "a", "import pickle; pickle.loads(b'cos\\ngetcwd\\n(tR.')", b""),
        (7, "a", "from skill_speech import InputError; raise InputError('one line')", b""),
        (8, "a", "pass", b""),
    ]
    outcomes: dict[int, tuple[str, str]] = {}
    while left := [job for job in jobs if job[0] not in outcomes]:
        outcomes |= fuzz.in_a_process(left, tmp_path / "work", tmp_path / "good", seconds=2)
    assert [outcomes[number][0] for number, *_ in jobs] == [
        *("forbidden", "crash", "died", "memory", "hang", "message of several lines", "forbidden", "refused", "read")
    ]


def test_damage_is_a_function_of_the_seed_and_changes_something() -> None:
    content, others = json.dumps({"a": [1, {"b": 2}], "c": "text"}).encode(), [b"x" * 100]
    made = [[fuzz.damage(content, others, random.Random(seed), "a.json") for seed in range(50)] for _ in range(2)]
    assert made[0] == made[1]
    assert sum(one != content for one in made[0]) > 45
