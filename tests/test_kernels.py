"""The operations written for CPUs, against torch's own: values and gradients; how they attach."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from skill_speech.encoder import Encoder, EncoderConfig, EncoderOutput, hubert_config, layers, wavlm_config
from skill_speech.encoder.layers import TimeNorm
from skill_speech.exporting.program import Program
from skill_speech.heads import SpeechModel
from skill_speech.kernels import attach_kernels, has_kernels
from skill_speech.kernels.attend import attend
from skill_speech.kernels.convolution import convolve_by_products, convolve_normalized
from skill_speech.kernels.dropout import Dropout, clear_dropped, draw, mark_dropped
from skill_speech.pruning import attach_gates, prune, shrink

CONVOLUTIONS = {
    # inputs, outputs, kernel, stride, groups, steps
    "first": (1, 6, 10, 5, 1, 63),
    "usual": (5, 4, 3, 2, 1, 21),
    "even steps": (5, 4, 3, 2, 1, 20),
    "even kernel": (4, 3, 2, 2, 1, 11),
    "one channel left": (1, 1, 3, 2, 1, 8),
    "one window": (3, 2, 3, 2, 1, 3),
    "stride beyond kernel": (3, 2, 2, 3, 1, 13),
    "narrow to wide": (2, 9, 2, 1, 1, 7),
    "groups": (6, 6, 4, 1, 3, 12),
    "groups, odd kernel": (6, 12, 5, 1, 2, 9),
    "wide, pruned": (511, 3, 3, 2, 1, 9),
}


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def gradients(output: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return list(torch.autograd.grad((output * weight.to(output.dtype)).sum(), inputs))


@pytest.mark.parametrize("shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_convolution_equals_conv1d(shape, batch, bias):
    inputs, outputs, kernel, stride, groups, steps = shape
    x, weight, shift = leaves((batch, steps, inputs), (outputs, inputs // groups, kernel), (outputs,))
    given = [x, weight, shift] if bias else [x, weight]
    theirs = F.conv1d(x.transpose(1, 2), weight, shift if bias else None, stride, groups=groups).transpose(1, 2)
    ours = convolve_by_products(x, weight, shift if bias else None, stride, groups)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(mine, other)


def test_convolution_gradients_equal_finite_differences():
    x, weight, bias = leaves((2, 9, 3), (4, 3, 3), (4,))
    assert torch.autograd.gradcheck(lambda *given: convolve_by_products(*given, 2), (x, weight, bias))


def test_convolution_of_a_slice_and_without_gradients():
    """Rows that are not next to each other in memory; no graph."""
    wide, weight = leaves((2, 20, 8), (4, 3, 3))
    x = wide.detach()[:, ::2, 1:4]
    expected = F.conv1d(x.transpose(1, 2), weight, stride=2).transpose(1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(convolve_by_products(x, weight.detach(), None, 2), expected.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolution_in_half_precision_under_autocast(dtype):
    x, weight = leaves((2, 33, 16), (24, 16, 3), dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        ours = convolve_by_products(x, weight, None, 2)
    theirs = F.conv1d(x.transpose(1, 2), weight, stride=2).transpose(1, 2)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), theirs, atol=0.15, rtol=0.02)
    for mine, other in zip(gradients(ours, [x, weight]), gradients(theirs, [x, weight]), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() / other.norm() < 0.01


@pytest.mark.parametrize("lengths", [None, (900, 611, 57)], ids=["whole", "padded"])
@pytest.mark.parametrize("offset", [0.0, 30.0], ids=["centered", "offset"])
def test_normalized_convolution_equals_convolution_then_norm(lengths, offset):
    x, weight, scale, shift = leaves((3, 900), (7, 10), (7,), (7,))
    with torch.no_grad():
        x += offset
    frames = (900 - 10) // 5 + 1
    valid = None if lengths is None else torch.arange(frames) < ((torch.tensor(lengths) - 10) // 5 + 1)[:, None]
    theirs = F.conv1d(x[:, None], weight[:, None], stride=5)
    mask = torch.ones(3, frames) if valid is None else valid
    mean = (theirs * mask[:, None]).sum(-1, keepdim=True) / mask.sum(-1)[:, None, None]
    variance = ((theirs - mean).square() * mask[:, None]).sum(-1, keepdim=True) / mask.sum(-1)[:, None, None]
    theirs = (theirs - mean) / (variance + 1e-5).sqrt() * scale[:, None] + shift[:, None]
    ours = convolve_normalized(x, weight, scale, shift, 1e-5, 5, valid).transpose(1, 2)
    torch.testing.assert_close(ours, theirs)
    given = [x, weight, scale, shift]
    for mine, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(mine, other)
    if valid is None:
        norm = TimeNorm(7).double()
        norm.weight.data, norm.bias.data = scale.detach(), shift.detach()
        plain = F.conv1d(x[:, None], weight[:, None], stride=5).transpose(1, 2)
        torch.testing.assert_close(norm(plain).transpose(1, 2), ours)


def test_statistics_of_a_faint_passband_are_exact_enough():
    """A filter that all but cancels a loud low tone: what is left is a millionth of the power."""
    torch.manual_seed(0)
    time = torch.arange(16_000) / 16_000
    x = (torch.sin(2 * torch.pi * 50 * time) + 1e-3 * torch.randn(16_000))[None]
    weight = torch.tensor([[1.0, -3, 3, -1] + [0.0] * 6])
    one, zero = torch.ones(1), torch.zeros(1)
    ours = convolve_normalized(x, weight, one, zero, 1e-12, 5)
    theirs = F.conv1d(x[:, None].double(), weight[:, None].double(), stride=5)
    theirs = F.group_norm(theirs, 1, eps=1e-12).transpose(1, 2)
    assert float((ours - theirs).norm() / theirs.norm()) < 1e-3


def attention_inputs(heads: int, frames: int) -> list[torch.Tensor]:
    shape = (2, frames, heads, 4)
    return leaves(shape, shape, shape, (2, frames, heads), (heads, frames, frames))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("biased", [False, True], ids=["plain", "biased"])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("chunk", [2**20, 16], ids=["at once", "in pieces"])
def test_attention_equals_torch(heads, biased, padded, chunk, monkeypatch):
    monkeypatch.setattr("skill_speech.kernels.attend.CHUNK", chunk)
    query, key, value, factor, position = attention_inputs(heads, 7)
    padding = None
    if padded:
        padding = torch.zeros(2, 1, 1, 7, dtype=torch.float64)
        padding[1, ..., 5:] = -torch.inf
    given = [query, key, value, *([factor, position] if biased else [])]
    bias = (factor, position) if biased else (None, None)
    ours = attend(query, key, value, *bias, padding)
    theirs = layers.attend(query, key, value, *bias, padding)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(mine, other)
    with torch.inference_mode():
        torch.testing.assert_close(attend(*(x.detach() for x in (query, key, value)), *bias, padding), theirs.detach())


def test_attention_gradients_equal_finite_differences():
    assert torch.autograd.gradcheck(attend, attention_inputs(2, 5))


def test_attention_drops_weights_as_the_mask_says():
    """With the mask known, dropout is a product; its gradients too."""
    query, key, value, factor, position = given = attention_inputs(2, 6)
    torch.manual_seed(5)
    ours = attend(*given, dropout=0.25)
    torch.manual_seed(5)
    keep = torch.stack([torch.stack([draw((6, 6), 0.25) >= 0 for _ in range(2)]) for _ in range(2)])
    assert 0 < keep.sum() < keep.numel()
    scores = torch.einsum("bqhe,bkhe->bhqk", query, key) / 2 + factor.transpose(1, 2)[..., None] * position
    theirs = torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1) * keep / 0.75, value)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(mine, other)


def test_dropout_drops_the_stated_share_and_keeps_the_mean():
    torch.manual_seed(0)
    drop = Dropout(0.1)
    x = torch.ones(1000, 1001)
    dropped = drop(x)
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.001)
    assert dropped[dropped != 0].unique().tolist() == pytest.approx([1 / 0.9])
    # Neighbors share a random word and are independent all the same.
    zero = (dropped == 0).float()
    assert float((zero[:, :-1] * zero[:, 1:]).mean()) == pytest.approx(0.01, abs=0.0005)
    assert drop.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_signs_mark_what_is_dropped(dtype):
    torch.manual_seed(1)
    weights = torch.rand(60, 50).to(dtype)
    weights[0] = 0
    marked, other = weights.clone(), -torch.ones(60, 50, dtype=dtype)
    mark_dropped(marked, 0.3)
    torch.manual_seed(1)
    torch.rand(60, 50)
    kept = draw((60, 50), 0.3) >= 0
    assert torch.equal(marked.abs(), weights)
    assert torch.equal(marked.clamp(min=0), torch.where(kept, weights, 0))
    clear_dropped(other, marked)
    assert torch.equal(other, torch.where(kept, -1, 0).to(dtype))
    assert not draw((9_999,), 0.0).lt(0).any()


def test_dropout_is_a_function_of_the_seed():
    draws = []
    for _ in range(2):
        torch.manual_seed(9)
        draws.append(draw((5, 7), 0.5))
    assert torch.equal(*draws)


SMALL = {"hidden_size": 48, "num_heads": 4, "units": 40, "channels": 12, "depth": 2, "positional_kernel": 16}
SHAPES = {
    "wavlm": wavlm_config(**SMALL, positional_groups=3, hidden_dropout=0.1, attention_dropout=0.1),
    "layer norms": hubert_config(**SMALL, positional_groups=3, conv_norm="layer", conv_bias=True, pre_norm=True),
    "bias before the norm over time": hubert_config(**SMALL, positional_groups=3, conv_bias=True, length_aware=True),
    "data2vec": hubert_config(**(SMALL | {"positional_kernel": 7}), positional_depth=2, positional_affine=True),
}
WAVEFORMS, LENGTHS = torch.randn(2, 4_000, generator=torch.Generator().manual_seed(2)), torch.tensor([4_000, 2_345])


def encoder_of(config: EncoderConfig) -> Encoder:
    torch.manual_seed(0)
    return Encoder(config).eval()


@torch.no_grad()
def states(encoder: Encoder) -> list[torch.Tensor]:
    out: EncoderOutput = encoder(WAVEFORMS * (torch.arange(4_000) < LENGTHS[:, None]), LENGTHS)
    return [*out.layers, out.embedded_BTD, out.last_hidden_state_BTD]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(some, others, strict=True))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_an_encoder_with_kernels_is_the_same_encoder(config):
    plain = encoder_of(config)
    fast = attach_kernels(copy.deepcopy(plain))
    assert has_kernels(fast)
    assert not has_kernels(plain)
    assert list(fast.state_dict()) == list(plain.state_dict())
    for mine, other in zip(states(fast), states(plain), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)
    for again in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast)), attach_kernels(fast)):
        assert has_kernels(again)
        assert same(states(again), states(fast))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_what_is_compiled_or_exported_has_no_kernels(config, monkeypatch):
    plain = encoder_of(config)
    fast = attach_kernels(copy.deepcopy(plain))
    assert not has_kernels(Program(SpeechModel(fast), "all").encoder)
    assert not same(states(fast), states(plain))  # by rounding
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert same(states(fast), states(plain))


def test_a_student_that_loses_units_keeps_its_kernels():
    for attach in (lambda encoder: encoder, attach_kernels):
        student = attach(attach_gates(encoder_of(SHAPES["wavlm"])))
        shrink(student, {"units.0": torch.arange(8), "heads.1": torch.tensor([0, 2]), "channels.1": torch.arange(9)})
        found = [isinstance(part, Dropout) for part in student.modules() if isinstance(part, torch.nn.Dropout)]
        assert set(found) == {has_kernels(student)} == {attach is attach_kernels}
        assert has_kernels(prune(student)) == has_kernels(student)


def test_dropout_in_training_is_that_of_the_kernels():
    encoder = encoder_of(replace(SHAPES["wavlm"], hidden_dropout=0.5))
    fast = attach_kernels(copy.deepcopy(encoder)).train()
    drawn = []
    for one in (encoder.train(), fast):
        torch.manual_seed(3)
        drawn.append(one(WAVEFORMS).embedded_BTD == 0)
    assert 0.45 < float(drawn[1].float().mean()) < 0.55
    assert not torch.equal(*drawn)
