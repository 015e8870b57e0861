"""Layers that are read by number later (`keep_layers`): from the command line to the student."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from skill_speech import InputError, compress, load_encoder
from skill_speech.cli import main
from skill_speech.distillation import METHODS, StageConfig
from tests.test_compression import QUICK, refused, speech, teacher  # noqa: F401

DPHUBERT = QUICK | {"method": "dphubert", "sparsity": 0.6}


def test_a_run_keeps_layers_beside_its_clusters(teacher: str, speech: str, tmp_path: Path) -> None:  # noqa: F811
    run = tmp_path / "run"
    compress(teacher, speech, str(run), sparsity=0.6, keep_layers="3,1", **QUICK)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["keep_layers"] == [1, 3]
    # As many projections as clusters: kept layers have none.
    names = {name.split(".")[1] for name in load_file(run / "stage2/student/projections.safetensors")}
    assert names == {"0", "1"}
    assert "- matched individually, without a projection: h_1, h_3" in (run / "model/README.md").read_text()
    # Named in another way, they are the same run; others are not.
    assert compress(teacher, speech, str(run), sparsity=0.6, keep_layers=[1, 3], **QUICK).already_done
    assert "keep_layers" in refused(teacher, speech, str(run), sparsity=0.6, keep_layers=[1, 4], **QUICK)
    assert "keep_layers" in refused(teacher, speech, str(run), sparsity=0.6, **QUICK)


def test_what_is_kept_ends_nearer_to_the_teacher(teacher: str, speech: str, tmp_path: Path) -> None:  # noqa: F811
    """Layer 2 of 4, which dphubert's targets 0, 1, 3 and 4 leave out."""
    longer = StageConfig(steps=30, warmup_steps=5, sparsity_steps=5, batch_seconds=5, learning_rate=2e-3)
    settings = DPHUBERT | {"stage1": longer, "stage2": replace(longer, learning_rate=1e-3), "validate_every": 0}
    for name, keep in (("without", None), ("with", 2)):
        compress(teacher, speech, str(tmp_path / name), keep_layers=keep, **settings)
    torch.manual_seed(0)
    waveforms_BT = 0.1 * torch.randn(4, 32_000)

    def distance(source: Path | str, layer: int) -> float:
        with torch.inference_mode():
            states, wanted = (load_encoder(one)(waveforms_BT).layers[layer] for one in (source, teacher))
        return float((states - wanted).abs().mean())

    assert distance(tmp_path / "with/model", 2) < 0.9 * distance(tmp_path / "without/model", 2)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_keeps_layers(teacher: str, speech: str, tmp_path: Path, method: Any) -> None:  # noqa: F811
    short = StageConfig(steps=2, warmup_steps=1, sparsity_steps=1, batch_seconds=5)
    settings = QUICK | {"stage1": short, "stage2": short, "validate_every": 0}
    compress(teacher, speech, str(tmp_path), method=method, sparsity=0.6, keep_layers=[2, 4], **settings)
    assert load_encoder(tmp_path / "model").config.num_layers == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("9,x", "keep_layers names 'x'; it must be whole numbers from 0, such as 9,12"),
        ("[2,-1]", "keep_layers names -1; it must be"),
        ("5", "keep_layers names layer 5; the teacher's layers are numbered 0 to 4"),
        ("1.5", "keep_layers names '1.5'; it must be"),
    ],
)
@pytest.mark.parametrize("method", ["skill", "dphubert"])
def test_numbers_that_are_no_layers_are_refused_before_anything_is_written(
    method: str,
    given: str,
    message: str,
    teacher: str,  # noqa: F811
    speech: str,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["--teacher", teacher, "--data", speech, "--output", str(tmp_path / "run"), "--method", method]
    assert main(["compress", *arguments, "--keep_layers", given]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_programs_are_refused_alike(teacher: str, speech: str, tmp_path: Path) -> None:  # noqa: F811
    odd: Any
    for odd in ([], [True], {"a": 1}, [[1]], [1.0]):
        with pytest.raises(InputError, match="keep_layers names"):
            compress(teacher, speech, str(tmp_path / "run"), keep_layers=odd, **QUICK)
