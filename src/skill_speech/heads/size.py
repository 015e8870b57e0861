"""What a head costs."""

from __future__ import annotations

from ..encoder import EncoderConfig
from .config import HeadConfig


def head_macs(config: HeadConfig, encoder: EncoderConfig, seconds: float) -> float:
    """Multiply-accumulates of a head per second of audio in matrix products and convolutions, for an utterance."""
    frames = encoder.num_frames(round(seconds * encoder.sampling_rate))
    width, total = encoder.hidden_size, 0
    if config.adapter is not None:
        adapter = config.adapter
        total += frames * width * adapter.width * int(adapter.width != width)
        width = adapter.width
        for _ in range(adapter.layers):
            frames = (frames + 2 - adapter.kernel) // adapter.stride + 1
            total += frames * adapter.kernel * width * 2 * width
    if config.kind in ("ctc", "frame"):
        total += frames * width * config.outputs
    elif config.kind == "sequence":
        total += frames * width * config.projection + config.projection * config.outputs
    else:
        total += frames * width * config.tdnn[0].width
        inputs = config.tdnn[0].width
        for layer in config.tdnn:
            frames = max(0, frames - layer.dilation * (layer.kernel - 1))
            total += frames * layer.kernel * inputs * layer.width
            inputs = layer.width
        total += 2 * inputs * config.embedding + config.embedding**2
    return total / seconds
