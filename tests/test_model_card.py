"""The student's README: what the hub reads of it, and names that cannot break out of it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from skill_speech.encoder import LayerConfig, wavlm_config
from skill_speech.errors import InputError
from skill_speech.evaluation.results import Row, Table, write_table
from skill_speech.reporting.card_facts import said_words, stated_by
from skill_speech.reporting.model_card import write_model_card

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
RELATIONS = ("adapter", "merge", "quantized", "finetune")
"""What the hub takes."""
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
    assert data["base_model_relation"] in RELATIONS
    # Unknown here, and not guessed.
    assert (data["license"], data["license_name"]) == ("other", "unknown")
    assert data["license_link"] == "https://huggingface.co/microsoft/wavlm-base-plus"
    assert not {"language", "datasets"} & set(data)


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
        "## Intended uses",
        "## Limits",
        "2402.16830",
        "peng2023dphubert",
    ):
        assert words in text


def test_the_card_says_first_what_went_wrong(tmp_path: Path) -> None:
    path = tmp_path / "run/model/README.md"
    write_model_card(path, SETTINGS, OUTCOME, STUDENT, ["A trial run.", "No heads are left."])
    limits = path.read_text(encoding="utf-8").partition("## Limits\n\n")[2]
    assert limits.startswith("- **A trial run.**\n- **No heads are left.**\n- It has")


def test_the_card_does_not_tell_where_things_lay(tmp_path: Path) -> None:
    text = card(tmp_path, data=str(tmp_path / "LibriSpeech"), teacher=str(tmp_path / "wavlm"))
    assert "data: `LibriSpeech`" in text
    assert "compressed from `wavlm`" in text
    assert "teacher: wavlm" in text
    assert str(tmp_path) not in text


def test_the_license_is_the_one_that_the_teachers_card_states(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-sa-3.0\n---\n# Teacher\n")
    assert stated_by(str(tmp_path), None).license == "cc-by-sa-3.0"
    text = card(tmp_path, teacher=str(tmp_path))
    assert "license: cc-by-sa-3.0" in text
    assert "states the license `cc-by-sa-3.0`" in text


@pytest.mark.parametrize(
    "content", ["", "---\n- a\n---\n", "---\nlicense: [mit, apache]\n---\n", "---\nlicense: {\n---"]
)
def test_a_broken_card_of_the_teacher_states_no_license(tmp_path: Path, content: str) -> None:
    (tmp_path / "README.md").write_text(content)
    assert stated_by(str(tmp_path), None).license is None


def test_what_the_teachers_card_states_is_passed_on_and_a_link_to_its_file_is_not_ours(tmp_path: Path) -> None:
    stated = "license: other\nlicense_name: theirs\nlicense_link: LICENSE\nlanguage: [en, de, no, 3]\ndatasets: a/b\n"
    (tmp_path / "README.md").write_text(f"---\n{stated}---\n# Teacher\n")
    card(tmp_path, teacher=str(tmp_path))
    data = ModelCard.load(tmp_path / "wavlm-mini/model/README.md").data
    assert (data.license, data.license_name, data.license_link) == ("other", "theirs", None)
    assert data.language == ["en", "de"]  # YAML's `no` is false, and who knows what 3 is
    assert data.datasets is None  # the teacher's data, not the student's
    found = stated_by(str(tmp_path), None)
    assert (
        found.license_metadata("some/teacher")["license_link"]
        == "https://huggingface.co/some/teacher/blob/main/LICENSE"
    )
    assert found.datasets == ("a/b",)


@pytest.mark.parametrize("teacher", ["lab/teachers/hubert-mini", "hubert-mini", "/somewhere/else", "HERE/there"])
def test_a_folder_is_no_base_model_of_the_hub(teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "HERE" / "there").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    card(tmp_path, teacher=teacher)
    data = ModelCard.load(tmp_path / "wavlm-mini/model/README.md").data.to_dict()
    assert not {"base_model", "base_model_relation", "license_link"} & set(data)


def test_the_metadata_is_what_the_hub_knows(tmp_path: Path) -> None:
    """Every name is a field of huggingface_hub's own class, or the one that it passes on; nothing is lost in it."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Teacher\n")
    for teacher in (str(tmp_path), "microsoft/wavlm-base-plus"):
        text = card(tmp_path, teacher=teacher)
        written = yaml.safe_load(text.split("---")[1])
        known = set(inspect.signature(ModelCardData).parameters) | {"base_model_relation"}
        assert set(written) <= known
        assert ModelCardData(**written).to_dict() == written


def test_the_card_tells_what_it_cost_and_what_stage_2_changed(tmp_path: Path) -> None:
    path = tmp_path / "run/model/README.md"
    stages = {name: stage | {"seconds": 2_700.0} for name, stage in OUTCOME["stages"].items()}
    machine = {"accelerator": "Some GPU", "processor": "A CPU", "platform": "p"}
    outcome = OUTCOME | {"stages": stages, "environment": machine, "loss_after_surgery": 0.5}
    write_model_card(path, SETTINGS, outcome, STUDENT)
    text = path.read_text(encoding="utf-8")
    assert "training took 1.5 h on Some GPU" in text
    assert "-0.2500 since surgery, to 0.2500" in text


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("language", "en, pt-BR,yue", ["en", "pt-BR", "yue"]),
        ("datasets", "openslr/librispeech_asr,me/own", ["openslr/librispeech_asr", "me/own"]),
        ("license", "apache-2.0", ["apache-2.0"]),
        ("base_model", None, []),
    ],
)
def test_what_a_user_says_is_split_at_commas(name: str, text: str | None, words: list[str]) -> None:
    assert said_words(name, text) == words


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("language", "English"),
        ("language", ","),
        ("datasets", "a/b/c"),
        ("datasets", "my data"),
        ("license", "mit,apache-2.0"),
        ("license", "MIT License"),
        ("base_model", "wavlm"),
        ("base_model", "a/b,c/d"),
    ],
)
def test_what_the_hub_would_not_take_is_refused_in_a_line(name: str, text: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} is .*: give ") as caught:
        said_words(name, text)
    assert "\n" not in str(caught.value)


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
