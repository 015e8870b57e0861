"""Whole models: encoder and head against Transformers' own classes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from skill_speech import InputError, load_encoder, load_model
from skill_speech.heads import HeadConfig, make_head
from tests.transformers_models import LARGE_STYLE, TINY, VARIANTS, build

XVECTOR = {"tdnn_dim": [20, 20, 24], "tdnn_kernel": [5, 3, 1], "tdnn_dilation": [1, 2, 1], "xvector_output_dim": 18}
CLASSES: dict[str, dict[str, Any]] = {
    "ForCTC": {"vocab_size": 11},
    "ForSequenceClassification": {"num_labels": 5, "classifier_proj_size": 14},
    "ForAudioFrameClassification": {"num_labels": 3},
    "ForXVector": {"num_labels": 7} | XVECTOR,
}


def has(kind: str, head: str) -> bool:
    return hasattr(transformers, kind + head)


def save(model: Any, folder: Path, **extractor: Any) -> Path:
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(**{"do_normalize": False} | extractor).save_pretrained(folder)
    return folder


def audio(seconds: tuple[float, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    rng, lengths = np.random.default_rng(1), [int(16_000 * length) for length in seconds]
    waveforms = np.zeros((len(lengths), max(lengths)), np.float32)
    for row, length in zip(waveforms, lengths, strict=True):
        row[:length] = rng.standard_normal(length)
    return torch.from_numpy(waveforms), torch.tensor(lengths)


def assert_same_logits(model: Any, folder: Path) -> None:
    """Padded and not, valid frames only; the error is relative to the largest logit."""
    ours, (waveforms_BT, lengths_B) = load_model(folder), audio((1.3, 0.8, 1.1))
    mask_BT = (torch.arange(waveforms_BT.shape[1]) < lengths_B[:, None]).long()
    with torch.no_grad():
        for lengths, mask in ((None, None), (lengths_B, mask_BT)):
            theirs, made = model(waveforms_BT, attention_mask=mask), ours(waveforms_BT, lengths)
            pairs = [(made.logits, theirs.logits)]
            if "embeddings" in theirs:
                pairs.append((made.embeddings_BD, theirs.embeddings))
            for mine, wanted in pairs:
                assert mine.shape == wanted.shape
                if mine.ndim == 3 and made.lengths_B is not None:
                    valid = torch.arange(mine.shape[1]) < made.lengths_B[:, None]
                    mine, wanted = mine[valid], wanted[valid]
                assert (mine - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("head", CLASSES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(variant: str, head: str, tmp_path: Path) -> None:
    kind, values = VARIANTS[variant]
    if not has(kind, head):
        pytest.skip(f"Transformers has no {kind}{head}")
    model = build(kind, TINY | values | CLASSES[head], head)
    save(model, tmp_path / "theirs")
    assert_same_logits(model, tmp_path / "theirs")
    # Ours again, from our own files.
    load_model(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    assert_same_logits(model, tmp_path / "ours")


@pytest.mark.parametrize("head", ["ForSequenceClassification", "ForAudioFrameClassification", "ForXVector"])
@pytest.mark.parametrize("style", [{}, LARGE_STYLE], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("kind", ["WavLM", "Wav2Vec2"])
def test_weighted_layer_sums(kind: str, style: dict[str, Any], head: str, tmp_path: Path) -> None:
    model = build(kind, TINY | style | CLASSES[head] | {"use_weighted_layer_sum": True}, head)
    with torch.no_grad():
        model.layer_weights.normal_()
    save(model, tmp_path)
    assert load_model(tmp_path).head.config.weighted_layer_sum
    assert_same_logits(model, tmp_path)


@pytest.mark.parametrize("head", ["ForCTC"])
@pytest.mark.parametrize("width", [48, 32])
@pytest.mark.parametrize("kind", ["WavLM", "Wav2Vec2", "UniSpeechSat", "Data2VecAudio"])
def test_convolutions_between_encoder_and_head(kind: str, width: int, head: str, tmp_path: Path) -> None:
    """`add_adapter`: with another hidden size, and with the encoder's."""
    values = {"num_conv_pos_embeddings": 3} if kind == "Data2VecAudio" else {}
    adapter = {"add_adapter": True, "output_hidden_size": width, "num_adapter_layers": 2}
    try:
        model = build(kind, TINY | values | CLASSES[head] | adapter, head)
    except RuntimeError as error:
        pytest.skip(f"Transformers cannot: {error}")
    if not hasattr(model.base_model, "adapter") or model.base_model.adapter is None:
        pytest.skip(f"Transformers' {kind} has no such adapter")
    save(model, tmp_path)
    assert_same_logits(model, tmp_path)
    with pytest.raises(InputError, match="not supported in an encoder alone"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("kind", ["Wav2Vec2"])
def test_adapters_for_languages(kind: str, tmp_path: Path) -> None:
    """MMS: the weights have one language; others are files beside them, with vocabularies of their own."""
    torch.manual_seed(0)
    model = build(kind, TINY | LARGE_STYLE | {"vocab_size": 6, "adapter_attn_dim": 8}, "ForCTC")
    save(model, tmp_path)
    vocabularies = {"eng": {"<pad>": 0, "a": 1}, "fra": {"<pad>": 0, "é": 8}, "deu": {"<pad>": 0}}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabularies))
    assert_same_logits(model, tmp_path)
    assert json.loads(load_model(tmp_path).files["vocab.json"]) == vocabularies["eng"]

    other = build(kind, TINY | LARGE_STYLE | {"vocab_size": 9, "adapter_attn_dim": 8}, "ForCTC", seed=1)
    from safetensors.torch import save_file

    save_file(other._get_adapters(), tmp_path / "adapter.fra.safetensors")
    model = transformers.Wav2Vec2ForCTC.from_pretrained(
        tmp_path, target_lang="fra", ignore_mismatched_sizes=True
    ).eval()
    ours, (waveforms_BT, _) = load_model(tmp_path, target_lang="fra"), audio((1.0,))
    with torch.no_grad():
        wanted = model(waveforms_BT).logits
        assert (ours(waveforms_BT).logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        encoded = load_encoder(tmp_path, target_lang="fra")(waveforms_BT).last_hidden_state_BTD
        torch.testing.assert_close(ours.head.lm_head(encoded), ours(waveforms_BT).logits)
    assert json.loads(ours.files["vocab.json"]) == vocabularies["fra"]
    ours.save_pretrained(tmp_path / "ours")
    again = load_model(tmp_path / "ours")
    torch.testing.assert_close(again(waveforms_BT).logits, ours(waveforms_BT).logits, rtol=0, atol=0)

    for target_lang, message in (
        ("deu", "no adapter for target_lang 'deu' there"),
        ("../x", "no adapter for target_lang"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(tmp_path, target_lang=target_lang)
    with pytest.raises(InputError, match="this model has no adapters for languages"):
        load_model(save(build("Hubert", TINY, "ForCTC"), tmp_path / "hubert"), target_lang="fra")


def test_length_aware_padding_changes_nothing(tmp_path: Path) -> None:
    for head, values in CLASSES.items():
        save(build("WavLM", TINY | values, head), tmp_path / head)
        model, (waveforms_BT, lengths_B) = load_model(tmp_path / head, length_aware=True), audio((1.3, 0.8))
        with torch.no_grad():
            together, alone = (
                model(waveforms_BT, lengths_B).logits[1],
                model(waveforms_BT[1:, : lengths_B[1]]).logits[0],
            )
        torch.testing.assert_close(together[: len(alone)] if together.ndim == 2 else together, alone)


def test_what_else_belongs_to_a_model_comes_along(tmp_path: Path) -> None:
    model = build("Hubert", TINY | {"vocab_size": 5}, "ForCTC")
    save(model, tmp_path / "theirs")
    vocabulary = {"<pad>": 0, "<unk>": 1, "|": 2, "Ä": 3, "b": 4}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    transformers.Wav2Vec2CTCTokenizer(tmp_path / "vocab.json").save_pretrained(tmp_path / "theirs")
    load_model(tmp_path / "theirs").save_pretrained(tmp_path / "ours")
    there = {path.name for path in (tmp_path / "ours").iterdir()}
    assert there >= {"vocab.json", "tokenizer_config.json", "preprocessor_config.json", "head.json"}
    tokenizer = transformers.Wav2Vec2CTCTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer.decode([3, 4, 2, 4]) == "Äb b"


def test_a_vocabulary_of_another_model_is_refused(tmp_path: Path) -> None:
    save(build("Hubert", TINY | {"vocab_size": 5}, "ForCTC"), tmp_path)
    (tmp_path / "vocab.json").write_text(json.dumps({"<pad>": 0, "x": 5}))
    with pytest.raises(InputError, match="gives the token 'x' the number 5; the CTC head has 5 outputs"):
        load_model(tmp_path)


def test_an_unknown_head_is_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build("Hubert", TINY | {"num_labels": 5}, "ForSequenceClassification")
    model.regressor, model.projector, model.classifier = torch.nn.Linear(3, 3), torch.nn.Identity(), torch.nn.Identity()
    save(model, tmp_path)
    with caplog.at_level(logging.WARNING):
        assert load_model(tmp_path).head is None
    assert "its head is of an unknown kind and is left out: regressor" in caplog.text


def test_a_label_map_with_gaps_keeps_its_names(tmp_path: Path) -> None:
    save(build("Hubert", TINY | {"num_labels": 3}, "ForSequenceClassification"), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    for changes, labels in (
        ({"id2label": {"0": "a", "2": "c", "3": "d"}}, ("a", "LABEL_1", "c")),
        ({"id2label": None, "label2id": {"x": 0, "y": 1, "z": 2}}, ("x", "y", "z")),
    ):
        (tmp_path / "config.json").write_text(json.dumps(values | changes))
        assert load_model(tmp_path).head.config.labels == labels


def test_a_head_that_is_stated_and_not_there_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(build("Wav2Vec2", TINY), tmp_path / "theirs")
    path = tmp_path / "theirs/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["Wav2Vec2ForCTC"]}))
    assert load_model(tmp_path / "theirs").head is None
    assert "a Wav2Vec2ForCTC by its config.json, but its weights have no head" in caplog.text
    load_model(save(build("Hubert", TINY, "ForCTC"), tmp_path / "ctc")).save_pretrained(tmp_path / "ours")
    (tmp_path / "ours/head.json").unlink()
    with pytest.raises(InputError, match=r"head\.safetensors is there, head\.json is not"):
        load_model(tmp_path / "ours")


def test_pre_training_leaves_no_head_and_no_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in ("Wav2Vec2", "UniSpeech", "UniSpeechSat"):
        save(build(kind, TINY, "ForPreTraining"), tmp_path / kind)
        with caplog.at_level(logging.WARNING):
            assert load_model(tmp_path / kind).head is None
    assert not caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"problem_type": "guess"}, "problem_type is 'guess'"),
        ({"add_adapter": True}, "a sequence classifier takes no adapter"),
        ({"use_weighted_layer_sum": True}, "the weight layer_weights is missing"),
    ],
)
def test_a_head_that_does_not_fit_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save(build("Wav2Vec2", TINY | {"num_labels": 5}, "ForSequenceClassification"), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(InputError, match=message) as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_outputs_names_and_problems_are_known(tmp_path: Path) -> None:
    labels = {0: "no", 1: "yes", 2: "maybe"}
    for name, values, problem in (
        ("one", {}, "single-label"),
        ("many", {"problem_type": "multi_label_classification"}, "multi-label"),
    ):
        model = build("Hubert", TINY | {"id2label": labels} | values, "ForSequenceClassification")
        config = load_model(save(model, tmp_path / name)).head.config
        assert (config.labels, config.problem) == (("no", "yes", "maybe"), problem)
    model = build("Hubert", TINY | {"num_labels": 1}, "ForSequenceClassification")
    assert load_model(save(model, tmp_path / "number")).head.config.problem == "regression"
    model = build("WavLM", TINY | {"num_labels": 2}, "ForAudioFrameClassification")
    assert load_model(save(model, tmp_path / "frames")).head.config.problem == "multi-label"


def test_a_configuration_survives_json() -> None:
    values = {
        "kind": "x-vector",
        "outputs": 3,
        "labels": ["a", "b", "c"],
        "tdnn": [{"width": 4, "kernel": 3, "dilation": 1}],
        "adapter": {"layers": 1, "width": 8, "kernel": 3, "stride": 2},
    }
    config = HeadConfig.from_dict(values)
    assert HeadConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for wrong in (
        {"kind": "other"},
        {"outputs": 0},
        {"labels": ["a"]},
        {"tdnn": []},
        {"more": 1},
        {"tdnn": [{"a": 1}]},
    ):
        with pytest.raises(ValueError):
            HeadConfig.from_dict(values | wrong)


def test_a_short_utterance_is_refused_by_the_speaker_embedding(tmp_path: Path) -> None:
    model = load_model(save(build("WavLM", TINY | CLASSES["ForXVector"], "ForXVector"), tmp_path))
    with pytest.raises(ValueError, match="the speaker embedding needs 10"):
        model(torch.randn(1, 1_600))
    assert make_head(model.head.config, model.encoder.config).width == 48
