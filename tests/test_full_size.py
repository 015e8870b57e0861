"""Full-size teachers with random weights through the whole recipe, and the demo: slow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from skill_speech import load_encoder

pytest.importorskip("espeakng_loader")

from lab import demo, full_size


@pytest.mark.slow
def test_wavlm_base_plus_becomes_the_published_size(tmp_path: Path) -> None:
    result = full_size.run("wavlm-base-plus", tmp_path, steps=2, batch_seconds=10)
    assert result.student.total_parameters == pytest.approx(23.6e6, rel=0.01)
    student = load_encoder(result.folder / "model")
    assert student.num_parameters() == result.student.total_parameters
    assert student.config.num_layers == 12


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["wavlm-large", "hubert-large"])
def test_large_teachers_become_a_quarter(tmp_path: Path, shape: str) -> None:
    result = full_size.run(shape, tmp_path, steps=1, batch_seconds=4)
    share = result.student.total_parameters / result.teacher.total_parameters
    assert 0.2475 <= share <= 0.25
    assert (result.folder / "analysis" / "scales.npy").exists()
    shutil.rmtree(tmp_path)  # 15 GB of checkpoints


def test_the_demo_runs_its_commands_and_shows_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = (
        "--stage1.steps 4 --stage1.warmup_steps 1 --stage1.sparsity_steps 2 --stage1.batch_seconds 4 --stage2.steps 2 "
    )
    quick += "--stage2.warmup_steps 1 --stage2.batch_seconds 4 --validation_seconds 0 --analysis.calibration_seconds 30"
    demo.demo(tmp_path / "demo", hours=0.03, options=quick.split())
    said = capsys.readouterr().out
    for words in (
        "$ skill-speech prepare",
        "$ skill-speech compress --config",
        "student",
        "peak memory",
        "load_encoder",
    ):
        assert words in said
    result = load_encoder(tmp_path / "demo/run/model")
    assert result.num_parameters() <= 0.26 * load_encoder(demo.TEACHER).num_parameters()
    demo.demo(tmp_path / "demo", hours=0.03, options=quick.split())
    assert "1. Speech" not in capsys.readouterr().out
