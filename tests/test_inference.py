"""The optimized encoder computes what the encoder computes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skill_speech import optimize
from skill_speech.encoder import Encoder, EncoderConfig, EncoderOutput, LayerConfig, hubert_config, wavlm_config
from skill_speech.errors import InputError
from skill_speech.kernels.linear import PackedLinear
from skill_speech.kernels.position import GroupedProduct, SpectralConv

SMALL: dict[str, Any] = {
    "hidden_size": 48,
    "num_heads": 4,
    "units": 64,
    "channels": 24,
    "depth": 3,
    "positional_kernel": 64,
    "positional_groups": 4,
}


def pruned(config: EncoderConfig) -> EncoderConfig:
    """Every width another; one layer without heads, one without units."""
    convs = tuple(replace(conv, channels=conv.channels - number) for number, conv in enumerate(config.convs))
    layers = (LayerConfig((1, 3), 50), LayerConfig((), 33), LayerConfig((0, 1, 2, 3), 0))
    return config.replace(convs=convs, layers=layers, feature_scale=True)


LARGE = {"conv_norm": "layer", "conv_bias": True, "pre_norm": True, "input_normalization": True}
CONFIGS = {
    "wavlm": wavlm_config(**SMALL),
    "wavlm pruned": pruned(wavlm_config(**SMALL)),
    "wavlm large pruned, length-aware": pruned(wavlm_config(**SMALL, **LARGE, length_aware=True)),
    "hubert, length-aware": hubert_config(**SMALL, length_aware=True),
    "hubert pruned, relu, odd kernel": pruned(hubert_config(**(SMALL | {"positional_kernel": 65}), activation="relu")),
    "data2vec": hubert_config(
        **(SMALL | {"positional_kernel": 9}), family="data2vec-audio", positional_depth=3, positional_affine=True
    ),
}


def encoder_of(config: EncoderConfig) -> Encoder:
    """Random weights in which every part has a say: biases, gains and position biases too."""
    torch.manual_seed(0)
    encoder = Encoder(config).eval()
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            elif "layers" in name or "embedding" in name:
                weight.copy_(torch.randn_like(weight) * max(1, weight.shape[-1]) ** -0.5)
    return encoder


def speech(seconds: float) -> tuple[Tensor, Tensor]:
    lengths_B = torch.tensor([round(16_000 * seconds), 9_000, 4_321])
    waveforms_BT = torch.randn(3, int(lengths_B[0]), generator=torch.Generator().manual_seed(1))
    waveforms_BT[torch.arange(waveforms_BT.shape[1]) >= lengths_B[:, None]] = 0
    return waveforms_BT, lengths_B


def all_states(out: EncoderOutput) -> list[Tensor]:
    return [*out.layers, out.embedded_BTD, out.last_hidden_state_BTD]


def largest_error(out: EncoderOutput, expected: EncoderOutput) -> float:
    """Of a hidden state over the valid frames, relative to that state's size."""
    valid_BT = torch.arange(expected.features_BTD.shape[1]) < expected.lengths_B[:, None]
    errors = []
    for state_BTD, expected_BTD in zip(all_states(out), all_states(expected), strict=True):
        assert state_BTD.dtype == torch.float32
        errors.append(float((state_BTD - expected_BTD)[valid_BT].norm() / expected_BTD[valid_BT].norm()))
    assert torch.equal(out.lengths_B, expected.lengths_B)
    return max(errors)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bf16", 0.03)])
def test_the_optimized_encoder_equals_the_encoder(name: str, precision: Any, tolerance: float) -> None:
    encoder = encoder_of(CONFIGS[name])
    optimized = optimize(copy.deepcopy(encoder), precision)
    assert optimized.num_parameters() == encoder.num_parameters()
    assert optimized.config == encoder.config
    waveforms_BT, lengths_B = speech(1.5)
    with torch.no_grad():
        assert largest_error(optimized(waveforms_BT, lengths_B), encoder(waveforms_BT, lengths_B)) < tolerance
        alone_BT = waveforms_BT[1:2, :9_000]
        assert largest_error(optimized(alone_BT), encoder(alone_BT)) < tolerance
        one_frame_BT = waveforms_BT[:1, :400]
        if encoder.config.conv_norm == "layer":  # a norm over one step of time leaves nothing
            assert largest_error(optimized(one_frame_BT), encoder(one_frame_BT)) < tolerance


