"""Teachers from the hub: their commit is written down, and used from then on. The hub is a cache made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub
import yaml

from skill_speech import InputError, analyze, compress
from skill_speech.checkpoints import resolve_revision
from skill_speech.compression import AnalysisConfig
from skill_speech.distillation import StageConfig
from tests.test_bad_audio import RATE, noise
from tests.transformers_models import TINY, build

FIRST, SECOND = "a" * 40, "b" * 40
SHORT = StageConfig(steps=1, warmup_steps=1, sparsity_steps=1, batch_seconds=5)
QUICK: dict[str, Any] = {
    "method": "dphubert",
    "params": "0.8",
    "stage1": SHORT,
    "stage2": SHORT,
    "validation_seconds": 0.0,
    "precision": "float32",
}


class Hub:
    """huggingface_hub's cache folder, offline: what a branch stands for is in refs/."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "models--acme--tiny"

    def commit(self, commit: str, seed: int) -> None:
        snapshot = self.model / "snapshots" / commit
        model = build("Hubert", TINY)
        with torch.no_grad():
            model.encoder.layers[0].feed_forward.output_dense.weight.mul_(seed)
        model.save_pretrained(snapshot)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(snapshot)
        self.point("main", commit)

    def point(self, branch: str, commit: str) -> None:
        (self.model / "refs").mkdir(exist_ok=True)
        (self.model / "refs" / branch).write_text(commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    for module, name in (
        (huggingface_hub.constants, "HF_HUB_CACHE"),
        (transformers.utils.hub.constants, "HF_HUB_CACHE"),
    ):
        monkeypatch.setattr(module, name, str(tmp_path / "hub"))
    made = Hub(tmp_path / "hub")
    made.commit(FIRST, seed=1)
    return made


@pytest.fixture
def speech(tmp_path: Path) -> str:
    import soundfile

    (tmp_path / "speech").mkdir()
    for number in range(4):
        soundfile.write(tmp_path / f"speech/{number}.wav", noise(2.5), RATE)
    return str(tmp_path / "speech")


def settings(run: Path) -> dict[str, Any]:
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert isinstance(values, dict)
    return values


def test_a_branch_a_tag_or_nothing_stands_for_a_commit(hub: Hub, tmp_path: Path) -> None:
    hub.commit(SECOND, seed=2)
    hub.point("v1", FIRST)
    assert resolve_revision("acme/tiny", None) == SECOND
    assert resolve_revision("acme/tiny", "v1") == FIRST
    assert resolve_revision("acme/tiny", FIRST) == FIRST
    assert resolve_revision(tmp_path, None) is None
    with pytest.raises(InputError, match="acme/other: no model there, neither on disk nor on the hub"):
        resolve_revision("acme/other", None)
    with pytest.raises(InputError, match="no such file or folder"):
        resolve_revision(tmp_path / "nowhere", None)


def test_a_run_keeps_its_teachers_commit_when_the_branch_moves(hub: Hub, speech: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    compress("acme/tiny", speech, str(run), **QUICK)
    assert (settings(run)["teacher"], settings(run)["revision"]) == ("acme/tiny", FIRST)
    weights = (run / "model/model.safetensors").read_bytes()
    hub.commit(SECOND, seed=2)
    # The same command goes on with the commit of the run; asking for another one is a changed setting.
    assert compress("acme/tiny", speech, str(run), **QUICK).already_done
    (run / "status.json").unlink()
    for name in ("stage1", "surgery", "stage2"):
        (run / name / "result.json").unlink()
    assert not compress("acme/tiny", speech, str(run), **QUICK).already_done
    assert (run / "model/model.safetensors").read_bytes() == weights
    with pytest.raises(InputError, match=rf"revision \(was {FIRST}, now {SECOND}\)"):
        compress("acme/tiny", speech, str(run), revision="main", **QUICK)
    compress("acme/tiny", speech, str(tmp_path / "new"), **QUICK)
    assert settings(tmp_path / "new")["revision"] == SECOND
    assert (tmp_path / "new/model/model.safetensors").read_bytes() != weights


def test_an_analysis_keeps_its_teachers_commit(hub: Hub, speech: str, tmp_path: Path) -> None:
    short = AnalysisConfig(calibration_seconds=5, batch_seconds=5, batch_frames=64)
    analyze("acme/tiny", speech, str(tmp_path / "run"), clusters=2, analysis=short)
    assert settings(tmp_path / "run/analysis")["revision"] == FIRST
    hub.commit(SECOND, seed=2)
    analyze("acme/tiny", speech, str(tmp_path / "run"), clusters=2, analysis=short)
    with pytest.raises(InputError, match=r"revision \(was a+, now b+\)"):
        analyze("acme/tiny", speech, str(tmp_path / "run"), clusters=2, analysis=short, revision="main")
