"""Whole models in onnxruntime, torch.export and TorchAudio's layout, and what their cards and profiles say."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
import transformers
from rich.console import Console
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from skill_speech import InputError, export, load_encoder, load_model, profile
from skill_speech.cli import main
from skill_speech.heads import HeadConfig, SpeechModel, TDNNConfig, make_head
from skill_speech.heads.config import AdapterConfig
from skill_speech.profiling import measure
from skill_speech.reporting.model_card import read_card
from skill_speech.tables import profile_table
from tests import torchaudio_reference
from tests.card_code import assert_the_card_loads_it, section
from tests.clean_environment import run_with
from tests.exported_models import BATCHES, batch, student
from tests.models_with_heads import LABELS, VOCABULARY, fine_tuned, save_4, save_5

HEADS: dict[str, HeadConfig] = {
    "ctc": HeadConfig("ctc", outputs=len(VOCABULARY)),
    "ctc-adapter": HeadConfig("ctc", outputs=9, adapter=AdapterConfig(layers=2, width=32, kernel=3, stride=2)),
    "sequence": HeadConfig("sequence", outputs=5, labels=tuple(LABELS), projection=14, weighted_layer_sum=True),
    "frame": HeadConfig("frame", outputs=3),
    "x-vector": HeadConfig(
        "x-vector", outputs=7, tdnn=(TDNNConfig(20, 5, 1), TDNNConfig(20, 3, 2), TDNNConfig(24, 1, 1)), embedding=18
    ),
}
OUTPUTS = {
    "ctc": ["logits", "frames"],
    "ctc-adapter": ["logits", "frames"],
    "sequence": ["logits"],
    "frame": ["logits", "frames"],
    "x-vector": ["logits", "embeddings"],
}


def mostly_slow(names: Iterable[str], quick: str) -> list[Any]:
    """All names, of which only one is tried every time."""
    return [name if name == quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def pruned(name: str, of: str = "normalized-and-length-aware") -> SpeechModel:
    """A student with a head, as a run leaves it."""
    encoder = student(of)
    torch.manual_seed(1)
    head = make_head(HEADS[name], encoder.config).eval()
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(0, 0.5)
    files = {"vocab.json": json.dumps(VOCABULARY).encode()} if name == "ctc" else {}
    return SpeechModel(encoder, head, files).eval()


def saved(name: str, folder: Path, of: str = "normalized-and-length-aware") -> SpeechModel:
    model = pruned(name, of)
    model.save_pretrained(folder)
    return model


def wanted(model: SpeechModel, waveforms: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        made = model(waveforms, lengths)
    outputs = {"logits": made.logits, "frames": made.lengths_B, "embeddings": made.embeddings_BD}
    return {name: tensor for name, tensor in outputs.items() if tensor is not None}


def assert_close(mine: Any, other: Tensor, tolerance: float) -> None:
    mine = torch.as_tensor(mine)
    assert mine.shape == other.shape
    assert float((mine - other).abs().max()) <= tolerance * float(other.abs().max())


@pytest.mark.parametrize("name", mostly_slow(HEADS, "ctc"))
def test_onnx_gives_the_heads_outputs(name, tmp_path, monkeypatch):
    model = saved(name, tmp_path / "model")
    result = export(str(tmp_path / "model"), str(tmp_path / "out"), format="onnx")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [output.name for output in session.get_outputs()] == OUTPUTS[name]
    for waveforms, lengths in BATCHES if name != "x-vector" else BATCHES[:2]:
        arrays = session.run(OUTPUTS[name], {"waveforms": waveforms.numpy(), "lengths": lengths.numpy()})
        other = wanted(model, waveforms, lengths)
        assert list(other) == sorted(OUTPUTS[name], key=list(other).index)
        for output, array in zip(OUTPUTS[name], arrays, strict=True):
            assert_close(array, other[output], 1e-4)
    assert result.measurements[1].difference < 1e-4
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.onnx", "head.json", "encode.py", "preprocessor_config.json", "README.md"} <= files
    assert "index.html" not in files
    config = json.loads((tmp_path / "out" / "head.json").read_text())
    assert HeadConfig.from_dict(config) == HEADS[name]
    with pytest.raises(InputError):
        load_model(tmp_path / "out")
    assert_the_card_loads_it(tmp_path / "out", "onnx", model, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("hidden_states", ["last", "all"])
@pytest.mark.parametrize("name", ["sequence", "ctc-adapter"])
def test_hidden_states_come_beside_the_logits_if_asked_for(name, hidden_states, tmp_path):
    model = saved(name, tmp_path / "model")
    options: dict[str, Any] = {"format": "torch-export", "hidden_states": hidden_states}
    export(str(tmp_path / "model"), str(tmp_path / "out"), **options)
    waveforms, lengths = BATCHES[0]
    made = torch.export.load(tmp_path / "out" / "model.pt2").module()(waveforms, lengths)
    with torch.inference_mode():
        encoded = model.encoder(waveforms, lengths)
    other = wanted(model, waveforms, lengths) | {"last_hidden_state": encoded.last_hidden_state_BTD}
    other.setdefault("frames", encoded.lengths_B)
    if name == "ctc-adapter":
        other["encoder_frames"] = encoded.lengths_B
    if hidden_states == "all":
        other |= {f"hidden_state_{number}": state for number, state in enumerate(encoded.hidden_states)}
    assert made.keys() == other.keys()
    for output, tensor in made.items():
        assert_close(tensor, other[output], 1e-5)


@pytest.mark.parametrize("name", mostly_slow(HEADS, "x-vector"))
def test_torch_export_gives_the_heads_outputs(name, tmp_path, monkeypatch):
    model = saved(name, tmp_path / "model")
    export(str(tmp_path / "model"), str(tmp_path / "out"), format="torch-export")
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    shortest = (batch(720),) if name in ("ctc", "sequence", "frame") else ()  # the others want more frames
    for waveforms, lengths in (*BATCHES[:2], *shortest):
        made, other = program(waveforms, lengths), wanted(model, waveforms, lengths)
        assert made.keys() == other.keys()
        for output, tensor in made.items():
            assert_close(tensor, other[output], 1e-5)
    assert (tmp_path / "out" / "head.json").exists()
    assert (tmp_path / "out" / "vocab.json").exists() == (name == "ctc")
    assert_the_card_loads_it(tmp_path / "out", "torch-export", model, monkeypatch)


@pytest.mark.parametrize("name", mostly_slow(["ctc", "sequence"], "ctc"))
def test_the_example_prints_text_or_label_where_torch_is_not_installed(name, tmp_path, capsys):
    """In int8: the text is that of Transformers' tokenizer for the same logits."""
    head = {"ctc": "ForCTC", "sequence": "ForSequenceClassification"}[name]
    save_4(fine_tuned("Hubert", head), tmp_path / "model", normalize=True)
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 30_000)
    soundfile.write(tmp_path / "speech.wav", samples, 16_000, subtype="PCM_16")
    folder = tmp_path / "out"
    asked = ["--format", "onnx", "--quantize", "int8", "--output", str(folder)]
    assert main(["export", str(tmp_path / "model"), *asked]) == 0
    assert "onnxruntime int8" in capsys.readouterr().out
    code = f"import runpy; runpy.run_path({str(folder / 'encode.py')!r})"
    (last,) = run_with(["onnxruntime", "numpy"], code, tmp_path, str(tmp_path / "speech.wav")).splitlines()
    logits = np.load(tmp_path / "speech.npz")["logits"]
    waveform, _ = soundfile.read(tmp_path / "speech.wav", dtype="float32")
    with torch.inference_mode():
        exact = load_model(tmp_path / "model")(torch.from_numpy(waveform)[None]).logits
    assert 1e-6 < float((torch.from_numpy(logits) - exact).norm() / exact.norm()) < 0.05
    if name == "sequence":
        assert last.startswith(f"{LABELS[int(logits[0].argmax())]} ")
        return
    text = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "model").decode(logits[0].argmax(-1))
    for special in ("<s>", "</s>", "[UNK]"):
        text = text.replace(special, "")
    assert len(text) > 10
    assert last == " ".join(text.split())


