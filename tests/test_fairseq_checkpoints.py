"""Files of fairseq, s3prl and WavLM's authors, against Transformers' models with the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from skill_speech import load_encoder
from skill_speech.checkpoints import read_checkpoint
from skill_speech.encoder.config import BASE_CONVS
from tests.fairseq_files import LAYOUTS, fairseq_settings, fairseq_weights, wavlm_settings, write_fairseq
from tests.refusals import refused
from tests.transformers_models import FULL, LARGE_STYLE, TINY, build

TOLERANCE = 1e-5

# fairseq's name, Transformers' model, and whether the input is normalized.
MODELS: dict[str, tuple[str, str, dict[str, Any], bool]] = {
    "hubert-base": ("hubert", "Hubert", {}, False),
    "hubert-large": ("hubert", "Hubert", LARGE_STYLE, True),
    "hubert-batch-norm": ("hubert", "Hubert", {"conv_pos_batch_norm": True}, False),
    "wav2vec2-base": ("wav2vec2", "Wav2Vec2", {}, False),
    "wav2vec2-large": ("wav2vec2", "Wav2Vec2", LARGE_STYLE, True),
    "data2vec-base": (
        "data2vec_audio",
        "Data2VecAudio",
        {"num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 7},
        True,
    ),
}


def waveforms() -> torch.Tensor:
    """A loud one and a quiet one, on which the epsilon of the input's normalization shows."""
    torch.manual_seed(1)
    return torch.randn(2, 4_800) * torch.tensor([[1.0], [0.02]]) + 0.01


def assert_equals_transformers(encoder: Any, model: Any, normalize: bool) -> None:
    # fairseq normalizes with torch's layer_norm; Transformers' feature extractor has another epsilon.
    inputs = F.layer_norm(waveforms(), (4_800,)) if normalize else waveforms()
    with torch.inference_mode():
        ours, theirs = encoder(waveforms()), model(inputs, output_hidden_states=True)
    pairs = zip(
        [*ours.hidden_states, ours.last_hidden_state_BTD],
        [*theirs.hidden_states, theirs.last_hidden_state],
        strict=True,
    )
    for number, (mine, other) in enumerate(pairs):
        assert float((mine - other).norm() / other.norm()) < TOLERANCE, f"hidden state {number}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variant", MODELS)
def test_fairseqs_files_equal_transformers(variant, layout, tmp_path):
    name, kind, overrides, normalize = MODELS[variant]
    model = build(kind, TINY | overrides)
    path = write_fairseq(
        tmp_path / "model.pt", layout, fairseq_settings(model, name), fairseq_weights(model), normalize
    )
    checkpoint = read_checkpoint(path)
    assert checkpoint.format == ("s3prl" if layout == "s3prl" else "fairseq")
    assert checkpoint.encoder.config.family == {"data2vec_audio": "data2vec-audio"}.get(name, name)
    assert checkpoint.assumed == ()
    assert_equals_transformers(checkpoint.encoder, model, normalize)


@pytest.mark.parametrize("large", [False, True], ids=["base", "large"])
def test_wavlms_own_files_equal_transformers(large, tmp_path):
    overrides = {"num_buckets": 32, "max_bucket_distance": 40} | (LARGE_STYLE | {"conv_bias": False} if large else {})
    model = build("WavLM", TINY | overrides)
    torch.save({"cfg": wavlm_settings(model, large), "model": fairseq_weights(model)}, tmp_path / "WavLM.pt")
    checkpoint = read_checkpoint(tmp_path / "WavLM.pt")
    assert (checkpoint.format, checkpoint.encoder.config.family) == ("WavLM", "wavlm")
    assert_equals_transformers(checkpoint.encoder, model, large)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["hubert-base", "hubert-large", "wavlm-large", "data2vec-audio-base"])
