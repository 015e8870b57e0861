"""JSON files of a run that hold what nobody wrote: one line that names the file, or a report all the same."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from skill_speech import InputError, report
from skill_speech.reporting.evidence import read_evidence
from skill_speech.reporting.html import write_page
from skill_speech.run.folder import RunFolder
from skill_speech.run.records import RECORDS, read_record, refuse_damage
from skill_speech.similarity import load_analysis
from tests.test_report_html import make_run, write_own_head

WRONG = [math.nan, math.inf, -math.inf, -1, 0, 1e30, 1e308, 10**400, "many", "", None, [], {}, True, [[]], {"a": None}]
TALLY = {"read": 9, "left_out": 1, "empty_in_a_row": 0, "converted": {"resampled": 2}}
TALLY |= {"kinds": {"missing": {"left_out": True, "cuts": 1, "files": {"a.wav": "a.wav: no such file"}}}}


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in nested values, the outer ones too."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(part, (*path, key))


def changed(values: Any, path: tuple[Any, ...], wrong: Any) -> Any:
    if not path:
        return wrong
    values = copy.deepcopy(values)
    place = values
    for key in path[:-1]:
        place = place[key]
    if wrong is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = wrong
    return values


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "run")
    outcome = json.loads((folder / "result.json").read_text())
    outcome["audio"] = {"stage1": TALLY}
    outcome["stages"]["stage1"] |= {"skipped": 3, "returns": 1, "validation": {"l1": 0.1}}
    (folder / "result.json").write_text(json.dumps(outcome))
    write_own_head(folder / "evaluation")
    return folder


@pytest.mark.parametrize(
    ("name", "values_each"),
    [
        ("result.json", 1),
        ("analysis/clusters.json", 1),
        pytest.param("result.json", 4, marks=pytest.mark.slow),
        pytest.param("analysis/clusters.json", 4, marks=pytest.mark.slow),
        ("evaluation/table.json", 3),
        ("evaluation/mine/pr.json", 1),
        ("evaluation/own_head.json", 1),
    ],
)
def test_a_report_is_written_or_the_damaged_file_named(run: Path, name: str, values_each: int) -> None:
    """Each value in turn is something else, whatever comes next of what is wrong; and it is not there."""
    path = run / name
    text = path.read_text()
    values, wrongs, refused = json.loads(text), cycle([*WRONG, KeyError]), 0
    try:
        for way in leaves(values):
            for wrong in [next(wrongs) for _ in range(values_each if way else len(WRONG))]:
                if not way and wrong is KeyError:
                    continue
                path.write_text(json.dumps(changed(values, way, wrong)))
                try:
                    page = write_page([read_evidence(run)])
                except InputError as error:
                    page, said = "", str(error)
                refused += not page
                if page:
                    assert page.endswith("</html>\n")
                else:
                    assert str(run / Path(name).parts[0]) in said, (way, wrong)
                    assert "\n" not in said
    finally:
        path.write_text(text)
    assert refused > 10


@pytest.mark.parametrize(
    "content", ["", "{", "null", "[1]", '"text"', "\x00", "[" * 100_000, '{"a": ' + "9" * 5_000 + "}"]
)
@pytest.mark.parametrize("kind", RECORDS)
def test_what_is_no_record_is_refused_with_what_to_do(tmp_path: Path, kind: str, content: str) -> None:
    path = tmp_path / f"{kind}.json"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_record(path, kind)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert RECORDS[kind][1] in str(caught.value)


def test_a_name_that_a_file_gives_cannot_break_the_message(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"a\n\x1b[31m" + 900 * "b": "text"}))
    with pytest.raises(InputError) as caught:
        read_record(tmp_path / "a.json", "validation")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_losses_that_are_no_numbers_are_losses(run: Path) -> None:
    """Training can end so; JSON of Python's has words for it."""
    text = (run / "result.json").read_text()
    try:
        values = json.loads(text) | {"loss": math.nan, "loss_after_surgery": math.inf}
        (run / "result.json").write_text(json.dumps(values))
        assert "on held-out speech" in write_page([read_evidence(run)])
    finally:
        (run / "result.json").write_text(text)


def test_settings_and_logs_that_are_out_of_range_are_named(run: Path) -> None:
    for name, old, new, words in (
        ("config.yaml", "cosine: 1.0", "cosine: much", "damaged \\(loss.cosine is 'much', not a number from 0"),
        ("config.yaml", "steps: 40", "steps: .nan", "damaged \\(stage1.steps is nan"),
        ("config.yaml", "seed: 7", "seed: [7]", "damaged \\(seed is \\[7\\]"),
        ("config.yaml", "method: skill", "method: 7", "not a run's settings"),
        ("stage1/metrics.csv", "step,", "stop,", "a row without its step"),
        ("stage1/metrics.csv", ",0.3,", ",a third,", "cannot be read as a table of numbers"),
    ):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))
        try:
            with pytest.raises(InputError, match=words):
                read_evidence(run)
        finally:
            (run / name).write_text(text)
    text = (run / "stage1/metrics.csv").read_text()
    for huge in ("1e308", "-1e308", "nan", "inf"):
        (run / "stage1/metrics.csv").write_text(text.replace(",0.3,", f",{huge},"))
        write_page([read_evidence(run)])
    (run / "stage1/metrics.csv").write_text(text)


def test_an_analysis_of_other_layers_is_refused(run: Path) -> None:
    path = run / "analysis/clusters.json"
    text = path.read_text()
    values = json.loads(text)
    twice = copy.deepcopy(values)
    twice["clusters"][0]["layers"] = twice["clusters"][1]["layers"]
    loop = copy.deepcopy(values)
    loop["linkage"][0][0] = len(values["linkage"]) + 1
    fewer = values | {"linkage": values["linkage"][:-1]}
    for wrong in (twice, loop, fewer):
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match="the analysis cannot be read"):
            load_analysis(run / "analysis")
    path.write_text(text)
    load_analysis(run / "analysis")


def test_a_run_is_finished_when_its_outcome_is_there(tmp_path: Path) -> None:
    """So that a damaged result.json may be deleted, and is written again."""
    folder = RunFolder(tmp_path / "run")
    folder.report("finished", finished=True)
    assert not folder.is_finished()
    (tmp_path / "run/result.json").write_text("{}")
    assert folder.is_finished()


def test_half_a_character_is_shown_as_its_escape(run: Path) -> None:
    """JSON and YAML can say what UTF-8 cannot."""
    settings = run / "config.yaml"
    text = settings.read_text()
    settings.write_text(text + '"\\uD800": "\\uDFFF"\n')
    try:
        page = report(str(run), output=str(run / "odd.html")).read_text(encoding="utf-8")
    finally:
        settings.write_text(text)
    assert "\\ud800" in page
    assert "\\udfff" in page


def test_the_errors_of_every_threshold_belong_to_a_result() -> None:
    """Diarization's: what a task writes has to be what is read."""
    result = {"kind": "a", "task": "sd", "model": "m", "parameters": 1, "synthetic": "", "not_the_protocol": {}}
    result |= {"metrics": {"der": 3.5, "der_by_threshold_and_median": {"0.3, 1": 4.0}}, "layer_weights": [1.0]}
    refuse_damage(Path("sd.json"), result, "result")
    with pytest.raises(InputError, match="der_by_threshold_and_median"):
        refuse_damage(Path("sd.json"), result | {"metrics": {"der_by_threshold_and_median": {"0.3, 1": "x"}}}, "result")
