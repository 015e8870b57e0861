"""Encoders inside the checkpoints of training code: Lightning, DDP and SpeechBrain around a Transformers model."""

from __future__ import annotations

import argparse
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from skill_speech import Encoder, load_encoder, load_model
from skill_speech.checkpoints import read_checkpoint
from tests.fairseq_files import fairseq_weights
from tests.refusals import refused
from tests.test_fairseq_checkpoints import assert_equals_transformers
from tests.test_torchaudio_checkpoints import torchaudio_weights
from tests.transformers_models import LARGE_STYLE, TINY, build, save

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("Hubert", {}),
    "wavlm": ("WavLM", {"num_buckets": 32, "max_bucket_distance": 40}),
    "wav2vec2": ("Wav2Vec2", LARGE_STYLE),
    "data2vec": ("Data2VecAudio", {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7}),
}
REST = {
    "epoch": 3,
    "global_step": 900,
    "pytorch-lightning_version": "2.5.0",
    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}],
    "hyper_parameters": OrderedDict(lr=1e-4, args=argparse.Namespace(model="hubert")),
}
# Where training code keeps the weights, and what it calls the encoder.
LAYOUTS = {
    "Lightning, model.": lambda weights: REST | {"state_dict": named(weights, "model.")},
    "Lightning, encoder.": lambda weights: REST | {"state_dict": named(weights, "encoder.")},
    "Lightning, a model with a head": lambda weights: REST | {"state_dict": named(weights, "net.{prefix}")},
    "Lightning, compiled, with DDP": lambda weights: REST | {"state_dict": named(weights, "_orig_mod.module.ssl.")},
    "DDP": lambda weights: {"epoch": 1, "model_state_dict": named(weights, "module.")},
    "DDP, with the arguments of the script": lambda weights: {
        "model": named(weights, "module."),
        "args": argparse.Namespace(lr=1e-4),
    },
    "DeepSpeed": lambda weights: {"module": named(weights, "upstream."), "dp_world_size": 8},
    "the weights alone": lambda weights: named(weights, "a.b.c."),
}


