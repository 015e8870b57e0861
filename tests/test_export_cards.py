"""The model card in an exported folder: how to load it, and the scores that are this encoder's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from skill_speech import evaluate, export, load_encoder, load_model, report
from skill_speech.errors import InputError
from skill_speech.evaluation.results import make_table, results_of, write_table
from skill_speech.evaluation.upstream import open_upstream
from skill_speech.exporting.formats import FORMATS
from skill_speech.reporting.model_card import read_card, set_section, write_card
from tests.card_code import assert_the_card_loads_it, section
from tests.exported_models import student
from tests.test_own_head import say_text, speech_model, write_manifest
from tests.test_report_html import make_run


@pytest.fixture
def model(tmp_path) -> Path:
    """A student in its run, with a card that says something of its own."""
    folder = tmp_path / "run" / "model"
    student("hubert").save_pretrained(folder)
    text = (
        "---\nlicense: mit\ntags:\n- mine\n---\n\n# small\n\nMine.\n\n## How to load it\n\nOld.\n\n## Limits\n\nMany.\n"
    )
    (folder / "README.md").write_text(text)
    return folder


@pytest.mark.parametrize("format", FORMATS)
def test_the_card_is_the_models_own_with_the_way_to_load_this_folder(format, model, tmp_path, monkeypatch):
    monkeypatch.setattr("skill_speech.exporting.formats._save", lambda *arguments: ())
    export(str(model), str(tmp_path / "out"), format=format)
    card = read_card(tmp_path / "out" / "README.md")
    assert card.data.library_name == {"torch-export": None, "torchaudio": None}.get(format, format)
    assert (card.data.license, card.data.tags) == ("mit", ["mine"])
    assert "Mine." in card.text
    assert "Many." in section(card, "Limits")
    assert "Old." not in card.text
    assert "path/to/this/folder" in section(card, "How to load it")
    assert "$" not in card.text


@pytest.mark.parametrize("format", ["transformers", "torchaudio", "s3prl"])
def test_the_code_in_the_card_loads_the_folder(format, model, tmp_path, monkeypatch):
    """Those of ONNX and torch.export are run where such a folder is made anyhow."""
    export(str(model), str(tmp_path / "out"), format=format)
    assert_the_card_loads_it(tmp_path / "out", format, load_encoder(model), monkeypatch)


@pytest.mark.parametrize(
    ("format", "words"), [("transformers", 'from_pretrained("me/small"'), ("s3prl", "hf download me/small")]
)
def test_a_card_that_goes_to_the_hub_names_the_repository(format, words, model, tmp_path, monkeypatch):
    monkeypatch.setattr("skill_speech.exporting.formats._push", lambda folder, repository: "https://hub")
    export(str(model), str(tmp_path / "out"), format=format, push_to_hub="me/small")
    assert words in (tmp_path / "out" / "README.md").read_text()


def test_an_encoder_without_a_card_gets_one(model, tmp_path):
    (model / "README.md").unlink()
    export(str(model), str(tmp_path / "out"), format="torchaudio")
    export(str(tmp_path / "out" / "model.pth"), str(tmp_path / "again"), format="s3prl")
    card = read_card(tmp_path / "again" / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("s3prl", None)
    for words in ("# model.pth", "heads per layer 3 0 1 (of 4)", "Not measured", "skill_speech_local", "no license"):
        assert words in card.text
    assert str(tmp_path) not in card.text


@pytest.mark.parametrize("content", [b"---\n- a\n---\n", b"---\nlicense: {\n---", b"\xff\xfe\x00"])
def test_a_broken_card_is_named_before_anything_is_written(content, model, tmp_path):
    (model / "README.md").write_bytes(content)
    with pytest.raises(InputError, match=r"README.md: its metadata cannot be read .*; repair or remove the file"):
        export(str(model), str(tmp_path / "out"), format="s3prl")
    assert not (tmp_path / "out").exists()


def test_a_section_is_replaced_where_it_stands_and_code_is_no_heading(tmp_path):
    card = ModelCard("---\nlicense: mit\n---\n# t\n\n## A\n\n```\n## B\n```\n\n## B\n\nold\n\n## C\n\nend\n")
    set_section(card, "B", "new")
    set_section(card, "D", "last")
    write_card(card, tmp_path / "README.md")
    wanted = "# t\n\n## A\n\n```\n## B\n```\n\n## B\n\nnew\n\n## C\n\nend\n\n## D\n\nlast\n"
    assert read_card(tmp_path / "README.md").text.strip() == wanted.strip()


def evaluated(folder: Path, model: Path | str, synthetic: str = "", changes: dict[str, Any] | None = None) -> Path:
    """What `evaluate` leaves of two tasks, and of another model with the same name for its rows."""
    mine = open_upstream(str(model), torch.device("cpu"))
    for name, fingerprint, per in (("mine", mine.fingerprint, 9.125), ("other", "0123456789abcdef", 1.5)):
        for task, metrics in (("ks", {"accuracy": 10 * per}), ("pr", {"per": per})):
            values = {"kind": "skill-speech evaluation", "model": name, "task": task, "metrics": metrics}
            values |= {"synthetic": synthetic, "not_the_protocol": changes or {}, "parameters": mine.parameters}
            values |= {"settings": {"model": fingerprint}, "layer_weights": [0.25] * 4}
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / f"{task}.json").write_text(json.dumps(values))
    results = {"mine": results_of(load_encoder(str(model)), folder)}
    write_table(folder, make_table(results, None))
    return folder


def test_scores_are_those_of_these_weights(model, tmp_path):
    """Found where a run keeps them, by what was evaluated and not by its name; on the hub under the names of SUPERB."""
    evaluated(tmp_path / "run" / "evaluation", model)
    export(str(model), str(tmp_path / "out"), format="transformers")
    card = read_card(tmp_path / "out" / "README.md")
    assert "| PR PER ↓ |  | 9.12 |" in section(card, "Scores")
    assert "| KS Acc ↑ |  | 91.25 |" in section(card, "Scores")
    assert "**SUPERB**" in section(card, "Scores")
    found = {(one.dataset_config, one.metric_type): one.metric_value for one in card.data.eval_results}
    assert found == {("pr", "per"): 9.125, ("ks", "accuracy"): 91.25}
    assert {one.task_type for one in card.data.eval_results} == {"automatic-speech-recognition", "audio-classification"}
    assert card.data.model_name == "small"
    index = card.data.to_dict()["model-index"]
    assert index[0]["results"][0]["dataset"] == {"name": "SUPERB", "type": "superb", "config": "pr", "split": "test"}


@pytest.mark.parametrize(
    ("synthetic", "changes", "title"),
    [
        ("tones | of <b>a lab</b>", {}, "**SYNTHETIC, not SUPERB: tones _ of _b_a lab_/b_**"),
        ("", {"steps": 20}, "**SUPERB, with settings other than its protocol**"),
    ],
)
def test_scores_that_nothing_can_be_compared_with_stay_out_of_the_metadata(synthetic, changes, title, model, tmp_path):
    evaluated(tmp_path / "scores", model, synthetic, changes)
    export(str(model), str(tmp_path / "out"), format="s3prl", scores=str(tmp_path / "scores"))
    card = read_card(tmp_path / "out" / "README.md")
    assert title in section(card, "Scores")
    assert "91.25" in section(card, "Scores")
    assert "model-index" not in (tmp_path / "out" / "README.md").read_text()


def test_scores_of_float32_are_not_the_metadata_of_int8(model, tmp_path, monkeypatch):
    monkeypatch.setattr("skill_speech.exporting.formats._save", lambda *arguments: ())
    evaluated(tmp_path / "run" / "evaluation", model)
    export(str(model), str(tmp_path / "out"), format="onnx", quantize="int8")
    card = read_card(tmp_path / "out" / "README.md")
    assert "91.25" in section(card, "Scores")
    assert "measured in float32" in section(card, "How to load it")
    assert "model-index" not in (tmp_path / "out" / "README.md").read_text()


def test_scores_of_other_encoders_are_refused_or_left(model, tmp_path):
    student("wavlm").save_pretrained(tmp_path / "another")
    folder = evaluated(tmp_path / "run" / "evaluation", tmp_path / "another")
    with pytest.raises(InputError, match=r"evaluation: no result of .*model; skill-speech evaluate .*model --data"):
        export(str(model), str(tmp_path / "out"), format="s3prl", scores=str(folder))
    export(str(model), str(tmp_path / "out"), format="s3prl")
    assert "## Scores" not in (tmp_path / "out" / "README.md").read_text()


def test_report_puts_scores_into_the_students_card(model, tmp_path):
    """And leaves what somebody wrote there; a run without an evaluation has its card left alone."""
    run = make_run(tmp_path / "made", evaluation=False)
    model.rename(run / "model")
    before = (run / "model" / "README.md").read_text()
    report([str(run)])
    assert (run / "model" / "README.md").read_text() == before
    evaluated(run / "evaluation", run / "model")
    report([str(run)])
    card = read_card(run / "model" / "README.md")
    assert "| PR PER ↓ |  | 9.12 |" in section(card, "Scores")
    assert "Mine." in card.text
    assert len(card.data.eval_results) == 2
    once = (run / "model" / "README.md").read_text()
    report([str(run)])
    assert (run / "model" / "README.md").read_text() == once


def test_report_puts_the_own_heads_scores_into_the_card_beside_the_others(tmp_path):
    """In a section of their own after the others, and as results of the user's data; again is the same."""
    run = make_run(tmp_path / "made", evaluation=False)
    data = write_manifest(tmp_path, say_text)
    speech_model(tmp_path / "theirs", "ForCTC", {})
    load_model(tmp_path / "theirs").save_pretrained(run / "model")
    text = "---\nlicense: mit\n---\n\n# small\n\n## Scores\n\nNone.\n\n## Limits\n\nMany.\n"
    (run / "model/README.md").write_text(text)
    evaluated(run / "evaluation", run / "model")
    (run / "evaluation/evaluation.json").write_text('{"kind": "skill-speech evaluation", "synthetic": ""}')
    result = evaluate([str(run / "model")], str(data), own_head=True, teacher=f"big={tmp_path / 'theirs'}").result
    report([str(run)])
    card = read_card(run / "model/README.md")
    wer = result["model"]["metrics"]["wer"]
    own = section(card, "Scores of its own head")
    assert f"| {wer['value']:.2f} [{wer['low']:.1f}, {wer['high']:.1f}] |" in own
    assert "| big (teacher) |" in own
    assert "91.25" in section(card, "Scores")
    assert card.text.index("## Scores of its own head") < card.text.index("## Limits")
    found = {(one.task_type, one.dataset_name, one.metric_type): one.metric_value for one in card.data.eval_results}
    speech = "automatic-speech-recognition"
    assert found.pop((speech, "cuts.jsonl.gz", "wer")) == pytest.approx(wer["value"], abs=1e-4)
    assert (speech, "cuts.jsonl.gz", "cer") in found
    assert found[speech, "SUPERB", "per"] == 9.125
    assert card.data.model_name == "small"
    once = (run / "model/README.md").read_text()
    report([str(run)])
    assert (run / "model/README.md").read_text() == once
    # What is exported says the same, from the run's folder and from one that is named.
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copyfile(run / "evaluation/own_head.json", alone / "own_head.json")
    (run / "model/README.md").write_text(text)
    for number, scores in enumerate((None, str(alone))):
        export(str(run / "model"), str(tmp_path / f"out{number}"), format="torchaudio", scores=scores)
        card = read_card(tmp_path / f"out{number}/README.md")
        assert section(card, "Scores of its own head") == own
        assert ("91.25" in card.text) == (scores is None)
    report([str(run)])
    # Synthetic data is not for the hub, and another model's scores are not this one's.
    own_head = run / "evaluation/own_head.json"
    values = json.loads(own_head.read_text())
    own_head.write_text(json.dumps(values | {"synthetic": "tones"}))
    report([str(run)])
    card = read_card(run / "model/README.md")
    assert "**SYNTHETIC (tones): Own head (speech recognition) on cuts.jsonl.gz**" in section(
        card, "Scores of its own head"
    )
    assert {one.dataset_name for one in card.data.eval_results} == {"SUPERB"}
    before = (run / "model/README.md").read_text()
    own_head.write_text(json.dumps(values | {"settings": {"model": "another"}}))
    report([str(run)])
    assert (run / "model/README.md").read_text() == before


