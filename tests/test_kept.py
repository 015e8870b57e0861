"""What is kept of a teacher, how sure scores are, and what may stand beside published results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from skill_speech.evaluation.kept import MARGIN, kept
from skill_speech.evaluation.metrics.bootstrap import Estimate, estimate, mean_of, wilson
from skill_speech.evaluation.published import COLUMNS, filterbanks, published_rows, reference, superb_s
from skill_speech.evaluation.results import make_table, reach, write_table


def row(scores: dict[str, float], **intervals: tuple[float, float]) -> dict[str, Any]:
    return {
        "scores": scores,
        "intervals": {name: dict(zip(("low", "high"), ends, strict=True)) for name, ends in intervals.items()},
    }


def test_a_share_is_the_place_between_filterbanks_and_teacher_with_the_students_interval() -> None:
    student = row({"PR": 30.0, "KS": 90.0}, PR=(25.0, 40.0), KS=(85.0, 95.0))
    found = kept(student, row({"PR": 10.0, "KS": 95.0}), row({"PR": 80.0, "KS": 45.0}))
    assert found.by_measure["PR"] == pytest.approx((50 / 70, 40 / 70, 55 / 70))
    assert found.by_measure["KS"] == pytest.approx((45 / 50, 40 / 50, 50 / 50))
    assert found.overall is not None
    assert found.overall.value == pytest.approx((50 / 70 + 45 / 50) / 2)
    assert found.overall.low == pytest.approx(found.overall.value - np.hypot(10 / 70, 5 / 50) / 2)
    assert found.overall.high == pytest.approx(found.overall.value + np.hypot(5 / 70, 5 / 50) / 2)
    assert (found.tasks, found.too_close) == (2, ())


def test_measures_in_which_the_teacher_is_hardly_better_are_named_and_left_out() -> None:
    floor = {"PR": 80.0, "ASV": 10.0, "SD": 5.0}
    top = {"PR": 10.0, "ASV": 10.0 * (1 - MARGIN) + 0.01, "SD": 6.0}
    found = kept(row({"PR": 45.0, "ASV": 9.0, "SD": 5.0}), row(top), row(floor))
    assert set(found.by_measure) == {"PR"}
    assert found.too_close == ("ASV", "SD")
    assert found.overall is not None
    assert found.overall.value == pytest.approx(0.5)
    assert kept(row({"SD": 5.0}), row(top), row(floor)).overall is None


def test_between_superbs_own_ends_it_is_superbs_score() -> None:
    for values in published_rows():
        scores = {column.name: values[column.name] for column in COLUMNS if column.name in values}
        found = kept(row(scores), reference(), filterbanks()).overall
        if len(scores) == len(COLUMNS):
            assert found is not None
            assert 1000 * found.value == pytest.approx(superb_s(scores))


@pytest.mark.parametrize(("hits", "items"), [(0, 7), (3, 7), (50, 80), (80, 80)])
def test_wilsons_interval_is_scipys(hits: int, items: int) -> None:
    theirs = binomtest(hits, items).proportion_ci(method="wilson")
    assert wilson(100 * hits / items, items)[1:] == pytest.approx((100 * theirs.low, 100 * theirs.high), abs=1e-4)


def test_the_interval_of_a_mean_of_parts_is_that_of_a_simulation() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(value, 2.0, 40_000) for value in (50.0, 60.0, 40.0)]
    alone = [estimate(float(value), drawn) for value, drawn in zip((50.0, 60.0, 40.0), parts, strict=True)]
    wanted = estimate(50.0, np.mean(parts, axis=0))
    assert mean_of(alone) == pytest.approx(wanted, abs=0.05)
    assert np.isnan(mean_of([Estimate(1.0, float("nan"), float("nan"))]).low)


def result(task: str, metrics: dict[str, float], **more: Any) -> dict[str, Any]:
    values = {"metrics": metrics, "parameters": 5, "synthetic": "", "not_the_protocol": {}, "task": task}
    return values | more


def test_results_of_earlier_versions_have_wilsons_interval_where_items_are_right_or_wrong() -> None:
    tasks = {
        "pr": result("pr", {"per": 9.0}, items={"utterances": 30}, intervals={"per": {"low": 8.0, "high": 10.0}}),
        "ks": result("ks", {"accuracy": 80.0}, utterances={"train": 9, "test": 50}),
        "asr": result("asr", {"wer": 9.0}, utterances={"test": 70}),
        "er": result("er", {"accuracy": 60.0}, utterances={"test": 10}, folds={}),
    }
    items, intervals = reach(tasks)
    assert items == {"PR": 30, "KS": 50, "ASR": 70}
    assert intervals["PR"] == {"low": 8.0, "high": 10.0}
    assert tuple(intervals["KS"].values()) == pytest.approx(wilson(80.0, 50)[1:])
    assert set(intervals) == {"PR", "KS"}
    made = make_table({"m": tasks}, None).rows[0]
    assert (made.items, made.intervals) == (items, intervals)


def evaluated(folder: Path, *, synthetic: str = "", changed: bool = False, floor: bool = True) -> None:
    """An evaluation of the run of tests/test_report_html.py: its teacher, its student, filterbanks."""
    results: dict[str, dict[str, Any]] = {}
    for name, parameters, per, accuracy in (
        ("big", 1_450_100, 5.0, 96.0),
        ("small", 363_211, 12.0, 94.0),
        *([("fbank", 0, 82.0, 41.0)] if floor else []),
    ):
        for task, metrics in (("pr", {"per": per}), ("ks", {"accuracy": accuracy})):
            value = next(iter(metrics.values()))
            values = {
                "kind": "skill-speech evaluation",
                "model": name,
                "task": task,
                "metrics": metrics,
                "synthetic": synthetic,
                "not_the_protocol": {"steps": 3} if changed else {},
                "parameters": parameters,
                "settings": {"data": task},
                "layer_weights": [1.0],
                "items": {"utterances": 60 if task == "pr" else 3_000},
                "intervals": {next(iter(metrics)): {"low": value - 1, "high": value + 2}},
            }
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{task}.json").write_text(json.dumps(values))
            results.setdefault(name, {})[task] = values
    write_table(folder, make_table(results, None))
