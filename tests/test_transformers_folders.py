"""Folders of today's Transformers: the feature extractor's settings, wrapped names, adapters, shards; all as data."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from skill_speech import Encoder, load_encoder
from skill_speech.checkpoints import read_checkpoint, save_torchaudio
from skill_speech.encoder import hubert_config
from skill_speech.kernels import attach_kernels
from tests.fairseq_files import fairseq_settings, fairseq_weights, write_fairseq
from tests.refusals import refused
from tests.transformers_models import LARGE_STYLE, TINY, build, save

KINDS = ("Hubert", "WavLM", "Wav2Vec2")
STYLES = {"post-norm": {}, "pre-norm": LARGE_STYLE}
# How torch.compile, DDP, FSDP and activation checkpointing rename weights: around the model, a part of it, a layer.
WRAPPED = {
    "compiled": lambda name: f"_orig_mod.{name}",
    "parallel": lambda name: f"module.{name}",
    "parallel, then compiled": lambda name: f"_orig_mod.module.{name}",
    "compiled, then parallel, twice": lambda name: f"module.module._orig_mod.{name}",
    "one part compiled": lambda name: name.replace("encoder.", "encoder._orig_mod.", 1),
    "each layer checkpointed": lambda name: name.replace(".layers.0.", ".layers.0._checkpoint_wrapped_module."),
    "sharded": lambda name: f"_fsdp_wrapped_module.{name}",
    "some of them": lambda name: f"module.{name}" if "bias" in name else name,
}


def outputs(encoder: Encoder) -> torch.Tensor:
    torch.manual_seed(0)
    with torch.inference_mode():
        return encoder(torch.randn(1, 4_000) * 0.1 + 0.05).last_hidden_state_BTD


# The feature extractor.


def processor(folder: Path, normalize: bool) -> None:
    """A processor of today: processor_config.json alone."""
    (folder / "vocab.json").write_text(json.dumps({"<pad>": 0, "<unk>": 1, "|": 2, "a": 3}))
    made = transformers.Wav2Vec2Processor(
        transformers.Wav2Vec2FeatureExtractor(do_normalize=normalize),
        transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json", pad_token="<pad>", unk_token="<unk>"),
    )
    made.save_pretrained(folder)
    assert (folder / "processor_config.json").exists()
    assert not (folder / "preprocessor_config.json").exists()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_processor_states_the_normalization(kind, style, normalize, tmp_path, caplog):
    model = build(kind, TINY | STYLES[style])
    model.save_pretrained(tmp_path)
    processor(tmp_path, normalize)
    encoder = load_encoder(tmp_path)
    assert encoder.config.input_normalization is normalize
    assert not caplog.records
    torch.manual_seed(0)
    waveform = torch.randn(1, 4_000) * 0.1 + 0.05
    extractor = transformers.AutoFeatureExtractor.from_pretrained(tmp_path)
    with torch.inference_mode():
        values = extractor(waveform[0].numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        assert torch.allclose(outputs(encoder), model(values).last_hidden_state, atol=1e-5)


def test_the_nested_settings_go_first_as_in_transformers(tmp_path):
    save(build("Hubert", TINY), tmp_path, normalize=False)
    nested = {"feature_extractor": {"do_normalize": True}, "processor_class": "Wav2Vec2Processor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert load_encoder(tmp_path).config.input_normalization
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "Wav2Vec2Processor"}))
    assert not load_encoder(tmp_path).config.input_normalization


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("style", "usual"), [("post-norm", False), ("pre-norm", True)])
def test_what_nothing_states_is_said_once(kind, style, usual, tmp_path, caplog):
    build(kind, TINY | STYLES[style]).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16_000}))
    for _ in range(3):
        assert load_encoder(tmp_path).config.input_normalization is usual
    [record] = caplog.records
    assert record.levelname == "WARNING"
    said = record.getMessage()
    assert f"waveforms {'to be' if usual else 'not'} normalized" in said
    assert "neither preprocessor_config.json nor processor_config.json states do_normalize" in said
    assert str(tmp_path) in said
    assert read_checkpoint(tmp_path).assumed  # `import` shows it too


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("processor_config.json", {"feature_extractor": [1]}, "feature_extractor in processor_config.json"),
        ("processor_config.json", {"feature_extractor": {"do_normalize": "no"}}, "do_normalize is 'no'"),
        ("preprocessor_config.json", {"do_normalize": None}, "do_normalize is None; it must be true or false"),
        ("preprocessor_config.json", {"sampling_rate": [8_000]}, "sampling_rate is [8000]; it must be a whole number"),
        ("preprocessor_config.json", [1], "not a JSON object"),
    ],
)
def test_settings_of_the_wrong_type(name, content, message, tmp_path):
    build("Hubert", TINY).save_pretrained(tmp_path)
    (tmp_path / name).write_text(json.dumps(content))
    assert message in refused(tmp_path)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_code_that_a_folder_names_is_neither_run_nor_asked_about(name, tmp_path, monkeypatch, capsys):
    """With "y" on standard input, Transformers runs it."""
    folder, mark = tmp_path / "model", tmp_path / "MARK"
    save(build("Hubert", TINY | {"num_hidden_layers": 1}), folder)
    settings = {
        "auto_map": {
            "AutoFeatureExtractor": "beside.Beside",
            "AutoConfig": "beside.Beside",
            "AutoModel": "beside.Beside",
        },
        "feature_extractor_type": "Beside",
        "do_normalize": True,
    }
    nested = settings if name.startswith("pre") else settings | {"feature_extractor": settings}
    (folder / name).write_text(json.dumps(nested))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": settings["auto_map"]}))
    (folder / "beside.py").write_text(f"open({str(mark)!r}, 'w')\nclass Beside:\n    pass\n")

    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    assert load_encoder(folder).config.input_normalization
    assert not mark.exists()
    assert not capsys.readouterr().out
    if name.startswith("pre"):
        with pytest.raises(AttributeError):  # its class is no feature extractor, and its file has run by then
            transformers.AutoFeatureExtractor.from_pretrained(folder)
        assert mark.exists()  # so it was there to be run


# Names of weights.


@pytest.mark.parametrize("how", WRAPPED)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_wrapped_names_in_a_transformers_folder(kind, style, how, tmp_path):
    model = build(kind, TINY | STYLES[style], "ForCTC" if kind != "WavLM" else "Model")
    right = outputs(load_encoder(save(model, tmp_path)))
    path = tmp_path / "model.safetensors"
    save_file({WRAPPED[how](name): tensor for name, tensor in load_file(path).items()}, path)
    assert torch.equal(outputs(load_encoder(tmp_path)), right)
    torch.save(
        {WRAPPED[how](name): tensor for name, tensor in model.state_dict().items()}, tmp_path / "pytorch_model.bin"
    )
    path.unlink()
    assert torch.equal(outputs(load_encoder(tmp_path)), right)


@pytest.mark.parametrize("how", WRAPPED)
def test_wrapped_names_in_every_other_format(how, tmp_path):
    rename = WRAPPED[how]
    model = build("Hubert", TINY)
    weights = fairseq_weights(model)
    for number, named in enumerate((weights, {rename(name): tensor for name, tensor in weights.items()})):
        write_fairseq(tmp_path / f"{number}.pt", "cfg", fairseq_settings(model, "hubert"), named, False)
    assert torch.equal(*(outputs(load_encoder(tmp_path / f"{number}.pt")) for number in (0, 1)))

    torch.manual_seed(1)
    encoder = Encoder(
        hubert_config(hidden_size=16, num_heads=2, depth=2, units=8, channels=8, positional_groups=4)
    ).eval()
    save_torchaudio(encoder, tmp_path / "ours.pth")
    content = torch.load(tmp_path / "ours.pth")
    content["state_dict"] = {rename(name): tensor for name, tensor in content["state_dict"].items()}
    torch.save(content, tmp_path / "wrapped.pth")
    assert torch.equal(*(outputs(load_encoder(tmp_path / f"{name}.pth")) for name in ("ours", "wrapped")))

    encoder.save_pretrained(tmp_path / "ours")
    path = tmp_path / "ours/model.safetensors"
    save_file({rename(name): tensor for name, tensor in load_file(path).items()}, path)
    assert torch.equal(outputs(load_encoder(tmp_path / "ours")), outputs(attach_kernels(encoder)))


def test_real_wrappers_name_their_weights_so(tmp_path):
    model = build("Hubert", TINY)
    right = outputs(load_encoder(save(model, tmp_path)))
    (tmp_path / "model.safetensors").unlink()
    averaged = torch.optim.swa_utils.AveragedModel(model)  # "module." and a counter beside it
    for wrapped in (torch.compile(model), torch.nn.DataParallel(torch.compile(model)), averaged):
        torch.save(wrapped.state_dict(), tmp_path / "pytorch_model.bin")
        assert torch.equal(outputs(load_encoder(tmp_path)), right)


def test_a_weight_that_is_there_twice_is_refused(tmp_path):
    model = build("Hubert", TINY)
    save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict() | torch.nn.DataParallel(model).state_dict(), tmp_path / "pytorch_model.bin")
    assert "appears twice, also as module.masked_spec_embed" in refused(tmp_path)


@pytest.mark.parametrize("name", [0, None, ("a", "b"), b"bytes"])
def test_names_that_are_no_text(name, tmp_path):
    model = build("Hubert", TINY)
    save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({name: torch.ones(1)} | model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "not a state dict" in refused(tmp_path)
    torch.save({name: torch.ones(1)}, tmp_path / "other.pt")
    assert "not a known checkpoint" in refused(tmp_path / "other.pt") or "no known speech" in refused(
        tmp_path / "other.pt"
    )


# Adapters.


def test_an_adapter_behind_the_encoder_is_refused_by_name(tmp_path):
    for kind in ("WavLM", "Wav2Vec2", "Data2VecAudio"):
        values = {} if kind != "Data2VecAudio" else {"num_conv_pos_embeddings": 3}
        save(build(kind, TINY | values | {"add_adapter": True}), tmp_path / kind)
        assert "add_adapter in its config.json is not supported" in refused(tmp_path / kind)


def test_an_adapter_of_peft_is_to_be_merged_first(tmp_path):
    import peft

    base = build("Hubert", TINY)
    right = outputs(load_encoder(save(base, tmp_path / "base")))
    adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    for path in (tmp_path / "adapter", tmp_path / "adapter/adapter_model.safetensors"):
        assert "merge the adapter into its model first: peft.PeftModel.from_pretrained(MODEL, FOLDER)" in refused(path)
    # Beside a whole model it would be left out in silence; not merged, its weights are under other names.
    save(build("Hubert", TINY), tmp_path / "both")
    os.link(tmp_path / "adapter/adapter_config.json", tmp_path / "both/adapter_config.json")
    assert "merge the adapter" in refused(tmp_path / "both")
    (tmp_path / "base/model.safetensors").unlink()
    torch.save(base.state_dict(), tmp_path / "base/pytorch_model.bin")
    assert "merge the adapter" in refused(tmp_path / "base")
    # What the message says to do.
    model = transformers.HubertModel.from_pretrained(save(build("Hubert", TINY), tmp_path / "model"))
    merged = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").merge_and_unload()
    save(merged, tmp_path / "merged")
    assert not torch.allclose(outputs(load_encoder(tmp_path / "merged")), right, atol=1e-3)


def test_weights_that_the_configuration_does_not_know_are_refused(tmp_path):
    save(build("Wav2Vec2", TINY), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    assert "does not match the weight encoder.layers.2." in refused(tmp_path)
    save(build("Wav2Vec2", TINY | {"add_adapter": True}), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"add_adapter": False}))
    assert "does not match the weight adapter." in refused(tmp_path)


# Shards.


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": None}}, "is not an index of sharded weights"),
        ({"weight_map": None}, "is not an index of sharded weights"),
        ({"weight_map": ["a"]}, "is not an index of sharded weights"),
        ({}, "is not an index of sharded weights"),
        ([], "not a JSON object"),
        ({"weight_map": {"a": "../outside.safetensors"}}, "the shard ../outside.safetensors"),
        ({"weight_map": {"a": "\ud800.safetensors"}}, r"the shard \ud800.safetensors"),
        ({"weight_map": {"a": "a\0b"}}, r"the shard a\x00b"),
        ({"weight_map": {"a": "a" * 10**6}}, "…"),
    ],
)
def test_an_index_that_makes_no_sense(index: Any, message: str, tmp_path):
    save(build("Hubert", TINY), tmp_path / "model")
    os.rename(tmp_path / "model/model.safetensors", tmp_path / "outside.safetensors")
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    assert message in refused(tmp_path / "model")


def test_names_of_other_scripts_and_none(tmp_path):
    folder = save(build("Hubert", TINY), tmp_path / "mödel 模型")
    load_encoder(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "\ud800"}))
    assert "unknown architecture" in refused(folder)
