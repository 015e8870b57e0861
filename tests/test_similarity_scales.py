"""Scales of layers: against numpy, and why pre-norm models need them before layers are averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skill_speech.distillation import DistillationLoss, Target
from skill_speech.distillation.loss import mean_of
from skill_speech.encoder import Encoder, hubert_config
from skill_speech.similarity import LayerScales

SMALL = {
    "hidden_size": 48,
    "num_heads": 4,
    "units": 96,
    "channels": 24,
    "positional_kernel": 16,
    "positional_groups": 4,
}


def test_scales_equal_numpys_standard_deviation_over_all_valid_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [[torch.randn(3, 9, width, generator=generator) * 4 + 100 for width in (5, 8)] for _ in range(4)]
    lengths = torch.tensor([9, 4, 1])
    scales = LayerScales()
    for batch in batches:
        scales.update(batch, lengths)
    for layer in range(2):
        frames = np.concatenate([batch[layer][b, :n].numpy() for batch in batches for b, n in enumerate((9, 4, 1))])
        assert scales.compute()[layer].item() == pytest.approx(np.sqrt(frames.astype(float).var(0).mean()), rel=1e-6)


def pre_norm_layers() -> list[torch.Tensor]:
    """Layers of a pre-norm encoder whose sublayers write more the later they come, as those of trained ones do."""
    torch.manual_seed(0)
    encoder = Encoder(hubert_config(**SMALL, depth=12, pre_norm=True, conv_norm="layer", conv_bias=True)).eval()
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.startswith("layers") and name.endswith("output.weight"):
                weight.mul_(10 * 1.3 ** int(name.split(".")[1]))
        return list(encoder(torch.randn(4, 16_000)).layers)


def shares(states: list[torch.Tensor], layers: range, scales: list[float] | None) -> list[float]:
    """How much of the variance of the mean each of its layers contributes: cov(h_i / s_i, mean) / var(mean)."""
    mean = mean_of(states, list(layers), scales).flatten(0, 1)
    mean = mean - mean.mean(0)
    parts = []
    for layer in layers:
        state = states[layer].flatten(0, 1) / (1 if scales is None else scales[layer])
        parts.append(float((state * mean).mean() / mean.square().mean()) / len(layers))
    return parts


def test_without_scales_the_last_layers_of_a_pre_norm_model_make_the_mean() -> None:
    states = pre_norm_layers()
    measured = LayerScales()
    measured.update(states)
    scales = measured.compute().tolist()
    assert scales[12] > 3 * scales[1]
    group = range(1, 13)
    plain, scaled = shares(states, group, None), shares(states, group, scales)
    assert sum(plain) == pytest.approx(1, abs=1e-4)
    assert max(plain) / min(plain) > 5
    assert max(scaled) / min(scaled) < 2


def test_scaling_makes_the_loss_independent_of_the_size_of_a_layer() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = ([torch.randn(2, 7, 6, generator=generator) for _ in range(3)] for _ in range(2))
    targets = [Target((0,), (0,), 0), Target((1, 2), (1, 2), 1)]
    factors = [1.0, 5.0, 0.2]

    def loss(factors: list[float]) -> float:
        scaled = [[h * factor for h, factor in zip(states, factors, strict=True)] for states in (student, teacher)]
        return DistillationLoss(targets, 6, scales=factors).of_layers(*scaled)["distillation"].item()

    assert loss(factors) == pytest.approx(loss([1.0, 1.0, 1.0]), rel=1e-5)
