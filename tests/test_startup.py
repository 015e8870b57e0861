"""Commands import what they need and wait for nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from skill_speech.encoder import Encoder
from tests.exported_models import pruned_encoder

HEAVY = {
    *(
        "transformers",
        "lightning",
        "lhotse",
        "matplotlib",
        "scipy",
        "tensorboard",
        "torchmetrics",
        "sympy",
        "torch._dynamo",
    ),
    *(
        "torch._dynamo",
        "onnx",
        "onnxscript",
        "onnxruntime",
        "openvino",
        "huggingface_hub.hf_api",
        "soundfile",
        "sklearn",
    ),
}
"""What takes tenths of seconds and more to import."""


def imported(code: str, *arguments: str) -> set[str]:
    """Of the heavy modules, and torch, what a program has imported in the end."""
    code += "\nimport json, sys\nprint(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return (HEAVY | {"torch"}) & set(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def model(tmp_path: Path) -> str:
    encoder: Encoder = pruned_encoder("wavlm")
    encoder.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_profile_leaves_torch_to_the_process_that_measures(tmp_path: Path) -> None:
    code = "import sys; from skill_speech.cli import main; assert main(sys.argv[1:]) == 2"
    assert imported(code, "profile", str(tmp_path / "nothing")) == set()
    assert imported("from skill_speech.tables import profile_table") == set()


def test_a_process_that_measures_imports_torch_alone(model: str) -> None:
    code = "import runpy, sys; runpy.run_module('skill_speech.profiling', run_name='imported')"
    assert imported(code) == {"torch"}


@pytest.mark.parametrize("format", ["onnx", "transformers", "torchaudio"])
def test_export_reaches_its_model_with_torch_alone(format: str, tmp_path: Path) -> None:
    code = "import sys; from skill_speech.cli import main; assert main(sys.argv[1:]) == 2"
    made = imported(code, "export", str(tmp_path / "nothing"), "--format", format, "--output", str(tmp_path / "out"))
    assert made == {"torch"}


def test_a_student_is_loaded_with_torch_alone(model: str) -> None:
    """Building it without memory would have torch import its compiler."""
    assert imported("import sys; from skill_speech import load_model; load_model(sys.argv[1])", model) == {"torch"}
