"""What is exported in the tests: small students with everything in them that has gone wrong in some export."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skill_speech.encoder import Encoder, LayerConfig, hubert_config, wavlm_config

UNEVEN = (
    LayerConfig(heads=(0, 2, 3), units=17),
    LayerConfig(heads=(), units=40),  # no attention
    LayerConfig(heads=(1,), units=0),  # no feed-forward
)
"""Layers of a student after pruning."""

STUDENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "hubert": ("hubert", {}),
    "wavlm": ("wavlm", {}),
    "normalized-and-length-aware": ("wavlm", {"input_normalization": True, "length_aware": True}),
    "pre-norm": (
        "wavlm",
        {
            "pre_norm": True,
            "conv_norm": "layer",
            "conv_bias": True,
            "input_normalization": True,
            "input_norm_eps": 1e-5,
        },
    ),
    "data2vec": (
        "hubert",
        {
            "family": "data2vec-audio",
            "conv_norm": "layer",
            "positional_depth": 3,
            "positional_kernel": 7,
            "input_normalization": True,
            "length_aware": True,
        },
    ),
    "batch-norm": ("hubert", {"positional_affine": True, "feature_norm": False, "feature_scale": False}),
}


def pruned_encoder(kind: str = "hubert", **changes: Any) -> Encoder:
    """A student with uneven layers and channels and with random weights, none at its trivial initial value."""
    factory = wavlm_config if kind == "wavlm" else hubert_config
    buckets = {"relative_buckets": 32, "relative_distance": 40} if kind == "wavlm" else {}
    config = factory(
        **{
            "hidden_size": 48,
            "num_heads": 4,
            "layers": UNEVEN,
            "channels": 16,
            "positional_kernel": 16,
            "positional_groups": 4,
            "feature_scale": True,
        }
        | buckets
        | changes
    )
    widths = (16, 9, 13, 16, 7, 11, 15)
    convs = tuple(type(conv)(width, conv.kernel, conv.stride) for conv, width in zip(config.convs, widths, strict=True))
    torch.manual_seed(0)
    encoder = Encoder(config.replace(convs=convs)).eval()
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            if name.endswith("bias") or "shift" in name:
                weight.uniform_(-0.3, 0.3)
            elif weight.dim() == 1:
                weight.uniform_(0.5, 1.5)
            elif "position_bias" in name or "position_gate" in name:
                weight.normal_(0, 0.7)
            elif "attention" in name or "feed_forward" in name:
                weight.normal_(0, 0.2)
    return encoder


def student(name: str, **more: Any) -> Encoder:
    """The student of that name in `STUDENTS`."""
    kind, changes = STUDENTS[name]
    return pruned_encoder(kind, **changes, **more)


def batch(*lengths: int) -> tuple[Tensor, Tensor]:
    """Waveforms of those lengths, padded with zeros, and the lengths."""
    generator = torch.Generator().manual_seed(len(lengths))
    waveforms = torch.randn(len(lengths), max(lengths), generator=generator) * 0.3 + 0.02
    for row, length in zip(waveforms, lengths, strict=True):
        row[length:] = 0
    return waveforms, torch.tensor(lengths)


BATCHES = (batch(9_600, 7_777, 4_001), batch(12_345), batch(16_000, 720, 5_000, 5_001, 9_999))
"""Batch sizes and lengths that no export saw."""

SHORTEST = batch(400)
"""One frame."""