def test_full_size_files_equal_transformers(variant, tmp_path):
    kind, overrides = FULL[variant]
    model = build(kind, overrides)
    weights, path = fairseq_weights(model), tmp_path / "model.pt"
    if kind == "WavLM":
        torch.save({"cfg": wavlm_settings(model, True), "model": weights}, path)
    else:
        name = {"Hubert": "hubert", "Data2VecAudio": "data2vec_audio"}[kind]
        write_fairseq(path, "omegaconf", fairseq_settings(model, name), weights, normalize=True)
    assert_equals_transformers(load_encoder(path), model, normalize=True)


def test_where_every_setting_comes_from(tmp_path):
    model = build("Hubert", TINY | LARGE_STYLE)
    settings = fairseq_settings(model, "hubert") | {"activation_fn": "relu"}
    config = load_encoder(write_fairseq(tmp_path / "m.pt", "cfg", settings, fairseq_weights(model), True)).config
    assert config.input_normalization  # task.normalize
    assert config.pre_norm  # model.layer_norm_first
    assert config.conv_norm == "layer"  # model.extractor_mode
    assert config.conv_bias  # model.conv_bias
    assert config.activation == "relu"  # model.activation_fn
    dropouts = (config.hidden_dropout, config.attention_dropout, config.feature_dropout, config.layer_dropout)
    assert dropouts == (0.1, 0.2, 0.3, 0.05)
    assert config.input_norm_eps == 1e-5  # fairseq's own


def test_settings_that_old_files_lack_are_fairseqs_defaults(tmp_path):
    model = build("Wav2Vec2", TINY)
    needed = ("_name", "encoder_layers", "encoder_embed_dim", "encoder_ffn_embed_dim", "encoder_attention_heads")
    needed += ("conv_feature_layers", "conv_pos", "conv_pos_groups")
    settings = {name: value for name, value in fairseq_settings(model, "wav2vec2").items() if name in needed}
    path = write_fairseq(tmp_path / "m.pt", "args", settings, fairseq_weights(model), False)
    assert_equals_transformers(load_encoder(path), model, normalize=False)


def test_equal_widths_need_no_projection(tmp_path):
    """fairseq leaves the feature projection out where the convolutions are as wide as the transformer."""
    model = build("Hubert", TINY | {"conv_dim": [16] * 6 + [48]})
    with torch.no_grad():
        model.feature_projection.projection.weight.copy_(torch.eye(48))
        model.feature_projection.projection.bias.zero_()
    weights = {name: tensor for name, tensor in fairseq_weights(model).items() if "post_extract" not in name}
    path = write_fairseq(tmp_path / "m.pt", "cfg", fairseq_settings(model, "hubert"), weights, False)
    assert_equals_transformers(load_encoder(path), model, normalize=False)


