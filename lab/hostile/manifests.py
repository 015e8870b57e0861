"""Manifests and shards."""

from __future__ import annotations

import copy
import gzip
import json
import random
from pathlib import Path
from typing import Any

from .good import BASE
from .values import CANARY, NUMBERS, TEXTS, Case, as_json, bent

MOST_BYTES = 10 << 20
"""Of a file that is made longer: larger ones have no bounds on time."""


def _data_command(source: str, rng: random.Random) -> tuple[str, ...]:
    more = rng.choice((("--decode", "true"), ("--absolute_paths", "true"), ("--max_bad", "100%"), (), ()))
    command = rng.choice(
        (*(4 * [("prepare", source, "--output", "out.jsonl")]), ("prepare", source, "--output", "s", "--shards"))
    )
    if rng.random() < 0.15:
        return ("analyze", *BASE["analyze"], "--data", source)
    return (*command, *more)


MORE_OF_A_CUT: list[dict[str, Any]] = [
    {"custom": {"corpus_root": "/"}},
    {"custom": {"corpus_root": "../.."}},
    {"custom": {"target_recording": {"id": "x", "sources": [{"type": "command", "source": f"touch {CANARY}"}]}}},
    {
        "features": {
            "type": "fbank",
            "num_frames": 10**9,
            "storage_type": "lilcom_url",
            "storage_path": "http://127.0.0.1:9",
        }
    },
    {"recording": {"transforms": [{"name": "Speed", "kwargs": {"factor": 1e-9}}]}},
    {"recording": {"transforms": [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": {"sources": []}}}]}},
    {"type": "MultiCut", "channel": [0, 1]},
    {"type": "PaddingCut", "num_samples": 10**12, "feat_value": 0.0, "sampling_rate": 16_000, "duration": 1e9},
    {"type": "MixedCut", "tracks": [{"type": "MonoCut", "cut": {}}]},
    {"type": "os.system"},
]
SOURCES: list[dict[str, Any]] = [
    {"type": "command", "source": f"touch {CANARY}"},
    {"type": "url", "source": "http://127.0.0.1:9/x.wav"},
    {"type": "memory", "source": "x"},
    *(
        {"source": text}
        for text in ("/etc/passwd", "/dev/zero", "/dev/stdin", "../outside.wav", "link.wav", ".", "a\0b", "\x1b[2J")
    ),
    {"source": "s3://a/b"},
    {"channels": list(range(10_000))},
    {"channels": [0, 0]},
]


def manifests(good: Path, rng: random.Random) -> Case:
    """Cuts with something wrong, plain or packed; or a tsv."""
    audio = (good / "speech/0.wav").read_bytes()
    files = {"speech/0.wav": audio, "speech/1.wav": audio}
    if rng.random() < 0.12:
        odd = [*TEXTS, "0.wav", "../x.wav"]
        lines = [
            f"{rng.choice(odd)}{rng.choice(chr(9) * 3 + ' ,')}{rng.choice([40_000, *NUMBERS])}"
            for _ in range(rng.choice((1, 3, 20_000)))
        ]
        root = rng.choice(("speech", "/", "..", "\x1b", "", "speech"))
        return Case(
            "manifest",
            _data_command("x.tsv", rng),
            files | {"x.tsv": "\n".join([root, *lines]).encode("utf-8", "surrogatepass")},
        )
    rows = [json.loads(line) for line in (good / "cuts.jsonl").read_text().splitlines()[:2]]
    for number, row in enumerate(rows):
        for source in row["recording"]["sources"]:
            source["source"] = f"speech/{number}.wav"
    way, row = rng.random(), rng.choice(rows)
    if way < 0.15:
        more = copy.deepcopy(rng.choice(MORE_OF_A_CUT))
        row["recording"] |= more.pop("recording", {})
        row |= more
    elif way < 0.3:
        row["recording"]["sources"][0] |= rng.choice(SOURCES)
    elif way < 0.4:  # lengths that agree with each other and not with the file
        seconds, rate = rng.choice((1e-9, 0.01, 100.0, 1e6, 1e12, 1e300)), rng.choice((1, 8_000, 16_000, 48_000, 10**9))
        row["recording"] |= {"sampling_rate": rate, "duration": seconds, "num_samples": int(min(seconds * rate, 1e300))}
        row["duration"] = seconds
    else:
        rows[rows.index(row)] = bent(row, rng)
    if rng.random() < 0.1:
        rows = rows * rng.choice((2, 3000))
    text = rng.choice((b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"")).join(as_json(row, rng) for row in rows) + b"\n"
    if rng.random() < 0.6:
        return Case("manifest", _data_command("x.jsonl", rng), files | {"x.jsonl": text})
    packed = gzip.compress(text)
    ways = (
        packed + packed,
        packed[:-8],
        packed + b"\0" * 1000,
        packed[:-4] + b"\xff" * 4,
        gzip.compress(packed),
        packed * min(3000, MOST_BYTES // len(packed)),
    )
    packed = rng.choice((*(6 * [packed]), *ways, gzip.compress(b" " * 10**8 if rng.random() < 0.3 else b"\n" * 10**6)))
    return Case("manifest", _data_command("x.jsonl.gz", rng), files | {"x.jsonl.gz": packed})


def shards(good: Path, rng: random.Random) -> Case:
    """The index of shards, or the manifest of one of them."""
    command = ("analyze", *BASE["analyze"], "--data", "shards")
    if rng.random() < 0.6:
        tree = bent(json.loads((good / "shards/index.json").read_text()), rng)
        return Case("shards", command, {"shards/index.json": as_json(tree, rng)}, ("shards",))
    name = "shards/cuts.000000.jsonl.gz"
    rows = [json.loads(line) for line in gzip.decompress((good / name).read_bytes()).splitlines()]
    rows[0] = bent(rows[0], rng)
    return Case(
        "shards", command, {name: gzip.compress(b"".join(as_json(row, rng) + b"\n" for row in rows))}, ("shards",)
    )
