"""What is traced for runtimes without Python: waveforms and their lengths in, plain tensors out."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from ..encoder import Encoder

HiddenStates = Literal["all", "last"]


class Program(nn.Module):
    """An encoder whose inputs and outputs have names and are tensors, frozen and in evaluation mode.

    Args:
        encoder: without gates; is copied.
        hidden_states: whether all hidden states come out or the last one alone.
    """

    def __init__(self, encoder: Encoder, hidden_states: HiddenStates) -> None:
        super().__init__()
        # A plain one: no kernels in what is traced.
        self.encoder = Encoder.of(encoder.config, encoder.state_dict())
        self.hidden_states = hidden_states
        self.eval().requires_grad_(False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Encode waveforms (B, T) of which the first `lengths` (B,) samples are valid.

        Returns:
            `last_hidden_state` (B, frames, D); `frames` (B,), how many of them are valid; and, if asked for,
            `hidden_state_0` … `hidden_state_L`, in the order and meaning of Transformers.
        """
        made = self.encoder(waveforms, lengths)
        outputs = {"last_hidden_state": made.last_hidden_state_BTD, "frames": made.lengths_B}
        if self.hidden_states == "all":
            outputs |= {f"hidden_state_{number}": state for number, state in enumerate(made.hidden_states)}
        return outputs

    def example(self) -> dict[str, Tensor]:
        """Inputs to trace with: two utterances of a second, one of them shorter."""
        rate = self.encoder.config.sampling_rate
        return {"waveforms": torch.zeros(2, rate), "lengths": torch.tensor([rate, rate // 2])}


def trace(program: Program) -> torch.export.ExportedProgram:
    """The program for any number of utterances of any length, from two frames on."""
    dynamic = torch.export.Dim.DYNAMIC
    example = program.example()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(
            program,
            tuple(example.values()),
            dynamic_shapes={"waveforms": {0: dynamic, 1: dynamic}, "lengths": {0: dynamic}},
            strict=False,
        )