@pytest.mark.parametrize(
    "text",
    [
        "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
        "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
        " [(512, 10, 5), (512, 3, 2), (512, 3, 2), (512, 3, 2), [512, 3, 2]] + [(512, 2, 2)] * 2",
    ],
)
def test_convolutions_in_pythons_words(text):
    from skill_speech.checkpoints.fairseq import parse_convs
    from skill_speech.checkpoints.settings import Settings

    assert parse_convs(Settings({"conv_feature_layers": text}, "file")) == BASE_CONVS


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir({executed!r})",
        "[(512, 10, __import__('os').mkdir({executed!r}))]",
        "[(1, 1, 1)] * 10 ** 9",
        "[(1, 1, 1)] * 64 * 64 * 64 * 64 * 64 * 64",
        "[] * 64" + " * 64" * 100,
        "[(1, 1, x) for x in range(3)]",
        "[(512, 10)]",
        "[(512, 10, 5.0)]",
        "(" * 400 + ")" * 400,
        "",
    ],
)
def test_convolutions_that_are_no_list_are_refused_and_not_run(text, tmp_path):
    model = build("Hubert", TINY)
    settings = fairseq_settings(model, "hubert")
    settings["conv_feature_layers"] = text.replace("{executed!r}", repr(str(tmp_path / "executed")))
    message = refused(write_fairseq(tmp_path / "m.pt", "cfg", settings, fairseq_weights(model), False))
    # Without the setting they are the usual ones, which these weights are not.
    assert ("conv_feature_layers in its configuration is not a list" if text else "has the shape") in message
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_name": "wav2vec"}, "unknown architecture 'wav2vec'"),
        ({"_name": 3}, "_name in its configuration is no str"),
        ({"layer_type": "conformer"}, "layers of type conformer are not supported"),
        ({"quantize_input": True}, "quantized inputs"),
        ({"activation_fn": "glu"}, "activation glu"),
        ({"extractor_mode": "batch_norm"}, "extractor mode batch_norm"),
        ({"encoder_layers": 4}, "4 layers, and its weights have another number"),
        ({"encoder_layers": 2}, "2 layers, and its weights have another number"),
        ({"encoder_layers": 256}, "and its weights have another number"),
        ({"encoder_layers": 10**12}, "encoder_layers is 1000000000000; it must be a whole number from 1 to 256"),
        ({"encoder_layers": True}, "encoder_layers in its configuration is no int"),
        ({"encoder_embed_dim": 96}, "has the shape"),
        ({"encoder_embed_dim": 48 * 10**3}, "has the shape"),
        ({"encoder_embed_dim": 48 * 10**6}, "hidden_size is 48000000; it must be"),
        ({"encoder_embed_dim": 48 * 10**9}, "does not describe a valid encoder"),
        ({"encoder_attention_heads": 5}, "not a multiple of num_heads"),
        ({"encoder_attention_heads": 10**9}, "does not describe a valid encoder"),
        ({"conv_bias": True}, "the weight feature_extractor.conv_layers.0.0.bias is missing"),
        ({"extractor_mode": "layer_norm"}, "the weight feature_extractor.conv_layers.0.2.1.weight is missing"),
        ({"pos_conv_depth": 3}, "the weight encoder.pos_conv.0.0.weight is missing"),
        ({"conv_pos_groups": 7}, "does not describe a valid encoder"),
        ({"relative_position_embedding": True}, "a position bias without its gate"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(changes, message, tmp_path):
    model = build("Hubert", TINY)
    settings = fairseq_settings(model, "hubert") | changes
    assert message in refused(write_fairseq(tmp_path / "m.pt", "cfg", settings, fairseq_weights(model), False))


def test_weights_that_do_not_fit_are_named(tmp_path):
    model = build("Hubert", TINY)
    settings, weights, path = fairseq_settings(model, "hubert"), fairseq_weights(model), tmp_path / "m.pt"

    def after(**changes: Any) -> str:
        changed = {name: tensor for name, tensor in (weights | changes).items() if tensor is not None}
        return refused(write_fairseq(path, "cfg", settings, changed, False))

    assert "the weight encoder.layers.1.fc2.bias is missing" in after(**{"encoder.layers.1.fc2.bias": None})
    assert "has the shape (80, 47)" in after(**{"encoder.layers.1.fc1.weight": torch.ones(80, 47)})
    assert "match the weight encoder.layers.0.adapter" in after(**{"encoder.layers.0.adapter.W": torch.ones(1)})
    assert "the weight feature_extractor.conv_layers.0.0.weight is missing" in after(
        **{"feature_extractor.conv_layers.0.0.weight": None}
    )


def test_files_without_what_is_needed(tmp_path):
    model = build("Hubert", TINY)
    weights, path = fairseq_weights(model), tmp_path / "m.pt"
    weights.pop("_ema")
    torch.save({"model": weights, "cfg": None, "args": None}, path)
    assert "contains no configuration (cfg or args)" in refused(path)
    torch.save({"model": "weights", "cfg": {"model": {"_name": "hubert"}}}, path)
    assert "contains no weights" in refused(path)
    torch.save(weights, path)
    assert "weights of fairseq without its configuration" in refused(path)
    torch.save(model.state_dict(), path)
    assert "put it next to its config.json" in refused(path)
    fine_tuned = {"_name": "wav2vec_ctc", "w2v_path": "/somewhere.pt", "w2v_args": None}
    torch.save({"model": weights, "cfg": {"model": fine_tuned, "task": {}}}, path)
    assert "without the settings of the model it started from" in refused(path)
