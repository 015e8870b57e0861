"""Threads do not spin while others need the cores, and what users say of it holds."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from skill_speech.run import patience
from skill_speech.run.patience import PatientThreads, seconds_waited

LINUX = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="not Linux, or a kernel that does not tell"
)

IN_A_PROCESS = """
import threading, time
from pathlib import Path
import torch
torch.set_num_threads(3)
torch.zeros(1 << 20).add_(1)
count = lambda: len(list(Path("/proc/self/task").iterdir()))
from skill_speech.run.patience import PatientThreads
threads = PatientThreads()
counts = [count()]
for waited in (0.1, 0.9, 0.1, 0.01):
    threads.see(waited)
    time.sleep(0.5)
    counts.append(count())
print(*(number - counts[0] for number in counts), len(__import__('os').sched_getaffinity(0)))
"""


@LINUX
def test_more_teams_are_there_while_the_machine_is_busy() -> None:
    """As the kernel counts threads: those that asked for a team, and two helpers of each."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP")}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS], capture_output=True, text=True, check=True, env=environment
    )
    *more, cores = map(int, done.stdout.split())
    assert more == [0, 0, busy := 3 * max(1, cores // 3), busy, 0]
    assert 3 + busy > cores


def test_what_is_seen_decides(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for name in patience.OF_THE_USER:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(patience, "SECONDS", 0.01)
    clock, busy, seen = 0.0, threading.Event(), threading.Event()

    def waited() -> float:
        nonlocal clock
        clock += 0.01 if busy.is_set() else 0.0
        seen.set()
        return clock

    monkeypatch.setattr(patience, "seconds_waited", waited)
    with caplog.at_level("INFO"), PatientThreads() as threads:
        for state in (False, True, False, True, False):
            busy.set() if state else busy.clear()
            for _ in range(5):
                seen.clear()
                assert seen.wait(10)
            assert bool(threads.more_teams) == state
        busy.set()
    assert not threads.more_teams, "nothing is left behind"
    assert caplog.text.count("threads sleep instead of spinning") == 1, "said once"


@pytest.mark.parametrize("name", patience.OF_THE_USER)
def test_the_user_decides(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setenv(name, "active")
    with PatientThreads() as threads:
        assert threads._watch is None


def test_a_single_thread_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with PatientThreads() as threads:
        assert threads._watch is None


def test_the_kernel_s_second_number_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "THREADS", tmp_path)
    for number, line in enumerate(("7 1500000000 3", "9 500000000 4")):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "schedstat").write_text(line)
    (tmp_path / "ended").mkdir()
    assert seconds_waited() == 2.0
    (tmp_path / "0/schedstat").write_text("no numbers")
    assert seconds_waited() is None
    monkeypatch.setattr(patience, "THREADS", tmp_path / "none")
    assert seconds_waited() is None
