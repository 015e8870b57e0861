# SPDX-License-Identifier: Apache-2.0
"""The encoder: one implementation of the wav2vec 2.0 family, pruned or not.

Shapes: B utterances, T samples or frames, C channels, D hidden size, H heads, L layers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import EncoderConfig
from .inputs import as_batch
from .layers import (
    Attention,
    ConvLayer,
    FeatureProjection,
    PositionalConv,
    RelativePositionBias,
    TransformerLayer,
    standardized,
)


class EncoderOutput(NamedTuple):
    """What an encoder makes of a batch.

    Attributes:
        features_BTD: h_0, the output of the feature projection, before the positional convolution. Distillation and
            similarity start here.
        embedded_BTD: what the first transformer layer reads: after the positional convolution (and, in a post-norm
            model, its layer norm).
        layer_outputs: h_1 … h_L, in a pre-norm model before the final layer norm.
        last_hidden_state_BTD: h_L, in a pre-norm model after the final layer norm.
        lengths_B: valid frames of each utterance.
    """

    features_BTD: Tensor
    embedded_BTD: Tensor
    layer_outputs: tuple[Tensor, ...]
    last_hidden_state_BTD: Tensor
    lengths_B: Tensor

    @property
    def layers(self) -> tuple[Tensor, ...]:
        """h_0 … h_L: what layer similarity compares and distillation matches."""
        return (self.features_BTD, *self.layer_outputs)

    @property
    def hidden_states(self) -> tuple[Tensor, ...]:
        """L+1 tensors in the order and meaning of Transformers (5 and later) with `output_hidden_states=True`.

        The first is the input of the first layer, not h_0. The last is h_L before the final layer norm of a pre-norm
        model; `last_hidden_state_BTD` is after it.
        """
        return (self.embedded_BTD, *self.layer_outputs)


class Encoder(nn.Module):
    """A speech encoder built from its configuration alone, with random weights.

    Attributes:
        gradient_checkpointing: while training, keep only the input of each transformer layer and compute the rest again
            on the way back. Transformers sets it, and the function that does it, under these names.
    """

    gradient_checkpointing = False
    _gradient_checkpointing_func: Callable[..., Any] = staticmethod(partial(checkpoint, use_reentrant=False))

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.convs = nn.ModuleList(ConvLayer(config, number) for number in range(len(config.convs)))
        self.projection = FeatureProjection(config)
        self.positional_conv = PositionalConv(config)
        self.position_bias = RelativePositionBias(config) if config.relative_buckets else None
        self.norm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.layers = nn.ModuleList(TransformerLayer(config, layer) for layer in config.layers)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.apply(initialize)

    def forward(self, waveforms_BT: Any, lengths_B: Any = None) -> EncoderOutput:
        """Encode waveforms.

        Args:
            waveforms_BT: floating-point samples at `config.sampling_rate`, padded with zeros at the end. Also the
                samples of one utterance, an array, or a list of utterances of any lengths, which are padded here.
            lengths_B: true number of samples of each utterance; None when none is padded.

        Raises:
            ValueError: an utterance is shorter than the receptive field (25 ms), or what is given is no batch: see
                `as_batch`.
        """
        waveforms_BT, lengths_B = self.as_batch(waveforms_BT, lengths_B)
        features_BTD, frames_B = self.features(waveforms_BT, lengths_B)
        return self.context(features_BTD, None if lengths_B is None else frames_B)

    def as_batch(self, waveforms: Any, lengths: Any = None) -> tuple[Tensor, Tensor | None]:
        """Waveforms (B, T) and lengths (B,) of what `forward` takes, which refuses what is refused here."""
        return as_batch(waveforms, lengths, self.config.receptive_field, self.norm.weight)

    def frontend(self, waveforms_BT: Tensor, lengths_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The convolutions alone: frames (B, T, C) and how many of them are valid (B,)."""
        x_BTC, frames_B, _ = self._convolve(waveforms_BT, lengths_B)
        return x_BTC, frames_B

    def features(self, waveforms_BT: Tensor, lengths_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Convolutions and feature projection: h_0 (B, T, D) and the valid frames (B,)."""
        x_BTC, frames_B, gates_C = self._convolve(waveforms_BT, lengths_B)
        return self.projection(x_BTC, gates_C), frames_B

    def context(
        self, features_BTD: Tensor, frames_B: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> EncoderOutput:
        """Positional convolution and transformer on h_0.

        Args:
            features_BTD: h_0.
            frames_B: valid frames of each utterance; None when no frame is padding.
            dtype: of what comes out, whatever is computed in; None to leave it as it is.
        """
        B, T, _ = features_BTD.shape
        x_BTD, valid_BT1, padding_B11T = features_BTD, None, None
        if frames_B is not None:
            valid_BT = first_steps(frames_B, T)
            valid_BT1 = valid_BT[..., None]
            x_BTD = x_BTD.masked_fill(~valid_BT1, 0)
            padding_B11T = torch.zeros_like(valid_BT, dtype=features_BTD.dtype).masked_fill(~valid_BT, -torch.inf)
            padding_B11T = padding_B11T[:, None, None]
        x_BTD = x_BTD + self.positional_conv(x_BTD, valid_BT1)
        x_BTD = self.dropout(x_BTD if self.config.pre_norm else self.norm(x_BTD))
        embedded_BTD = x_BTD.to(dtype)
        position_HTT = None if self.position_bias is None else self.position_bias(T)
        layer_outputs = []
        for layer in self.layers:
            if not self._skips_layer():
                x_BTD = self._run_layer(layer, x_BTD, position_HTT, padding_B11T)
            layer_outputs.append(x_BTD.to(dtype))
        last_BTD = self.norm(x_BTD).to(dtype) if self.config.pre_norm else [embedded_BTD, *layer_outputs][-1]
        return EncoderOutput(
            features_BTD=features_BTD.to(dtype),
            embedded_BTD=embedded_BTD,
            layer_outputs=tuple(layer_outputs),
            last_hidden_state_BTD=last_BTD,
            lengths_B=frames_B if frames_B is not None else torch.full((B,), T, device=features_BTD.device),
        )

    def num_frames(self, lengths_B: Tensor) -> Tensor:
        """Frames that the front end makes of so many samples."""
        return self.config.num_frames(lengths_B)

    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(weight.numel() for weight in self.parameters())

    @classmethod
    def of(cls, config: EncoderConfig, weights: Mapping[str, Tensor]) -> Encoder:
        """A new encoder with weights by name, of which there may be more than it has."""
        encoder = cls(config)
        encoder.load_state_dict({name: weights[name] for name in encoder.state_dict()})
        return encoder

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, each of them whole or not at all."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        config = json.dumps({"model_type": "skill-speech", **self.config.to_dict()}, indent=1) + "\n"
        # Not `save_file`, whose files only their owner can read.
        contents = {"model.safetensors": save(weights, metadata={"format": "pt"}), "config.json": config.encode()}
        for name, content in contents.items():
            temporary = folder / f".{os.getpid()}.{name}"
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, folder / name)
            finally:
                temporary.unlink(missing_ok=True)

    def _convolve(self, waveforms_BT: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """The last convolution's output, valid frames, and gates if there are any that may close."""
        config = self.config
        waveforms_BT, lengths_B = self.as_batch(waveforms_BT, lengths_B)
        if config.input_normalization:
            valid_BT = None if lengths_B is None else first_steps(lengths_B, waveforms_BT.shape[1])
            waveforms_BT = normalize_waveforms(waveforms_BT, valid_BT, config.input_norm_eps)
        x_BTC, factors_C, valid_BT = waveforms_BT[..., None], None, None
        if lengths_B is not None and config.length_aware:
            frames_B, frames = (config.convs[0].num_frames(samples) for samples in (lengths_B, waveforms_BT.shape[1]))
            valid_BT = first_steps(frames_B, frames)
        for layer in self.convs:
            x_BTC, factors_C = layer(x_BTC, valid_BT, factors_C)
            valid_BT = None  # only the first convolution's norm is one over time
        B, T, _ = x_BTC.shape
        frames_B = torch.full((B,), T, device=x_BTC.device) if lengths_B is None else self.num_frames(lengths_B)
        x_BTC = x_BTC if factors_C is None else x_BTC * factors_C.to(x_BTC.dtype)
        last = self.convs[-1]
        assert isinstance(last, ConvLayer)
        return x_BTC, frames_B, factors_C if last.channel_scale.can_close else None

    def _run_layer(self, layer: nn.Module, x_BTD: Tensor, *bias: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(layer.__call__, x_BTD, *bias)
        return layer(x_BTD, *bias)

    def _skips_layer(self) -> bool:
        probability = self.config.layer_dropout
        return self.training and probability > 0 and bool(torch.rand(()) < probability)


def first_steps(lengths_B: Tensor, steps: int) -> Tensor:
    """Which steps of padded sequences are valid (B, T)."""
    return torch.arange(steps, device=lengths_B.device) < lengths_B[:, None]


def normalize_waveforms(waveforms_BT: Tensor, valid_BT: Tensor | None = None, eps: float = 1e-7) -> Tensor:
    """Zero mean and unit variance per utterance, zeros in the padding, as Transformers' feature extractor does it."""
    given = waveforms_BT.dtype
    # The sums of seconds of samples do not fit half precision.
    waveforms_BT = waveforms_BT.to(torch.promote_types(given, torch.float32))
    if valid_BT is None:
        mean_B1 = waveforms_BT.mean(-1, keepdim=True)
        variance_B1 = waveforms_BT.var(-1, keepdim=True, correction=0)
        return ((waveforms_BT - mean_B1) * torch.rsqrt(variance_B1 + eps)).to(given)
    valid_BT = valid_BT.to(waveforms_BT.dtype)
    return (standardized(waveforms_BT, valid_BT, -1, eps) * valid_BT).to(given)


def initialize(module: nn.Module) -> None:
    """Fresh weights as in wav2vec 2.0: normal(0, 0.02) for linear maps, Kaiming for the convolutions.

    Also whatever else is not in a state dict, for modules that were built on torch's meta device.
    """
    if isinstance(module, Attention):
        module.number_heads()
    if isinstance(module, nn.Linear) and module.weight.numel():
        nn.init.normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv1d) and module.groups > 1:
        nn.init.normal_(module.weight, std=2 * (module.kernel_size[0] * module.in_channels) ** -0.5)
    elif isinstance(module, nn.Conv1d):
        nn.init.kaiming_normal_(module.weight)
    if isinstance(module, (nn.Linear, nn.Conv1d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
