"""A program that torch alone loads and runs."""

from __future__ import annotations

from pathlib import Path

import torch

from ..encoder import Encoder
from .program import HiddenStates, Program, trace

FILE = "model.pt2"


def save_torch_export(encoder: Encoder, folder: Path, hidden_states: HiddenStates = "all") -> None:
    """Write model.pt2; `torch.export.load(…).module()(waveforms, lengths)` runs it.

    Args:
        encoder: in evaluation mode.
        folder: that exists.
        hidden_states: whether all hidden states come out or the last one alone.
    """
    program = trace(Program(encoder, hidden_states))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of the machine that exported it
    torch.export.save(program, folder / FILE)