@pytest.mark.parametrize("of", ["hubert", "pre-norm"])
def test_torchaudio_has_a_place_for_ctc(of, tmp_path):
    """Read as the layout describes it, by code of the tests' own; and by us, with the vocabulary."""
    model = saved("ctc", tmp_path / "model", of)
    export(str(tmp_path / "model"), str(tmp_path / "out"), format="torchaudio")
    content = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    state, config = content["state_dict"], content["config"]
    assert config["aux_num_out"] == len(VOCABULARY)
    waveforms, lengths = BATCHES[1]
    last = torchaudio_reference.hidden_states(state, config, waveforms, lengths)[-1]
    if config["encoder_layer_norm_first"]:
        names = ("weight", "bias")
        last = torch.nn.functional.layer_norm(
            last, last.shape[-1:], *(state[f"encoder.transformer.layer_norm.{name}"] for name in names)
        )
    logits = torch.nn.functional.linear(last, state["aux.weight"], state["aux.bias"])
    assert_close(logits, wanted(model, waveforms, lengths)["logits"], 1e-4)
    back = load_model(tmp_path / "out" / "model.pth")
    assert back.head.config == HEADS["ctc"]
    assert json.loads(back.files["vocab.json"]) == VOCABULARY
    assert_close(back(waveforms, lengths).logits.detach(), wanted(model, waveforms, lengths)["logits"], 1e-5)
    assert load_encoder(tmp_path / "out" / "model.pth").num_parameters() == model.encoder.num_parameters()


