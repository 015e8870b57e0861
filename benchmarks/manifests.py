"""Memory and time to the first batch against the number of cuts, and what a cut costs on its way into a batch.

    python -m benchmarks.manifests --output benchmarks/results/manifests.json

The manifests are made up, with durations and fields like LibriSpeech's and no audio: the batches are made, not read.
Each measurement is a process of its own, which first imports everything: the memory stated is what comes on top.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from skill_speech.data import TrainingBatches, open_cuts, split_cuts
from skill_speech.environment import environment
from skill_speech.files import write_json

SIZES = (10_000, 100_000, 1_000_000)
SHARD_CUTS = 1_000
BATCH_SECONDS = 160.0
STREAMED_CUTS = 50_000


def cut_line(number: int, rng: random.Random, sharded: bool) -> tuple[str, float]:
    """A cut as lhotse writes it, and its seconds: most are 12 to 16 s long, as in LibriSpeech."""
    samples = round(16_000 * (rng.triangular(1.5, 16.5, 15.5)))
    seconds, name, speaker = samples / 16_000, f"{number // 100:05}-{number:08}", f"{number // 100 % 2_000}"
    source = {"type": "shar", "channels": [0], "source": ""}
    if not sharded:
        source = {"type": "file", "channels": [0], "source": f"/data/LibriSpeech/train/{speaker}/{name}.flac"}
    recording = {
        "id": name,
        "sources": [source],
        "sampling_rate": 16_000,
        "num_samples": samples,
        "duration": seconds,
        "channel_ids": [0],
    }
    said = {
        "id": name,
        "recording_id": name,
        "start": 0.0,
        "duration": seconds,
        "channel": 0,
        "text": "A SENTENCE OF AVERAGE LENGTH " * 6,
        "speaker": speaker,
    }
    cut: dict[str, Any] = {
        "id": name,
        "start": 0,
        "duration": seconds,
        "channel": 0,
        "supervisions": [said],
        "recording": recording,
        "type": "MonoCut",
    }
    if sharded:
        cut["custom"] = {"shard_member": [512, 512 + samples]}
    return json.dumps(cut), seconds


def make(folder: Path, cuts: int, sharded: bool) -> Path:
    """A manifest of so many cuts, or the manifests of shards; made once."""
    rng = random.Random(0)
    if not sharded:
        path = folder / f"{cuts}.jsonl.gz"
        if not path.exists():
            with gzip.open(path, "wt", compresslevel=1) as file:
                for number in range(cuts):
                    file.write(cut_line(number, rng, False)[0] + "\n")
        return path
    path = folder / f"{cuts}-shards"
    path.mkdir(exist_ok=True)
    if not (path / "index.json").exists():
        shards = []
        for shard in range(cuts // SHARD_CUTS):
            lines = [cut_line(shard * SHARD_CUTS + number, rng, True) for number in range(SHARD_CUTS)]
            name = f"cuts.{shard:06}.jsonl.gz"
            (path / name).write_bytes(gzip.compress("\n".join(line for line, _ in lines).encode(), 1))
            seconds = sum(seconds for _, seconds in lines)
            values = {"cuts": name, "recording": f"recording.{shard:06}.tar", "number": SHARD_CUTS, "seconds": seconds}
            shards.append(values)
        write_json(path / "index.json", {"shards": shards})
    return path


def peak_mib() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(data: str) -> dict[str, float]:
    """What a run does with its data before the first step, and then with the next 50,000 cuts."""
    imported, clock, cpu = peak_mib(), time.perf_counter(), time.process_time()
    train, _ = split_cuts(open_cuts(data), validation_seconds=300, seed=0)
    batches = TrainingBatches(train, batch_seconds=BATCH_SECONDS)
    endless = iter(batches)
    next(endless)
    first = {
        "first_batch_seconds": time.perf_counter() - clock,
        "first_batch_cpu_seconds": time.process_time() - cpu,
        "first_batch_mib": peak_mib() - imported,
    }
    cpu, cuts, made = time.process_time(), 0, 0
    while cuts < STREAMED_CUTS:
        cuts += len(next(endless))
        made += 1
    return first | {
        "peak_mib": peak_mib() - imported,
        "imported_mib": imported,
        "cpu_microseconds_per_cut": 1e6 * (time.process_time() - cpu) / cuts,
        "cuts_per_batch": cuts / made,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Memory and time against the number of cuts.")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("/tmp/skill-speech-manifests"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--measure", help="one source, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for cuts in arguments.sizes:
        for kind in ("manifest", "shards"):
            path = make(arguments.work, cuts, kind == "shards")
            command = [sys.executable, "-m", "benchmarks.manifests", "--output", "x", "--measure", str(path)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            row = {"kind": kind, "cuts": cuts} | {name: round(value, 3) for name, value in found.items()}
            rows.append(row)
            print(row, flush=True)
    write_json(
        arguments.output,
        {
            "what": "made-up manifests without audio: one rank's time and memory until its first batch and beyond",
            "command": "python -m benchmarks.manifests --output benchmarks/results/manifests.json",
            "seed": 0,
            "batch_seconds": BATCH_SECONDS,
            "streamed_cuts": STREAMED_CUTS,
            "environment": environment(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
