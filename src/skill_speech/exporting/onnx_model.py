"""A model that onnxruntime runs, on a server or in a browser, and the examples of its use.

Legend of the tensor suffixes: B utterances, T steps, N blocks, C channels.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..encoder.layers import TimeNorm
from ..errors import InputError
from ..heads import SpeechModel
from ..kernels.rounding import Rounding
from .measuring import Measurement, measure
from .program import HiddenStates, Program
from .quantized import quantize as quantize_maps
from .travel.remote_code import write_license

FILE = "model.onnx"
EXAMPLES = ("encode.py", "index.html", "package.json", "serve.py")
LARGEST = 1_800_000_000
"""Bytes of weights from which on they get a file of their own: an ONNX file ends at 2 GB."""


BLOCK = 256
"""Steps that are added up before their sums are."""


class BlockwiseNorm(TimeNorm):
    """A norm over time whose sums onnxruntime gets right.

    It adds the steps one after the other in float32. Padding adds the same small square tens of thousands of times, and
    each time the sum is rounded the same way: at 20 s that was an error of 4e-4 in all hidden states, sums of blocks
    leave one of 1e-5.
    """

    def forward(self, x_BTC: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """As `TimeNorm`."""
        if valid_BT is not None:  # then padding adds zeros
            return super().forward(x_BTC, valid_BT)
        centered_BTC = x_BTC - _mean(x_BTC)
        return centered_BTC * torch.rsqrt(_mean(centered_BTC.square()) + self.eps) * self.weight + self.bias


def _mean(x_BTC: Tensor) -> Tensor:
    """The mean over time (B, 1, C)."""
    B, T, C = x_BTC.shape
    N = (T + BLOCK - 1) // BLOCK
    x_BNXC = F.pad(x_BTC, (0, 0, 0, N * BLOCK - T)).view(B, N, BLOCK, C)
    return x_BNXC.sum(2).sum(1, keepdim=True) / T


def need_onnx() -> None:
    """Raise InputError unless ONNX files can be written and run here."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:  # importing them takes seconds
            raise InputError(f"{name} is not installed: pip install onnx onnxscript onnxruntime")


def save_onnx(
    model: SpeechModel,
    folder: Path,
    hidden_states: HiddenStates | None,
    quantize: Rounding | None = None,
) -> tuple[Measurement, ...]:
    """Write model.onnx, an example that encodes a WAV file with it, and a page that does so in a browser.

    Args:
        model: in evaluation mode.
        folder: that exists.
        hidden_states: whether all hidden states come out, the last one alone or none.
        quantize: the transformer's linear maps: "int8" for weights and inputs of 8 bits, "int4" for weights of 4.

    Returns:
        Size, speed and error of the model in torch and of the exported ones, float32 first.
    """
    for name in EXAMPLES if model.head is None else EXAMPLES[:1]:  # the page draws hidden states
        shutil.copyfile(Path(__file__).parent / "travel" / name, folder / name)
    write_license(folder)
    if quantize is None:
        write_onnx(model, folder / FILE, hidden_states)
        return measure(model, hidden_states, {"onnxruntime float32": folder / FILE})
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        models = {"onnxruntime float32": Path(scratch) / FILE, f"onnxruntime {quantize}": folder / FILE}
        for rounding, path in zip((None, quantize), models.values(), strict=True):
            write_onnx(model, path, hidden_states, rounding)
        return measure(model, hidden_states, models)


def write_onnx(
    model: SpeechModel, path: Path, hidden_states: HiddenStates | None, quantize: Rounding | None = None
) -> None:
    """Write an ONNX model alone; arguments as of `save_onnx`."""
    program = Program(model, hidden_states)
    if quantize is not None:
        quantize_maps(program.encoder, quantize)
    for module in list(program.modules()):
        for name, part in module.named_children():
            if isinstance(part, TimeNorm):
                exact = BlockwiseNorm(len(part.weight), part.eps).requires_grad_(False)
                exact.load_state_dict(part.state_dict())
                setattr(module, name, exact)
    example = program.example()
    with _quiet(), torch.no_grad():
        names = list(program(**example))
        exported: Any = torch.onnx.export(
            program,
            tuple(example.values()),
            input_names=list(example),
            output_names=names,
            dynamic_shapes={"waveforms": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}},
            dynamo=True,
            verbose=False,
        )
        _tidy(exported.model)
        weights = sum(weight.numel() * weight.element_size() for weight in program.state_dict().values())
        exported.save(path, external_data=weights > LARGEST)


def _tidy(model: Any) -> None:
    """Name the frames and take out where in which file a node comes from: paths of the machine that exported it."""
    shortened = any(value.name == "encoder_frames" for value in model.graph.outputs)
    for value in model.graph.outputs:
        if len(value.shape) == 3:
            frames = "encoder_frames" if shortened and value.name != "logits" else "frames"
            value.shape = type(value.shape)(["batch", frames, value.shape[2]])
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' advice, which is for us and not for who calls."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
