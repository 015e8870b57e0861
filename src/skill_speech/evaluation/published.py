"""The published results that ours stand beside, and the score that sums them up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


@dataclass(frozen=True)
class Column:
    """One measure of SUPERB's table.

    Attributes:
        name: as published, and in tables.
        task, measure: where it is found in our results.
        higher_is_better: of it.
        title: of the column.
    """

    name: str
    task: str
    measure: str
    higher_is_better: bool
    title: str


COLUMNS = (
    Column("PR", "pr", "per", False, "PR PER ↓"),
    Column("ASR", "asr", "wer", False, "ASR WER ↓"),
    Column("KS", "ks", "accuracy", True, "KS Acc ↑"),
    Column("QbE", "qbe", "mtwv", True, "QbE MTWV ↑"),
    Column("SID", "sid", "accuracy", True, "SID Acc ↑"),
    Column("ASV", "asv", "eer", False, "ASV EER ↓"),
    Column("SD", "sd", "der", False, "SD DER ↓"),
    Column("ER", "er", "accuracy", True, "ER Acc ↑"),
    Column("IC", "ic", "accuracy", True, "IC Acc ↑"),
    Column("SF_F1", "sf", "slot_f1", True, "SF F1 ↑"),
    Column("SF_CER", "sf", "slot_cer", False, "SF CER ↓"),
)
"""In percent, MTWV times 100."""

SHOWN = (
    "FBANK",
    "wav2vec 2.0 Base",
    "HuBERT Base",
    "WavLM Base+",
    "DistilHuBERT",
    "FitHuBERT",
    "DPHuBERT",
    "DPWavLM",
    "ARMHuBERT",
    "LightHuBERT Small",
)
"""The published models that a table shows."""


@cache
def published() -> dict[str, Any]:
    """Contents of published_superb.json: rows, their sources, formula and reference of the score."""
    text = files("skill_speech.evaluation").joinpath("published_superb.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def published_rows() -> list[dict[str, Any]]:
    """The rows of the models in SHOWN, in that order, each with its source in full."""
    rows = {row["model"]: row for row in published()["rows"]}
    sources = published()["sources"]
    return [rows[name] | {"source": sources[rows[name]["source"]]} for name in SHOWN]


def filterbanks() -> dict[str, Any]:
    """A row with the published "scores" of log-mel filterbanks, 0 in SUPERB's score, and their "source"."""
    row = next(row for row in published()["rows"] if row["model"] == "FBANK")
    source = published()["sources"][row["source"]]
    return {"model": "FBANK", "source": source, "scores": {column.name: row[column.name] for column in COLUMNS}}


def reference() -> dict[str, Any]:
    """A row with the "scores" that are 1000: the best of wav2vec 2.0 and HuBERT in every measure."""
    return {"model": "best of wav2vec 2.0 and HuBERT", "scores": dict(published()["superb_s"]["reference"])}


def superb_s(scores: Mapping[str, float]) -> float | None:
    """SUPERB's score of a model: 0 for filterbanks, 1000 for the best of wav2vec 2.0 and HuBERT in every task.

    1000 times the mean over tasks of the mean over the task's measures of (s - s_FBANK) / (s_reference - s_FBANK)
    (superbbenchmark.org; the public set).

    Args:
        scores: measures by the names of COLUMNS.

    Returns:
        None where a measure is missing.
    """
    if any(column.name not in scores for column in COLUMNS):
        return None
    baseline, best = filterbanks()["scores"], reference()["scores"]
    by_task: dict[str, list[float]] = {}
    for column in COLUMNS:
        name = column.name
        share = (scores[name] - baseline[name]) / (best[name] - baseline[name])
        by_task.setdefault(column.task, []).append(share)
    return 1000 * sum(sum(shares) / len(shares) for shares in by_task.values()) / len(by_task)
