"""Does a student come out the same when closed units are removed during stage 1? Short runs with and without it.

    python -m lab.speech --output data/speech --hours 0.5
    python -m lab.shrinking --data data/speech --output runs/shrinking --results lab/results/shrinking.json

The control is the published one. The schedule is short, so its gates learn twenty times as fast as the published ones
(0.4 against 0.02): in the published schedule a gate at the threshold needs hundreds of updates in one direction to open
again, here about twenty. That makes the comparison the harder one. Finished runs are not made again.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.shrinking import path_of_the_gates
from skill_speech import compress, load_encoder
from skill_speech.compression import AnalysisConfig
from skill_speech.distillation import StageConfig
from skill_speech.environment import environment
from skill_speech.files import write_json

TEACHER = Path(__file__).parent / "teachers" / "hubert-mini"
WAYS = {"without": 0, "with": 20}
"""`StageConfig.shrink_every` of the two sides."""


@dataclass(frozen=True)
class Schedule:
    """Of both sides; ramp and warm-up take a third of stage 1 each."""

    steps: int = 240
    warmup_steps: int = 80
    sparsity_steps: int = 80
    gate_learning_rate: float = 0.4
    learning_rate: float = 1e-3
    batch_seconds: float = 4.0
    stage2_steps: int = 60
    sparsity: float = 0.75
    validation_seconds: float = 90.0


def run(way: str, seed: int, data: str, output: Path, schedule: Schedule) -> None:
    """One run, and the processor time of its stages in RUN/seconds.json."""
    torch.set_num_threads(1)
    folder, times = output / f"{way}-{seed}", {"stage1": [], "stage2": []}  # type: ignore[var-annotated]

    def look_at_the_clock(stage: Any) -> None:
        times[stage.name].append(time.process_time())

    stages = {
        "stage1": StageConfig(
            steps=schedule.steps,
            learning_rate=schedule.learning_rate,
            warmup_steps=schedule.warmup_steps,
            batch_seconds=schedule.batch_seconds,
            gate_learning_rate=schedule.gate_learning_rate,
            sparsity_steps=schedule.sparsity_steps,
            shrink_every=WAYS[way],
            student_dropout=False,
        ),
        "stage2": StageConfig(
            steps=schedule.stage2_steps,
            learning_rate=schedule.learning_rate,
            warmup_steps=schedule.stage2_steps // 6,
            batch_seconds=schedule.batch_seconds,
            student_dropout=False,
        ),
    }
    done = compress(
        str(TEACHER),
        data,
        str(folder),
        sparsity=schedule.sparsity,
        control="lagrangian",
        analysis=AnalysisConfig(calibration_seconds=120),
        validation_seconds=schedule.validation_seconds,
        validate_every=schedule.steps,
        checkpoint_every=schedule.steps,
        seed=seed,
        on_step=look_at_the_clock,
        **stages,  # type: ignore[arg-type]
    )
    # The first update begins before the first look: the mean of the others stands for it.
    seconds = {name: (all_[-1] - all_[0]) * len(all_) / (len(all_) - 1) for name, all_ in times.items()}
    if not done.already_done:
        write_json(folder / "seconds.json", seconds)


def stand_in(schedule: Schedule, seed: int) -> list[float]:
    """The expected sparsity at every update where given importances stand in for the network, as in the benchmark."""
    return path_of_the_gates(
        load_encoder(str(TEACHER)).config,
        StageConfig(
            steps=schedule.steps,
            warmup_steps=schedule.warmup_steps,
            gate_learning_rate=schedule.gate_learning_rate,
            sparsity_steps=schedule.sparsity_steps,
            shrink_every=0,
        ),
        # The mini teacher's channels are few and cheap, and none of them closes.
        {"channels": 3.0, "heads": 0.3, "units": 0.3},
        seed,
    )[1]


def summary(way: str, seed: int, output: Path) -> dict[str, Any]:
    """What came of one run."""
    folder = output / f"{way}-{seed}"
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    with (folder / "stage1/metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["train/sparsity_expected"]]
    return {
        "seed": seed,
        "loss_after_stage1": result["stages"]["stage1"]["validation"]["distillation"],
        "loss_after_surgery": result["loss_after_surgery"],
        "loss": result["loss"],
        "parameters": sum(result["student"]["parameters"].values()),
        "processor_seconds": json.loads((folder / "seconds.json").read_text(encoding="utf-8")),
        "steps": [int(row["step"]) for row in rows],
        "sparsity": [float(row["train/sparsity_expected"]) for row in rows],
        "parameters_held": [int(float(row.get("train/parameters") or 0)) for row in rows],
        "heads": result["widths"]["student"]["heads"],
        "channels": result["widths"]["student"]["channels"],
        "units": result["widths"]["student"]["units"],
    }


def compare(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means of both sides, the spread over seeds, and the differences at equal seed."""
    rows: dict[str, Any] = {}
    for key in ("loss_after_stage1", "loss_after_surgery", "loss"):
        values = {way: [one[key] for one in runs[way]] for way in runs}
        differences = [b - a for a, b in zip(values["without"], values["with"], strict=True)]
        rows[key] = {way: {"mean": _mean(values[way]), "deviation": _deviation(values[way])} for way in values}
        rows[key]["difference"] = {"mean": _mean(differences), "deviation": _deviation(differences)}
    stage1 = {way: _mean([one["processor_seconds"]["stage1"] for one in runs[way]]) for way in runs}
    rows["stage1_processor_seconds"] = stage1 | {"ratio": stage1["without"] / stage1["with"]}
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: Sequence[float]) -> float | None:
    """Of a sample; None of a single value."""
    if len(values) < 2:
        return None
    return math.sqrt(sum((value - _mean(values)) ** 2 for value in values) / (len(values) - 1))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare stage 1 with and without removing closed units.")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args()
    schedule = Schedule()
    pairs = [(way, seed) for seed in arguments.seeds for way in WAYS]
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(run, way, seed, arguments.data, arguments.output, schedule) for way, seed in pairs]
        for job in jobs:
            job.result()
    runs = {way: [summary(way, seed, arguments.output) for seed in arguments.seeds] for way in WAYS}
    record = {
        "command": "python -m lab.shrinking --data DATA --output OUTPUT --results RESULTS",
        "about": "hubert-mini on synthetic speech: says whether the two ways agree, nothing about quality",
        "machine": environment(),
        "schedule": asdict(schedule) | {"shrink_every": WAYS, "shrink_below": StageConfig.shrink_below},
        "comparison": compare(runs),
        "stand_in": {"sparsity": [round(value, 4) for value in stand_in(schedule, 0)]},
        "runs": runs,
    }
    write_json(arguments.results, record)
    print(json.dumps(record["comparison"], indent=1))


if __name__ == "__main__":
    main()
