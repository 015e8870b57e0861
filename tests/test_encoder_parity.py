"""Our encoder against Transformers' own classes."""

from __future__ import annotations

import pytest
import torch
import transformers

from skill_speech import Encoder, load_encoder
from skill_speech.kernels import has_kernels
from tests.transformers_models import FULL, LARGE_STYLE, TINY, VARIANTS, build, save

TOLERANCE = 1e-5


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def batch(unequal: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(1)
    waveforms = torch.randn(3, 9_600) * torch.tensor([[1.0], [0.1], [0.5]]) + 0.02
    if not unequal:
        return waveforms, None
    lengths = torch.tensor([9_600, 7_777, 4_001])
    for row, length in zip(waveforms, lengths, strict=True):
        row[length:] = 0
    return waveforms, lengths


def compare(model, encoder, waveforms, lengths) -> None:
    mask = None if lengths is None else (torch.arange(waveforms.shape[1]) < lengths[:, None]).long()
    with torch.inference_mode():
        theirs = model(waveforms, attention_mask=mask, output_hidden_states=True)
        ours = encoder(waveforms, lengths)
        features = model.feature_projection(model.feature_extractor(waveforms).transpose(1, 2))
    features = features[0] if isinstance(features, tuple) else features
    assert relative_error(ours.features_BTD, features) < TOLERANCE
    assert len(ours.hidden_states) == len(theirs.hidden_states)
    for number, (mine, other) in enumerate(zip(ours.hidden_states, theirs.hidden_states, strict=True)):
        assert relative_error(mine, other) < TOLERANCE, f"hidden state {number}"
        worst = float((mine - other).abs().max() / other.abs().max())
        assert worst < 2 * TOLERANCE, f"hidden state {number}"
    assert relative_error(ours.last_hidden_state_BTD, theirs.last_hidden_state) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("unequal", [False, True], ids=["equal", "unequal"])
@pytest.mark.parametrize("operations", ["kernels", "plain"])
def test_tiny_models_equal_transformers(variant, unequal, operations, tmp_path):
    kind, overrides = VARIANTS[variant]
    model = build(kind, TINY | overrides)
    encoder = load_encoder(save(model, tmp_path))
    assert has_kernels(encoder)
    if operations == "plain":  # as in an export
        weights, encoder = encoder.state_dict(), Encoder(encoder.config).eval()
        encoder.load_state_dict(weights)
    compare(model, encoder, *batch(unequal))


@pytest.mark.slow
@pytest.mark.parametrize("variant", FULL)
def test_full_size_models_equal_transformers(variant, tmp_path):
    kind, overrides = FULL[variant]
    model = build(kind, overrides)
    encoder = load_encoder(save(model, tmp_path))
    for unequal in (False, True):
        compare(model, encoder, *batch(unequal))


@pytest.mark.slow
def test_hubert_x_large_equals_transformers(tmp_path):
    shape = {"hidden_size": 1280, "num_hidden_layers": 48, "num_attention_heads": 16, "intermediate_size": 5120}
    model = build("Hubert", LARGE_STYLE | shape)
    encoder = load_encoder(save(model, tmp_path))
    compare(model, encoder, *batch(True))


@pytest.mark.parametrize(
    ("kind", "head"),
    [("Hubert", "ForCTC"), ("WavLM", "ForSequenceClassification"), ("Wav2Vec2", "ForPreTraining")],
)
def test_a_model_with_a_head_gives_its_encoder(kind, head, tmp_path):
    model = build(kind, TINY, head)
    encoder = load_encoder(save(model, tmp_path))
    compare(getattr(model, model.base_model_prefix), encoder, *batch(True))


def test_bin_checkpoints_and_old_weight_norm_names(tmp_path):
    model = build("Hubert", TINY)
    save(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in model.state_dict().items()
    }
    torch.save(weights, tmp_path / "pytorch_model.bin")
    compare(model, load_encoder(tmp_path), *batch(False))


def test_sharded_and_half_precision_checkpoints(tmp_path):
    model = build("WavLM", TINY)
    model.half().save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    encoder = load_encoder(tmp_path)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}
    compare(model.float(), encoder, *batch(False))


@pytest.mark.parametrize("unequal", [False, True], ids=["equal", "unequal"])
def test_input_normalization_follows_the_preprocessor(unequal, tmp_path):
    model = build("Wav2Vec2", TINY | LARGE_STYLE)
    encoder = load_encoder(save(model, tmp_path, normalize=True))
    waveforms, lengths = batch(unequal)
    whole = [9_600] * 3 if lengths is None else lengths.tolist()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    raw = [row[:length].numpy() for row, length in zip(waveforms, whole, strict=True)]
    normalized = extractor(raw, sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.inference_mode():
        mask = normalized.attention_mask if unequal else None
        theirs = model(normalized.input_values, attention_mask=mask).last_hidden_state
        ours = encoder(waveforms, lengths).last_hidden_state_BTD
    assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_length_aware_batch_equals_its_utterances_one_by_one(variant, tmp_path):
    kind, overrides = VARIANTS[variant]
    encoder = load_encoder(save(build(kind, TINY | overrides), tmp_path, normalize=True), length_aware=True)
    waveforms, lengths = batch(True)
    with torch.inference_mode():
        together = encoder(waveforms, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = encoder(waveforms[row : row + 1, :length])
            frames = int(together.lengths_B[row])
            assert frames == alone.hidden_states[0].shape[1] == encoder.config.num_frames(length)
            for mine, other in zip(together.hidden_states, alone.hidden_states, strict=True):
                assert relative_error(mine[row : row + 1, :frames], other) < TOLERANCE


def test_padding_leaks_into_the_group_norm_unless_length_aware(tmp_path):
    """The default is Transformers' behavior, and it does matter."""
    encoder = load_encoder(save(build("Hubert", TINY), tmp_path))
    waveforms, lengths = batch(True)
    with torch.inference_mode():
        together = encoder(waveforms, lengths).layer_outputs[-1][2:3, :12]
        alone = encoder(waveforms[2:3, : lengths[2]]).layer_outputs[-1]
    assert relative_error(together, alone) > 1e-2


@pytest.mark.parametrize("variant", ["hubert-base", "wavlm-large", "data2vec-audio", "hubert-batch-norm"])
def test_native_format_round_trip_is_exact(variant, tmp_path):
    kind, overrides = VARIANTS[variant]
    encoder = load_encoder(save(build(kind, TINY | overrides), tmp_path / "theirs"))
    encoder.save_pretrained(tmp_path / "ours")
    again = load_encoder(tmp_path / "ours")
    assert again.config == encoder.config
    waveforms, lengths = batch(True)
    with torch.inference_mode():
        for mine, other in zip(again(waveforms, lengths).layers, encoder(waveforms, lengths).layers, strict=True):
            assert torch.equal(mine, other)
