"""What onnxruntime computes with 8 and 4 bits is the formula of the rounding, and what a student was trained with."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import Tensor, nn

from skill_speech import export, optimize
from skill_speech.distillation.quantization import attach_quantization, remove_quantization
from skill_speech.encoder import Encoder, LayerConfig
from skill_speech.exporting.quantized import Int4Map, Int8Map
from skill_speech.kernels.rounding import Rounding, rounded_maps
from tests.test_inference import CONFIGS, encoder_of, speech
from tests.test_quantization import eight_bits, four_bits, frames, weight_of


def linear_of(outputs: int, inputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs).requires_grad_(False)
    linear.weight.copy_(weight_of(outputs, inputs))
    return linear


def run(module: nn.Module, path: Path, x_BTI: Tensor) -> Tensor:
    """What onnxruntime makes of an exported module."""
    shapes: Any = {"x_I": {0: "batch", 1: "frames"}} if not isinstance(module, nn.Linear) else {"input": {1: "frames"}}
    torch.onnx.export(module, (torch.zeros(2, 5, x_BTI.shape[2]),), dynamic_shapes=shapes, dynamo=True).save(path)
    return onnxruntime_of(path, x_BTI)


def onnxruntime_of(path: Path, x_BTI: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path)
    (made,) = session.run(None, {session.get_inputs()[0].name: x_BTI.numpy()})
    return torch.from_numpy(made)


@pytest.mark.parametrize("zero", [128, 32])
def test_eight_bits_in_onnxruntime_are_the_formula(zero: int, tmp_path: Path) -> None:
    """Frames of large values and of zeros among them: every frame has a scale of its own."""
    linear, x_BTI = linear_of(6, 50), torch.randn(3, 7, 50)
    x_BTI[0, 1] *= 100
    x_BTI[2, 3] = 0
    if zero == 32:
        x_BTI = F.gelu(x_BTI)
    made_BTO = run(Int8Map(linear, zero), tmp_path / "map.onnx", x_BTI)
    rounded = frames(x_BTI.flatten(0, 1).double().numpy(), zero).reshape(x_BTI.shape)
    wanted = rounded @ eight_bits(linear.weight.double().numpy()).T + linear.bias.double().numpy()
    np.testing.assert_allclose(made_BTO.double().numpy(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("inputs", [64, 50, 33])
def test_four_bits_in_onnxruntime_are_the_formula_and_its_own_quantiser(inputs: int, tmp_path: Path) -> None:
    linear, x_BTI = linear_of(6, inputs), torch.randn(2, 5, inputs)
    made_BTO = run(Int4Map(linear), tmp_path / "map.onnx", x_BTI)
    wanted = x_BTI.double().numpy() @ four_bits(linear.weight.double().numpy()).T + linear.bias.double().numpy()
    np.testing.assert_allclose(made_BTO.double().numpy(), wanted, rtol=1e-4, atol=1e-5)
    run(linear, tmp_path / "float32.onnx", x_BTI)
    theirs = MatMulNBitsQuantizer(onnx.load(tmp_path / "float32.onnx"), bits=4, block_size=32, is_symmetric=True)
    theirs.process()
    theirs.model.save_model_to_file(str(tmp_path / "theirs.onnx"))
    assert [node.op_type for node in theirs.model.model.graph.node if "MatMul" in node.op_type] == ["MatMulNBits"]
    torch.testing.assert_close(onnxruntime_of(tmp_path / "theirs.onnx", x_BTI), made_BTO, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "rounding"),
    [
        ("wavlm pruned", "int8"),
        ("hubert pruned, relu, odd kernel", "int4"),
        pytest.param("wavlm pruned", "int4", marks=pytest.mark.slow),
        pytest.param("hubert pruned, relu, odd kernel", "int8", marks=pytest.mark.slow),
    ],
)
def test_what_is_exported_computes_what_was_trained(name: str, rounding: Rounding, tmp_path: Path) -> None:
    """Weights lose nothing more; onnxruntime's hidden state is that of the quantised student, not of the plain one."""
    student = encoder_of(CONFIGS[name])
    attach_quantization(student, rounding)
    waveforms_BT, lengths_B = speech(1.0)
    with torch.no_grad():
        trained = student(waveforms_BT, lengths_B)
    remove_quantization(student)
    student.save_pretrained(tmp_path / "model")
    made = export(str(tmp_path / "model"), str(tmp_path / "onnx"), format="onnx", quantize=rounding)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    inputs = {"waveforms": waveforms_BT.numpy(), "lengths": lengths_B.numpy()}
    (last,) = session.run(["last_hidden_state"], inputs)
    valid_BT = torch.arange(last.shape[1]) < trained.lengths_B[:, None]
    assert error(torch.from_numpy(last), trained.last_hidden_state_BTD, valid_BT) < 2e-3
    with torch.no_grad():
        plain = student(waveforms_BT, lengths_B).last_hidden_state_BTD
    # Of int4 it is the same: weights are rounded already, and inputs are not.
    rounding_error = error(plain, trained.last_hidden_state_BTD, valid_BT)
    assert (4e-3 < rounding_error < 0.03) if rounding == "int8" else rounding_error < 1e-5
    sizes = [measurement.size for measurement in made.measurements[1:]]
    assert sizes[1] < sizes[0]
    card = (tmp_path / "onnx" / "README.md").read_text()
    bits = {"int8": "8-bit weights and inputs", "int4": "4-bit weights"}[rounding]
    assert f"linear maps have {bits} here" in card
    assert f"has {sizes[1] / 1e6:.1f} MB instead of {sizes[0] / 1e6:.1f}" in card


