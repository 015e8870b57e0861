"""Size, speed and error of an exported model beside the one it was made of."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..heads import SpeechModel
from .program import HiddenStates, named_outputs

SECONDS = 10
REPEATS = 3


@dataclass(frozen=True)
class Measurement:
    """The costs of one form of a model, and how far it is from what it was made of.

    Attributes:
        name: runtime and precision.
        size: bytes of the weights, with the graph where there is one.
        real_time_factor: seconds of computing per second of audio, one utterance of 10 s at a time; median of three.
        difference: largest difference of a value of anything that comes out (logits, embeddings, hidden states),
            relative to the largest value of the same output; on noise.
    """

    name: str
    size: int
    real_time_factor: float
    difference: float


def measure(model: SpeechModel, hidden_states: HiddenStates | None, models: dict[str, Path]) -> tuple[Measurement, ...]:
    """The model in torch, then ONNX models of it by name, all on as many threads as their runtimes take."""
    encoder = model.encoder
    waveforms_BT = torch.randn(1, SECONDS * encoder.config.sampling_rate, generator=torch.Generator().manual_seed(0))
    lengths_B = torch.tensor([waveforms_BT.shape[1]])
    with torch.inference_mode():
        wanted, factor = _timed(lambda: named_outputs(encoder, model.head, hidden_states, waveforms_BT, lengths_B))
    weights = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    measurements = [Measurement("torch float32", weights, factor, 0.0)]
    inputs = {"waveforms": waveforms_BT.numpy(), "lengths": lengths_B.numpy()}
    for name, path in models.items():
        made, factor = _run(path, inputs)
        difference = max(_difference(tensor, wanted[output]) for output, tensor in made.items())
        size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
        measurements.append(Measurement(name, size, factor, difference))
    return tuple(measurements)


def _run(path: Path, inputs: dict[str, Any]) -> tuple[dict[str, Tensor], float]:
    """What comes out of a model by name, without the counts of frames, and its real-time factor."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs() if not output.name.endswith("frames")]
    arrays, factor = _timed(lambda: session.run(names, inputs))
    return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}, factor


def _timed(encode: Callable[[], Any]) -> tuple[Any, float]:
    encode()  # warms up
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        made = encode()
        times.append(time.perf_counter() - started)
    return made, median(times) / SECONDS


def _difference(mine: Tensor, other: Tensor) -> float:
    return float((mine - other).abs().max() / other.abs().max())