def test_torchaudios_own_recognizers_have_their_head(tmp_path):
    """A plain state dict with `aux` in it, and no word of the blank: the first token, as in TorchAudio's bundles."""
    saved("ctc", tmp_path / "model", "hubert")
    export(str(tmp_path / "model"), str(tmp_path / "out"), format="torchaudio")
    content = torch.load(tmp_path / "out" / "model.pth", weights_only=True)
    torch.save({"state_dict": content["state_dict"], "config": content["config"]}, tmp_path / "plain.pth")
    back = load_model(tmp_path / "plain.pth")
    assert (back.head.config.kind, back.head.config.blank, back.files) == ("ctc", 0, {})
    content["skill_speech"]["files"]["vocab.json"] = "[1]"
    torch.save(content, tmp_path / "broken.pth")
    with pytest.raises(InputError, match=r"vocab\.json in it is not a JSON object"):
        load_model(tmp_path / "broken.pth")
    content["state_dict"].pop("aux.bias")
    torch.save(content, tmp_path / "broken.pth")
    with pytest.raises(InputError, match=r"lm_head\.bias is missing"):
        load_model(tmp_path / "broken.pth")


@pytest.mark.parametrize("name", ["sequence", "frame", "x-vector", "ctc-adapter"])
def test_torchaudio_has_no_place_for_other_heads(name, tmp_path):
    saved(name, tmp_path / "model", "hubert")
    with pytest.raises(
        InputError, match="cannot be written in the TorchAudio layout, which has CTC heads only"
    ) as caught:
        export(str(tmp_path / "model"), str(tmp_path / "out"), format="torchaudio")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_s3prl_has_the_encoder_alone_and_says_so(tmp_path, caplog):
    model = saved("sequence", tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        export(str(tmp_path / "model"), str(tmp_path / "out"), format="s3prl")
    assert "its sequence head is left out; s3prl has heads of its own" in caplog.text
    weights = torch.load(tmp_path / "out" / "model.pt", weights_only=True)["weights"]
    assert weights.keys() == model.encoder.state_dict().keys()
    assert read_card(tmp_path / "out" / "README.md").data.pipeline_tag == "feature-extraction"


@pytest.mark.parametrize("name", HEADS)
def test_the_card_says_what_the_model_is_for(name, tmp_path, monkeypatch):
    model = saved(name, tmp_path / "model")
    export(str(tmp_path / "model"), str(tmp_path / "out"), format="transformers")
    card = read_card(tmp_path / "out" / "README.md")
    tags = {"ctc": "automatic-speech-recognition", "x-vector": "feature-extraction"}
    assert card.data.pipeline_tag == tags.get(HEADS[name].kind, "audio-classification")
    assert ("pipeline(" in section(card, "How to load it")) == (HEADS[name].kind in ("ctc", "sequence"))
    if name != "ctc-adapter":  # which has no vocabulary here
        assert_the_card_loads_it(tmp_path / "out", "transformers", model, monkeypatch)


@pytest.mark.parametrize("name", HEADS)
def test_a_profile_counts_the_head(name, tmp_path):
    """MACs by torch's own counter of a pass, which counts two operations for each."""
    model = pruned(name, "hubert")
    seconds, waveform = 2.0, torch.randn(1, 32_000)
    found = measure(model.encoder, name, seconds, repeats=1, head=model.head)
    assert found.parameters["head"] == sum(weight.numel() for weight in model.head.parameters())
    assert found.total_parameters == model.num_parameters()
    with torch.inference_mode():
        output = model.encoder(waveform)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.head(output)
    assert found.macs["head"] * seconds == counter.get_total_flops() / 2


def test_the_table_shows_the_head_beside_a_model_without(tmp_path):
    saved("ctc-adapter", tmp_path / "whole", "hubert")
    student("hubert").save_pretrained(tmp_path / "encoder")
    whole, alone = profile(str(tmp_path / "whole"), str(tmp_path / "encoder"), seconds=1, threads=1)
    assert whole.total_parameters - alone.total_parameters == whole.parameters["head"] > 0
    assert "head" not in alone.parameters
    for pair in ([whole, alone], [alone, whole]):
        console = Console(width=200, record=True)
        console.print(profile_table(pair))
        assert len(re.findall(r"  head ", console.export_text())) == 2


def test_mms_is_exported_in_the_language_asked_for(tmp_path):
    from safetensors.torch import save_file

    from tests.transformers_models import LARGE_STYLE

    settings = LARGE_STYLE | {"adapter_attn_dim": 8, "vocab_size": 9}
    model, other = (fine_tuned("Wav2Vec2", "ForCTC", **settings, layerdrop=drop) for drop in (0.0, 0.1))
    with torch.no_grad():
        other.lm_head.weight.neg_()
    save_5(model, tmp_path / "mms")
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json"):
        (tmp_path / "mms" / name).unlink(missing_ok=True)
    vocabularies = {"eng": {"<pad>": 0, "a": 1}, "fra": {"<pad>": 0, "é": 8}}
    (tmp_path / "mms" / "vocab.json").write_text(json.dumps(vocabularies))
    save_file(other._get_adapters(), tmp_path / "mms" / "adapter.fra.safetensors")
    export(str(tmp_path / "mms"), str(tmp_path / "out"), format="transformers", target_lang="fra")
    back = load_model(tmp_path / "out")
    assert json.loads(back.files["vocab.json"]) == vocabularies["fra"]
    assert torch.equal(back.head.lm_head.weight, other.lm_head.weight)
