"""Did a change of the code leave training as it was? Losses of every update and hashes of the weights, to be compared.

    python -m lab.unchanged record --data data/speech --output runs/before     (in the old working tree)
    python -m lab.unchanged record --data data/speech --output runs/after      (in the new one)
    python -m lab.unchanged compare runs/before runs/after

Both on the same machine, with the same number of threads: bits depend on them. The runs are short and take turns
through the ways in which a stage can go: both families and precisions, all controls, accumulation, closed units that
are removed, two processes (DDP and FSDP), numbers that are not finite, a run that is stopped and resumed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[1]
FAST: dict[str, Any] = {"learning_rate": 1e-3, "batch_seconds": 6.0}
STAGE1 = FAST | {"steps": 12, "warmup_steps": 3, "sparsity_steps": 6, "gate_learning_rate": 0.5}
STAGE2 = FAST | {"steps": 8, "warmup_steps": 2}
CASES: dict[str, dict[str, Any]] = {
    "hubert-bf16": {"control": "lagrangian"},
    "hubert-float32": {"control": "exact", "precision": "float32"},
    "wavlm-bf16": {"teacher": "wavlm-mini", "control": "exact"},
    "wavlm-float32": {"teacher": "wavlm-mini", "control": "lagrangian", "precision": "float32", "method": "dphubert"},
    "one-shot": {"control": "one-shot", "macs": "0.4"},
    "accumulate": {"control": "exact", "stage1": {"accumulate": 2}, "stage2": {"accumulate": 2}},
    "removal": {"control": "exact", "stage1": {"steps": 24, "shrink_every": 3, "shrink_below": 0.2}},
    "ddp": {"control": "exact", "devices": 2, "stage1": {"accumulate": 2, "shrink_every": 3, "shrink_below": 0.2}},
    "fsdp": {"control": "lagrangian", "devices": 2, "strategy": "fsdp"},
    "diverging": {"control": "lagrangian", "bad_batches": [5, 10]},
    "resumed": {"control": "exact", "teacher": "wavlm-mini", "stop": True, "stage1": {"steps": 40}},
}
"""What differs from the defaults. A case with `stop` has to equal itself without a stop, too."""

CLOSE = ("fsdp",)
"""Cases whose numbers may differ by rounding: the order of sums over processes is not promised."""


def arguments_of(case: dict[str, Any], data: str, folder: Path) -> dict[str, Any]:
    """Of `compress`."""
    from skill_speech.compression import AnalysisConfig, StageConfig

    several = 2 if case.get("devices", 1) > 1 else 1
    stages = {}
    for name, common in (("stage1", STAGE1), ("stage2", STAGE2)):
        stages[name] = StageConfig(**({"accumulate": several} | common | case.get(name, {})))
    teacher = str(HERE / "lab" / "teachers" / case.get("teacher", "hubert-mini"))
    other = {name: value for name, value in case.items() if name not in ("teacher", "stop", "bad_batches", *stages)}
    common = {
        "precision": "bf16",
        "sparsity": 0.6,
        "missed_budget": "cut",
        "analysis": AnalysisConfig(calibration_seconds=60.0),
        "validation_seconds": 30.0,
        "validate_every": 5,
        "checkpoint_every": 4,
        "keep_checkpoints": 2,
    }
    return {"teacher": teacher, "data": data, "output": str(folder)} | common | stages | other


def with_bad_batches(first: int, end: int) -> None:
    """Have the training batches of the first epoch be infinite in this process, numbers `first` to `end` - 1."""
    import torch

    from skill_speech.data import TrainingBatches
    from skill_speech.data.dataset import WaveformDataset

    batches_of, read, bad = TrainingBatches.__iter__, WaveformDataset.__getitem__, set()

    def marked(self: Any) -> Any:
        for number, cuts in enumerate(batches_of(self), start=self.start.batch):
            if first <= number < end and not self.start.epoch:
                bad.add(" ".join(cut.id for cut in cuts))
            yield cuts

    def read_badly(self: Any, cuts: Any) -> Any:
        batch = read(self, cuts)
        if " ".join(batch.ids) in bad:
            return batch._replace(waveforms_BT=torch.full_like(batch.waveforms_BT, torch.inf))
        return batch

    TrainingBatches.__iter__ = marked  # type: ignore[method-assign]
    WaveformDataset.__getitem__ = read_badly  # type: ignore[method-assign]


def run(name: str, data: str, folder: Path) -> None:
    """Carry a case out, in this process."""
    from skill_speech import compress
    from skill_speech.errors import InputError

    case = CASES[name.removesuffix("-straight")]
    if "bad_batches" in case:
        with_bad_batches(*case["bad_batches"])
    try:
        compress(**arguments_of(case, data, folder))
    except InputError as error:
        (folder / "refused.txt").write_text(str(error).replace(str(folder), "RUN"))


def carry_out(name: str, data: str, folder: Path) -> None:
    """Carry a case out in a process of its own, or two after each other where it is to be stopped."""
    command = [sys.executable, "-m", "lab.unchanged", "run", name, "--data", data, "--output", str(folder)]
    log = folder.with_suffix(".log").open("a")
    process = subprocess.Popen(command, cwd=HERE, stdout=log, stderr=log)
    if CASES.get(name, {}).get("stop"):
        while process.poll() is None and _step(folder) < 9:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.wait()
        process = subprocess.Popen(command, cwd=HERE, stdout=log, stderr=log)
    if process.wait():
        raise SystemExit(f"{name} ended with {process.returncode}: see {folder.with_suffix('.log')}")


def _step(folder: Path) -> int:
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return 0
    return (status["step"] or 0) if status["stage"] == "stage1" else 0


def found_in(folder: Path) -> dict[str, Any]:
    """What is compared: the logged rows but for times, and the hashes of all weights that were written."""
    found: dict[str, Any] = {"hashes": {}, "rows": {}}
    for path in sorted(folder.glob("**/*.safetensors")):
        found["hashes"][str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.glob("*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                values = {key: text for key, text in row.items() if text and key not in _OF_A_MOMENT}
                found["rows"][f"{path.parent.name} {row['step']}"] = values
    for name in ("stage1", "stage2"):
        path = folder / name / "result.json"
        if path.exists():
            result = json.loads(path.read_text())
            found[name] = {key: result[key] for key in ("steps", "skipped", "returns", "validation_at_start")}
            found[name] |= {"validation": result["validation"], "read": result["audio"]["read"]}
    if (folder / "refused.txt").exists():
        found["refused"] = (folder / "refused.txt").read_text()
    return found


_OF_A_MOMENT = ("time", "train/audio_seconds_per_second")


def differences(before: dict[str, Any], now: dict[str, Any], tolerance: float) -> list[str]:
    """What differs between two of `found_in`, in words; numbers may do so by the tolerance, relative to them."""
    flat = [dict(_flat(found)) for found in (before, now)]
    if tolerance:
        flat = [{name: value for name, value in one.items() if not name.startswith("/hashes")} for one in flat]
    wrong = []
    for name in sorted({*flat[0], *flat[1]}):
        old, new = (one.get(name) for one in flat)
        # Means over the validation set have been float32 and float64.
        if old != new and not _close(old, new, max(tolerance, 1e-6 if "validation" in name else 0.0)):
            wrong.append(f"{name}: {old} → {new}")
    return wrong


def _flat(values: Any, name: str = "") -> Any:
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _flat(value, f"{name}/{key}")
    else:
        yield name, values


def _close(old: Any, new: Any, tolerance: float) -> bool:
    try:
        return abs(float(old) - float(new)) <= tolerance * max(1.0, abs(float(old)))
    except (TypeError, ValueError):
        return False


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare training before and after a change of the code.")
    commands = parser.add_subparsers(dest="command", required=True)
    recording, one, comparing = (commands.add_parser(name) for name in ("record", "run", "compare"))
    recording.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    one.add_argument("case")
    for command in (recording, one):
        command.add_argument("--data", required=True)
        command.add_argument("--output", type=Path, required=True)
    comparing.add_argument("before", type=Path)
    comparing.add_argument("now", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        run(given.case, given.data, given.output)
    elif given.command == "record":
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        given.output.mkdir(parents=True, exist_ok=True)
        for name in given.cases:
            for variant in (name, f"{name}-straight") if CASES[name].get("stop") else (name,):
                record = given.output / f"{variant}.json"
                if not record.exists():
                    carry_out(variant, given.data, given.output / variant)
                    record.write_text(json.dumps(found_in(given.output / variant), indent=1))
                    print(f"{variant}: recorded", flush=True)
    else:
        wrong = 0
        for path in sorted(given.before.glob("*.json")):
            before, now = (json.loads((folder / path.name).read_text()) for folder in (given.before, given.now))
            found = differences(before, now, 1e-3 if path.stem in CLOSE else 0.0)
            wrong += bool(found)
            print(f"{path.stem}: {'; '.join(found[:5]) if found else 'the same'}")
            straight = given.now / f"{path.stem}-straight.json"
            if straight.exists():
                found = differences(json.loads(straight.read_text()), now, 0.0)
                wrong += bool(found)
                print(f"{path.stem} without a stop: {'; '.join(found[:5]) if found else 'the same'}")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
