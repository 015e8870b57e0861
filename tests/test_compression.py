"""The recipe from a teacher and a folder of audio to a student: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast, get_type_hints

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from skill_speech import Encoder, InputError, analyze, compress, load_encoder, report
from skill_speech.checkpoints import save_direction_norm
from skill_speech.compression import AnalysisConfig, CompressionConfig, plan, steps
from skill_speech.distillation import METHODS, StageConfig
from skill_speech.distillation.checkpoints import CheckpointFolder
from skill_speech.distillation.stage import Stage
from skill_speech.encoder import hubert_config, wavlm_config
from skill_speech.pruning import Widths, count_parameters
from skill_speech.run.folder import RunFolder
from skill_speech.timing import read_times, write_times
from tests.full_disk import full_at
from tests.test_times import some_machine

SMALL = {"hidden_size": 48, "num_heads": 4, "units": 96, "channels": 24, "depth": 4}
SMALL |= {"positional_kernel": 16, "positional_groups": 4}
QUICK: dict[str, Any] = {
    "clusters": 2,
    "control": "exact",
    "analysis": AnalysisConfig(calibration_seconds=12, batch_seconds=6, batch_frames=64),
    "stage1": StageConfig(steps=6, warmup_steps=2, sparsity_steps=3, batch_seconds=5),
    "stage2": StageConfig(steps=6, warmup_steps=2, batch_seconds=5, learning_rate=1e-4),
    "validation_seconds": 5.0,
    "validate_every": 3,
    "checkpoint_every": 2,
    "precision": "float32",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher") / "wavlm-tiny"
    Encoder(wavlm_config(**SMALL)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two minutes of modulated noise in files of 2 to 4 s."""
    folder, rng = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    for number in range(40):
        samples = int(rng.integers(32_000, 64_000))
        envelope = np.sin(np.arange(samples) / rng.uniform(500, 3_000))
        soundfile.write(folder / f"{number:02}.wav", 0.1 * envelope * rng.standard_normal(samples), 16_000)
    return str(folder)


