"""Kill a compression at random moments, run the same command again, and compare the final weights bit by bit.

    python -m lab.kills --kills 40 --output runs/kills

The kills are divided among the cases: HuBERT and WavLM teachers, bf16 and float32, one process and two.

Every attempt is a process of its own that runs the command line, with a tiny random teacher on noise. A moment is a
place of the recipe (analysis, stage 1, surgery, stage 2, the final writing) and either a time in it or one of the
operations on files in it; there the process gets a SIGKILL, which nothing can catch, or, now and then in a stage, one
of the signals that ask it to stop, which it has to leave with the status that is promised for them. Then the same
command runs again, to be killed at the next place, and at last to the end. The seed chooses the moments. Weights,
metrics.csv and TensorBoard's events must equal those of a run that nobody killed.

Of two processes, which are started as torchrun would start them, the first one, which writes, gets the signal; the
other one is ended after it, as torchrun does.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import random
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["skill_speech.compression", "skill_speech.reporting"])

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
"""Of files, as Python's audit events name them."""

PLACES = (
    ("analysis", "time", "SIGKILL"),
    ("analysis", "file", "SIGKILL"),
    ("stage1", "time", "SIGKILL"),
    ("stage1", "file", "SIGKILL"),
    ("stage1", "time", "SIGTERM"),
    ("stage1", "file", "SIGKILL"),
    ("surgery", "file", "SIGKILL"),
    ("stage2", "time", "SIGKILL"),
    ("stage2", "file", "SIGKILL"),
    ("stage2", "time", "SIGUSR1"),
    ("finish", "time", "SIGKILL"),
    ("finish", "file", "SIGKILL"),
)
BEHIND = {
    "analysis": "analysis/clusters.json",
    "stage1": "stage1/result.json",
    "surgery": "surgery/result.json",
    "stage2": "stage2/result.json",
    "finish": "report.html",
}
"""The file that stands at the end of each place."""

SECONDS_TO_END = 3
"""For the others when the first process is gone, before they are killed."""

NOT_REPRODUCIBLE = ("time", "train/audio_seconds_per_second")
"""Columns of metrics.csv that say how fast it went."""


@dataclass(frozen=True)
class Case:
    """What is compressed, and how: the family of the teacher, what is computed in, and processes over gloo."""

    family: str = "wavlm"
    precision: str = "bf16"
    processes: int = 1

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.family}-{self.precision}-{self.processes}"


CASES = tuple(
    Case(family, precision, processes)
    for processes in (1, 2)
    for family in ("hubert", "wavlm")
    for precision in ("bf16", "float32")
)


@dataclass(frozen=True)
class Moment:
    """When to kill: `at` seconds, or so many operations on files, after a place of the recipe has begun."""

    place: str
    unit: str
    at: float
    signal: str = "SIGKILL"

    def send(self) -> None:
        """To this process."""
        os.kill(os.getpid(), getattr(signal, self.signal))

    @property
    def status(self) -> int:
        """How the process ends: killed, or by itself with the status that is promised for the signal."""
        number = int(getattr(signal, self.signal))
        return -number if self.signal == "SIGKILL" else 128 + number


@dataclass
class Kill:
    """One kill that happened: where it was meant to be, what the process was doing, what it left behind."""

    run: int
    moment: Moment
    doing: str
    step: int | None
    unfinished_files: int


