"""Training as DPHuBERT's code does it: what one update moves, and what the recipes named published set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from skill_speech.checkpoints import read_checkpoint, save_direction_norm
from skill_speech.compression.plan import set_normalization, trainable_copy
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, make_targets
from skill_speech.distillation.weight_norm import attach_weight_norm, remove_weight_norm
from skill_speech.encoder import Encoder, EncoderConfig, hubert_config, wavlm_config
from skill_speech.errors import InputError
from skill_speech.pruning import attach_gates, find_gates, shrink
from tests.fairseq_files import fairseq_settings, fairseq_weights, write_fairseq
from tests.torchaudio_reference import random_state, student_config
from tests.transformers_models import TINY, build, save

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_heads": 4, "units": 48, "channels": 16, "depth": 2}
SHAPE |= {"positional_kernel": 8, "positional_groups": 4}
RATE = 1e-3


def module_of(config: EncoderConfig, direction_norm_K: Tensor | None = None, normed: bool = True) -> Distillation:
    """A student that is not its teacher, before its first update."""
    config = config.without_dropout()
    torch.manual_seed(0)
    teacher, student = Encoder(config), Encoder(config)
    if normed:
        attach_weight_norm(student, direction_norm_K)
    stage = StageConfig(steps=10, learning_rate=RATE, warmup_steps=0)
    loss = DistillationLoss(make_targets("all-layers", config.num_layers), config.hidden_size)
    return Distillation(teacher, student.train(), loss, stage)


def positional_weight(module: Distillation) -> Tensor:
    return module.student.positional_conv.convs[0].weight.detach().clone()


def gradients(module: Distillation) -> None:
    waveforms_BT = 0.1 * torch.randn(2, 8_000, generator=torch.Generator().manual_seed(1))
    module.distil(waveforms_BT, None)[0].backward()


def moved(module: Distillation) -> np.ndarray:
    """What the first update adds to the weight of the positional convolution."""
    optimizer = module.make_optimizer()
    gradients(module)
    before = positional_weight(module)
    optimizer.param_groups[0]["lr"] = RATE
    optimizer.step()
    return (positional_weight(module) - before).double().numpy()


def published_move(weight: np.ndarray, gradient: np.ndarray, ratio: float) -> np.ndarray:
    """AdamW's first update of g v / ‖v‖ with g / ‖v‖ = ratio, from the gradient of the weight: everything (D, C, K).

    It moves each number against its gradient by the rate, however large the gradient: g by RATE, each of v's by RATE.
    """
    g = np.sqrt((weight**2).sum((0, 1)))
    unit = weight / g
    of_g = (gradient * unit).sum((0, 1))
    of_v = ratio * (gradient - of_g * unit)
    g_after = g - RATE * np.sign(of_g)
    v_after = unit * g / ratio - RATE * of_v / (np.abs(of_v) + 1e-8)
    return g_after * v_after / np.sqrt((v_after**2).sum((0, 1))) - weight


@pytest.mark.parametrize("ratio", [3.0, 1.0, 0.3])
def test_the_first_update_of_the_positional_convolution_is_the_published_one(ratio: float) -> None:
    config = hubert_config(**SHAPE)
    plain = module_of(config, normed=False)
    gradients(plain)
    conv = plain.student.positional_conv.convs[0]
    weight, gradient = conv.weight.detach().double().numpy(), conv.weight.grad.double().numpy()
    norm_K = conv.weight.detach().norm(dim=(0, 1))
    expected = published_move(weight, gradient, ratio)
    found = moved(module_of(config, norm_K / ratio))
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(expected), rel=0.01)
    # The plain weight moves by the rate in every number, whatever ‖v‖ is.
    assert np.linalg.norm(expected) / (RATE * np.sqrt(weight.size)) == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("family", [hubert_config, wavlm_config])
def test_nothing_else_is_computed_under_weight_normalization(family: Any) -> None:
    encoder = Encoder(family(**SHAPE)).eval()
    waveforms_BT, weight = torch.randn(1, 4_000), encoder.positional_conv.convs[0].weight.detach().clone()
    before, names = encoder(waveforms_BT).last_hidden_state_BTD, list(encoder.state_dict())
    norm_K = torch.rand(8) + 0.5
    attach_weight_norm(encoder, norm_K)
    torch.testing.assert_close(encoder(waveforms_BT).last_hidden_state_BTD, before)
    torch.testing.assert_close(remove_weight_norm(encoder), norm_K)
    torch.testing.assert_close(encoder.positional_conv.convs[0].weight.detach(), weight)
    assert sorted(encoder.state_dict()) == sorted(names)
    assert remove_weight_norm(encoder) is None


@pytest.mark.parametrize("style", [{"positional_depth": 2}, {"positional_affine": True}])
def test_families_that_are_trained_without_weight_normalization_stay_so(style: dict[str, Any]) -> None:
    encoder = Encoder(hubert_config(**SHAPE).replace(**style))
    names = list(encoder.state_dict())
    attach_weight_norm(encoder)
    assert list(encoder.state_dict()) == names


def test_a_tap_of_zeros_is_learned() -> None:
    module = module_of(hubert_config(**SHAPE), normed=False)
    with torch.no_grad():
        module.student.positional_conv.convs[0].weight[..., 2:4] = 0
    attach_weight_norm(module.student)
    assert np.isfinite(moved(module)).all()
    assert (np.abs(moved(module)).sum((0, 1)) > 0).all()


def test_removing_units_leaves_weight_normalization_alone() -> None:
    encoder = attach_gates(Encoder(hubert_config(**SHAPE)))
    attach_weight_norm(encoder, torch.full((8,), 0.3))
    before = dict(encoder.positional_conv.named_parameters())
    shrink(encoder, {gate.name: torch.arange(len(gate.module.log_alpha) - 1) for gate in find_gates(encoder)})
    after = dict(encoder.positional_conv.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    torch.testing.assert_close(remove_weight_norm(encoder), torch.full((8,), 0.3))


def test_files_with_weight_normalization_say_how_long_their_directions_are(tmp_path: Path) -> None:
    model = build("Hubert", TINY)
    conv = model.encoder.pos_conv_embed.conv.parametrizations.weight
    with torch.no_grad():
        conv.original1 *= torch.rand(16) + 0.5
    expected_K = conv.original1.detach().square().sum((0, 1)).sqrt()
    write_fairseq(tmp_path / "model.pt", "cfg", fairseq_settings(model, "hubert"), fairseq_weights(model), False)
    for source in (save(model, tmp_path / "hub"), tmp_path / "model.pt"):
        torch.testing.assert_close(read_checkpoint(source).direction_norm_K, expected_K)
    config = student_config(False, False)
    state = random_state(config)
    torch.save({"state_dict": state, "config": config}, tmp_path / "student.pth")
    expected_K = state["encoder.transformer.pos_conv_embed.conv.weight_v"].square().sum((0, 1)).sqrt()
    torch.testing.assert_close(read_checkpoint(tmp_path / "student.pth").direction_norm_K, expected_K)


def test_a_damaged_file_of_directions_is_refused(tmp_path: Path) -> None:
    Encoder(hubert_config(**SHAPE)).save_pretrained(tmp_path)
    save_direction_norm(tmp_path, torch.rand(8))
    assert read_checkpoint(tmp_path).direction_norm_K is not None
    for damaged in (torch.rand(7), torch.full((8,), torch.nan)):
        save_direction_norm(tmp_path, damaged)
        with pytest.raises(InputError, match="not one norm for each tap of the positional convolution"):
            read_checkpoint(tmp_path)


def test_the_feature_scale_is_not_trained() -> None:
    module = module_of(hubert_config(**SHAPE).replace(feature_scale=True))
    scale, projection = module.student.convs[-1].channel_scale, module.student.projection.projection
    with torch.no_grad():
        scale.weight.uniform_(0.5, 1)
    before, other = scale.weight.clone(), projection.weight.detach().clone()
    moved(module)
    assert torch.equal(scale.weight, before)
    assert not torch.equal(projection.weight, other)


@pytest.mark.parametrize("name", ["hubert-base", "wavlm-base-plus"])
def test_recipes_named_published_do_not_take_dropout_and_normalization_from_the_hub(name: str) -> None:
    recipe = yaml.safe_load(Path(f"recipes/{name}.yaml").read_text())
    assert recipe["input_normalization"] is False
    of_hub = replace(
        hubert_config(**SHAPE),
        **{f"{kind}_dropout": 0.1 for kind in ("hidden", "attention", "activation", "feature", "layer")},
        input_normalization=True,
    )
    encoder = Encoder(of_hub)
    set_normalization(encoder, recipe["input_normalization"])
    for stage in ("stage1", "stage2"):
        student = trainable_copy(encoder, of_hub, StageConfig(**recipe[stage])).config
        dropout = (student.hidden_dropout, student.attention_dropout, student.feature_dropout)
        assert dropout == (0.1, 0.1, 0.1)
        assert (student.activation_dropout, student.layer_dropout, student.input_normalization) == (0, 0, False)
