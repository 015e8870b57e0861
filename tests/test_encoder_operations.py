"""The operations written for CPUs, against torch's own: values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from skill_speech.encoder.attend import attend, attend_by_torch
from skill_speech.encoder.convolution import convolve, convolve_normalized
from skill_speech.encoder.dropout import Dropout, clear_dropped, draw, mark_dropped
from skill_speech.encoder.normalization import TimeNorm

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
    ours = convolve(x, weight, shift if bias else None, stride, groups)
    torch.testing.assert_close(ours, theirs)
    for mine, other in zip(gradients(ours, given), gradients(theirs, given), strict=True):
        torch.testing.assert_close(mine, other)


def test_convolution_gradients_equal_finite_differences():
    x, weight, bias = leaves((2, 9, 3), (4, 3, 3), (4,))
    assert torch.autograd.gradcheck(lambda *given: convolve(*given, 2), (x, weight, bias))


def test_convolution_of_a_slice_and_without_gradients():
    """Rows that are not next to each other in memory; no graph."""
    wide, weight = leaves((2, 20, 8), (4, 3, 3))
    x = wide.detach()[:, ::2, 1:4]
    expected = F.conv1d(x.transpose(1, 2), weight, stride=2).transpose(1, 2)
    with torch.inference_mode():
        torch.testing.assert_close(convolve(x, weight.detach(), None, 2), expected.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_convolution_in_half_precision_under_autocast(dtype):
    x, weight = leaves((2, 33, 16), (24, 16, 3), dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        ours = convolve(x, weight, None, 2)
    theirs = F.conv1d(x.transpose(1, 2), weight, stride=2).transpose(1, 2)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.float(), theirs, atol=0.15, rtol=0.02)
    for mine, other in zip(gradients(ours, [x, weight]), gradients(theirs, [x, weight]), strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() / other.norm() < 0.01


@pytest.mark.parametrize("lengths", [None, (900, 611, 57)], ids=["whole", "padded"])
@pytest.mark.parametrize("offset", [0.0, 30.0], ids=["centred", "offset"])
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
    monkeypatch.setattr("skill_speech.encoder.attend.CHUNK", chunk)
    query, key, value, factor, position = attention_inputs(heads, 7)
    padding = None
    if padded:
        padding = torch.zeros(2, 1, 1, 7, dtype=torch.float64)
        padding[1, ..., 5:] = -torch.inf
    given = [query, key, value, *([factor, position] if biased else [])]
    bias = (factor, position) if biased else (None, None)
    ours = attend(query, key, value, *bias, padding)
    theirs = attend_by_torch(query, key, value, *bias, padding)
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
    # Neighbours share a random word and are independent all the same.
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