@pytest.mark.parametrize("name", ["wavlm pruned", "wavlm large pruned, length-aware"])
@pytest.mark.parametrize(("precision", "tolerance"), [("int8", 0.03), ("int8-float32", 0.02)])
def test_eight_bits_are_near(name: str, precision: Any, tolerance: float) -> None:
    encoder = encoder_of(CONFIGS[name])
    optimized = optimize(copy.deepcopy(encoder), precision)
    waveforms_BT, lengths_B = speech(1.5)
    with torch.no_grad():
        error = largest_error(optimized(waveforms_BT, lengths_B), encoder(waveforms_BT, lengths_B))
    assert 1e-4 < error < tolerance


def test_long_utterances_are_attended_to_in_parts() -> None:
    """13 s are 649 frames: four parts of scores."""
    encoder = encoder_of(wavlm_config(**(SMALL | {"depth": 1})))
    optimized = optimize(copy.deepcopy(encoder), "float32")
    waveforms_BT, lengths_B = speech(13)
    with torch.no_grad():
        assert largest_error(optimized(waveforms_BT, lengths_B), encoder(waveforms_BT, lengths_B)) < 1e-5


@pytest.mark.parametrize("frames", [1, 31, 32, 33, 100, 300])
@pytest.mark.parametrize("kernel", [63, 64])
@pytest.mark.parametrize("kind", [SpectralConv, GroupedProduct])
def test_a_positional_convolution_is_a_convolution(kind: Any, kernel: int, frames: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv1d(12, 12, kernel, padding=kernel // 2, groups=3)
    x_BTD = torch.randn(2, frames, 12)
    with torch.no_grad():
        expected_BDT = F.conv1d(x_BTD.transpose(1, 2), conv.weight, conv.bias, padding=kernel // 2, groups=3)[
            ..., :frames
        ]
        torch.testing.assert_close(kind(conv)(x_BTD).transpose(1, 2), expected_BDT, rtol=1e-5, atol=1e-5)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="precision is 'int4'; it can be auto, float32, bf16, int8, int8-float32"):
        optimize(encoder_of(CONFIGS["wavlm"]), "int4")  # type: ignore[arg-type]
    optimized = optimize(encoder_of(CONFIGS["wavlm"]), "float32")
    with pytest.raises(ValueError, match="an utterance has 399 samples; the encoder needs 400"):
        optimized(torch.randn(1, 399))


@pytest.mark.parametrize("plain_first", [False, True])
@pytest.mark.parametrize("gelu", [False, True])
def test_a_packed_map_is_the_map_for_few_rows_and_for_many(
    gelu: bool, plain_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever order they come: the other layout is made from the one that is there, where there are two."""
    monkeypatch.setattr("skill_speech.kernels.linear.multiplies_few_rows_best_plainly", lambda: plain_first)
    torch.manual_seed(0)
    linear = nn.Linear(50, 37)
    few_NI, many_NI = torch.randn(3, 5, 50), torch.randn(2, 400, 50)
    for order in ((few_NI, many_NI, few_NI), (many_NI, few_NI, many_NI)):
        packed = PackedLinear(linear.weight, linear.bias, gelu)
        for x_NI in order:
            with torch.no_grad():
                wanted = F.gelu(linear(x_NI)) if gelu else linear(x_NI)
                torch.testing.assert_close(packed(x_NI), wanted, rtol=1e-5, atol=1e-5)
        assert (packed.plain_OI is not None) == plain_first or not packed.packs


@pytest.mark.parametrize("plain_first", [False, True])
def test_a_map_that_sees_many_rows_alone_keeps_one_layout(plain_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("skill_speech.kernels.linear.multiplies_few_rows_best_plainly", lambda: plain_first)
    packed = PackedLinear(torch.randn(32, 48), torch.zeros(32))
    packed(torch.randn(1_000, 48))
    assert (packed.plain_OI is None) == packed.packs


@pytest.mark.parametrize("name", ["wavlm pruned", "hubert pruned, relu, odd kernel"])
@pytest.mark.parametrize("seconds", [0.025, 0.1, 0.5, 1.3, 2.6])
def test_short_utterances_are_the_encoders(name: str, seconds: float) -> None:
    """Around the lengths at which another way is taken, one after another by the same encoder."""
    encoder = encoder_of(CONFIGS[name])
    optimized = optimize(copy.deepcopy(encoder), "float32")
    for length in (seconds, seconds + 0.02, seconds):
        waveforms_BT, _ = speech(length)
        with torch.no_grad():
            assert largest_error(optimized(waveforms_BT), encoder(waveforms_BT)) < 1e-5
