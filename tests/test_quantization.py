"""A student that learns with rounded numbers: the rounding, its gradients, and what of it is stored."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from skill_speech import compress, load_encoder
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, make_targets
from skill_speech.distillation.pace import measure_pace
from skill_speech.distillation.quantization import attach_quantization, remove_quantization
from skill_speech.distillation.weight_norm import attach_weight_norm, remove_weight_norm
from skill_speech.encoder import Encoder, hubert_config
from skill_speech.kernels.linear import Int8Linear
from skill_speech.kernels.rounding import Rounding, rounded_maps, rounded_weight
from skill_speech.pruning import Budget, attach_gates
from tests.test_compression import QUICK, kill_at, refused, same, speech, teacher, weights
from tests.test_inference import CONFIGS, encoder_of
from tests.test_inference import speech as waveforms

__all__ = ["speech", "teacher"]  # fixtures

ROUNDINGS: tuple[Rounding, ...] = ("int8", "int4")
MAPS = ("query", "key", "value", "attention.output", "feed_forward.input", "feed_forward.output")
Array = npt.NDArray[np.float64]


def eight_bits(weight_OI: Array) -> Array:
    """By the formula, a number at a time: whole multiples of a 63rd of an output's largest weight."""
    rounded = np.zeros_like(weight_OI)
    for o, row_I in enumerate(weight_OI):
        step = max(abs(w) for w in row_I) / 63
        rounded[o] = [step * round(w / step) if step else 0.0 for w in row_I]
    return rounded


def four_bits(weight_OI: Array) -> Array:
    """By the formula: of 32 neighbouring inputs, whole multiples from -8 to 7 of -1/8 of the farthest from zero."""
    rounded = np.zeros_like(weight_OI)
    for o, row_I in enumerate(weight_OI):
        for start in range(0, len(row_I), 32):
            group = row_I[start : start + 32]
            step = -max(group, key=abs) / 8
            codes = [min(7, max(-8, round(w / step))) if step else 0 for w in group]
            rounded[o, start : start + 32] = [step * code for code in codes]
    return rounded


def frames(x_NI: Array, zero: int) -> Array:
    """By the formula: codes from 0 to 255, `zero` for zero, at the smallest step at which all of a frame fits."""
    rounded = np.zeros_like(x_NI)
    for n, x_I in enumerate(x_NI):
        step = max(max(x_I) / (255 - zero), -min(x_I) / zero)
        codes = [round(x / step) + zero if step else zero for x in x_I]
        assert all(0 <= code <= 255 for code in codes)
        rounded[n] = [step * (code - zero) for code in codes]
    return rounded


def weight_of(outputs: int, inputs: int) -> Tensor:
    """With an output of zeros, and a group of zeros."""
    weight_OI = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs))
    weight_OI[0] = 0
    weight_OI[1, :32] = 0
    return weight_OI


def near(mine: Tensor, formula: Array) -> None:
    np.testing.assert_allclose(mine.double().numpy(), formula, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 64), (5, 50), (4, 33), (6, 7)])
def test_weights_are_rounded_by_the_formula_and_stay_when_rounded_again(shape: tuple[int, int]) -> None:
    weight_OI = weight_of(*shape)
    for rounding, formula in (("int8", eight_bits), ("int4", four_bits)):
        rounded_OI = rounded_weight(weight_OI, rounding)  # type: ignore[arg-type]
        near(rounded_OI, formula(weight_OI.double().numpy()))
        assert torch.equal(rounded_weight(rounded_OI, rounding), rounded_OI)  # type: ignore[arg-type]
        assert not torch.equal(rounded_OI, weight_OI)


def linear_in(encoder: Encoder, name: str) -> nn.Linear:
    found = encoder.layers[0].get_submodule(name)
    assert isinstance(found, nn.Linear)
    return found