def named(weights: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The weights below a prefix, with those of the rest of a module beside."""
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()} | {"loss.weight": torch.ones(2, 2)}


def assert_same(ours: Encoder, known: Encoder) -> None:
    states = known.state_dict()
    assert list(ours.state_dict()) == list(states)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, states[name]), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", MODELS)
def test_training_codes_checkpoints_beside_their_configuration(kind, layout, tmp_path):
    model = build(MODELS[kind][0], TINY | MODELS[kind][1])
    folder = save(model, tmp_path / "folder")
    known = load_encoder(folder)
    (folder / "model.safetensors").unlink()
    content = LAYOUTS[layout]({**model.state_dict()})
    for inner in content.values():
        if isinstance(inner, dict):
            for name in [name for name in inner if isinstance(name, str) and "{prefix}" in name]:
                inner[name.replace("{prefix}", f"{model.base_model_prefix}.")] = inner.pop(name)
    torch.save(content, folder / "last.ckpt")
    checkpoint = read_checkpoint(folder / "last.ckpt")
    assert checkpoint.format == "Transformers"
    assert checkpoint.encoder.config == known.config
    assert_same(checkpoint.encoder, known)
    assert checkpoint.head is None


def test_a_head_comes_out_of_its_wrapper_too(tmp_path):
    model = build("Wav2Vec2", TINY | {"vocab_size": 7}, head="ForCTC")
    folder = save(model, tmp_path / "folder")
    torch.save({"state_dict": named(model.state_dict(), "model.")}, folder / "last.ckpt")
    waveforms = torch.randn(1, 4_000)
    with torch.inference_mode():
        ours, theirs = load_model(folder / "last.ckpt")(waveforms), model(waveforms)
    assert torch.allclose(ours.logits, theirs.logits, atol=1e-5)


def test_a_wrapped_folder_is_read_as_the_plain_one(tmp_path):
    """Weights that were saved from a wrapper into a folder of Transformers."""
    model = build("WavLM", TINY)
    known = load_encoder(save(model, tmp_path / "plain"))
    (save(model, tmp_path / "wrapped") / "model.safetensors").unlink()
    torch.save(named(model.state_dict(), "backbone."), tmp_path / "wrapped/pytorch_model.bin")
    assert_same(load_encoder(tmp_path / "wrapped"), known)


def test_torchaudios_and_fairseqs_names_in_a_wrapper(tmp_path):
    """TorchAudio's need no configuration; fairseq's cannot do without the one that fairseq keeps."""
    weights = torchaudio_weights(build("Hubert", TINY | {"hidden_size": 64, "num_attention_heads": 1}), wavlm=False)
    torch.save(weights, tmp_path / "plain.pth")
    torch.save(REST | {"state_dict": named(weights, "ssl.model.")}, tmp_path / "last.ckpt")
    assert_same(load_encoder(tmp_path / "last.ckpt"), load_encoder(tmp_path / "plain.pth"))
    fairseqs = {name: tensor for name, tensor in fairseq_weights(build("Hubert", TINY)).items() if name != "_ema"}
    torch.save(REST | {"state_dict": named(fairseqs, "model.")}, tmp_path / "last.ckpt")
    assert "weights of fairseq without its configuration" in refused(tmp_path / "last.ckpt")


def test_what_a_wrapper_leaves_open_is_refused_in_one_line(tmp_path):
    model = build("Hubert", TINY)
    folder, weights = save(model, tmp_path / "folder"), model.state_dict()
    both = named(weights, "student.") | named(weights, "teacher.")
    torch.save({"state_dict": both}, folder / "last.ckpt")
    assert "several encoders in it, student., teacher.; keep the weights of one" in refused(folder / "last.ckpt")
    (tmp_path / "alone").mkdir()
    torch.save({"state_dict": named(weights, "model.")}, tmp_path / "alone/last.ckpt")
    message = refused(tmp_path / "alone/last.ckpt")
    assert "weights of Transformers without a configuration; put it next to its config.json" in message
    lacks = {name: tensor for name, tensor in weights.items() if not name.endswith("layers.1.layer_norm.bias")}
    torch.save({"state_dict": named(lacks, "model.")}, folder / "last.ckpt")
    assert "the weight encoder.layers.1.layer_norm.bias is missing" in refused(folder / "last.ckpt")
    torch.save({"state_dict": {"model.weight": torch.ones(1)}}, folder / "last.ckpt")
    assert "weights of no known speech encoder" in refused(folder / "last.ckpt")


def test_nothing_in_a_lightning_checkpoint_is_run(tmp_path):
    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "executed"),))

    folder = save(build("Hubert", TINY), tmp_path / "folder")
    (folder / "last.ckpt").write_bytes(pickle.dumps({"state_dict": {}, "callbacks": Evil()}))
    refused(folder / "last.ckpt")
    torch.save({"state_dict": build("Hubert", TINY).state_dict(), "callbacks": Evil()}, folder / "last.ckpt")
    assert "never run" in refused(folder / "last.ckpt")
    assert not (tmp_path / "executed").exists()


# SpeechBrain.

TODAY = "speechbrain.integrations.huggingface.wav2vec2.Wav2Vec2"
WRAPPERS = {
    "today": TODAY,
    "1.0": "speechbrain.lobes.models.huggingface_transformers.wavlm.WavLM",
    "0.5": "speechbrain.lobes.models.huggingface_wav2vec.HuggingFaceWav2Vec2",
    "pre-training": "speechbrain.lobes.models.huggingface_transformers.wav2vec2.Wav2Vec2Pretrain",
    "HuBERT": "speechbrain.integrations.huggingface.hubert.HuBERT",
}
RECIPE = """# Of a recipe
sample_rate: 16000
hub: {source}
save: !ref <hub>/saved
activation: !name:torch.nn.LeakyReLU
evil: !!python/object/apply:os.mkdir ["{executed}"]
enc: !new:speechbrain.lobes.models.VanillaNN.VanillaNN
    input_shape: [null, null, 1024]
    source: wrong
wav2vec2: !new:{wrapper}
    source: {reference}
    output_norm: True
    save_path: !ref <save>
modules:
    wav2vec2: !ref <wav2vec2>
"""


def speechbrain(folder: Path, model: Any, source: str, wrapper: str = TODAY, reference: str = "!ref <hub>") -> Path:
    """A folder as SpeechBrain's Pretrainer has it."""
    folder.mkdir(exist_ok=True)
    recipe = RECIPE.format(source=source, wrapper=wrapper, reference=reference, executed=folder / "executed")
    (folder / "hyperparams.yaml").write_text(recipe)
    torch.save({f"model.{name}": tensor for name, tensor in model.state_dict().items()}, folder / "wav2vec2.ckpt")
    torch.save({"0.w.weight": torch.ones(2, 2)}, folder / "asr.ckpt")
    return folder


def fine_tuned(kind: str) -> Any:
    return build(MODELS[kind][0], TINY | MODELS[kind][1], seed=7)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_a_folder_of_speechbrain_equals_transformers(kind, normalize, tmp_path):
    """The configuration is the wrapped model's, the weights those of the fine-tuned one."""
    save(build(MODELS[kind][0], TINY | MODELS[kind][1]), tmp_path / "wrapped", normalize)
    model = fine_tuned(kind)
    folder = speechbrain(tmp_path / "trained", model, str(tmp_path / "wrapped"))
    for source in (folder, folder / "wav2vec2.ckpt"):
        checkpoint = read_checkpoint(source)
        assert (checkpoint.format, checkpoint.assumed) == ("SpeechBrain", ())
        assert checkpoint.encoder.config.input_normalization is normalize
        assert_equals_transformers(checkpoint.encoder, model, normalize)
    assert not (folder / "executed").exists()


@pytest.mark.parametrize("wrapper", WRAPPERS.values(), ids=list(WRAPPERS))
@pytest.mark.parametrize("reference", ["!ref <hub>", "{hub}", "!ref <hub>/.", '"{hub}"'])
def test_every_wrapper_and_way_to_name_the_model(wrapper, reference, tmp_path):
    save(build("Hubert", TINY), tmp_path / "wrapped")
    hub = str(tmp_path / "wrapped")
    folder = speechbrain(tmp_path / "trained", fine_tuned("hubert"), hub, wrapper, reference.format(hub=hub))
    assert_same(load_encoder(folder), load_encoder(save(fine_tuned("hubert"), tmp_path / "known")))


def test_a_pretrained_model_of_speechbrain(tmp_path):
    """Its weights are those of Wav2Vec2ForPreTraining, one level further down."""
    model = transformers.Wav2Vec2ForPreTraining(transformers.Wav2Vec2Config(**TINY | {"codevector_dim": 64}))
    save(model.wav2vec2, tmp_path / "wrapped")
    folder = speechbrain(tmp_path / "trained", model, str(tmp_path / "wrapped"), WRAPPERS["pre-training"])
    assert_same(load_encoder(folder), load_encoder(tmp_path / "wrapped"))


def test_a_configuration_beside_goes_before_the_model_that_is_named(tmp_path):
    model = fine_tuned("hubert")
    folder = speechbrain(save(model, tmp_path / "trained"), model, "nobody/nothing")
    known = load_encoder(folder)  # weights of Transformers go before SpeechBrain's
    assert read_checkpoint(folder).format == "Transformers"
    (folder / "model.safetensors").unlink()
    assert read_checkpoint(folder).format == "SpeechBrain"
    assert_same(load_encoder(folder), known)


def test_what_speechbrains_folder_lacks_is_said_in_one_line(tmp_path):
    model = fine_tuned("hubert")
    folder = speechbrain(tmp_path / "trained", model, "nobody/nothing")
    message = refused(folder)
    assert "the configuration of nobody/nothing, which hyperparams.yaml names, cannot be found" in message
    assert "put its config.json and preprocessor_config.json next to it" in message
    for reference in ("!ref <nowhere>", "!ref <save>", "[1]", "''"):
        speechbrain(folder, model, "x", reference=reference)
        assert "does not name the Transformers model that it wraps" in refused(folder)
    speechbrain(folder, model, "x", wrapper="speechbrain.lobes.models.fairseq_wav2vec.FairseqWav2Vec2")
    assert "does not name the Transformers model" in refused(folder)
    (folder / "hyperparams.yaml").write_text("a: [")
    assert "cannot be read as YAML" in refused(folder)
    (folder / "hyperparams.yaml").write_text("- just\n- a list")
    assert "does not name the Transformers model" in refused(folder)
    pairs = zip("abcdefghijkl", "bcdefghijklm", strict=True)
    bomb = "a: &a [x, x]\n" + "".join(f"{name}: &{name} [*{part}, *{part}, *{part}]\n" for part, name in pairs)
    (folder / "hyperparams.yaml").write_text(bomb)
    assert "its aliases expand to more than it holds" in refused(folder)
    (folder / "wav2vec2.ckpt").unlink()
    assert "a folder of SpeechBrain without wav2vec2.ckpt, hubert.ckpt" in refused(folder)
