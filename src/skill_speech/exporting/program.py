"""What is traced for runtimes without Python: waveforms and their lengths in, plain tensors out."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from ..encoder import Encoder
from ..heads import Head, SpeechModel, head_of

HiddenStates = Literal["all", "last"]


class Program(nn.Module):
    """A model whose inputs and outputs have names and are tensors, frozen and in evaluation mode.

    Args:
        model: an encoder without gates, perhaps with a head; is copied.
        hidden_states: whether all hidden states come out, or the last one alone; None for the head's output alone.
    """

    def __init__(self, model: SpeechModel, hidden_states: HiddenStates | None) -> None:
        super().__init__()
        # A plain one: no kernels in what is traced.
        self.encoder = Encoder.of(model.encoder.config, model.encoder.state_dict())
        self.head = None if model.head is None else head_of(model.head.config, self.encoder, model.head.state_dict())
        self.hidden_states = hidden_states
        self.eval().requires_grad_(False)

    def forward(self, waveforms: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """The outputs of `named_outputs` for waveforms (B, T) of which the first `lengths` (B,) samples are valid."""
        return named_outputs(self.encoder, self.head, self.hidden_states, waveforms, lengths)

    def example(self) -> dict[str, Tensor]:
        """Inputs to trace with: two utterances of a second, one of them shorter."""
        rate = self.encoder.config.sampling_rate
        return {"waveforms": torch.zeros(2, rate), "lengths": torch.tensor([rate, rate // 2])}


def named_outputs(
    encoder: Encoder, head: Head | None, hidden_states: HiddenStates | None, waveforms_BT: Tensor, lengths_B: Tensor
) -> dict[str, Tensor]:
    """What comes out, by name.

    Returns:
        Of a head `logits`, (B, frames, V) or (B, V), and an x-vector's `embeddings` (B, D). If asked for,
        `last_hidden_state` (B, frames, D), and `hidden_state_0` … `hidden_state_L` in the order and meaning of
        Transformers. Where any of them has frames, `frames` (B,), how many of them are valid; `encoder_frames` are
        those of the hidden states where the head shortens the sequence.
    """
    made = encoder(waveforms_BT, lengths_B)
    outputs, frames_B = {}, made.lengths_B
    if head is not None:
        output = head(made)
        outputs["logits"] = output.logits
        if output.embeddings_BD is not None:
            outputs["embeddings"] = output.embeddings_BD
        frames_B = output.lengths_B
    if hidden_states is not None:
        outputs["last_hidden_state"] = made.last_hidden_state_BTD
    if frames_B is not None:
        outputs["frames"] = frames_B
    elif hidden_states is not None:
        outputs["frames"] = made.lengths_B
    if hidden_states is not None and head is not None and head.adapter is not None:
        outputs["encoder_frames"] = made.lengths_B
    if hidden_states == "all":
        outputs |= {f"hidden_state_{number}": state for number, state in enumerate(made.hidden_states)}
    return outputs


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