@pytest.mark.parametrize(("name", "zero"), [("attention.query", 128), ("feed_forward.output", 32)])
def test_a_rounded_map_and_its_gradients_are_those_of_the_formula(name: str, zero: int) -> None:
    """The output is that of rounded numbers; gradients pass the rounding as if it were not there."""
    encoder = encoder_of(CONFIGS["wavlm"])
    linear = linear_in(encoder, name)
    exact_OI, bias_O = linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()
    x_NI = torch.randn(9, linear.in_features)
    x_NI[2] *= 30
    x_NI[3] = 0
    if zero == 32:
        x_NI = F.gelu(x_NI)
    x_NI.requires_grad_()
    attach_quantization(encoder, "int8")
    y_NO = linear(x_NI)
    rounded_NI, rounded_OI = frames(x_NI.detach().double().numpy(), zero), eight_bits(exact_OI)
    near(y_NO.detach(), rounded_NI @ rounded_OI.T + bias_O)
    gradient_NO = torch.randn_like(y_NO)
    parameter = linear.get_parameter("parametrizations.weight.original")
    of_x, of_w, of_b = torch.autograd.grad(y_NO, [x_NI, parameter, linear.bias], gradient_NO)
    g = gradient_NO.double().numpy()
    for mine, formula in ((of_x, g @ rounded_OI), (of_w, g.T @ rounded_NI), (of_b, g.sum(0))):
        np.testing.assert_allclose(mine.double().numpy(), formula, rtol=1e-4, atol=1e-5)


def test_a_map_of_four_bits_leaves_its_inputs_alone() -> None:
    encoder = encoder_of(CONFIGS["wavlm"])
    linear = linear_in(encoder, "feed_forward.output")
    exact_OI, bias_O = linear.weight.detach().double().numpy(), linear.bias.detach().double().numpy()
    attach_quantization(encoder, "int4")
    x_NI = torch.randn(5, linear.in_features)
    near(linear(x_NI).detach(), x_NI.double().numpy() @ four_bits(exact_OI).T + bias_O)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_map_of_the_transformer_is_rounded_and_nothing_else(name: str, rounding: Rounding) -> None:
    """Also where layers are empty; without quantisation the encoder is the one of before, its weights rounded."""
    encoder = encoder_of(CONFIGS[name])
    before = {key: weight.clone() for key, weight in encoder.state_dict().items()}
    attach_quantization(encoder, rounding)
    attach_weight_norm(encoder)
    waveforms_BT, lengths_B = waveforms(1.0)
    with torch.no_grad():
        quantized_BTD = encoder(waveforms_BT, lengths_B).last_hidden_state_BTD
    remove_quantization(encoder)
    remove_weight_norm(encoder)
    after = encoder.state_dict()
    assert sorted(after) == sorted(before)
    wanted = {key for key in before if key.startswith("layers.") and key.endswith(tuple(f"{m}.weight" for m in MAPS))}
    wanted = {key for key in wanted if before[key].numel()}
    changed = {key for key in before if not torch.allclose(after[key], before[key], rtol=1e-5, atol=1e-6)}
    assert changed == wanted
    for key in wanted:
        assert torch.equal(after[key], rounded_weight(before[key], rounding))
    with torch.no_grad():
        plain_BTD = encoder(waveforms_BT, lengths_B).last_hidden_state_BTD
    error = float((plain_BTD - quantized_BTD).norm() / plain_BTD.norm())
    assert error < 1e-5 if rounding == "int4" else 1e-4 < error < 0.02  # inputs are rounded no more
    assert not any(module._forward_pre_hooks for module in encoder.modules())


def test_copies_are_quantised_by_themselves() -> None:
    encoder = encoder_of(CONFIGS["wavlm pruned"])
    attach_quantization(encoder, "int8")
    other = copy.deepcopy(encoder)
    waveforms_BT, lengths_B = waveforms(1.0)
    with torch.no_grad():
        expected = encoder(waveforms_BT, lengths_B).last_hidden_state_BTD
        assert torch.equal(other(waveforms_BT, lengths_B).last_hidden_state_BTD, expected)
        linear_in(other, "attention.query").get_parameter("parametrizations.weight.original").zero_()
        assert torch.equal(encoder(waveforms_BT, lengths_B).last_hidden_state_BTD, expected)
        remove_quantization(other)
    assert not any(module._forward_pre_hooks for module in other.modules())


