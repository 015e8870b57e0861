"""The examples and the notebook, run as a reader runs them, on the bundled teachers and synthetic sounds: slow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
import soundfile
from nbclient import NotebookClient

from skill_speech import load_encoder

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "compress_your_encoder.ipynb"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
HUBERT, WAVLM = (str(ROOT / "lab" / "teachers" / name) for name in ("hubert-mini", "wavlm-mini"))


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minute and a half of noise whose loudness and color change as those of speech do."""
    folder = tmp_path_factory.mktemp("audio")
    for number in range(30):
        generator = np.random.default_rng(number)
        noise = generator.standard_normal(48_000)
        colored = np.convolve(noise, generator.standard_normal(32), mode="same")
        loud = np.repeat(generator.uniform(0.01, 0.2, 30), 1_600)
        soundfile.write(folder / f"{number}.wav", np.clip(colored / np.abs(colored).max() * loud * 4, -1, 1), 16_000)
    return folder


def run(script: str, folder: Path, *arguments: str) -> str:
    """What an example prints, run in another folder."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_examples_are_short_and_say_how_they_are_run() -> None:
    assert len(SCRIPTS) == 3
    for path in SCRIPTS:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60
        assert f"python examples/{path.name} " in text


def test_the_notebook_has_no_outputs_and_text_before_its_code() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert len(code) <= 10
    assert notebook.cells[0].cell_type == "markdown"
    links = re.findall(r"\]\((?!https?:)([^)#]+)", "\n".join(cell.source for cell in notebook.cells))
    assert all((EXAMPLES / link).exists() for link in links)


@pytest.mark.slow
def test_a_checkpoint_is_compressed_exported_and_run_faster(audio: Path, tmp_path: Path) -> None:
    short = ("--steps", "4", "--batch_seconds", "6")
    printed = run("compress_checkpoint.py", tmp_path, HUBERT, str(audio), "--output", "run", *short)
    before, after = (
        int(number.replace(",", "")) for number in re.findall(r"parameters: ([\d,]+) → ([\d,]+)", printed)[0]
    )
    student = load_encoder(tmp_path / "run" / "model")
    assert before == load_encoder(HUBERT).num_parameters()
    assert after == student.num_parameters() <= before / 4
    assert str([len(layer.heads) for layer in student.config.layers]) in printed
    assert (tmp_path / "run/onnx/model.onnx").exists()
    again = run("compress_checkpoint.py", tmp_path, HUBERT, str(audio), "--output", "run", *short)
    assert again.splitlines()[0].startswith("parameters:")  # there was no update left

    printed = run("run_fast.py", tmp_path, "run/model", "--teacher", HUBERT, "--onnx", "run/onnx", "--seconds", "2")
    names = [line.partition("  ")[0] for line in printed.splitlines()]
    assert names == ["teacher", "student", "student, float32", "student, int8-float32", "student, ONNX Runtime"]


@pytest.mark.slow
def test_layers_of_two_encoders_are_compared(audio: Path, tmp_path: Path) -> None:
    printed = run("compare_encoders.py", tmp_path, HUBERT, HUBERT, str(audio), "--seconds", "60")
    lines = printed.splitlines()
    for number, line in enumerate(lines[:13]):  # an encoder is most like itself
        assert line == f"h_{number} of the first is closest to h_{number} of the second: CKA 1.000"
    assert (tmp_path / "layers.png").stat().st_size > 10_000
    other = run("compare_encoders.py", tmp_path, HUBERT, WAVLM, str(audio), "--seconds", "60", "--output", "other.png")
    values = [float(line.rpartition(" ")[2]) for line in other.splitlines()[:13]]
    assert all(0 < value < 1 for value in values)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(audio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(ROOT / "src"), str(ROOT))))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    settings = next(cell for cell in notebook.cells if cell.source.startswith("TEACHER = "))
    values = {"TEACHER": HUBERT, "AUDIO": str(audio), "STEPS": 4, "BATCH_SECONDS": 6}
    for name, value in values.items():
        settings.source, count = re.subn(rf"(?m)^{name} = .*$", f"{name} = {value!r}", settings.source)
        assert count == 1
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = "".join(output.get("text", "") + str(output.get("data", {})) for output in outputs)
    assert "image/png" in shown
    assert "<iframe srcdoc=" in shown
    assert "M parameters" in shown
    assert float(re.findall(r"difference from PyTorch: ([\d.e+-]+)", shown)[0]) < 1e-3
    assert "149 frames of 192 features" in shown  # of 3 s at 20 ms


@pytest.mark.slow
def test_one_command_compresses_evaluates_and_packs(synthetic_corpora: Path, tmp_path: Path) -> None:
    """What a rented machine runs, with the bundled teacher and synthetic LibriSpeech in place of the real ones."""
    heads = tmp_path / "heads.yaml"
    tiny = {"steps": 4, "eval_every": 2, "hidden_size": 8, "projection_size": 8, "layers": 1, "learning_rates": [0.01]}
    heads.write_text(json.dumps({"settings": {"asr": tiny}}))
    command: list[str | Path] = [EXAMPLES / "rented_gpu.sh", "--no-install", "--work", tmp_path / "work"]
    command += ["--corpus", synthetic_corpora / "LibriSpeech", "--train", "train-clean-100", "--tasks", "asr"]
    command += ["--recipe", ROOT / "recipes" / "hubert-mini.yaml", "--heads", heads, "--", "--validation_seconds", "5"]
    command += ["--stage1.steps", "4", "--stage1.warmup_steps", "1", "--stage1.sparsity_steps", "2"]
    command += ["--stage2.steps", "2", "--stage2.warmup_steps", "1", "--min_seconds", "1"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    for _ in range(2):  # the second time everything is there
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "already done" in done.stdout
    with tarfile.open(tmp_path / "work/publish.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    published = tmp_path / "publish"
    student = load_encoder(published / "transformers")
    assert student.num_parameters() <= load_encoder(HUBERT).num_parameters() / 4
    assert (published / "onnx/model.onnx").exists()
    assert "asr" in (published / "report.html").read_text(encoding="utf-8").lower()
    assert [*(published / "evaluation").glob("*.json")]
    assert "asr" in (published / "transformers/README.md").read_text(encoding="utf-8").lower()
