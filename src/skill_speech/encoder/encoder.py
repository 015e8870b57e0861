"""The encoder: one implementation of the wav2vec 2.0 family, pruned or not.

Shapes: B utterances, T samples or frames, C channels, D hidden size, H heads, E head size, U feed-forward units,
L layers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import EncoderConfig
from .dropout import Dropout
from .frontend import ConvLayer, FeatureProjection
from .layer import Attention, TransformerLayer
from .normalization import normalize_waveforms
from .position import PositionalConv, RelativePositionBias
from .scale import scaled


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
        self.dropout = Dropout(config.hidden_dropout)
        self.apply(initialize)

    def forward(self, waveforms_BT: Tensor, lengths_B: Tensor | None = None) -> EncoderOutput:
        """Encode waveforms.

        Args:
            waveforms_BT: samples at `config.sampling_rate`, padded with zeros at the end.
            lengths_B: true number of samples of each utterance; None when none is padded.

        Raises:
            ValueError: an utterance is shorter than the receptive field (25 ms).
        """
        features_BTD, frames_B = self.features(waveforms_BT, lengths_B)
        return self.context(features_BTD, None if lengths_B is None else frames_B)

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
            valid_BT = torch.arange(T, device=features_BTD.device) < frames_B[:, None]
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
        for conv in self.config.convs:
            lengths_B = (lengths_B - conv.kernel).div(conv.stride, rounding_mode="floor") + 1
        return lengths_B

    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(weight.numel() for weight in self.parameters())

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json and model.safetensors, each of them whole or not at all."""
        from safetensors.torch import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        values = {"model_type": "skill-speech", **self.config.to_dict()}
        for name, content in (
            # Not `save_file`, whose files only their owner can read.
            ("model.safetensors", save(weights, metadata={"format": "pt"})),
            ("config.json", (json.dumps(values, indent=1) + "\n").encode()),
        ):
            temporary = folder / f".{os.getpid()}.{name}"
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, folder / name)

    def _convolve(self, waveforms_BT: Tensor, lengths_B: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        B, T = waveforms_BT.shape
        # A compiled or exported program cannot look at its values.
        if not torch.compiler.is_compiling():
            self.refuse_short(T, lengths_B)
        if self.config.input_normalization:
            valid_BT = None if lengths_B is None else torch.arange(T, device=lengths_B.device) < lengths_B[:, None]
            waveforms_BT = normalize_waveforms(waveforms_BT, valid_BT, self.config.input_norm_eps)
        x_BTC, factors_C = waveforms_BT[..., None], None
        for number, layer in enumerate(self.convs):
            valid_BT = None
            if number == 0 and lengths_B is not None and self.config.length_aware:
                first = self.config.convs[0]
                frames_B = (lengths_B - first.kernel).div(first.stride, rounding_mode="floor") + 1
                steps = (T - first.kernel) // first.stride + 1
                valid_BT = torch.arange(steps, device=lengths_B.device) < frames_B[:, None]
            x_BTC, factors_C = layer(x_BTC, valid_BT, factors_C)
        if lengths_B is None:
            frames_B = torch.full((B,), x_BTC.shape[1], device=waveforms_BT.device)
        else:
            frames_B = self.num_frames(lengths_B)
        last = self.convs[-1]
        assert isinstance(last, ConvLayer)
        return scaled(x_BTC, factors_C), frames_B, factors_C if last.channel_scale.can_close else None

    def refuse_short(self, samples: int, lengths_B: Tensor | None) -> None:
        """Raise ValueError for an utterance that is shorter than the receptive field."""
        # Lengths on a GPU are not looked at: that would stop the CPU until the GPU is done.
        seen = lengths_B is not None and lengths_B.device.type == "cpu"
        shortest = int(lengths_B.min()) if lengths_B is not None and seen else samples
        if shortest < self.config.receptive_field:
            raise ValueError(f"an utterance has {shortest} samples; the encoder needs {self.config.receptive_field}")

    def _run_layer(self, layer: nn.Module, x_BTD: Tensor, *bias: Tensor | None) -> Tensor:
        if self.gradient_checkpointing and self.training:
            return self._gradient_checkpointing_func(layer.__call__, x_BTD, *bias)
        return layer(x_BTD, *bias)

    def _skips_layer(self) -> bool:
        probability = self.config.layer_dropout
        return self.training and probability > 0 and bool(torch.rand(()) < probability)


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
    if isinstance(module, nn.Linear | nn.Conv1d) and module.bias is not None:
        nn.init.zeros_(module.bias)