@pytest.mark.parametrize("zero", [128, 32])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_eight_bit_product_is_that_of_the_formula(
    dtype: torch.dtype, tolerance: float, gelu: bool, zero: int
) -> None:
    """With a frame of large values and one of zeros; weights that training has rounded are what they are."""
    weight_OI, bias_O = rounded_weight(weight_of(6, 50), "int8"), torch.randn(6)
    x_BTI = torch.randn(2, 7, 50)
    x_BTI[0, 1] *= 100
    x_BTI[1, 2] = 0
    if zero == 32:
        x_BTI = F.gelu(x_BTI)
    x_BTI = x_BTI.to(dtype)
    made_BTO = Int8Linear(weight_OI, bias_O, gelu, zero)(x_BTI)
    assert made_BTO.dtype == dtype
    rounded = frames(x_BTI.flatten(0, 1).double().numpy(), zero).reshape(x_BTI.shape)
    wanted = torch.from_numpy(rounded @ weight_OI.double().numpy().T + bias_O.double().numpy())
    wanted = F.gelu(wanted) if gelu else wanted
    torch.testing.assert_close(made_BTO.double(), wanted, rtol=tolerance, atol=tolerance)


def test_a_frame_of_large_values_takes_nothing_from_the_others() -> None:
    weight_OI, bias_O, x_TI = torch.randn(20, 64), torch.randn(20), torch.randn(9, 64)
    linear = Int8Linear(weight_OI, bias_O)
    alone_TO = linear(x_TI)
    x_TI[4] *= 1_000
    others = torch.arange(9) != 4
    assert torch.equal(linear(x_TI)[others], alone_TO[others])


SHAPE: dict[str, Any] = {"hidden_size": 24, "num_heads": 2, "units": 40, "channels": 8, "depth": 2}
SHAPE |= {"positional_kernel": 8, "positional_groups": 4}


def distillation(rounding: Rounding, **shape: Any) -> Distillation:
    torch.manual_seed(0)
    config = hubert_config(**SHAPE, **shape)
    student = Encoder(config)
    attach_quantization(student, rounding)
    loss = DistillationLoss(make_targets("all-layers", 2), 24)
    return Distillation(Encoder(config), student, loss, StageConfig(steps=4, warmup_steps=1))


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("pre_norm", [False, True])
def test_updates_move_the_weights_that_are_not_rounded(rounding: Rounding, pre_norm: bool) -> None:
    """Under autocast in bfloat16 too; by the gradient, an update is AdamW's step of its rate."""
    for enabled in (False, True):
        module = distillation(rounding, pre_norm=pre_norm, conv_norm="layer").train()
        optimizer = module.make_optimizer()
        parameter = linear_in(module.student, "attention.value").get_parameter("parametrizations.weight.original")
        before = parameter.detach().clone()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss, _ = module.distil(torch.randn(2, 6_000), None, 0)
        loss.backward()
        optimizer.step()
        assert parameter.dtype == torch.float32
        assert loss.isfinite()
        rate = optimizer.param_groups[0]["lr"]
        moved = (parameter.detach() - before)[parameter.grad.abs() > 1e-5]  # type: ignore[union-attr]
        assert len(moved) > 100
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, rate), rtol=0.01, atol=1e-7)


@pytest.mark.slow
def test_the_compiled_student_computes_what_the_other_does() -> None:
    module = distillation("int8")
    waveforms_BT = torch.randn(2, 6_000)
    expected = module.distil(waveforms_BT, None, 0)[0]
    expected.backward()
    gradients = {name: weight.grad for name, weight in module.student.named_parameters()}
    module.zero_grad(set_to_none=True)
    program = torch.compile(module.student, dynamic=True, backend="aot_eager")
    compiled = module.loss(program(waveforms_BT), module.teacher(waveforms_BT), None, ())[0]
    torch.testing.assert_close(compiled, expected, rtol=1e-3, atol=1e-4)
    compiled.backward()
    for name, weight in module.student.named_parameters():
        if weight.grad is not None and gradients[name] is not None:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=0.1, atol=1e-3)


