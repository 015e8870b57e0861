"""Inputs that are wrong by their structure end the command line as promised; and what is watched for would be seen."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from lab import structured
from lab.fuzz import in_a_process
from lab.hostile import KINDS, Case, kind_of, make_case, make_good

# Each instead of the command line: what has to be seen of it.
COMMANDS = {
    "pass": "done",
    "from skill_speech import InputError; raise InputError('why')": "refused",
    "raise KeyError('x')": "crash",
    "import os; os.kill(os.getpid(), 11)": "died",
    "while True: pass": "hang",
    "import signal, time; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32)); time.sleep(1000)": "hang",
    "x = b'x' * (1200 << 20)": "memory",
    "x = bytearray(2**35)": "memory",
    "input()": "asked",
    "import os; os.system('true')": "forbidden",
    "import socket; socket.create_connection(('127.0.0.1', 9))": "forbidden",
    "import os; os.mkdir('../../outside')": "forbidden",
    "open('CANARY', 'w')": "code ran",
    "print('\\x1b[2J')": "unclean",
    "print('x' * 10_000)": "unclean",
    "import sys; print('skill-speech: a\\nskill-speech: b', file=sys.stderr); sys.exit(2)": "unclean",
    "import sys; sys.exit(2)": "unclean",
    "import sys; sys.exit(3)": "crash",
}


def look(jobs: list[tuple[int, str]], folder: Path, good: Path, seconds: float, results: object) -> None:
    """In a process of its own: each line of Python in place of the command line."""
    from skill_speech import cli

    cli._asked = lambda words: ""
    cli._run = lambda arguments, asked: exec(arguments[0], {}) or 0  # type: ignore[assignment]
    structured.WALL_FACTOR = 10
    before = structured.own_memory()
    for number, line in jobs:
        place = folder / str(number) / "case"
        (place / "here").mkdir(parents=True)
        outcome = structured.attempt([line], place, seconds, before, stoppable=False)
        results.send((number, *outcome))  # type: ignore[attr-defined]


@pytest.mark.fuzz
def test_what_must_not_happen_is_seen(tmp_path: Path) -> None:
    jobs = list(enumerate(COMMANDS))
    outcomes = in_a_process(jobs, tmp_path / "work", tmp_path, seconds=1, work=look)
    assert {line: outcomes[number][0] for number, line in jobs} == COMMANDS, outcomes


@pytest.mark.slow  # in CI, unlike the endurance tests
def test_200_cases_end_as_promised(tmp_path: Path) -> None:
    result = structured.structured(tmp_path / "cases", count=200, seed=0)
    assert not result["failures"]
    assert all(sum(counts.values()) > 5 for counts in result["by_kind"].values())
    assert result["done"] > 10, "or nothing is reached"
    assert sum(result["reasons"].values()) > 60, "or all are refused at one door"


@pytest.mark.slow
def test_a_case_is_a_function_of_its_seed_and_number(tmp_path: Path) -> None:
    make_good(tmp_path)
    assert set(Counter(map(kind_of, range(50))).values()) == {share for _, share in KINDS.values()}
    for number in range(50):
        one, again, other = (make_case(tmp_path, seed, number) for seed in (1, 1, 2))
        assert one == again
        assert one != other


def test_the_table_in_the_documents_is_that_of_the_record() -> None:
    result = json.loads(structured.RECORD.read_text())
    assert structured.table(result) in structured.DOCUMENT.read_text()
    assert not result["failures"]


def test_cases_that_passed_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def ends(jobs: list[tuple[int, int]], *_: object, **__: object) -> dict[int, tuple[str, str]]:
        tried.extend(number for number, _ in jobs)
        return {number: ("hang" if number == 2 and len(tried) < 5 else "refused", "why") for number, _ in jobs}

    monkeypatch.setattr(structured, "in_a_process", ends)
    monkeypatch.setattr(structured, "make_good", lambda folder: None)
    monkeypatch.setattr(structured, "make_case", lambda *_: Case("zip", ("import",)))
    first = structured.structured(tmp_path / "cases", count=4, seed=1)
    again = structured.structured(tmp_path / "cases", count=6, seed=1)
    assert tried == [0, 1, 2, 3, 2, 4, 5]
    assert [one["case"] for one in first["failures"]] == [2]
    assert not again["failures"]
    assert again["refused"] == 6
    structured.structured(tmp_path / "cases", count=1, seed=2)
    assert tried[7:] == [0], "the case of another seed is another one"