@pytest.mark.parametrize("format", FORMATS)
def test_code_that_travels_says_its_license_and_brings_it_under_a_name_of_its_own(format, model, tmp_path):
    pytest.importorskip("onnx")
    export(str(model), str(tmp_path / "out"), format=format)
    files = {path.name: path for path in (tmp_path / "out").iterdir()}
    code = [path for name, path in files.items() if name.endswith((".py", ".html"))]
    for path in code:
        assert "SPDX-License-Identifier: Apache-2.0" in path.read_text().splitlines()[0 if path.suffix == ".py" else 1]
    assert "LICENSE" not in files  # nobody takes it for the license of the weights
    assert ("LICENSE-CODE.txt" in files) == bool(code) == (format not in ("torch-export", "torchaudio"))
    card = read_card(tmp_path / "out" / "README.md")
    if code:
        assert files["LICENSE-CODE.txt"].read_text() == (Path(__file__).parents[1] / "LICENSE").read_text()
        assert "not the license of the weights" in section(card, "License of the code")
    assert card.data.license == "mit"


def test_what_a_user_says_stands_in_the_metadata(model, tmp_path):
    said = {"language": "en,no", "datasets": "openslr/librispeech_asr", "license": "apache-2.0", "base_model": "a/b"}
    export(str(model), str(tmp_path / "out"), format="torchaudio", **said)
    card = read_card(tmp_path / "out" / "README.md")
    assert card.data.language == ["en", "no"]  # which YAML would take for false
    assert card.data.datasets == ["openslr/librispeech_asr"]
    assert (card.data.license, card.data.base_model, card.data.to_dict()["base_model_relation"]) == (
        "apache-2.0",
        "a/b",
        "finetune",
    )
    assert "The weights: `apache-2.0`." in section(card, "License")
    with pytest.raises(InputError, match=r"^language is 'English': give a code"):
        export(str(model), str(tmp_path / "more"), format="torchaudio", language="English")
    assert not (tmp_path / "more").exists()


