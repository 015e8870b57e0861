# SPDX-License-Identifier: Apache-2.0
"""The heads that people fine-tune on an encoder; weights have Transformers' names.

Shapes: B utterances, T frames, D width, L layers, V outputs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encoder.config import ConvConfig, EncoderConfig
from ..encoder.encoder import EncoderOutput, first_steps
from .config import AdapterConfig, HeadConfig, TDNNConfig


class HeadOutput(NamedTuple):
    """What a head makes of an encoder's output.

    Attributes:
        logits: (B, T, V) of "ctc" and "frame", (B, V) of "sequence"; of "x-vector", what its classifier makes of the
            embedding.
        lengths_B: valid frames of each utterance; None where there is one decision for all frames.
        embeddings_BD: of "x-vector"; None of others.
    """

    logits: Tensor
    lengths_B: Tensor | None = None
    embeddings_BD: Tensor | None = None


class Head(nn.Module):
    """What all heads have in common.

    `forward` asks for the parts by their names alone, which may as well be those of a model of Transformers: there they
    stand beside the encoder, under Transformers' names of their weights.

    Args:
        config: of the head.
        encoder: of the encoder that it stands on.
    """

    def __init__(self, config: HeadConfig, encoder: EncoderConfig) -> None:
        super().__init__()
        self.config, self.length_aware = config, encoder.length_aware
        self.width = encoder.hidden_size
        states = encoder.num_layers + 1
        self.layer_weights = nn.Parameter(torch.full((states,), 1 / states)) if config.weighted_layer_sum else None
        self.adapter = None if config.adapter is None else Adapter(config.adapter, encoder.hidden_size)
        if config.adapter is not None:
            self.width = config.adapter.width

    def forward(self, output: EncoderOutput) -> HeadOutput:
        """The head's output of an encoder's."""
        raise NotImplementedError

    @property
    def least_frames(self) -> int:
        """Frames of the encoder that an utterance has to have."""
        # Of a time-delay network two frames have to be left for a deviation.
        needed = 1 + int(bool(self.config.tdnn)) + sum(one.dilation * (one.kernel - 1) for one in self.config.tdnn)
        if self.config.adapter is not None:
            for _ in range(self.config.adapter.layers):
                needed = (needed - 1) * self.config.adapter.stride + 1
        return needed

    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(weight.numel() for weight in self.parameters())

    def macs(self, frames: int) -> int:
        """Multiply-accumulates in matrix products and convolutions, for one utterance of so many frames."""
        raise NotImplementedError

    def shorten(self, frames: int) -> tuple[int, int]:
        """Frames that are left of so many for the head to read, and the multiply-accumulates of getting there."""
        return (frames, 0) if self.adapter is None else self.adapter.macs(frames)

    def read(self, output: EncoderOutput) -> tuple[Tensor, Tensor]:
        """What the head reads of an encoder's output (B, T, D), and how many of the frames are valid (B,)."""
        x_BTD, frames_B = output.last_hidden_state_BTD, output.lengths_B
        if self.layer_weights is not None:
            weights_L111 = self.layer_weights.softmax(-1)[:, None, None, None]
            x_BTD = (torch.stack(output.hidden_states) * weights_L111).sum(0)
        return (x_BTD, frames_B) if self.adapter is None else self.adapter(x_BTD, frames_B)