@pytest.fixture(scope="module")
def finished(teacher: str, speech: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    compress(teacher, speech, str(folder), sparsity=0.6, **QUICK)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def refused(*arguments: Any, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        compress(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kill_at(stage: str, step: int, *arguments: Any, **settings: Any) -> None:
    """Compress, and die behind an update of a stage."""

    def stop(training: Stage) -> None:
        if training.name == stage and training.state.step == step:
            raise SystemExit("killed")

    with pytest.raises(SystemExit):
        compress(*arguments, on_step=stop, **settings)


def test_a_run_folder_has_what_the_design_promises(finished: Path) -> None:
    for name in (
        "config.yaml",
        "status.json",
        "analysis/cka.npy",
        "analysis/linkage.npy",
        "analysis/scales.npy",
        "analysis/clusters.json",
        "analysis/similarity.svg",
        "analysis/similarity.png",
        "analysis/dendrogram.svg",
        "analysis/dendrogram.png",
        "stage1/metrics.csv",
        "stage1/checkpoints/step=6.ckpt",
        "stage1/checkpoints/step=6.ckpt.sha256",
        "stage2/metrics.csv",
        "model/config.json",
        "model/model.safetensors",
        "model/README.md",
        "report.html",
    ):
        assert (finished / name).stat().st_size, name
    assert list((finished / "stage1").glob("events.*"))
    status = json.loads((finished / "status.json").read_text())
    assert status["finished"]
    settings = yaml.safe_load((finished / "config.yaml").read_text())
    assert settings["stage1"]["gate_learning_rate"] == 0.02  # defaults included
    assert not list(finished.rglob("*.tmp"))


def test_weight_normalization_goes_from_the_teacher_through_both_stages(
    teacher: str, speech: str, tmp_path: Path
) -> None:
    """At a rate of next to nothing ‖v‖ stays what the teacher's file says; at another it is learned."""
    whole, norm_K = load_encoder(teacher), torch.rand(16) + 0.5
    whole.save_pretrained(tmp_path / "teacher")
    save_direction_norm(tmp_path / "teacher", norm_K)
    still = StageConfig(steps=2, warmup_steps=1, sparsity_steps=1, batch_seconds=5, learning_rate=1e-9)
    settings = QUICK | {"control": "one-shot", "stage1": still, "stage2": still, "validation_seconds": 0}
    compress(str(tmp_path / "teacher"), speech, str(tmp_path / "run"), method="dphubert", sparsity=0.5, **settings)
    for place in ("stage1/student", "surgery", "stage2/student"):
        found_K = load_file(tmp_path / "run" / place / "direction_norm.safetensors")["direction_norm"]
        torch.testing.assert_close(found_K, norm_K)
    weight = "positional_conv.convs.0.weight"
    torch.testing.assert_close(weights(tmp_path / "run")[weight], whole.state_dict()[weight])
    assert sorted(path.name for path in (tmp_path / "run/model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_card_and_report_say_alike_how_much_was_heard(finished: Path) -> None:
    card, report = ((finished / name).read_text() for name in ("model/README.md", "report.html"))
    for stage in ("stage1", "stage2"):
        result = json.loads((finished / stage / "result.json").read_text())
        heard = f"{result['steps']} steps, {result['audio_seconds'] / 3600:.3g} h of audio"
        assert f"{stage} {heard}" in card
        assert heard in report


def test_the_student_has_the_size_asked_for(finished: Path, teacher: str) -> None:
    whole, student = load_encoder(teacher).num_parameters(), load_encoder(finished / "model")
    config = student.config
    assert student.num_parameters() == count_parameters(config, Widths.of(config))
    # Within 1 % of the target, and never above.
    assert 0.99 * 0.4 * whole <= student.num_parameters() <= 0.4 * whole
    assert config.num_layers == SMALL["depth"]
    assert config.hidden_dropout == load_encoder(teacher).config.hidden_dropout


def test_every_loss_term_and_the_price_of_size_are_logged(finished: Path) -> None:
    with (finished / "stage1/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == sorted({int(row["step"]) for row in rows})
    terms = "distillation l1 cosine sparsity_expected sparsity_target price gradient_norm".split()
    for term in [*terms, "audio_seconds_per_second"]:
        assert any(row[f"train/{term}"] for row in rows), term
    assert any(row["validation/distillation"] for row in rows)
    last = rows[-1] if rows[-1]["train/sparsity_target"] else rows[-2]
    assert float(last["train/sparsity_target"]) == pytest.approx(0.6)
    with (finished / "stage2/metrics.csv").open() as file:
        assert not any("lambda" in name for name in next(csv.reader(file)))


def test_a_second_identical_call_does_nothing_and_says_so(
    finished: Path, teacher: str, speech: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    with caplog.at_level("INFO", "skill_speech"):
        assert compress(teacher, speech, str(finished), sparsity=0.6, **QUICK).already_done
    assert "nothing to do" in caplog.text
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}


def test_a_changed_setting_is_refused_by_name(finished: Path, teacher: str, speech: str) -> None:
    changed = QUICK | {"clusters": 3, "stage2": StageConfig(steps=7, warmup_steps=2, batch_seconds=5)}
    message = refused(teacher, speech, str(finished), sparsity=0.6, **changed)
    assert "clusters (was 2, now 3)" in message
    assert "stage2.steps (was 6, now 7)" in message
    assert "stage1" not in message


def test_how_a_run_is_carried_out_may_change(finished: Path, teacher: str, speech: str) -> None:
    changed = QUICK | {"checkpoint_every": 5, "workers": 1}
    assert compress(teacher, speech, str(finished), sparsity=0.6, **changed).already_done


@pytest.mark.parametrize(("stage", "step"), [("stage1", 3), ("stage1", 5), ("stage2", 1), ("stage2", 5)])
def test_an_interrupted_run_goes_on_to_the_same_student(
    finished: Path, teacher: str, speech: str, tmp_path: Path, stage: str, step: int
) -> None:
    folder = tmp_path / "run"
    kill_at(stage, step, teacher, speech, str(folder), sparsity=0.6, **QUICK)
    status = json.loads((folder / "status.json").read_text())
    assert (status["stage"], status["finished"]) == (stage, False)
    assert not (folder / "model").exists()
    result = compress(teacher, speech, str(folder), sparsity=0.6, **QUICK)
    assert not result.already_done
    assert same(weights(folder), weights(finished))
    with (folder / stage / "metrics.csv").open() as one, (finished / stage / "metrics.csv").open() as other:
        logged = [[row["step"], row["train/l1"]] for row in csv.DictReader(one)]
        assert logged == [[row["step"], row["train/l1"]] for row in csv.DictReader(other)]


def test_a_run_does_not_resume_with_other_data_unless_told_to(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for name in ("speech/a", "speech/b", "held-out/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"{name}.wav", 0.1 * rng.standard_normal(48_000), 16_000)
    arguments = teacher, str(tmp_path / "speech"), str(tmp_path / "run")
    settings = QUICK | {"validation_data": str(tmp_path / "held-out")}

    def stop(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(steps, "analyze_layers", stop)
    for _ in range(2):  # the same data is not another
        with pytest.raises(SystemExit):
            compress(*arguments, **settings)
    noted = json.loads((tmp_path / "run/data.json").read_text())
    assert {name: part["cuts"] for name, part in noted.items()} == {"data": 2, "validation_data": 1}
    soundfile.write(tmp_path / "speech/c.wav", 0.1 * rng.standard_normal(48_000), 16_000)
    (tmp_path / "held-out/a.wav").rename(tmp_path / "held-out/b.wav")
    message = refused(*arguments, **settings)
    assert "data (had 2 cuts, now 3); validation_data (had 1 cuts, now 1)" in message
    assert json.loads((tmp_path / "run/data.json").read_text()) == noted
    with pytest.raises(SystemExit):
        compress(*arguments, **settings, accept_changed_data=True)
    assert json.loads((tmp_path / "run/data.json").read_text())["data"]["cuts"] == 3
    with pytest.raises(SystemExit):
        compress(*arguments, **settings)  # what was accepted is what is compared with from then on


def test_updates_of_several_batches_go_on_to_the_same_student(teacher: str, speech: str, tmp_path: Path) -> None:
    stages = {
        "stage1": StageConfig(steps=6, warmup_steps=2, sparsity_steps=3, batch_seconds=5, accumulate=2),
        "stage2": StageConfig(steps=2, warmup_steps=1, batch_seconds=5, accumulate=3),
    }
    compress(teacher, speech, str(tmp_path / "whole"), **QUICK | stages)
    kill_at("stage1", 3, teacher, speech, str(tmp_path / "run"), **QUICK | stages)
    compress(teacher, speech, str(tmp_path / "run"), **QUICK | stages)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))
    for name, batches in (("stage1", 2), ("stage2", 3)):
        result = json.loads((tmp_path / "whole" / name / "result.json").read_text())
        # Batches hold up to 5 s, cropped to their shortest of at least 2 s.
        assert 2 * result["steps"] * batches < result["audio_seconds"] <= 5 * result["steps"] * batches


@pytest.mark.parametrize("stage", ["analysis", "stage1", "surgery"])
def test_a_stage_starts_from_its_input_alone(
    finished: Path, teacher: str, speech: str, tmp_path: Path, stage: str
) -> None:
    compress(teacher, speech, str(tmp_path / "run"), sparsity=0.6, start_from=str(finished / stage), **QUICK)
    assert same(weights(tmp_path / "run"), weights(finished))
    assert (tmp_path / "run/stage1/checkpoints").exists() == (stage != "surgery")


def test_a_run_resumes_whose_analysis_was_made_with_another_seed(
    finished: Path, teacher: str, speech: str, tmp_path: Path
) -> None:
    settings = QUICK | {"seed": 7, "start_from": str(finished / "analysis"), "sparsity": 0.6}
    kill_at("stage1", 2, teacher, speech, str(tmp_path / "run"), **settings)
    compress(teacher, speech, str(tmp_path / "run"), **settings | {"start_from": None})
    compress(teacher, speech, str(tmp_path / "whole"), **settings)
    assert same(weights(tmp_path / "run"), weights(tmp_path / "whole"))


def test_what_is_no_finished_stage_is_refused(finished: Path, teacher: str, speech: str, tmp_path: Path) -> None:
    for source in (finished / "model", tmp_path / "nowhere/stage1"):
        message = refused(teacher, speech, str(tmp_path / "run"), start_from=str(source), **QUICK)
        assert "not a finished stage" in message
        assert not (tmp_path / "run").exists()


def test_compress_goes_on_from_an_analysis_in_the_same_folder(teacher: str, speech: str, tmp_path: Path) -> None:
    groups = analyze(teacher, speech, str(tmp_path / "run"), clusters=2, analysis=QUICK["analysis"])
    stamp = (tmp_path / "run/analysis/cka.npy").stat().st_mtime_ns
    assert analyze(teacher, speech, str(tmp_path / "run"), clusters=2, analysis=QUICK["analysis"]) == groups
    with pytest.raises(InputError, match=r"clusters \(was 2, now 3\)"):
        analyze(teacher, speech, str(tmp_path / "run"), clusters=3, analysis=QUICK["analysis"])
    assert "clusters (was 2, now 3)" in refused(teacher, speech, str(tmp_path / "run"), **QUICK | {"clusters": 3})

    assert not (tmp_path / "run/config.yaml").exists(), "the corrected call is not refused"
    compress(teacher, speech, str(tmp_path / "run"), sparsity=0.6, **QUICK)
    assert (tmp_path / "run/analysis/cka.npy").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs(teacher: str, speech: str, tmp_path: Path, method: Any) -> None:
    short = StageConfig(steps=2, warmup_steps=1, sparsity_steps=1, batch_seconds=5)
    settings = QUICK | {"stage1": short, "stage2": short, "validation_seconds": 0.0}
    result = compress(teacher, speech, str(tmp_path / "run"), method=method, params="0.5", **settings)
    assert result.loss is None
    assert result.student.total_parameters <= 0.5 * result.teacher.total_parameters
    grouped = METHODS[method].targets in ("skill", "skill-teacher-mean", "medoid")
    assert (tmp_path / "run/analysis").exists() == grouped


def test_a_pre_norm_teacher_has_its_layers_scaled_by_default(speech: str, tmp_path: Path) -> None:
    config = hubert_config(**SMALL, pre_norm=True, conv_norm="layer", conv_bias=True, input_normalization=True)
    torch.manual_seed(0)
    Encoder(config).save_pretrained(tmp_path / "teacher")
    losses = {}
    short = StageConfig(steps=2, warmup_steps=1, sparsity_steps=1, batch_seconds=5)
    for name, choice in (("default", None), ("on", True), ("off", False)):
        settings = QUICK | {"stage1": short, "stage2": short, "scale_layers": choice, "macs": "0.6"}
        losses[name] = compress(str(tmp_path / "teacher"), speech, str(tmp_path / name), **settings).loss
    assert losses["default"] == losses["on"] != losses["off"]


def test_a_mistake_leaves_no_folder_that_refuses_the_corrected_call(teacher: str, speech: str, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    assert "choose 1 to 5" in refused(teacher, speech, folder, **QUICK | {"clusters": 6})
    assert "no such file or folder" in refused(str(tmp_path / "x"), speech, folder, **QUICK)
    assert "no such file or folder" in refused(teacher, str(tmp_path / "x"), folder, **QUICK)
    assert "out of reach" in refused(teacher, speech, folder, sparsity=0.99, **QUICK)
    assert "stage1.steps is 0" in refused(teacher, speech, folder, **QUICK | {"stage1": StageConfig(steps=0)})
    message = refused(teacher, speech, folder, **QUICK | {"stage1": StageConfig(steps=100, warmup_steps=15_000)})
    assert "stage1.warmup_steps is 15000" in message
    assert not Path(folder).exists()


def test_a_folder_with_other_things_in_it_is_not_touched(teacher: str, speech: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "not a skill-speech run" in refused(teacher, speech, str(tmp_path), **QUICK)
    assert "--output is a folder" in refused(teacher, speech, str(tmp_path / "notes.txt"), **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


IN_ORDER = (
    *("analysis/cka.npy", "analysis/clusters.json", "stage1/batch.json", "stage1/validation_at_start.json"),
    *("stage1/checkpoints/step=2.ckpt.sha256", "stage1/checkpoints/step=4.ckpt", "stage1/metrics.csv"),
    *("stage1/student/model.safetensors", "stage1/student/projections.safetensors", "stage1/result.json"),
    *(
        "surgery/model.safetensors",
        "surgery/result.json",
        "stage2/checkpoints/step=6.ckpt",
        "stage2/student/config.json",
    ),
    *("bad_audio.json", "model/model.safetensors", "result.json", "model/README.md", "report.html", "status.json"),
)
"""What a run writes."""
FEW = ("stage1/checkpoints/step=4.ckpt", "surgery/model.safetensors", "stage2/student/config.json", "report.html")


@pytest.mark.parametrize("names", [FEW, pytest.param(IN_ORDER, marks=pytest.mark.slow)])
def test_a_full_disk_is_one_line_and_loses_nothing(
    teacher: str, speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path, names: Sequence[str]
) -> None:
    """The disk is full at one file after the other, and has room again for the next call."""
    folder = tmp_path / "run"
    for name in names:
        with monkeypatch.context() as patch:
            met = full_at(patch, folder / name)
            message = refused(teacher, speech, str(folder), sparsity=0.6, **QUICK)
        assert met, name
        assert "the disk is full: free some space and rerun the same command to resume" in message
        assert not [path for path in folder.rglob(".*") if path.is_file()], "nothing half written takes room"
    compress(teacher, speech, str(folder), sparsity=0.6, **QUICK)
    assert same(weights(folder), weights(finished))


@pytest.mark.parametrize("kind", ["fit", "other values"])
def test_damaged_files_of_a_run_are_named_and_may_be_deleted(
    teacher: str, speech: str, tmp_path: Path, finished: Path, kind: str
) -> None:
    folder, content = tmp_path / "run", "{" if kind == "fit" else '{"batch_seconds": "five", "steps": -1e400}'

    def is_named_and_deleted(*names: str) -> None:
        for name in names:
            (folder / name).write_text(content)
            assert f"{folder / name}: " in (message := refused(teacher, speech, str(folder), sparsity=0.6, **QUICK))
            assert "delete it and rerun the same" in message
            (folder / name).unlink()

    kill_at("stage1", 3, teacher, speech, str(folder), sparsity=0.6, **QUICK)
    is_named_and_deleted("status.json", "stage1/batch.json", "stage1/validation_at_start.json")
    kill_at("stage2", 3, teacher, speech, str(folder), sparsity=0.6, **QUICK)
    is_named_and_deleted("stage1/result.json")
    kill_at("stage2", 4, teacher, speech, str(folder), sparsity=0.6, **QUICK)
    is_named_and_deleted("surgery/result.json", "stage2/batch.json", "stage2/validation_at_start.json")
    compress(teacher, speech, str(folder), sparsity=0.6, **QUICK)
    assert json.loads((folder / "result.json").read_text())["stages"].keys() == {"stage1", "stage2"}
    assert same(weights(folder), weights(finished))
    is_named_and_deleted("result.json")
    assert not compress(teacher, speech, str(folder), sparsity=0.6, **QUICK).already_done
    assert compress(teacher, speech, str(folder), sparsity=0.6, **QUICK).already_done
    assert same(weights(folder), weights(finished))


def test_validation_may_be_at_a_stages_ends_alone(teacher: str, speech: str, tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "run"
    compress(teacher, speech, str(folder), sparsity=0.6, **QUICK | {"validate_every": 0})
    for stage in ("stage1", "stage2"):
        with (folder / stage / "metrics.csv").open() as file:
            assert [row["step"] for row in csv.DictReader(file) if row["validation/l1"]] == ["0", "6"]
    assert same(weights(folder), weights(finished))


def test_a_truncated_checkpoint_is_named_and_an_older_one_taken(
    teacher: str,
    speech: str,
    tmp_path: Path,
    finished: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "skill_speech")
    folder = tmp_path / "run"
    kill_at("stage1", 5, teacher, speech, str(folder), sparsity=0.6, **QUICK)
    checkpoints = folder / "stage1/checkpoints"
    assert sorted(path.name for path in checkpoints.glob("*.ckpt")) == ["step=2.ckpt", "step=4.ckpt"]
    newest = checkpoints / "step=4.ckpt"
    newest.write_bytes(newest.read_bytes()[:5_000])
    compress(teacher, speech, str(folder), sparsity=0.6, **QUICK)
    assert f"{newest}: damaged checkpoint" in caplog.text
    assert "resuming at step 2" in caplog.text
    assert same(weights(folder), weights(finished))


def test_nothing_but_damaged_checkpoints_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "step=4.ckpt").write_bytes(b"nothing")
    (tmp_path / "step=4.ckpt.sha256").write_text(f"{'0' * 64}  step=4.ckpt\n")
    with pytest.raises(InputError, match="every checkpoint is damaged"):
        CheckpointFolder(tmp_path, every=2).newest()


def test_a_loss_that_is_not_finite_stops_the_run_with_advice(speech: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    broken = Encoder(wavlm_config(**SMALL))
    with torch.no_grad():
        broken.layers[1].feed_forward.output.weight.fill_(1e30)
        broken.layers[1].feed_forward_norm.weight.fill_(1e30)
    broken.save_pretrained(tmp_path / "teacher")
    settings = QUICK | {"method": "dphubert", "validation_seconds": 0.0}
    assert "the teacher's states are not finite" in refused(
        str(tmp_path / "teacher"), speech, str(tmp_path / "by importance"), **settings
    )
    settings |= {"control": "lagrangian"}
    message = refused(str(tmp_path / "teacher"), speech, str(tmp_path / "run"), **settings)
    assert "the loss is nan at step 5, 5 updates in a row left out, and there is no earlier state" in message
    assert "lower the learning rate" in message


def test_what_went_wrong_stands_on_the_card_and_in_the_log(
    teacher: str, speech: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compress(teacher, speech, str(tmp_path / "run"), sparsity=0.6, **QUICK)
    words = "The whole run had 12 updates: a trial run, not a usable student."
    assert f"warning: {words}" in caplog.messages
    assert f"- **{words}**" in (tmp_path / "run/model/README.md").read_text()


def test_missing_data_and_a_folder_in_use_are_seen_before_anything_is_timed(
    teacher: str, speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_within_minutes", lambda *_: pytest.fail("something was timed"))
    nowhere, used, settings = str(tmp_path / "nowhere"), tmp_path / "used", QUICK | {"minutes": 1.0}
    used.mkdir()
    (used / "thesis.txt").write_text("x")
    assert "nowhere: no such file or folder" in refused(teacher, nowhere, str(tmp_path / "run"), **settings)
    assert "not empty and not a skill-speech run" in refused(teacher, speech, str(used), **settings)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.yaml").write_text("minutes: 2.0\n")
    assert "minutes (was 2.0, now 1.0)" in refused(teacher, speech, str(tmp_path / "begun"), **settings)


def test_of_other_minutes_the_lengths_that_follow_are_not_named(tmp_path: Path) -> None:
    before = {"minutes": 2.0, "seed": 0, "stage1": {"steps": 40}, "stage2": {"steps": 20}}
    RunFolder(tmp_path).write_settings(before)
    with pytest.raises(InputError) as caught:
        RunFolder(tmp_path).refuse_others(before | {"minutes": 3.0, "stage1": {"steps": 60}}, ())
    assert "settings: minutes (was 2.0, now 3.0). Choose" in str(caught.value)
    with pytest.raises(InputError, match=r"settings: stage1\.steps \(was 40, now 60\)\. Choose"):
        RunFolder(tmp_path).refuse_others(before | {"stage1": {"steps": 60}}, ())


def test_the_model_of_a_run_that_is_not_finished_is_not_just_missing(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text("{}")
    with pytest.raises(InputError, match="not finished: rerun the same compress command to resume"):
        load_encoder(tmp_path / "model")


def test_ctrl_c_saves_before_it_stops(teacher: str, speech: str, tmp_path: Path) -> None:
    def press(stage: Stage) -> None:
        if stage.name == "stage1" and stage.state.step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        compress(teacher, speech, str(tmp_path / "run"), sparsity=0.6, on_step=press, **QUICK)
    assert (tmp_path / "run/stage1/checkpoints/step=3.ckpt").exists()


def test_the_student_reaches_a_budget_of_macs(teacher: str, speech: str, tmp_path: Path) -> None:
    result = compress(teacher, speech, str(tmp_path / "run"), macs="0.5", **QUICK)
    assert compress(teacher, speech, str(tmp_path / "run"), macs=0.5, **QUICK).already_done, "a number, as in a recipe"
    assert 0.495 <= result.student.total_macs / result.teacher.total_macs <= 0.5


def test_a_killed_run_goes_on_with_the_times_that_it_measured(
    teacher: str, speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is as fast as was asked for by RUN/times.json, and the run says so."""
    tables = iter([some_machine(load_encoder(teacher).config)] * 2)  # a third one would be an error
    monkeypatch.setattr(plan, "measure_times", lambda encoder: next(tables))
    whole, killed, settings = tmp_path / "whole", tmp_path / "killed", QUICK | {"speedup": 1.5, "sparsity": 0.3}
    compress(teacher, speech, str(whole), **settings)
    kill_at("stage1", 4, teacher, speech, str(killed), **settings)
    compress(teacher, speech, str(killed), **settings)
    assert same(weights(killed), weights(whole))
    times = read_times(killed / "times.json", load_encoder(teacher).config)
    found = {
        who: times.count(config, Widths.of(config))
        for who, source in (("teacher", teacher), ("student", str(killed / "model")))
        for config in [load_encoder(source).config]
    }
    told = json.loads((killed / "result.json").read_text())["times"]
    assert told["budget"] == pytest.approx(found["teacher"] / 1.5)
    assert {who: told[who] for who in found} == pytest.approx(found)
    assert told["student"] <= told["budget"]
    for page in ("model/README.md", "report.html"):
        assert f"the budget is {told['budget']:.3g} ms for a second of audio (1.50× as fast" in (
            (killed / page).read_text().replace("Time: ", "time: ")
        )


@pytest.mark.parametrize("busy", [True, False])
def test_a_busy_machine_is_said_where_it_is_timed(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, busy: bool
) -> None:
    encoder, waits = load_encoder(teacher), iter([1.0, 101.0 if busy else 1.0])
    table, config = some_machine(encoder.config), SimpleNamespace(is_timed=True, start_from=None, times=None)
    monkeypatch.setattr(plan, "measure_times", lambda _: table)
    monkeypatch.setattr(plan, "seconds_waited", lambda: next(waits))
    assert plan.table_of_times(cast(CompressionConfig, config), encoder, RunFolder(str(tmp_path))) == table
    assert ("other processes took the cores" in caplog.text) == busy


def test_budgets_of_time_are_refused_before_anything_is_written(teacher: str, speech: str, tmp_path: Path) -> None:
    run, table = str(tmp_path / "run"), tmp_path / "times.json"
    assert "give speedup or latency" in refused(teacher, speech, run, times=str(table), **QUICK)
    assert "speedup is 1; it must be" in refused(teacher, speech, run, speedup=1, **QUICK)
    assert "times.json: cannot be read" in refused(teacher, speech, run, speedup=2, times=str(table), **QUICK)
    write_times(table, some_machine(load_encoder(teacher).config))
    assert "ms per second of audio; with everything" in refused(
        teacher, speech, run, speedup=1e3, times=str(table), **QUICK
    )
    assert not Path(run).exists()


def test_the_result_says_what_is_left_and_where_it_was_made(finished: Path, teacher: str) -> None:
    result = json.loads((finished / "result.json").read_text())
    for who, source in (("teacher", teacher), ("student", finished / "model")):
        config = load_encoder(source).config
        widths = result["widths"][who]
        assert widths["channels"] == [conv.channels for conv in config.convs]
        assert widths["heads"] == [list(layer.heads) for layer in config.layers]
        assert widths["units"] == [layer.units for layer in config.layers]
    assert result["environment"]["versions"]["torch"] == torch.__version__
    assert result["environment"]["threads"] == torch.get_num_threads()
    page = (finished / "report.html").read_text()
    assert report([str(finished)]).read_text() == page
    assert f"{result['loss']:.4f}" in page


def test_auto_precision_is_chosen_by_the_device_and_kept(
    teacher: str, speech: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = QUICK | {"precision": "auto"}
    monkeypatch.setattr(plan, "multiplies_bfloat16", lambda device: False)
    compress(teacher, speech, str(tmp_path / "run"), **settings)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["precision"] == "float32"
    monkeypatch.setattr(plan, "multiplies_bfloat16", lambda device: True)  # another machine
    assert compress(teacher, speech, str(tmp_path / "run"), **settings).already_done
    assert plan.fast_precision() == "bf16"


@pytest.mark.parametrize("control", ["one-shot", "lagrangian"])
def test_every_control_ends_in_a_student_of_the_budget_or_is_refused(
    teacher: str, speech: str, tmp_path: Path, control: str
) -> None:
    settings = QUICK | {"control": control, "sparsity": 0.6}
    run = tmp_path / "run"
    if control == "lagrangian":  # six updates cannot close the gates
        said = refused(teacher, speech, str(run), **settings)
        assert "the gates are open for" in said
        assert "updates at this gate_learning_rate" in said
        kept = compress(teacher, speech, str(run), **settings | {"missed_budget": "keep"})
        assert kept.student.total_parameters > 0.45 * kept.teacher.total_parameters
        return
    kill_at("stage1", 3, teacher, speech, str(run), **settings)
    result = compress(teacher, speech, str(run), **settings)
    assert 0.38 < result.student.total_parameters / result.teacher.total_parameters <= 0.4
    sizes = json.loads((run / "surgery/result.json").read_text())["before_surgery"]
    assert sizes["parameters"] == pytest.approx(result.student.total_parameters)


def test_short_runs_are_pruned_at_once_and_long_ones_learn_what_goes() -> None:
    choose = plan.best_control
    assert choose("skill", StageConfig(steps=500)) == choose("dphubert", StageConfig(steps=500)) == "one-shot"
    assert choose("skill", StageConfig()) == choose("dphubert", StageConfig(steps=20_000)) == "exact"
    assert choose("dphubert", StageConfig()) == "lagrangian"


def test_settings_are_the_arguments_of_compress() -> None:
    """By name and type; what may change on a resume is said at the field."""
    of_function, of_config = get_type_hints(compress), get_type_hints(CompressionConfig)
    assert of_function.keys() - {"on_step", "return"} == of_config.keys()
    assert all(of_function[name] == hint for name, hint in of_config.items())
    assert {"output", "workers", "devices"} <= set(CompressionConfig.may_change())
    assert not {"teacher", "data", "seed", "precision", "stage1"} & set(CompressionConfig.may_change())


def test_settings_that_this_version_no_longer_has_do_not_keep_a_run_from_resuming(
    teacher: str, speech: str, tmp_path: Path, finished: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    settings = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    settings["stage2"]["gate_learning_rate"] = 0.02
    (tmp_path / "run/config.yaml").write_text(yaml.safe_dump(settings))
    assert compress(teacher, speech, str(tmp_path / "run"), sparsity=0.6, **QUICK).already_done
