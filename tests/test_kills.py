"""SIGKILL and SIGTERM at random moments, and two runs in one folder, in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from lab import kills
from skill_speech import InputError
from skill_speech.files import remove_leftovers, require_space
from skill_speech.run.lock import RunLock
from skill_speech.run.signals import Stopped, StopSignals

QUICK = (kills.Case("wavlm", "bf16", 1), kills.Case("hubert", "float32", 2))


@pytest.mark.kill
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow, id=case.name) for case in kills.CASES],
)
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path: Path, case: kills.Case) -> None:
    places = [
        ("stage1", "time", "SIGTERM"),
        ("stage1", "file", "SIGKILL"),
        ("stage2", "file", "SIGKILL"),
        ("finish", "file", "SIGKILL"),
    ]
    result = kills.kill(tmp_path / "runs", kills=3, case=case, seed=1, places=places)
    assert result["kills"] >= 3
    assert not result["different"], result["runs"]


@pytest.mark.kill
@pytest.mark.slow
def test_kills_across_the_recipe(tmp_path: Path) -> None:
    result = kills.record(tmp_path, kills=24, seed=int(time.time()))
    assert result["kills"] >= 24
    assert not result["different"], (tmp_path / "kills.json").read_text()


HOLD = """
import sys, time
from pathlib import Path
from skill_speech.run.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_locked_as_long_as_a_process_lives(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(InputError, match=rf"in use by another run \(process {holder.pid} on "),
        RunLock(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    with RunLock(tmp_path), pytest.raises(InputError, match="in use by another run"), RunLock(tmp_path):
        pass
    with RunLock(tmp_path):
        pass


def test_a_lock_of_another_machine_holds_as_long_as_it_is_touched(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "lock").write_text(json.dumps({"host": "another", "pid": 7, "since": "noon"}))
    with pytest.raises(InputError, match="process 7 on another, since noon"), RunLock(tmp_path):
        pass
    long_ago = time.time() - 600
    os.utime(tmp_path / "lock", (long_ago, long_ago))
    with RunLock(tmp_path):
        pass
    assert "taking over the lock of process 7 on another, which stopped 10 min ago" in caplog.text
    (tmp_path / "lock").write_text("damaged {")
    with RunLock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_stop_signal_waits_where_it_is_told_to() -> None:
    def ask(signum: int, wait: bool) -> None:
        with StopSignals() as stop, stop.deferred() if wait else nullcontext():
            os.kill(os.getpid(), signum)
            came.append(stop.requested)

    came: list[int | None] = []
    handler = signal.getsignal(signal.SIGTERM)
    for signum, wait, status in ((signal.SIGTERM, True, 143), (signal.SIGUSR1, False, 138)):
        with pytest.raises(Stopped) as caught:
            ask(signum, wait)
        assert caught.value.code == status
    assert came == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler


def test_ctrl_c_waits_once_and_not_twice() -> None:
    def press() -> None:
        with StopSignals() as stop, stop.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # as a rank gets it
            came.append(stop.requested)

    came: list[int | None] = []
    with pytest.raises(KeyboardInterrupt):
        press()
    assert came == [signal.SIGINT]
    with StopSignals() as stop, stop.deferred():
        os.kill(os.getpid(), signal.SIGINT)
        stop._asked -= 2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        stop.requested = None


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".12.result.json", "stage1/.345.step=3.ckpt", ".hidden", ".12", "model/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".7.analysis").mkdir()
    (tmp_path / ".7.analysis/cka.npy").write_text("x")
    remove_leftovers(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == [".12", ".hidden", "model/config.json"]


def test_a_disk_without_room_is_refused_with_figures(tmp_path: Path) -> None:
    require_space(tmp_path / "not/there/yet", 1, "a checkpoint")
    with pytest.raises(InputError, match=r"MiB|GiB|TiB are free and a checkpoint needs 909494\.7 TiB: free some space"):
        require_space(tmp_path, 10**18, "a checkpoint")
