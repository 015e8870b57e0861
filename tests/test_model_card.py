"""The student's README: what the hub reads of it, and names that cannot break out of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from skill_speech.encoder import LayerConfig, wavlm_config
from skill_speech.evaluation.results import Row, Table, write_table
from skill_speech.reporting.model_card import teacher_license, write_model_card

PROFILE = {"model": "m", "seconds": 10.0, "real_time_factor": 0.01, "threads": 2}
OUTCOME: dict[str, Any] = {
    "teacher": PROFILE | {"parameters": {"a": 94_400_000}, "macs": {"a": 7e9}},
    "student": PROFILE | {"parameters": {"a": 23_600_000}, "macs": {"a": 2e9}},
    "loss": 0.25,
    "clusters": [[0], [1, 2, 3]],
    # What was heard is less than steps times batch_seconds: batches are cropped.
    "stages": {
        "stage1": {"steps": 900, "audio_seconds": 4_356.0},
        "stage2": {"steps": 450, "audio_seconds": 2_500.0},
    },
}
STAGE = {"steps": 900, "batch_seconds": 40.0, "accumulate": 2}
SETTINGS: dict[str, Any] = {
    "teacher": "microsoft/wavlm-base-plus",
    "revision": None,
    "data": "LibriSpeech",
    "method": "skill",
    "sparsity": 0.75,
    "params": None,
    "macs": None,
    "seed": 3,
    "stage1": STAGE,
    "stage2": STAGE,
    "devices": 1,
    "precision": "bf16",
}
STUDENT = wavlm_config().replace(layers=(LayerConfig((0, 7), 600), LayerConfig((), 0)))


def card(folder: Path, **changes: Any) -> str:
    path = folder / "wavlm-mini" / "model" / "README.md"
    write_model_card(path, SETTINGS | changes, OUTCOME, STUDENT)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("ctc", "automatic-speech-recognition"),
        ("sequence", "audio-classification"),
        ("frame", "audio-classification"),
        ("x-vector", "feature-extraction"),
    ],
)
def test_the_card_of_a_model_with_a_head_says_so(kind: str, task: str, tmp_path: Path) -> None:
    path = tmp_path / "run/model/README.md"
    write_model_card(path, SETTINGS, OUTCOME | {"head": {"kind": kind, "outputs": 32}}, STUDENT)
    text = path.read_text(encoding="utf-8")
    assert ModelCard.load(path).data.pipeline_tag == task
    assert f"A speech model (head: {kind}, 32 outputs) of 23.6M parameters" in text
    assert 'load_model("path/to/this/folder")' in text
    assert "load_encoder(" not in text


def test_the_hub_reads_the_metadata(tmp_path: Path) -> None:
    card(tmp_path)
    data = ModelCard.load(tmp_path / "wavlm-mini/model/README.md").data.to_dict()
    assert data["base_model"] == "microsoft/wavlm-base-plus"
    assert data["pipeline_tag"] == "feature-extraction"
    assert data["library_name"] == "skill-speech"
    assert "skill-speech" in data["tags"]
    assert "model-index" not in data
    assert "license" not in data  # unknown here, and not guessed


def test_the_card_says_what_a_user_asks(tmp_path: Path) -> None:
    text = card(tmp_path)
    for words in (
        "# wavlm-mini",
        "23.6M parameters",
        "| parameters | 94.4M | 23.6M |",
        "method `skill`, budget: sparsity 0.75, seed 3",
        "h_0; h_1, h_2, h_3",
        "stage1 900 steps, 1.21 h of audio; stage2 450 steps, 0.694 h of audio; precision bf16",
        "data: `LibriSpeech`",
        "batch_seconds: 40.0",
        "Not measured when this card was written",
        "heads per layer 2 0 (of 12)",
        "per layer 600 0",
        "0.2500",
        "load_encoder",
        "AutoModel",
        "onnx",
        "## Limits",
        "2402.16830",
        "peng2023dphubert",
    ):
        assert words in text


def test_the_card_does_not_tell_where_things_lay(tmp_path: Path) -> None:
    text = card(tmp_path, data=str(tmp_path / "LibriSpeech"), teacher=str(tmp_path / "wavlm"))
    assert "data: `LibriSpeech`" in text
    assert "compressed from `wavlm`" in text
    assert "teacher: wavlm" in text
    assert str(tmp_path) not in text


def test_the_license_is_the_one_that_the_teachers_card_states(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-sa-3.0\n---\n# Teacher\n")
    assert teacher_license(str(tmp_path), None) == "cc-by-sa-3.0"
    text = card(tmp_path, teacher=str(tmp_path))
    assert "license: cc-by-sa-3.0" in text
    assert "states the license `cc-by-sa-3.0`" in text


@pytest.mark.parametrize(
    "content", ["", "---\n- a\n---\n", "---\nlicense: [mit, apache]\n---\n", "---\nlicense: {\n---"]
)
def test_a_broken_card_of_the_teacher_states_no_license(tmp_path: Path, content: str) -> None:
    (tmp_path / "README.md").write_text(content)
    assert teacher_license(str(tmp_path), None) is None


def test_names_cannot_break_out_of_the_card(tmp_path: Path) -> None:
    evil = tmp_path / "x`<script>alert(1)</script>|# y"
    text = card(tmp_path, data=str(evil), teacher="nobody/`<img>")
    assert "<script>" not in text
    assert "<img>" not in text.split("---", 2)[2]


def test_names_in_a_table_of_scores_are_words(tmp_path: Path) -> None:
    row = Row("a|b [x](http://evil) <script>`*\n# c", 5, {}, None)
    write_table(tmp_path, Table("<b>*SYNTHETIC*", (row,), ("[note](x)",)))
    text = (tmp_path / "table.md").read_text()
    [line] = [line for line in text.splitlines() if "evil" in line]
    assert r"a\|b \[x\](http://evil) \<script\>\`\* # c" in line
    assert r"# \<b\>\*SYNTHETIC\*" in text
    assert r"\[note\](x)" in text
