"""What every corpus is read into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lhotse import CutSet

TASKS = ("pr", "asr", "ks", "qbe", "sid", "asv", "sd", "er", "ic", "sf")
"""SUPERB's ten tasks (Yang et al. 2021, arXiv 2105.01051), in the order in which everything shows them."""


@dataclass(frozen=True)
class TaskData:
    """What a task learns from and is scored on.

    Attributes:
        task: one of TASKS.
        splits: name to cuts of 16 kHz mono audio, each cut a part of a file that `load_waveform` reads.
        labels: the sorted inventory that the training split has: classes (ks, sid, er), phonemes (pr), slot to values
            (ic); empty for the other tasks.
        fold: "" or the name of a cross-validation fold.
        extra: what only this task has.
    """

    task: str
    splits: Mapping[str, CutSet]
    labels: Sequence[str] | Mapping[str, Sequence[str]] = ()
    fold: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
