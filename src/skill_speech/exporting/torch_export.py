"""A program that torch alone loads and runs."""

from __future__ import annotations

from pathlib import Path

import torch

from ..heads import SpeechModel
from .program import HiddenStates, Program, trace

FILE = "model.pt2"


def save_torch_export(model: SpeechModel, folder: Path, hidden_states: HiddenStates | None) -> None:
    """Write model.pt2; `torch.export.load(…).module()(waveforms, lengths)` runs it.

    Args:
        model: in evaluation mode.
        folder: that exists.
        hidden_states: whether all hidden states come out, the last one alone or none.
    """
    program = trace(Program(model, hidden_states))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that exported it
    torch.export.save(program, folder / FILE)