class CTCHead(Head):
    """A linear layer over tokens (CTC: Graves et al. 2006)."""

    def __init__(self, config: HeadConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.dropout = nn.Dropout(config.dropout)
        self.lm_head = nn.Linear(self.width, config.outputs)

    def forward(self, output: EncoderOutput) -> HeadOutput:
        """Logits of every frame."""
        x_BTD, frames_B = self.read(output)
        return HeadOutput(self.lm_head(self.dropout(x_BTD)), frames_B)

    def macs(self, frames: int) -> int:
        """As of `Head`."""
        frames, before = self.shorten(frames)
        return before + frames * self.lm_head.weight.numel()


class SequenceHead(Head):
    """A projection, the mean over frames and a linear layer over labels, as SUPERB classifies (arXiv 2105.01051)."""

    def __init__(self, config: HeadConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.projector = nn.Linear(self.width, config.projection)
        self.classifier = nn.Linear(config.projection, config.outputs)

    def forward(self, output: EncoderOutput) -> HeadOutput:
        """Logits of every utterance."""
        x_BTD, frames_B = self.read(output)
        x_BTD = self.projector(x_BTD)
        valid_BT1 = first_steps(frames_B, x_BTD.shape[1])[..., None]
        return HeadOutput(self.classifier(x_BTD.masked_fill(~valid_BT1, 0).sum(1) / frames_B[:, None]))

    def macs(self, frames: int) -> int:
        """As of `Head`."""
        return frames * self.projector.weight.numel() + self.classifier.weight.numel()


class FrameHead(Head):
    """A linear layer over labels, frame by frame (who speaks when, say)."""

    def __init__(self, config: HeadConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.classifier = nn.Linear(self.width, config.outputs)

    def forward(self, output: EncoderOutput) -> HeadOutput:
        """Logits of every frame."""
        x_BTD, frames_B = self.read(output)
        return HeadOutput(self.classifier(x_BTD), frames_B)

    def macs(self, frames: int) -> int:
        """As of `Head`."""
        return frames * self.classifier.weight.numel()


class XVectorHead(Head):
    """A time-delay network, mean and deviation over frames, and a linear layer: a speaker's embedding (Snyder 2018).

    The objective's weights (additive margin softmax) are of use for training alone.
    """

    def __init__(self, config: HeadConfig, encoder: EncoderConfig) -> None:
        super().__init__(config, encoder)
        self.projector = nn.Linear(self.width, config.tdnn[0].width)
        inputs = (config.tdnn[0], *config.tdnn)
        self.tdnn = nn.ModuleList(TDNNLayer(before.width, layer) for before, layer in zip(inputs, config.tdnn))
        self.feature_extractor = nn.Linear(2 * config.tdnn[-1].width, config.embedding)
        self.classifier = nn.Linear(config.embedding, config.embedding)
        self.objective = AMSoftmax(config.embedding, config.outputs)

    def forward(self, output: EncoderOutput) -> HeadOutput:
        """Embedding of every utterance, and what the classifier makes of it.

        Raises:
            ValueError: an utterance is too short for the time-delay network.
        """
        x_BTD, frames_B = self.read(output)
        x_BTD = self.projector(x_BTD)
        layers: Any = list(self.tdnn)
        lost = sum(layer.dilation * (layer.steps - 1) for layer in layers)
        if not torch.compiler.is_compiling() and x_BTD.shape[1] <= lost + 1:
            raise ValueError(f"an utterance of {x_BTD.shape[1]} frames; the speaker embedding needs {lost + 2}")
        for layer in layers:
            x_BTD = layer(x_BTD)
        # Transformers takes the dilation for 1: frames beyond the end of a shorter utterance count there.
        counted = lost if self.length_aware else sum(layer.steps - 1 for layer in layers)
        frames_B = (frames_B - counted).clamp(max=x_BTD.shape[1])
        mean_BD, deviation_BD = _mean_and_deviation(x_BTD, frames_B)
        embeddings_BD = self.feature_extractor(torch.cat([mean_BD, deviation_BD], -1))
        return HeadOutput(self.classifier(embeddings_BD), None, embeddings_BD)

    def macs(self, frames: int) -> int:
        """As of `Head`; the objective has no part in it."""
        frames, total = self.shorten(frames)
        total += frames * self.projector.weight.numel()
        for shape, layer in zip(self.config.tdnn, self.tdnn):
            frames -= shape.dilation * (shape.kernel - 1)
            total += frames * sum(weight.numel() for weight in layer.parameters() if weight.dim() > 1)
        return total + self.feature_extractor.weight.numel() + self.classifier.weight.numel()


class TDNNLayer(nn.Module):
    """A convolution over time, whose weight is kept as that of a linear layer, and a ReLU."""

    def __init__(self, inputs: int, config: TDNNConfig) -> None:
        super().__init__()
        self.kernel = nn.Linear(inputs * config.kernel, config.width)
        self.steps, self.dilation = config.kernel, config.dilation

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, inputs) → (B, T - dilation · (kernel - 1), width)."""
        weight_DCK = self.kernel.weight.unflatten(1, (self.steps, -1)).transpose(1, 2)
        return (
            F.conv1d(x_BTD.transpose(1, 2), weight_DCK, self.kernel.bias, dilation=self.dilation).transpose(1, 2).relu()
        )


class AMSoftmax(nn.Module):
    """The weights (D, V) of an additive margin softmax over speakers (arXiv 1801.05599)."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, outputs))

    def forward(self, logits_BD: Tensor) -> Tensor:
        """Cosines with every speaker (B, V)."""
        return F.normalize(logits_BD, dim=-1) @ F.normalize(self.weight, dim=0)


def margin_softmax_loss(cosines_BV: Tensor, classes_B: Tensor, margin: float = 0.4, scale: float = 30.0) -> Tensor:
    """The additive margin softmax (0-d): cross entropy of scaled cosines, that of the right class less a margin."""
    margins_BV = margin * F.one_hot(classes_B, cosines_BV.shape[1])
    return F.cross_entropy(scale * (cosines_BV - margins_BV), classes_B)


class Adapter(nn.Module):
    """Convolutions with gated linear units, each of which shortens the sequence."""

    def __init__(self, config: AdapterConfig, width: int) -> None:
        super().__init__()
        changes = config.width != width
        self.stride = config.stride
        self.proj = nn.Linear(width, config.width) if changes else None
        self.proj_layer_norm = nn.LayerNorm(config.width) if changes else None
        self.layers = nn.ModuleList(AdapterLayer(config) for _ in range(config.layers))

    def forward(self, x_BTD: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, D) and valid frames → the same, shorter."""
        if self.proj is not None and self.proj_layer_norm is not None:
            x_BTD = self.proj_layer_norm(self.proj(x_BTD))
        for layer in self.layers:
            x_BTD = layer(x_BTD)
            frames_B = torch.div(frames_B - 1, self.stride, rounding_mode="floor") + 1
        return x_BTD, frames_B.clamp(max=x_BTD.shape[1])

    def macs(self, frames: int) -> tuple[int, int]:
        """Frames that come out when so many go in, and the multiply-accumulates of it."""
        total = 0 if self.proj is None else frames * self.proj.weight.numel()
        for layer in self.layers:
            conv = layer.get_submodule("conv")
            assert isinstance(conv, nn.Conv1d)
            frames = ConvConfig(conv.out_channels, conv.kernel_size[0], conv.stride[0]).num_frames(frames + 2)
            total += frames * conv.weight.numel()
        return frames, total


class AdapterLayer(nn.Module):
    """One of them."""

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.conv = nn.Conv1d(config.width, 2 * config.width, config.kernel, stride=config.stride, padding=1)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) → (B, about T / stride, D)."""
        return F.glu(self.conv(x_BTD.transpose(1, 2)), dim=1).transpose(1, 2)


HEADS: dict[str, type[Head]] = {"ctc": CTCHead, "sequence": SequenceHead, "frame": FrameHead, "x-vector": XVectorHead}


def make_head(config: HeadConfig, encoder: EncoderConfig) -> Head:
    """A head with random weights."""
    return HEADS[config.kind](config, encoder)


def _mean_and_deviation(x_BTD: Tensor, frames_B: Tensor) -> tuple[Tensor, Tensor]:
    """Over the valid frames, each (B, D)."""
    valid_BT1 = first_steps(frames_B, x_BTD.shape[1])[..., None].to(x_BTD.dtype)
    count_B1 = frames_B[:, None].to(x_BTD.dtype)
    mean_BD = (x_BTD * valid_BT1).sum(1) / count_B1
    squares_BD = ((x_BTD - mean_BD[:, None]).square() * valid_BT1).sum(1)
    return mean_BD, (squares_BD / (count_B1 - 1)).sqrt()
