"""What a report says first: the outcome in a sentence, and what went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from skill_speech.reporting.evidence import read_evidence
from skill_speech.reporting.verdict import made_by, next_steps, verdict, warnings
from tests.test_report_html import make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def changed(run: Path, name: str, change: Callable[[Any], Any]) -> None:
    path = run / name
    if name.endswith(".yaml"):
        values = yaml.safe_load(path.read_text())
        change(values)
        path.write_text(yaml.safe_dump(values))
    else:
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))


def test_a_good_run_is_told_in_a_sentence(run: Path) -> None:
    changed(run, "config.yaml", lambda values: values.update(sparsity=0.75))
    made = read_evidence(run)
    said = verdict(made)
    assert said.startswith("25 % of the parameters of some/teacher-base (363k of 1.45M), 2.5 times as fast here. ")
    assert "SYNTHETIC" in said or "SUPERB" in said
    assert str(run / "config.yaml") in made_by(made)
    assert next_steps(made)[-1][1].startswith("skill-speech export ")


def test_what_was_not_scored_is_to_be_scored_next(tmp_path: Path) -> None:
    made = read_evidence(make_run(tmp_path / "a run", evaluation=False))
    if made.own_head is None:
        assert verdict(made).endswith("It has not been scored on a task yet.")
    _, first = next_steps(made)[0]
    assert first.startswith("skill-speech evaluate ")
    assert f"'{tmp_path}/a run/model'" in first  # a shell takes it


def test_of_several_budgets_those_with_room_left_are_not_missed(run: Path) -> None:
    changed(run, "config.yaml", lambda values: values.update(sparsity=0.5, macs="0.25"))
    assert not any("budget" in one for one in warnings(read_evidence(run)))


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (
            "config.yaml",
            {"sparsity": 0.9},
            "The budget was missed: 363k parameters are left (25.0 %), and 145k (10.0 %)",
        ),
        (
            "config.yaml",
            {"sparsity": 0.5},
            "The budget was missed: 363k parameters are left (25.0 %), and 725k (50.0 %)",
        ),
        (
            "config.yaml",
            {"sparsity": None, "params": "0.1"},
            "The budget was missed: 363k parameters are left (25.0 %)",
        ),
        (
            "config.yaml",
            {"sparsity": None, "macs": 0.1},
            "The budget was missed: 448M MACs are left (25.0 %), and 179M",
        ),
        ("result.json", {"loss": -0.2}, "Stage 2 did not lower the loss on held-out speech"),
    ],
)
def test_what_went_wrong_is_said(run: Path, name: str, change: dict[str, Any], words: str) -> None:
    before = warnings(read_evidence(run))
    changed(run, name, lambda values: values.update(change))
    new = [one for one in warnings(read_evidence(run)) if one not in before]
    assert any(words in one for one in new)


def test_layers_of_which_nothing_is_left_are_named(run: Path) -> None:
    def empty(values: Any) -> None:
        values["widths"]["student"]["heads"][1] = []
        values["widths"]["student"]["units"][1] = 0

    changed(run, "result.json", empty)
    assert any(one.startswith("Nothing is left of h_2 (1 of ") for one in warnings(read_evidence(run)))


def test_sparsity_beyond_the_target_and_short_of_it_is_said(run: Path) -> None:
    path = run / "stage1/metrics.csv"

    def with_end(expected: float) -> list[str]:
        rows = ["step,time,train/sparsity_expected,train/sparsity_target", "0,1.0,0.1,0.0", "9,2.0,0.5,0.75"]
        path.write_text("\n".join([*rows, f"19,3.0,{expected},0.75"]) + "\n")
        return warnings(read_evidence(run))

    assert not any("Stage 1" in one for one in with_end(0.76))
    assert any("Stage 1 ended 5.0 points short of its target" in one for one in with_end(0.70))
    assert any("Stage 1 was up to 6.0 points smaller than its target" in one for one in with_end(0.81))


def test_little_audio_few_items_and_uncertain_clusters_are_said(run: Path) -> None:
    def uncertain(values: Any) -> None:
        values["borders"] = {"halves": 0.95, "other_view": 0.4}

    changed(run, "analysis/clusters.json", uncertain)
    changed(
        run,
        "result.json",
        lambda values: values.update(audio={"stage1": {"read": 100, "left_out": 30, "kinds": {}, "converted": {}}}),
    )
    said = warnings(read_evidence(run))
    assert any(one.startswith("30 % of the audio was left out") for one in said)
    assert any("The clusters are uncertain: borders are not firm" in one for one in said)


def test_a_budget_of_time_that_was_missed_is_said(run: Path) -> None:
    made = read_evidence(run)
    fast = made.teacher.real_time_factor / made.student.real_time_factor
    times = {"teacher": 10.0, "student": 2.5, "utterance": 10.0, "machine": {}}
    for asked, said in ((fast, False), (2 * fast, True)):
        made.outcome["times"] = times | {"budget": 10.0 / asked}
        assert any("budget of time was missed" in one for one in warnings(made)) == said


def test_a_student_without_attention_heads_is_said(run: Path) -> None:
    def without_heads(values: dict[str, Any]) -> None:
        widths = values["widths"]["student"]
        widths["heads"] = [[] for _ in widths["heads"]]

    changed(run, "result.json", without_heads)
    assert any("No attention head is left" in one for one in warnings(read_evidence(run)))