def test_the_same_weights_in_fewer_bits_are_quantized_on_the_hub(model, tmp_path, monkeypatch):
    monkeypatch.setattr("skill_speech.exporting.formats._save", lambda *arguments: ())
    for bits, relation in (("int8", "quantized"), (None, None)):
        text = "---\nbase_model: a/b\n---\n\n# small\n"
        (model / "README.md").write_text(text)
        export(str(model), str(tmp_path / str(bits)), format="onnx", quantize=bits)
        data = read_card(tmp_path / str(bits) / "README.md").data.to_dict()
        assert data.get("base_model_relation") == relation


def test_the_teachers_scores_and_filterbanks_stand_beside_the_students(tmp_path):
    run = make_run(tmp_path / "made", evaluation=False)
    student("hubert").save_pretrained(run / "model")
    (run / "model/README.md").write_text("---\nlicense: mit\n---\n\n# small\n\n## Scores\n\nNone.\n")
    folder = evaluated(run / "evaluation", run / "model")
    for name, parameters, per, accuracy in (("big", 1_450_100, 5.0, 95.0), ("fbank", 0, 80.0, 20.0)):
        (folder / name).mkdir()
        for task, metrics in (("pr", {"per": per}), ("ks", {"accuracy": accuracy})):
            values = json.loads((folder / "mine" / f"{task}.json").read_text())
            values |= {"model": name, "parameters": parameters, "metrics": metrics, "settings": {"model": name}}
            values |= {"items": {"utterances": 1_500}}
            (folder / name / f"{task}.json").write_text(json.dumps(values))
    values = json.loads((folder / "mine/pr.json").read_text())
    values |= {"items": {"utterances": 1_500}, "intervals": {"per": {"low": 8.0, "high": 10.0}}}
    (folder / "mine/pr.json").write_text(json.dumps(values))
    report([str(run)])
    scores = section(read_card(run / "model/README.md"), "Scores")
    assert "|  | test items | this model | teacher | filterbanks | kept |" in scores
    share = (80 - 9.125) / (80 - 5)
    assert f"| PR PER ↓ | 1,500 | 9.12 [8.0, 10.0] | 5.00 | 80.00 | {100 * share:.0f} % [93, 96] |" in scores
    assert "| mean of 2 tasks |  |  |  |  | 95 %" in scores
    assert "0 % is filterbanks, 100 % the teacher" in scores
    assert {one.metric_value for one in read_card(run / "model/README.md").data.eval_results} == {9.125, 91.25}
