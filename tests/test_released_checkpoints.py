"""Released models of HuBERT's kin, as their own code wrote them, against Transformers' model with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from skill_speech import InputError, load_encoder, load_model
from skill_speech.checkpoints import read_checkpoint
from tests.fairseq_files import fairseq_settings, fairseq_weights
from tests.refusals import refused
from tests.released_models import HUBERTS, edit, fairseq_file, hubert, transformers_folder
from tests.test_fairseq_checkpoints import assert_equals_transformers
from tests.transformers_models import save

RATES = {"mert-95m": 24_000, "mert-330m": 24_000}


@pytest.mark.parametrize("name", HUBERTS)
def test_the_transformers_form_equals_transformers(name, tmp_path):
    checkpoint = read_checkpoint(transformers_folder(name, tmp_path / "folder"))
    encoder, normalize = checkpoint.encoder, HUBERTS[name][1]
    assert (checkpoint.format, encoder.config.family) == ("Transformers", "hubert")
    assert encoder.config.sampling_rate == RATES.get(name, 16_000)
    assert encoder.config.input_normalization is normalize
    assert checkpoint.assumed == ()
    assert load_model(tmp_path / "folder").head is None
    # The comparison normalizes as fairseq does, with an epsilon of its own.
    config = encoder.config.replace(input_norm_eps=1e-5)
    assert_equals_transformers(type(encoder).of(config, encoder.state_dict()).eval(), hubert(name), normalize)


@pytest.mark.parametrize("name", [name for name in HUBERTS if name != "mhubert-147"])
def test_every_state_of_fairseqs_form_is_that_of_the_transformers_form(name, tmp_path):
    checkpoint = read_checkpoint(fairseq_file(name, tmp_path / "model.pt"))
    known = load_encoder(transformers_folder(name, tmp_path / "folder"))
    states = known.state_dict()
    assert list(checkpoint.encoder.state_dict()) == list(states)
    for weight, tensor in checkpoint.encoder.state_dict().items():
        assert torch.equal(tensor, states[weight]), weight
    assert checkpoint.format == ("s3prl" if name == "distilhubert" else "fairseq")
    dropouts = {field: 0.0 for field in vars(known.config) if field.endswith("_dropout")}
    mine, theirs = (encoder.config.replace(input_norm_eps=1e-5, **dropouts) for encoder in (checkpoint.encoder, known))
    assert mine == theirs
    assert_equals_transformers(checkpoint.encoder, hubert(name), HUBERTS[name][1])


def test_contentvecs_legacy_file_is_a_plain_hubert(tmp_path):
    """The one that voice conversion uses: without the layers that know the speaker, under HuBERT's name."""
    model = hubert("contentvec")
    settings = fairseq_settings(model, "hubert")
    torch.save({"model": fairseq_weights(model), "cfg": {"model": settings, "task": {}}}, tmp_path / "legacy.pt")
    ours, full = load_encoder(tmp_path / "legacy.pt"), load_encoder(fairseq_file("contentvec", tmp_path / "full.pt"))
    assert ours.config == full.config
    states = full.state_dict()
    assert all(torch.equal(tensor, states[name]) for name, tensor in ours.state_dict().items())


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("mert-95m", "feature_extractor_cqt", True),
        ("mert-95m", "deepnorm", True),
        ("mert-95m", "subln", True),
        ("mert-95m", "do_cnn_feat_stable_layernorm", True),
        ("mert-95m", "wav_normalize", True),
        ("mert-95m", "audio_extract_type", "melspec"),
        ("distilhubert", "attention_type", "sparse"),
        ("distilhubert", "task_emb_type", "concat"),
    ],
)
def test_options_that_make_another_network_are_refused_by_name(name, setting, value, tmp_path):
    path = fairseq_file(name, tmp_path / "model.pt")
    content = torch.load(path)
    (content["Config"]["distiller"] if "Config" in content else content["cfg"]["model"])[setting] = value
    torch.save(content, path)
    assert f"{setting} {value} in its configuration describes a network that is not supported" in refused(path)


@pytest.mark.parametrize(("option", "what"), [("feature_extractor_cqt", "constant-Q"), ("deepnorm", "residual")])
def test_merts_other_networks_in_transformers_form_are_refused(option, what, tmp_path):
    folder = transformers_folder("mert-95m", tmp_path / "folder")
    edit(folder / "config.json", **{option: True})
    message = refused(folder)
    assert f"{option} in its config.json is not supported" in message
    assert what in message


def test_mert_below_a_head_of_its_own_code(tmp_path):
    folder = transformers_folder("mert-95m", tmp_path / "folder")
    weights = {f"mert_model.{name}": tensor for name, tensor in hubert("mert-95m").state_dict().items()}
    torch.save(weights | {"genre.weight": torch.ones(3, 48)}, folder / "pytorch_model.bin")
    bare = load_encoder(transformers_folder("mert-95m", tmp_path / "bare")).state_dict()
    assert all(torch.equal(tensor, bare[name]) for name, tensor in load_encoder(folder).state_dict().items())


def test_an_imported_mert_keeps_its_sampling_rate(tmp_path):
    encoder = load_encoder(transformers_folder("mert-95m", tmp_path / "theirs"))
    encoder.save_pretrained(tmp_path / "ours")
    assert load_encoder(tmp_path / "ours").config.sampling_rate == 24_000


@pytest.mark.parametrize("kind", ["Wav2Vec2Conformer", "Wav2Vec2Bert"])
def test_conformers_are_refused_with_what_they_would_need(kind, tmp_path):
    config: Any = getattr(transformers, f"{kind}Config")
    config().save_pretrained(tmp_path)
    message = refused(tmp_path)
    assert f"{config.model_type} is not supported; " in message
    assert "two feed-forward modules, a convolution module and relative or rotary positions in each layer" in message


def test_a_conformer_of_fairseq_is_refused_with_what_it_would_need(tmp_path):
    model = hubert("contentvec")
    settings = fairseq_settings(model, "wav2vec2") | {"layer_type": "conformer", "attn_type": "espnet"}
    torch.save({"model": fairseq_weights(model), "cfg": {"model": settings, "task": {}}}, tmp_path / "model.pt")
    message = refused(tmp_path / "model.pt")
    assert "layers of type conformer are not supported: they would need two feed-forward modules" in message


def test_numbers_of_speaker_layers_that_make_no_sense(tmp_path):
    path = fairseq_file("contentvec", tmp_path / "model.pt")
    content = torch.load(path)
    for number in (-1, 10**12, "three"):
        content["cfg"]["model"]["encoder_layers_1"] = number
        torch.save(content, path)
        assert "encoder_layers_1" in refused(path)
    content["cfg"]["model"]["encoder_layers_1"] = 2  # one less than there are
    torch.save(content, path)
    assert "its configuration does not match the weight encoder.layers.5." in refused(path)


def test_a_rate_that_makes_no_sense(tmp_path):
    model = hubert("contentvec")
    folder = save(model, tmp_path / "folder")
    edit(folder / "preprocessor_config.json", sampling_rate="high")
    assert "sampling_rate is 'high'; it must be a whole number" in refused(folder)
    settings = fairseq_settings(model, "hubert")
    cfg = {"model": settings, "task": {"sample_rate": 10**9}}
    torch.save({"model": fairseq_weights(model), "cfg": cfg}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="sampling_rate is 1000000000"):
        load_encoder(tmp_path / "model.pt")