def test_where_nothing_is_left_to_round_it_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    empty = replace(
        CONFIGS["hubert pruned, relu, odd kernel"],
        layers=tuple(LayerConfig((), 0) for _ in CONFIGS["hubert pruned, relu, odd kernel"].layers),
    )
    encoder_of(empty).save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), str(tmp_path / "onnx"), format="onnx", quantize="int8", hidden_states="last")
    assert "no linear map is left in the transformer, so nothing is rounded to int8" in caplog.text
    assert "8-bit weights" not in (tmp_path / "onnx/README.md").read_text()


def test_the_optimized_encoder_computes_what_was_trained() -> None:
    """Its weights have twice the resolution, of which those of a quantised student need half."""
    student = encoder_of(CONFIGS["wavlm large pruned, length-aware"])
    attach_quantization(student, "int8")
    waveforms_BT, lengths_B = speech(1.0)
    with torch.no_grad():
        trained = student(waveforms_BT, lengths_B)
    remove_quantization(student)
    made = optimize(copy.deepcopy(student), "int8-float32")(waveforms_BT, lengths_B)
    valid_BT = torch.arange(made.features_BTD.shape[1]) < trained.lengths_B[:, None]
    assert error(made.last_hidden_state_BTD, trained.last_hidden_state_BTD, valid_BT) < 2e-3


def error(mine_BTD: Tensor, other_BTD: Tensor, valid_BT: Tensor) -> float:
    return float((mine_BTD - other_BTD)[valid_BT].norm() / other_BTD[valid_BT].norm())


def test_an_utterance_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    """In 8 bits as in float32: here beside an utterance a hundred times as loud."""
    encoder: Encoder = encoder_of(CONFIGS["hubert, length-aware"])
    encoder.save_pretrained(tmp_path / "model")
    assert sum(1 for _ in rounded_maps(encoder)) == 18
    export(str(tmp_path / "model"), str(tmp_path / "onnx"), format="onnx", quantize="int8", hidden_states="last")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    quiet_T, loud_T = torch.randn(8_000), 100 * torch.randn(8_000)
    alone, together = (
        session.run(["last_hidden_state"], {"waveforms": batch.numpy(), "lengths": np.full(len(batch), 8_000)})[0]
        for batch in (quiet_T[None], torch.stack([quiet_T, loud_T]))
    )
    np.testing.assert_allclose(together[:1], alone, rtol=1e-3, atol=2e-3)