def tiny_run(folder: Path, case: Case, seed: int = 0) -> list[str]:
    """A teacher, data and the command line of a run that takes seconds: the words after `skill-speech compress`."""
    import numpy as np
    import soundfile
    import torch
    import yaml

    from skill_speech import Encoder
    from skill_speech.encoder import hubert_config, wavlm_config

    torch.manual_seed(seed)
    config = {"hubert": hubert_config, "wavlm": wavlm_config}[case.family](
        hidden_size=32, num_heads=4, units=64, channels=16, depth=3, positional_kernel=16, positional_groups=4
    )
    Encoder(config.replace(hidden_dropout=0.1, attention_dropout=0.1)).save_pretrained(folder / "teacher")
    rng = np.random.default_rng(seed)
    (folder / "speech").mkdir(parents=True, exist_ok=True)
    for number in range(24):
        samples = int(rng.integers(32_000, 64_000))
        envelope = np.sin(np.arange(samples) / rng.uniform(500, 3_000))
        soundfile.write(folder / f"speech/{number:02}.wav", 0.1 * envelope * rng.standard_normal(samples), 16_000)
    settings: dict[str, Any] = {
        "clusters": 2,
        "control": "exact",
        "sparsity": 0.5,
        "analysis": {"calibration_seconds": 12, "batch_seconds": 6, "batch_frames": 64},
        "stage1": {
            "steps": 12,
            "warmup_steps": 2,
            "sparsity_steps": 3,
            "batch_seconds": 5,
            "accumulate": case.processes,
        },
        "stage2": {"steps": 9, "warmup_steps": 2, "batch_seconds": 5, "accumulate": 2},
        "validation_seconds": 5.0,
        "validate_every": 4,
        "checkpoint_every": 3,
        "milestone_every": 6,
        "precision": case.precision,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    words = ["compress", "--config", folder / "recipe.yaml", "--teacher", folder / "teacher"]
    return [str(word) for word in [*words, "--data", folder / "speech"]]


def attempt(
    command: Sequence[str], log: Path, moment: Moment | None = None, trace: Path | None = None, processes: int = 1
) -> int:
    """Run the command line in processes of their own, the first of which kills itself at the moment.

    Returns:
        the exit status of the first one.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        place = _environment(rank, processes, port) if processes > 1 else {}
        first = rank == 0
        started.append(
            FORKS.Process(
                target=_attempt, args=(list(command), log, moment if first else None, trace if first else None, place)
            )
        )
        started[-1].start()
    first, *others = started
    first.join()
    status = first.exitcode
    for other in others:
        other.join(60 if status == 0 else SECONDS_TO_END)
        other.kill()
        other.join()
    for process in started:
        process.close()
    assert status is not None
    return status


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun tells a process that it starts."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    numbers |= {"GROUP_RANK": 0, "MASTER_PORT": port}
    words = {"MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "kills"}
    return words | {name: str(number) for name, number in numbers.items()}


def _attempt(
    command: list[str], log: Path, moment: Moment | None, trace: Path | None, environment: dict[str, str]
) -> None:
    """In the child: the command line, with what happens counted from the beginning of each place."""
    os.environ.update(environment)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    from skill_speech.cli import main
    from skill_speech.run.folder import RunFolder

    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    seen: list[tuple[str, float, int]] = []  # place, when it began, operations before it
    operations = 0
    original = RunFolder.report

    def report(run: RunFolder, stage: str, *more: Any, **options: Any) -> None:
        if not seen or seen[-1][0] != stage:
            seen.append((stage, time.monotonic(), operations))
            if moment is not None and moment.unit == "time" and stage == moment.place:
                threading.Timer(moment.at, moment.send).start()
        original(run, stage, *more, **options)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal operations
        if event in OPERATIONS:
            operations += 1
            if moment is not None and moment.unit == "file" and seen and moment.place in [name for name, *_ in seen]:
                begun = next(count for name, _, count in seen if name == moment.place)
                if operations - begun == moment.at:
                    moment.send()

    RunFolder.report = report  # type: ignore[method-assign]
    sys.addaudithook(watch)
    status = main(command)
    if trace is not None:
        seen.append(("end", time.monotonic(), operations))
        trace.write_text(json.dumps(seen), encoding="utf-8")
    logging.shutdown()
    sys.stdout.flush()
    os._exit(status)  # the timer of a moment that never came would keep the process


def measure(command: Sequence[str], folder: Path, processes: int) -> dict[str, dict[str, float]]:
    """How long each place takes and how many operations on files it has, from a run to the end that nobody kills."""
    command = [*command, "--output", str(folder / "whole")]
    status = attempt(command, folder / "whole.log", trace=folder / "trace.json", processes=processes)
    if status:
        raise RuntimeError(f"the run that nobody kills ended with {status}: {(folder / 'whole.log').read_text()}")
    seen = json.loads((folder / "trace.json").read_text(encoding="utf-8"))
    return {
        place: {"time": seen[number + 1][1] - start, "file": seen[number + 1][2] - operations}
        for number, (place, start, operations) in enumerate(seen[:-1])
    }


def kill(
    output: Path,
    *,
    kills: int,
    case: Case = Case(),
    seed: int = 0,
    places: Sequence[tuple[str, str, str]] = PLACES,
    most_attempts: int = 200,
) -> dict[str, Any]:
    """Kill runs of one case until so many kills have happened; compare what they end in with a run that nobody killed.

    Args:
        output: a new folder for the runs.
        kills: how many at least; a run that has them is finished.
        case: what is compressed, and how.
        seed: of the moments, the teacher and the data.
        places: where each run is killed, in this order.
        most_attempts: processes after which it is given up.

    Returns:
        the moments, and which runs came out different and in what.

    Raises:
        RuntimeError: a run that was not killed did not finish well.
    """
    output.mkdir(parents=True)
    started = time.monotonic()
    command = tiny_run(output, case, seed)
    extent = measure(command, output, case.processes)
    rng = random.Random(seed)
    happened: list[Kill] = []
    runs: list[dict[str, Any]] = []
    attempts = 0
    while len(happened) < kills:
        number = len(runs)
        folder = output / f"run{number}"
        for place, unit, name in places:
            if (folder / BEHIND[place]).exists():  # a kill that was late has let it pass
                continue
            most = extent[place][unit]
            at = rng.uniform(0, 0.9 * most) if unit == "time" else float(rng.randint(1, max(1, int(0.9 * most))))
            moment = Moment(place, unit, round(at, 4), name)
            if len(happened) >= kills:
                break
            status = attempt(
                [*command, "--output", str(folder)], output / f"run{number}.log", moment, processes=case.processes
            )
            attempts += 1
            if status == moment.status:
                happened.append(_what_it_left(number, moment, folder))
            elif status or attempts > most_attempts:
                log = (output / f"run{number}.log").read_text(encoding="utf-8")
                raise RuntimeError(f"run {number} ended with {status} at {moment}: {log[-3000:]}")
        status = attempt([*command, "--output", str(folder)], output / f"run{number}.log", processes=case.processes)
        if status:
            log = (output / f"run{number}.log").read_text(encoding="utf-8")
            raise RuntimeError(f"run {number} ended with {status}: {log[-3000:]}")
        runs.append(
            {
                "kills": sum(one.run == number for one in happened),
                "differences": differences(output / "whole", folder),
                "damaged_checkpoints_met": (output / f"run{number}.log").read_text().count("damaged checkpoint"),
            }
        )
    different = [number for number, run in enumerate(runs) if run["differences"]]
    return {
        "kills": len(happened),
        "survived": sum(run["kills"] for run in runs if not run["differences"]),
        "runs": runs,
        "different": different,
        "where": dict(Counter(f"{one.moment.place}, {one.moment.unit}, {one.moment.signal}" for one in happened)),
        "with_unfinished_files": sum(one.unfinished_files > 0 for one in happened),
        "seconds": round(time.monotonic() - started, 1),
        "moments": [asdict(one) for one in happened],
    }


def _what_it_left(run: int, moment: Moment, folder: Path) -> Kill:
    from skill_speech.files import LEFTOVER

    status = {"stage": "before the first report", "step": None}
    if (folder / "status.json").exists():
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    unfinished = sum(LEFTOVER.fullmatch(path.name) is not None for path in folder.rglob(".*"))
    return Kill(run, moment, status["stage"], status["step"], unfinished)


def differences(whole: Path, other: Path) -> list[str]:
    """In what a finished run differs from another one; times aside."""
    found = []
    for name in ("model/model.safetensors", "model/config.json", "stage1/student/model.safetensors"):
        if (whole / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    for stage in ("stage1", "stage2"):
        if _rows(whole / stage) != _rows(other / stage):
            found.append(f"{stage}/metrics.csv")
        if _events(whole / stage) != _events(other / stage):
            found.append(f"{stage}/events")
        names = [sorted(path.name for path in (run / stage / "checkpoints").iterdir()) for run in (whole, other)]
        if names[0] != names[1]:
            found.append(f"{stage}/checkpoints")
    if leftovers := [path.name for path in other.rglob(".*")]:
        found.append(f"left behind: {leftovers}")
    return found


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [
            {name: text for name, text in row.items() if text and name not in NOT_REPRODUCIBLE}
            for row in csv.DictReader(file)
        ]


def _events(folder: Path) -> list[tuple[str, int, float]]:
    """Every scalar in every file of events, in order of name and step: what is there twice shows."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray

    found = []
    for path in folder.glob("events.out.tfevents.*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value if event.HasField("summary") else ():
                if value.tag not in (*NOT_REPRODUCIBLE, "epoch"):
                    found.append((value.tag, event.step, make_ndarray(value.tensor).item()))
    return sorted(found)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Kill compressions at random moments and compare what comes of them.")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/kills"))
    arguments = parser.parse_args()
    record(arguments.output, kills=arguments.kills, seed=arguments.seed)
    print((arguments.output / "kills.json").read_text(encoding="utf-8"))


def record(output: Path, *, kills: int, seed: int = 0, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """`kill` every case, so many times in all, written with where it was done to OUTPUT/kills.json.

    The file is written after each case; the runs of a case are removed if all came out the same. Every second place of
    the recipe is used in a case, so that a few kills reach from its beginning to its end.
    """
    from skill_speech.environment import environment
    from skill_speech.files import write_json

    each = -(-kills // len(cases))
    result: dict[str, Any] = {"command": f"python -m lab.kills --kills {kills} --seed {seed}", "machine": environment()}
    result |= {"kills": 0, "survived": 0, "different": [], "seconds": 0.0, "cases": {}}
    for number, case in enumerate(cases):
        # Odd or even ones, as many of each in either family, precision and number of processes.
        places = PLACES[number.bit_count() % 2 :: 2]
        outcome = kill(output / case.name, kills=each, case=case, seed=seed + number, places=places)
        result["cases"][case.name] = outcome
        for name in ("kills", "survived", "seconds"):
            result[name] += outcome[name]
        result["different"] += [f"{case.name}/run{run}" for run in outcome["different"]]
        write_json(output / "kills.json", result)
        if not outcome["different"]:
            shutil.rmtree(output / case.name)
    return result


if __name__ == "__main__":
    main()
