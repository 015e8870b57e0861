"""Memory and time to the first batch against the number of cuts, and what a cut costs on its way into a batch.

python -m benchmarks.manifests [--quick] --json FILE

The manifests are made up, with durations and fields like LibriSpeech's and no audio: the batches are made, not read.
Of CSV and JSON lines the header of each row's file is read as it comes by; there all rows share a few files of noise.
Each measurement is a process of its own, which first imports everything: the memory stated is what comes on top. In
the rows of the first batch the peer is what it may take; memory is flat if ten times the cuts take about as much. The
first update is that of `skill-speech compress` with a tiny encoder, the clock starting with the command: imports, the
analysis of a minute of audio and a validation lie before it. There all cuts share a few files of noise.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from benchmarks.common import Report, parse, parser
from skill_speech.data import TrainingBatches, open_cuts, prepare, split_cuts
from skill_speech.encoder import Encoder, hubert_config
from skill_speech.files import write_json
from skill_speech.profiling import peak_memory

KINDS = ("manifest", "shards", "csv", "json")
SIZES, QUICK = (10_000, 100_000, 1_000_000), (1_000, 10_000)
SHARD_CUTS = 1_000
BATCH_SECONDS = 160.0
STREAMED_CUTS = 50_000
FILES = 32
START = 10.0
"""Seconds until the first batch, and until the first update, at most."""
FLAT = 0.9
"""Memory with a tenth of the cuts over memory with all, at least."""


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


def noise(folder: Path) -> list[str]:
    """Files of noise, 8 to 16 s long, and their names."""
    generator = np.random.default_rng(0)
    names = [f"noise-{number:02}.flac" for number in range(FILES)]
    for name in names:
        samples = round(16_000 * generator.uniform(8, 16))
        if not (folder / name).exists():
            soundfile.write(folder / name, 0.1 * generator.standard_normal(samples), 16_000)
    return names


def make_table(folder: Path, cuts: int, kind: str) -> Path:
    """So many rows of CSV or JSON lines."""
    path, names = folder / f"{cuts}.{kind}", noise(folder)
    text = "A SENTENCE OF AVERAGE LENGTH " * 6
    with path.open("w", encoding="utf-8") as file:
        if kind == "csv":
            file.write("id,path,text,speaker\n")
        for number in range(cuts):
            name, speaker = names[number % FILES], f"{number // 100 % 2_000}"
            row = {"id": f"{number:08}", "audio_filepath": name, "text": text, "speaker": speaker}
            file.write((",".join(row.values()) if kind == "csv" else json.dumps(row)) + "\n")
    return path


def make(folder: Path, cuts: int, kind: str) -> Path:
    """A manifest of so many cuts, rows of a table, or the manifests of shards; made once."""
    if kind in ("csv", "json"):
        return make_table(folder, cuts, kind)
    rng, sharded = random.Random(0), kind == "shards"
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


def seconds_to_the_first_update(folder: Path, cuts: int) -> float:
    """From the command until the first update of stage 1 is made, with so many cuts."""
    folder.mkdir()
    noise(folder)
    prepare(str(folder), str(folder / "some.jsonl.gz"))
    with gzip.open(folder / "some.jsonl.gz", "rt") as file:
        some = [json.loads(line) for line in file]
    with gzip.open(folder / "cuts.jsonl.gz", "wt", compresslevel=1) as file:
        for number in range(cuts):
            file.write(json.dumps(some[number % len(some)] | {"id": f"{number:08}"}) + "\n")
    shape: dict[str, Any] = {"hidden_size": 48, "num_heads": 2, "units": 64, "depth": 2}
    shape |= {"channels": 16, "positional_kernel": 16, "positional_groups": 4}
    Encoder(hubert_config(**shape)).save_pretrained(folder / "teacher")
    command = [sys.executable, "-m", "skill_speech.cli", "compress", "--teacher", folder / "teacher"]
    command += ["--data", folder / "cuts.jsonl.gz", "--output", folder / "run", "--clusters", "2"]
    command += ["--analysis.calibration_seconds", "60", "--validation_seconds", "20"]
    command += ["--stage1.steps", "20", "--stage1.warmup_steps", "2", "--stage1.sparsity_steps", "4"]
    command += ["--stage1.batch_seconds", "16", "--stage2.steps", "20", "--stage2.warmup_steps", "2"]
    command += ["--stage2.batch_seconds", "16"]
    started = time.time()
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    with (folder / "run/stage1/metrics.csv").open(newline="", encoding="utf-8") as file:
        # A row is numbered by the updates before it.
        first = next(row for row in csv.DictReader(file) if row["step"] == "1")
    return float(first["time"]) - started


def peak_mib() -> float:
    """The most memory that this process has held."""
    return peak_memory() / 2**20


def measure(data: str, streamed: int) -> dict[str, float]:
    """What a run does with its data before the first step, and then with the next `streamed` cuts."""
    imported, clock, cpu = peak_mib(), time.perf_counter(), time.process_time()
    train, _ = split_cuts(open_cuts(data, absolute_paths=True), validation_seconds=300, seed=0)
    batches = TrainingBatches(train, batch_seconds=BATCH_SECONDS)
    endless = iter(batches)
    next(endless)
    first = {
        "first_batch_seconds": time.perf_counter() - clock,
        "first_batch_cpu_seconds": time.process_time() - cpu,
        "first_batch_mib": peak_mib() - imported,
    }
    cpu, cuts, made = time.process_time(), 0, 0
    while cuts < streamed:
        cuts += len(next(endless))
        made += 1
    return first | {
        "peak_mib": peak_mib() - imported,
        "imported_mib": imported,
        "cpu_microseconds_per_cut": 1e6 * (time.process_time() - cpu) / cuts,
        "cuts_per_batch": cuts / made,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    made = parser("manifests", __doc__)
    made.add_argument("--measure", help=argparse.SUPPRESS)
    options: Any = parse(made, arguments)
    streamed = STREAMED_CUTS // 10 if options.quick else STREAMED_CUTS
    if options.measure:
        print(json.dumps(measure(options.measure, streamed)))
        return 0
    report = Report("made-up manifests without audio, one rank", options)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for cuts in QUICK if options.quick else SIZES:
            for kind in KINDS:
                path = make(Path(name), cuts, kind)
                command = [sys.executable, "-m", "benchmarks.manifests", "--json", "-", "--measure", str(path)]
                command += ["--quick"] * options.quick
                found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
                rows.append({"kind": kind, "cuts": cuts} | {name: round(value, 3) for name, value in found.items()})
        cuts = rows[-1]["cuts"]
        update = seconds_to_the_first_update(Path(name) / "audio", cuts)
    report.figures |= {"batch_seconds": BATCH_SECONDS, "streamed_cuts": streamed, "rows": rows}
    for row in rows:
        name = f"{row['kind']}, {row['cuts']:,} cuts: first batch within {START:g} s"
        report.add(name, START, row["first_batch_seconds"], 1.0, cpu_seconds=row["first_batch_cpu_seconds"])
    report.add(f"manifest, {cuts:,} cuts: command to first update within {START:g} s", START, update, 1.0)
    for kind in KINDS:
        *_, smaller, largest = (row for row in rows if row["kind"] == kind)
        name = f"{kind}: memory with {smaller['cuts']:,} cuts against {largest['cuts']:,}"
        report.add(name, smaller["peak_mib"], largest["peak_mib"], FLAT, unit="MiB")
    report.write(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
