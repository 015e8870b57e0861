"""`export` and its command: what is written where, what is refused, what goes to the hub."""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers

import skill_speech
from skill_speech.checkpoints import load_encoder
from skill_speech.cli import main
from skill_speech.errors import InputError
from skill_speech.exporting import Export, Measurement, export
from skill_speech.exporting.travel.remote_code import ENCODER
from tests.exported_models import BATCHES, pruned_encoder, student


@pytest.fixture
def model(tmp_path) -> str:
    student("hubert").save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("# A card\n")
    return str(tmp_path / "model")


def refused(*arguments: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        export(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_command_is_the_function(model, capsys, monkeypatch):
    asked = {}

    def remember(**options):
        asked.update(options)
        one = Measurement("torch float32", 1_000_000, 0.02, 0.0)
        other = Measurement("onnxruntime int8", 300_000, 0.01, 1e-3)
        return Export(Path("out"), "onnx", 5, (one, other))

    remember.__signature__ = inspect.signature(export)
    remember.__doc__ = export.__doc__
    monkeypatch.setattr("skill_speech.exporting.export", remember)
    assert main(["export", model, "--format", "onnx", "--quantize", "int8", "--output", "out"]) == 0
    assert asked == {
        "model": model,
        "output": "out",
        "format": "onnx",
        "quantize": "int8",
        "hidden_states": None,
        "length_aware": False,
        "target_lang": None,
        "scores": None,
        **dict.fromkeys(("language", "datasets", "license", "base_model")),
        "push_to_hub": None,
    }
    printed = capsys.readouterr().out
    for words in ("onnxruntime int8", "0.3 MB", "0.0100", "2.0x", "1.0e-03", "onnx: out"):
        assert words in printed


def test_the_command_writes_a_folder(model, tmp_path, capsys):
    output = tmp_path / "exports" / "one"
    assert main(["export", model, "--format", "transformers", "--output", str(output)]) == 0
    files = {path.name for path in output.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", *ENCODER} <= files
    assert (output / "README.md").read_text().startswith("---\nlibrary_name: transformers\n---\n\n# A card\n")
    size = sum(path.stat().st_size for path in output.iterdir()) / 1e6
    assert f"transformers: {output} ({size:.1f} MB" in capsys.readouterr().out
    assert [path.name for path in output.parent.iterdir()] == ["one"]


def test_a_torchaudio_file_gives_the_encoder_back(tmp_path):
    encoder = pruned_encoder("wavlm")
    encoder.save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), str(tmp_path / "out"), format="torchaudio")
    back = load_encoder(tmp_path / "out" / "model.pth")
    waveforms, lengths = BATCHES[0]
    with torch.inference_mode():
        made, wanted = back(waveforms, lengths), encoder(waveforms, lengths)
    for mine, other in zip(made.hidden_states, wanted.hidden_states, strict=True):
        assert float((mine - other).abs().max()) < 1e-5


def test_what_does_not_go_together_is_refused_before_anything_is_loaded(tmp_path):
    output = str(tmp_path / "out")
    for format in ("transformers", "torch-export", "torchaudio", "s3prl"):
        assert "quantize goes with format onnx only" in refused("none", output, format=format, quantize="int8")
    for format in ("transformers", "torchaudio", "s3prl"):
        message = refused("none", output, format=format, hidden_states="last")
        assert "hidden_states goes with formats onnx and torch-export only" in message
    assert "length_aware does not go with format torchaudio" in refused(
        "none", output, format="torchaudio", length_aware=True
    )
    assert "format is 'tflite'; it can be transformers, onnx" in refused("none", output, format="tflite")
    assert "quantize is 'int2'; it can be int8, int4" in refused("none", output, format="onnx", quantize="int2")
    assert "hidden_states is 'some'; it can be all, last" in refused(
        "none", output, format="onnx", hidden_states="some"
    )


def test_an_output_in_use_is_left_alone(model, tmp_path):
    used = tmp_path / "used"
    used.mkdir()
    (used / "thesis.tex").touch()
    assert "used: already exists" in refused(model, str(used), format="s3prl")
    assert "already exists" in refused(model, str(used / "thesis.tex"), format="s3prl")
    assert [path.name for path in used.iterdir()] == ["thesis.tex"]
    empty = tmp_path / "empty"
    empty.mkdir()
    export(model, str(empty), format="s3prl")
    assert (empty / "model.pt").exists()


def test_an_export_that_fails_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("skill_speech.exporting.s3prl.torch.save", full)
    with pytest.raises(OSError, match="No space left"):
        export(model, str(tmp_path / "out"), format="s3prl")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_model_that_is_not_there(tmp_path):
    assert "no such model" in refused("nobody/nothing", str(tmp_path / "out"), format="s3prl")
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = refused(model, str(tmp_path / "out"), format="onnx")
    assert message == "onnxscript is not installed: pip install onnx onnxscript onnxruntime"


@pytest.mark.parametrize("format", ["onnx", "torch-export", "s3prl", "transformers"])
def test_length_aware_is_for_every_format_that_can_say_it(format, model, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr("skill_speech.exporting.formats._save", lambda model, *_: saved.append(model) or ())
    export(model, str(tmp_path / "out"), format=format, length_aware=True)
    assert saved[0].encoder.config.length_aware


def test_length_aware_goes_into_what_is_written(model, tmp_path):
    export(model, str(tmp_path / "out"), format="transformers", length_aware=True)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["length_aware"] is True


class Hub:
    """The hub, as far as it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []

    def create_repo(self, repo_id, *, exist_ok):
        self.asked.append(("create", repo_id, exist_ok))
        return f"https://hub/{repo_id}"

    def upload_folder(self, *, repo_id, folder_path):
        self.asked.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))


def test_push_to_hub_uploads_the_complete_folder(model, tmp_path, monkeypatch):
    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    result = export(model, str(tmp_path / "out"), format="transformers", push_to_hub="me/small")
    assert result.address == "https://hub/me/small"
    created, (what, where, files) = hub.asked
    assert created == ("create", "me/small", True)
    assert (what, where) == ("upload", "me/small")
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {"README.md", "config.json", "modeling_skill_speech.py"} <= set(files)


@pytest.mark.parametrize("format", ["onnx", "torch-export", "torchaudio", "s3prl"])
def test_push_to_hub_takes_every_format(format, model, tmp_path, monkeypatch):
    def save(encoder, folder, *options):
        (folder / "file").touch()
        return ()

    hub = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr("skill_speech.exporting.formats._save", save)
    export(model, str(tmp_path / "out"), format=format, push_to_hub="me/small")
    assert hub.asked[-1] == ("upload", "me/small", ["README.md", "file"])


def test_push_to_hub_without_a_network_keeps_the_folder_and_says_so(model, tmp_path):
    message = refused(model, str(tmp_path / "out"), format="s3prl", push_to_hub="me/small")
    assert "out is complete but could not be uploaded to me/small" in message
    assert (tmp_path / "out" / "model.pt").exists()


def test_whatever_the_hub_answers_is_one_line(model, tmp_path, monkeypatch):
    """The HTTP library's own errors too, which are not Python's."""

    class ConnectError(Exception):
        pass

    def fails(self, *arguments, **options):
        raise ConnectError("[Errno -2] Name or\nservice not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", fails)
    message = refused(model, str(tmp_path / "out"), format="s3prl", push_to_hub="me/small")
    assert message.endswith("could not be uploaded to me/small: [Errno -2] Name or service not known")


def test_models_push_themselves_with_their_code(model, tmp_path, monkeypatch):
    """`model.push_to_hub` after fine-tuning, as for every model of Transformers."""
    export(model, str(tmp_path / "out"), format="transformers")
    skill_speech.register()
    tuned = transformers.AutoModelForCTC.from_pretrained(tmp_path / "out")
    uploaded = []

    class Api:
        def create_repo(self, repo_id, **options):
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def __getattr__(self, name):
            return lambda *arguments, **options: None

    def upload(self, working_dir, repo_id, *arguments, **options):
        uploaded.extend(path.name for path in Path(working_dir).iterdir())

    monkeypatch.setattr("transformers.utils.hub.hf_api", lambda: Api())
    monkeypatch.setattr(transformers.modeling_utils.PreTrainedModel, "_upload_modified_files", upload)
    tuned.push_to_hub("me/tuned")
    assert {"config.json", "model.safetensors", "modeling_skill_speech.py", *ENCODER} <= set(uploaded)