def test_the_pace_of_stage_two_is_that_of_the_quantised_student(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Rounding] = []
    monkeypatch.setattr(
        "skill_speech.distillation.pace.attach_quantization", lambda student, rounding: seen.append(rounding)
    )
    whole = Encoder(hubert_config(**SHAPE | {"depth": 4}))
    stage = StageConfig(steps=4, batch_seconds=4)
    budget = Budget.of(whole.config, sparsity=0.3)
    loss = DistillationLoss(make_targets("all-layers", len(whole.layers)), whole.config.hidden_size)
    gated = attach_gates(copy.deepcopy(whole))
    measure_pace(whole, gated, budget, (stage, stage), "float32", loss, quantization="int4")
    assert seen == ["int4"]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_quantised_run_is_resumed_to_the_bit_and_its_student_is_rounded(
    teacher: str, speech: str, tmp_path: Path, rounding: Rounding
) -> None:
    settings = QUICK | {"sparsity": 0.6, "quantization": rounding}
    compress(teacher, speech, str(tmp_path / "whole"), **settings)
    kill_at("stage2", 3, teacher, speech, str(tmp_path / "killed"), **settings)
    compress(teacher, speech, str(tmp_path / "killed"), **settings)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    student = load_encoder(tmp_path / "whole" / "model")
    maps = [linear for _, _, linear, _ in rounded_maps(student)]
    assert maps
    for linear in maps:
        assert torch.equal(rounded_weight(linear.weight, rounding), linear.weight)
    after_surgery = load_encoder(tmp_path / "whole" / "surgery")
    assert not any(
        torch.equal(rounded_weight(linear.weight, rounding), linear.weight)
        for _, _, linear, _ in rounded_maps(after_surgery)
    )
    card = (tmp_path / "whole" / "model" / "README.md").read_text()
    assert f"quantization-aware ({rounding})" in card


def test_validation_in_stage_two_is_that_of_the_quantised_student(teacher: str, speech: str, tmp_path: Path) -> None:
    """Before the first update, of a student whose weights somebody else has rounded after surgery."""
    plain = compress(teacher, speech, str(tmp_path / "plain"), sparsity=0.6, **QUICK)
    start = {"start_from": str(tmp_path / "plain" / "surgery"), "sparsity": 0.6}
    quantized = compress(teacher, speech, str(tmp_path / "int4"), **start, **QUICK, quantization="int4")
    shutil.copytree(tmp_path / "plain", tmp_path / "rounded")
    path = tmp_path / "rounded" / "surgery" / "model.safetensors"
    state, names = load_file(path), [f".{name}.weight" for name in MAPS]
    for name in state:
        if name.startswith("layers.") and name.endswith(tuple(names)) and state[name].numel():
            state[name] = torch.from_numpy(four_bits(state[name].double().numpy())).float()
    save_file(state, path)
    start["start_from"] = str(tmp_path / "rounded" / "surgery")
    by_hand = compress(teacher, speech, str(tmp_path / "by-hand"), **start, **QUICK)
    assert quantized.loss_after_surgery == pytest.approx(by_hand.loss_after_surgery, abs=1e-6)
    assert quantized.loss_after_surgery != pytest.approx(plain.loss_after_surgery, abs=1e-5)


def test_another_quantisation_is_refused(teacher: str, speech: str, tmp_path: Path) -> None:
    said = refused(teacher, speech, str(tmp_path / "run"), **QUICK, quantization="int2")
    assert said == "quantization is 'int2'; it can be int8, int4"
    assert not (tmp_path / "run").exists()
    kill_at("stage1", 2, teacher, speech, str(tmp_path / "run"), **QUICK, sparsity=0.6, quantization="int8")
    said = refused(teacher, speech, str(tmp_path / "run"), **QUICK, sparsity=0.6)
    assert "quantization" in said
