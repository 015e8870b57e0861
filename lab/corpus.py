"""A synthetic corpus in memory: audio, transcripts of phonemes, and the phoneme of every frame."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from torch import Tensor

from lab.features import HOP, SAMPLE_RATE, WINDOW


@dataclass
class Utterance:
    """Samples as int16 (half the memory of float32), and when which phoneme starts."""

    name: str
    samples_T: npt.NDArray[np.int16]
    starts: npt.NDArray[np.float64]
    phonemes: list[str]

    @property
    def speaker(self) -> str:
        """Who says it: the first part of the name."""
        return self.name.split("-")[0]

    @property
    def frames(self) -> int:
        """Frames that an encoder makes of it."""
        return (len(self.samples_T) - WINDOW) // HOP + 1

    def waveform(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Float samples (T,)."""
        return torch.from_numpy(self.samples_T[start:stop].astype(np.float32) / 32768)

    def frame_phonemes(self) -> list[str]:
        """The phoneme at the middle of every frame; "" before the first one."""
        middles = (np.arange(self.frames) * HOP + WINDOW / 2) / SAMPLE_RATE
        index = np.searchsorted(self.starts, middles, side="right") - 1
        return [self.phonemes[i] if i >= 0 else "" for i in index]


def read_corpus(root: str | Path, min_seconds: float = 2.0) -> list[Utterance]:
    """All utterances of at least so many seconds that `lab.speech` wrote under a folder, in order of their names."""
    rows = []
    for path in sorted(Path(root).rglob("*.align.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["seconds"] >= min_seconds:
                rows.append((path.parent / f"{row['id']}.flac", row))
    if not rows:
        raise SystemExit(f"{root}: no aligned utterances; write some with python -m lab.speech --output {root}")

    def read(item: tuple[Path, dict]) -> Utterance:
        path, row = item
        samples_T, _ = soundfile.read(path, dtype="int16")
        starts = np.array([start for start, _ in row["phonemes"]])
        return Utterance(row["id"], samples_T, starts, [phoneme for _, phoneme in row["phonemes"]])

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(read, rows))
