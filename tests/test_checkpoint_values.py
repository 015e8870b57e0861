"""Values of configurations, of any type and size: an encoder, or one line that names the value."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from skill_speech import EncoderConfig, InputError, load_encoder
from skill_speech.checkpoints.hugging_face import CONVS, NAMES, OF_FAMILY
from skill_speech.encoder import hubert_config, wavlm_config
from skill_speech.encoder.config import ALLOWED
from tests.fairseq_files import fairseq_settings, fairseq_weights, write_fairseq
from tests.refusals import refused
from tests.torchaudio_reference import random_state, student_config
from tests.transformers_models import LARGE_STYLE, TINY, build, save

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3.5, -0.1, 10**4, 10**9, 10**400, 1e400, -1e400, float("nan")),
    *("", "many", "\ud800", "\x1b[2J", "x" * 10**6, [], [1], [None], [[[]]], ["a"] * 7, {}, {"a": 1}),
)
THEIRS = (*NAMES.values(), "num_hidden_layers", "intermediate_size", *CONVS)


def opened_or_refused(path: Path) -> bool:
    """Whether it was opened; where not, it was refused in one line that can be shown."""
    try:
        load_encoder(path)
    except InputError as error:
        said = str(error)
    else:
        return True
    assert said.isprintable()
    assert len(said) < 3_000
    assert "zip()" not in said
    return False


@pytest.mark.parametrize(
    ("kind", "style"),
    [("Hubert", {}), ("WavLM", LARGE_STYLE | {"conv_bias": False}), ("Data2VecAudio", {"num_conv_pos_embeddings": 3})],
)
def test_any_value_in_a_transformers_folder(kind, style, tmp_path):
    save(build(kind, TINY | {"num_hidden_layers": 1} | style), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    opened = 0
    for name in (*THEIRS, *OF_FAMILY.get(written["model_type"], {}).values(), "model_type", "add_adapter"):
        for value in ODD:
            (tmp_path / "config.json").write_text(json.dumps(written | {name: value}))
            opened += opened_or_refused(tmp_path)
    assert opened  # a dropout of 0 is as good as one of 0.1


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(EncoderConfig)] + ["heads", "units", "stride"]
)
def test_any_value_in_a_folder_of_ours(name, tmp_path):
    from skill_speech import Encoder

    config = wavlm_config(hidden_size=8, num_heads=2, depth=1, units=4, channels=4, positional_groups=2)
    Encoder(config).save_pretrained(tmp_path)
    for value in ODD:
        values = json.loads(json.dumps({"model_type": "skill-speech"} | config.to_dict()))
        place = {"heads": values["layers"][0], "units": values["layers"][0], "stride": values["convs"][2]}
        place.get(name, values)[name] = value
        (tmp_path / "config.json").write_text(json.dumps(values))
        opened_or_refused(tmp_path)


@pytest.mark.parametrize("style", [{}, LARGE_STYLE], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("kind", ["Hubert", "WavLM", "Wav2Vec2"])
@pytest.mark.parametrize("value", [float("nan"), -1e-5, 0.0, float("inf"), "1e-5", None])
def test_an_epsilon_that_is_none(kind, style, value, tmp_path):
    save(build(kind, TINY | {"num_hidden_layers": 1} | style), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"layer_norm_eps": value}))
    assert "layer_norm_eps is" in refused(tmp_path)


def test_the_same_table_for_every_format(tmp_path):
    import torch

    with pytest.raises(ValueError, match=r"norm_eps is nan; it must be a number from 1e-20 to 1"):
        hubert_config(norm_eps=float("nan"))
    with pytest.raises(ValueError, match=r"hidden_dropout is 1.5; it must be a number from 0 to 1"):
        hubert_config(hidden_dropout=1.5)
    model = build("Hubert", TINY)
    settings = fairseq_settings(model, "hubert") | {"dropout": -0.5}
    path = write_fairseq(tmp_path / "m.pt", "cfg", settings, fairseq_weights(model), False)
    assert "hidden_dropout is -0.5; it must be a number from 0 to 1" in refused(path)
    config = student_config(wavlm=True, large=False)
    torch.save({"state_dict": random_state(config), "config": config | {"encoder_layer_drop": 2.0}}, tmp_path / "s.pth")
    assert "layer_dropout is 2.0; it must be a number from 0 to 1" in refused(tmp_path / "s.pth")


def test_every_field_is_in_the_table():
    checked = {field.name for field in dataclasses.fields(EncoderConfig)} - {"convs", "layers"}
    assert checked <= set(ALLOWED)


def test_a_front_end_that_sees_minutes_is_refused():
    config = hubert_config()
    convs = tuple(dataclasses.replace(conv, stride=100) for conv in config.convs)
    with pytest.raises(ValueError, match="the number of samples that one frame sees is"):
        config.replace(convs=convs)
