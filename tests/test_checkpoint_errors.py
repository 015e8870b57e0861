"""What `load_encoder` says of sources that it cannot use."""

from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
import transformers

from skill_speech import InputError, analyze, compress, export, load_encoder
from skill_speech.evaluation.upstream import open_upstream
from tests.refusals import refused
from tests.transformers_models import TINY, build, save


@pytest.fixture
def folder(tmp_path):
    save(build("Hubert", TINY), tmp_path / "model")
    return tmp_path / "model"


def edit(path, **changes) -> None:
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | changes))


def test_unknown_architecture_is_refused_by_name(tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert "unknown architecture 'bert'" in message
    assert "data2vec-audio, hubert, mert_model, unispeech, unispeech-sat, wav2vec2, wavlm" in message


def test_an_architecture_that_transformers_does_not_know_either(folder):
    edit(folder / "config.json", model_type="superspeech")
    assert "unknown architecture 'superspeech'" in refused(folder)


def test_nothing_there(tmp_path):
    assert "no such model" in refused("nobody/nothing")
    assert "no config.json there" in refused(tmp_path)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    assert "damaged or not a safetensors file" in refused(folder)


def test_truncated_bin(folder):
    path = folder / "pytorch_model.bin"
    torch.save(build("Hubert", TINY).state_dict(), path)
    os.truncate(path, path.stat().st_size // 2)
    (folder / "model.safetensors").unlink()
    assert "damaged or not a torch archive" in refused(folder)


def test_missing_weights_file(folder):
    (folder / "model.safetensors").unlink()
    assert "no model.safetensors and no pytorch_model.bin" in refused(folder)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Evil()}))
    refused(folder)
    torch.save({"weight": Evil()}, folder / "pytorch_model.bin")
    assert "never run" in refused(folder)
    assert not (tmp_path / "executed").exists()


def test_weights_that_do_not_fit_the_configuration(folder):
    edit(folder / "config.json", intermediate_size=81)
    assert "has the shape (80, 48); its configuration says (81, 48)" in refused(folder)


def test_missing_weight_is_named(folder):
    edit(folder / "config.json", num_hidden_layers=4)
    assert "encoder.layers.3.attention.q_proj.weight is missing" in refused(folder)


def test_another_sampling_rate_is_refused_where_audio_is_read(folder, tmp_path):
    """Such an encoder loads; what would feed it waveforms of 16 kHz says so before anything is written."""
    edit(folder / "preprocessor_config.json", sampling_rate=8_000)
    assert load_encoder(folder).config.sampling_rate == 8_000
    speech = tmp_path / "speech"
    speech.mkdir()
    for command in (
        lambda: compress(str(folder), str(speech), str(tmp_path / "out")),
        lambda: analyze(str(folder), str(speech), str(tmp_path / "out")),
        lambda: export(str(folder), str(tmp_path / "out"), format="onnx"),
        lambda: open_upstream(str(folder), torch.device("cpu")),
    ):
        with pytest.raises(InputError, match="takes waveforms of 8,000 Hz, and only 16,000 Hz is supported here"):
            command()
    assert not (tmp_path / "out").exists()


def test_native_checkpoints_that_are_broken(folder, tmp_path):
    encoder = load_encoder(folder)
    ours = tmp_path / "ours"

    encoder.save_pretrained(ours)
    (ours / "config.json").write_text("{")
    assert "cannot be read as JSON" in refused(ours)

    encoder.save_pretrained(ours)
    edit(ours / "config.json", color="red")
    assert "unknown keys in the encoder configuration: color" in refused(ours)

    encoder.save_pretrained(ours)
    edit(ours / "config.json", hidden_size=50)
    assert "not a multiple of num_heads" in refused(ours)

    encoder.save_pretrained(ours)
    edit(ours / "config.json", layers=[])
    assert "at least one" in refused(ours)

    encoder.save_pretrained(ours)
    (ours / "model.safetensors").unlink()
    assert "model.safetensors is not" in refused(ours)


def test_a_file_in_a_folder_stands_for_the_folder(folder):
    assert load_encoder(folder / "model.safetensors").config == load_encoder(folder).config
    (folder / "notes.txt").write_text("hello")
    assert "damaged or not a torch archive" in refused(folder / "notes.txt")
