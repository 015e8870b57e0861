"""The study: its grid in the order of worth, and tables that follow from the records alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

pytest.importorskip("espeakng_loader")

from lab.corpora.noisy import in_noise, make_noisy
from lab.study.cells import _borrow_baselines, _evaluation, make_data
from lab.study.fidelity import RIDGE, explained_variance, fidelity
from lab.study.grid import Study, merged
from lab.study.tables import Scores, _by_seed, _of_group, _pooled, _stage1, _to_base, _variants, write_tables
from skill_speech.data import load_waveform
from skill_speech.evaluation.corpora import find_corpora, read_task

STUDY = Path(__file__).parents[1] / "lab" / "study" / "study.yaml"
MINI = Path(__file__).parents[1] / "lab" / "teachers" / "hubert-mini"


def record(name: str, kind: str, teacher: str, method: str, seed: int, **metrics: float) -> dict[str, Any]:
    gates = [[0, 0.1], [4, 0.7 + 0.01 * seed]]
    student = {"compress": {}, "macs": 1e8, "loss": -1.0, "loss_after_surgery": -0.5 - seed / 4, "clusters": None}
    student |= {"curves": {"stage1": {"train/sparsity_expected": gates}}}
    student |= {"fidelity": {"explained": [1.0, 0.9], "layer": [0, 1]}}
    widths = {"widths": {"channels": [4] * 7, "heads": [[0, 1], []], "units": [5, 0]}}
    return {
        "id": name,
        "kind": kind,
        "teacher": teacher,
        "method": method,
        "sparsity": 0.75 if kind == "student" else None,
        "seed": seed,
        "params": {"fbank": 0, "teacher": 4_000_000, "student": 1_000_000}[kind],
        "metrics": metrics,
        "layer_weights": {"pr": [0.5, 0.25, 0.25], "ks": [0.2, 0.3, 0.5]},
    } | (student | widths if kind == "student" else {})


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "study.yaml"
    path.write_text(
        "speech: {}\ncorpora: {}\nteachers: {t: somewhere}\nheads: heads.yaml\ntasks: pr,ks\npages: [docs/results.md]\n"
        "compress: {clusters: 4, stage1: {steps: 5, warmup_steps: 1}}\n"
        "variants: {skill: {}, dphubert: {method: dphubert}, short: {stage1: {steps: 2}}, macs: {macs: '0.5'}}\n"
        "groups:\n"
        "- {name: headline, teachers: [t], variants: [skill, dphubert], sparsities: [0.75], seeds: [0, 1]}\n"
        "- {name: sparsity, teachers: [t], variants: [skill, dphubert], sparsities: [0.6, 0.75], seeds: [0]}\n"
        "- {name: ablations, teachers: [t], variants: [skill, short, macs], sparsities: [0.75], seeds: [0],\n"
        "   tasks: pr}\n"
    )
    return Study.read(path)


def test_every_cell_comes_once_and_the_worthiest_first(study: Study) -> None:
    cells = study.cells()
    assert [cell.id for cell in cells] == [
        "fbank-seed0",
        "t-seed0",
        "t-skill-sp75-seed0",
        "t-dphubert-sp75-seed0",
        "t-skill-sp75-seed1",
        "t-dphubert-sp75-seed1",
        "t-skill-sp60-seed0",
        "t-dphubert-sp60-seed0",
        "t-short-sp75-seed0",
        "t-macs-seed0",
    ]
    assert cells[2].groups == ("headline", "sparsity", "ablations")
    settings = {cell.id: study.settings(cell) for cell in cells if cell.kind == "student"}
    assert settings["t-short-sp75-seed0"] == {
        "clusters": 4,
        "stage1": {"steps": 2, "warmup_steps": 1},
        "teacher": "somewhere",
        "seed": 0,
        "sparsity": 0.75,
    }
    assert "sparsity" not in settings["t-macs-seed0"]
    assert settings["t-macs-seed0"]["macs"] == "0.5"


def test_a_group_may_state_fewer_tasks_and_a_cell_has_those_of_its_first(study: Study) -> None:
    tasks = {cell.id: cell.tasks for cell in study.cells()}
    assert tasks["t-short-sp75-seed0"] == tasks["t-macs-seed0"] == "pr"
    assert tasks["t-skill-sp75-seed0"] == tasks["t-skill-sp60-seed0"] == tasks["t-seed0"] == "pr,ks"


def test_a_student_s_scores_lie_in_its_run_beside_the_baselines_of_its_seed(study: Study, tmp_path: Path) -> None:
    cells = {cell.id: cell for cell in study.cells()}
    for name, kind in (("fbank-seed0", "fbank"), ("t-seed0", "teacher")):
        theirs = tmp_path / "cells" / name / "evaluation"
        assert _evaluation(cells[name], tmp_path) == theirs
        (theirs / kind).mkdir(parents=True)
        (theirs / "evaluation.json").write_text("mark")
        for task in ("pr", "ks"):
            (theirs / kind / f"{task}.json").write_text(f"{kind} {task}")
    for name in ("t-macs-seed0", "t-skill-sp75-seed1"):
        _borrow_baselines(study, cells[name], tmp_path)
    folder = _evaluation(cells["t-macs-seed0"], tmp_path)
    assert folder == tmp_path / "cells" / "t-macs-seed0" / "run" / "evaluation"
    found = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*.json")}
    # Evaluated on pr alone, so that the teacher's other task is left where it is.
    assert found == {"evaluation.json": "mark", "fbank/pr.json": "fbank pr", "teacher/pr.json": "teacher pr"}
    assert not _evaluation(cells["t-skill-sp75-seed1"], tmp_path).exists()  # no baseline of that seed


def test_changes_do_not_reach_the_settings_they_are_made_to() -> None:
    settings = {"a": {"b": 1}, "c": 2}
    assert merged(settings, {"a": {"d": 3}}) == {"a": {"b": 1, "d": 3}, "c": 2}
    assert settings == {"a": {"b": 1}, "c": 2}


def test_the_score_is_0_for_filterbanks_and_1000_for_the_teacher() -> None:
    baselines = [
        record("f", "fbank", "", "", 0, PER=60.0, PR=60.0, KS=40.0, QbE=50.0, SF_F1=0.0, SF_CER=100.0),
        record("t", "teacher", "t", "", 0, PER=20.0, PR=20.0, KS=80.0, QbE=51.0, SF_F1=80.0, SF_CER=20.0),
    ]
    scores = Scores(baselines)
    assert [column.name for column in scores.columns("t")] == ["PR", "KS", "SF_F1", "SF_CER"]
    assert scores.of(record("f", "fbank", "t", "", 0, **baselines[0]["metrics"]), ("pr", "ks", "sf")) == pytest.approx(
        0
    )
    assert scores.of(baselines[1], ("pr", "ks", "qbe", "sf")) == pytest.approx(1000)
    # Half of the way in PR, all of it in KS, a quarter and three quarters in SF, which count as one task.
    student = record("s", "student", "t", "skill", 0, PR=40.0, KS=80.0, QbE=0.0, SF_F1=20.0, SF_CER=40.0)
    assert scores.of(student, ("pr", "ks", "qbe", "sf")) == pytest.approx(1000 * (0.5 + 1 + 0.5) / 3)
    assert scores.of(student, ("pr", "ks")) == pytest.approx(1000 * (0.5 + 1) / 2)
    del student["metrics"]["KS"]
    assert scores.of(student, ("pr", "ks")) is None
    assert scores.of(student, ("pr", "sf")) == pytest.approx(500)


def test_tables_follow_from_the_records(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "results.md"
    page.write_text("before\n<!-- study: headline -->\nold\n<!-- end -->\nafter\n")
    records = [
        record("fbank-seed0", "fbank", "", "", 0, PR=60.0, KS=40.0),
        record("t-seed0", "teacher", "t", "", 0, PR=20.0, KS=80.0),
        record("t-skill-sp75-seed0", "student", "t", "skill", 0, PR=30.0, KS=70.0),
        record("t-skill-sp75-seed1", "student", "t", "skill", 1, PR=32.0, KS=70.0),
        record("t-dphubert-sp75-seed0", "student", "t", "dphubert", 0, PR=40.0, KS=60.0),
        record("t-dphubert-sp75-seed1", "student", "t", "dphubert", 1, PR=40.0, KS=58.0),
    ]
    results = tmp_path / "results"
    (results / "records").mkdir(parents=True)
    for one in records:
        (results / "records" / f"{one['id']}.json").write_text(json.dumps(one))
    write_tables(study, results)
    headline = json.loads((results / "headline.json").read_text())
    assert {one["id"]: round(one["score"]) for one in headline if one["kind"] == "student"} == {
        "t-skill-sp75-seed0": 750,
        "t-skill-sp75-seed1": 725,
        "t-dphubert-sp75-seed0": 500,
        "t-dphubert-sp75-seed1": 475,
    }
    text = page.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| t | SKILL | 1M | 2 | 31.0 ± 1.4 | 70.0 ± 0.0 | 738 ± 18 |" in text
    assert (
        "t: SKILL is better (+250, spread 25, 2 seeds). Single measures, beyond their spread: SKILL in PR PER" in text
    )
    assert "| t | DPHuBERT | not run | 488 ± 18 (2) |" in (results / "sparsity.md").read_text()
    assert (
        "| t | 75% | SKILL | 2 | 1M | 100M | 31.0 ± 1.4 | 725 ± 35 |  | 95.0 ± 0.0 |  | 70.5 ± 0.7 |"
        in (results / "ablations.md").read_text()
    )
    assert "Not run, 4 of 10 cells" in (results / "missing.md").read_text()
    assert "| t | 75% | SKILL | 2 | 100.0 | 90.0 | 95.0 ± 0.0 | 70.5 ± 0.7 |" in (results / "fidelity.md").read_text()
    for name in ("headline", "sparsity", "survivors-t", "layers-t", "fidelity"):
        assert (results / f"{name}.png").stat().st_size > 5_000
    # A difference below the spread is a tie.
    for one, value in zip(records[4:], (29.0, 45.0), strict=True):
        one["metrics"] |= {"PR": value, "KS": 70.0}
        (results / "records" / f"{one['id']}.json").write_text(json.dumps(one))
    write_tables(study, results)
    assert "t: a tie" in page.read_text()


def test_two_variants_with_seeds_are_told_apart_by_their_own_spread(study: Study) -> None:
    students = [
        record(f"{method}{seed}", "student", "t", method, seed, PR=30.0) | {"score": score, "tasks": ["pr"]}
        for method, scores in {"skill": [900.0, 902.0], "dphubert": [890.0, 892.0], "short": [880.0]}.items()
        for seed, score in enumerate(scores)
    ]
    # A third variant whose seeds lie far apart does not make a tie of the first two, but it does of a single run.
    students += [students[0] | {"method": "macs", "seed": seed, "score": 100.0 * seed} for seed in range(3)]
    rows = {line.split(" | ")[2]: line for line in _variants(study, students)[2:-2]}
    assert "| -10 |" in rows["DPHuBERT"]
    assert "| -20 (tie) |" in rows["short"]


def test_pairs_of_a_seed_stand_above_each_other(study: Study) -> None:
    steps = {"stage1": {"steps": 5}, "stage2": {"steps": 3}}
    students = [
        record(f"{method}{seed}", "student", "t", method, seed) | {"score": 900.0 + seed, "compress": steps}
        for method, seed in (("short", 1), ("skill", 1), ("skill", 0))
    ]
    lines = _by_seed(study, students)
    assert lines[2:] == [
        "| t | SKILL | 5 + 3 | 900, 901 | 900 ± 1 | 95.0, 95.0 | 95.0 ± 0.0 | 70.0, 71.0 | -0.50, -0.75 |",
        "| t | short | 5 + 3 | not run, 901 | 901 | not run, 95.0 | 95.0 | not run, 71.0 | not run, -0.75 |",
    ]
    assert _by_seed(study, []) == ["Not run."]


def test_how_far_stage_1_got_is_said_of_the_students_from_which_most_is_removed(study: Study) -> None:
    students = [
        record(f"{name}{seed}", "student", "t", name, seed) for name in ("dphubert", "skill") for seed in (1, 0)
    ]
    lines = _stage1(study, [*students, students[0] | {"id": "less", "sparsity": 0.5}])
    assert lines[2:] == [
        "| t | SKILL | 0, 1 | 70.0, 71.0 | -0.50, -0.75 | -1.00, -1.00 |",
        "| t | DPHuBERT | 0, 1 | 70.0, 71.0 | -0.50, -0.75 | -1.00, -1.00 |",
    ]
    assert _stage1(study, []) == ["Not run."]


def test_a_difference_below_two_standard_errors_is_a_tie() -> None:
    assert _pooled([[1.0], []]) is None
    # Variances 2 and 16/3 with one and two degrees of freedom.
    assert (spread := _pooled([[1.0, 3.0], [5.0, 9.0, 5.0], [7.0]])) is not None
    assert spread == pytest.approx(((2.0 + 2 * 16 / 3) / 3) ** 0.5)
    # Over the seeds that both have, two of them: two standard errors are 2.
    ours, base = {0: 10.0, 1: 11.0, 2: 99.0}, {0: 8.0, 1: 9.0, 3: 0.0}
    assert _to_base(ours, base, 1.0, 1) == "+2.0 (tie)"
    assert _to_base(ours | {1: 11.1}, base, 1.0, 2) == "+2.05"
    assert _to_base(ours, base, None, 1) == ""
    assert _to_base(ours, {7: 1.0}, 1.0, 1) == ""


def test_fidelity_is_that_of_ridge_regressions() -> None:
    generator = torch.Generator().manual_seed(0)
    student_SNE = torch.randn(2, 400, 5, generator=generator) + 3
    told_NE = student_SNE[1].square()
    teacher_LND = torch.stack([told_NE @ torch.randn(5, 4, generator=generator), student_SNE[0][:, :4] * 7 - 2])
    teacher_LND += 0.3 * torch.randn(teacher_LND.shape, generator=generator)
    fit, test = slice(None, 250), slice(250, None)
    found_SL = explained_variance(teacher_LND[:, fit], student_SNE[:, fit], teacher_LND[:, test], student_SNE[:, test])
    for source, fit_NE in enumerate(student_SNE[:, fit].double().numpy()):
        penalty = RIDGE * len(fit_NE) * fit_NE.var(0).mean()
        for target, layer_ND in enumerate(teacher_LND.double().numpy()):
            scaler = StandardScaler().fit(layer_ND[fit])
            ridge = Ridge(alpha=penalty).fit(fit_NE, scaler.transform(layer_ND[fit]))
            wanted_ND = scaler.transform(layer_ND[test])
            error_D = ((wanted_ND - ridge.predict(student_SNE[source, test].numpy())) ** 2).mean(0)
            assert float(found_SL[source, target]) == pytest.approx(
                (1 - error_D / (wanted_ND**2).mean(0)).mean(), abs=1e-9
            )
    assert found_SL.argmax(0).tolist() == [1, 0]


def test_the_study_of_the_documentation_can_be_read() -> None:
    study = Study.read(STUDY)
    ids = [cell.id for cell in study.cells()]
    assert len(ids) == len(set(ids))
    assert sum(cell.kind == "student" and "headline" in cell.groups for cell in study.cells()) == 12
    assert {cell.teacher for cell in study.cells()} == {"", "hubert-mini", "wavlm-mini"}


def test_the_study_of_real_data_differs_from_it_in_what_it_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(STUDY.parents[2])
    synthetic, real = Study.read(STUDY), Study.read(STUDY.with_name("librispeech.yaml"))
    assert list(real.variants) == list(synthetic.variants)
    for name, changes in synthetic.variants.items():
        changed = real.variants[name]
        # What counts updates is another number in a longer run: the surgery comes at the same share of all updates.
        assert (changed == changes) is not any(
            "steps" in key for one in ("stage1", "stage2") for key in changes.get(one, {})
        )
        ours, theirs = (
            [merged(study.compress, own[name])[stage]["steps"] for stage in ("stage1", "stage2")]
            for study, own in ((real, real.variants), (synthetic, synthetic.variants))
        )
        assert ours == [50 * steps for steps in theirs]
    assert (real.note, real.pages, real.heads) == ("", [], "")
    cells = {cell.id: cell for cell in real.cells()}
    cell = cells["hubert-base-dphubert-sp75-seed2"]
    settings = real.settings(cell)
    assert settings["stage1"]["steps"] == 50_000
    assert (settings["teacher"], settings["method"]) == ("facebook/hubert-base-ls960", "dphubert")
    assert cell.tasks == "pr,asr,ks,qbe,sid,asv,sd,er,ic,sf"
    assert [part["weight"] for part in real.speech_in(tmp_path)] == [28_539, 104_014, 148_688]
    assert real.corpora_in(tmp_path) == Path("corpora")
    assert synthetic.speech_in(tmp_path) == str(tmp_path / "data" / "speech")
    assert synthetic.corpora_in(tmp_path) == tmp_path / "data" / "corpora"


def test_corpora_that_are_given_are_not_spoken_and_have_to_be_there(study: Study, tmp_path: Path) -> None:
    given = replace(
        study, speech=[{"path": str(tmp_path / "a")}, {"path": "s3://there/b"}], corpora=str(tmp_path / "c")
    )
    for name in ("a", "c"):
        with pytest.raises(SystemExit, match=rf"{name}: not there; say in that file where yours lies"):
            make_data(given, tmp_path / "out", 1)
        (tmp_path / name).mkdir()
    make_data(given, tmp_path / "out", 1)
    assert sorted(path.name for path in (tmp_path / "out" / "data").iterdir()) == ["done.yaml"]
    with pytest.raises(SystemExit, match="holds the data of another study"):
        make_data(study, tmp_path / "out", 1)


def test_noise_is_as_loud_as_asked_for_and_of_many_colors() -> None:
    speech_T = np.sin(np.arange(16_000) / 3).astype(np.float32) * np.linspace(0, 0.5, 16_000, dtype=np.float32)
    tilts = []
    for name in "abcdefgh":
        noise_T = in_noise(speech_T, 5.0, 16_000, name) - speech_T
        assert 20 * np.log10(np.linalg.norm(speech_T) / np.linalg.norm(noise_T)) == pytest.approx(5, abs=0.01)
        spectrum = np.square(np.abs(np.fft.rfft(noise_T)))
        tilts.append(spectrum[200:2_000].sum() / spectrum[200:].sum())
    assert max(tilts) > 0.75
    assert min(tilts) < 0.5
    loud_T = in_noise(2 * speech_T / np.abs(speech_T).max(), 5.0, 16_000, "a")
    assert np.abs(loud_T).max() == pytest.approx(1)


def test_only_test_splits_are_put_in_noise(synthetic_corpora: Path, tmp_path: Path) -> None:
    tasks, noisy = ("pr", "ks", "sid"), tmp_path / "noisy"
    make_noisy(synthetic_corpora, noisy, tasks, snr_db=5)
    before, after = find_corpora(synthetic_corpora), find_corpora(noisy)
    assert before.keys() == after.keys()
    for task in tasks:
        [clean], [heard] = read_task(task, before[task]), read_task(task, after[task])
        assert heard.synthetic == f"{clean.synthetic}, test in noise of 5 dB"
        assert heard.labels == clean.labels
        for split, cuts in clean.splits.items():
            for one, other in zip(cuts, heard.splits[split], strict=True):
                assert (one.id, one.duration) == (other.id, other.duration)
                same = np.array_equal(load_waveform(one), load_waveform(other))
                assert same == (split != "test"), one.id
    made = noisy.stat().st_mtime_ns
    assert make_noisy(synthetic_corpora, noisy, tasks, snr_db=5).stat().st_mtime_ns == made, "made once"


def test_a_student_that_hears_noise_knows_less(synthetic_corpora: Path) -> None:
    speech = synthetic_corpora / "LibriSpeech" / "test-clean"
    found = fidelity(str(MINI), str(MINI), speech, 5.0)
    assert found["explained"] == pytest.approx([1.0] * 13, abs=0.01), "the teacher itself"
    assert all(0 < noisy < 0.95 for noisy in found["explained_in_noise"])
    assert fidelity(str(MINI), str(MINI), speech, 60.0)["explained_in_noise"] == pytest.approx(
        found["explained"], abs=0.02
    )
    assert "explained_in_noise" not in fidelity(str(MINI), str(MINI), speech)


def test_scores_in_noise_stand_beside_those_without(study: Study) -> None:
    baselines = [record("f", "fbank", "", "", 0, PR=60.0), record("t", "teacher", "t", "", 0, PR=20.0)]
    students = [
        record(f"{method}{seed}", "student", "t", method, seed, PR=30.0) | {"metrics_in_noise": {"PR": noisy + seed}}
        for method, noisy in {"skill": 50.0, "dphubert": 40.0}.items()
        for seed in range(2)
    ]
    students.append(record("short0", "student", "t", "short", 0, PR=30.0))
    for one in students[:2]:
        one["fidelity"] = one["fidelity"] | {"explained_in_noise": [0.5, 0.4]}
    group = {"name": "headline", "tasks": "pr"}
    rows = _variants(study, _of_group(group, study, students, Scores(baselines)))
    assert "| score in noise ↑ | to SKILL | known in noise, % ↑ | to SKILL |" in rows[0]
    by_method = {line.split(" | ")[2]: line for line in rows[2:-2]}
    assert "| 238 ± 18 |  | 45.0 ± 0.0 |  |" in by_method["SKILL"]
    assert "| 488 ± 18 | +250 |  |  |" in by_method["DPHuBERT"]
