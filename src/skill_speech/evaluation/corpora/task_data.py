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
        splits: name to cuts of 16 kHz mono audio, each cut a part of a file that `load_waveform` reads. What a task
            learns is in the cut's single supervision (sd: one supervision per turn); each reader says where.
        labels: the sorted inventory: classes of the training split (ks, sid, er), its speakers (asv), its values of
            each slot (ic), the lexicon's phonemes (pr); empty for the other tasks.
        fold: "" or the name of a cross-validation fold.
        extra: what only this task has; see its reader.
        synthetic: "" for a real corpus, else one line that says what it is: to be in every title.
    """

    task: str
    splits: Mapping[str, CutSet]
    labels: Sequence[str] | Mapping[str, Sequence[str]] = ()
    fold: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    synthetic: str = ""
