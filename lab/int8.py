"""What int8 costs in a task: phonemes that linear probes read off every hidden state of an ONNX model.

    python -m lab.int8 --model lab/teachers/hubert-mini --corpus data/speech --output lab/results/int8.json

The probes learn from the float32 model and are then given the hidden states of the others, as when a model is replaced
under what was trained on it. "int8, convolutions too" is what export does not do, and the reason why. What int8
costs students, and what training for it does: lab/quantization.py.
"""

from __future__ import annotations

import argparse
import platform
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from onnxruntime.quantization import quantize_dynamic
from torch import Tensor

from lab.corpus import Utterance, read_corpus
from skill_speech import export
from skill_speech.files import write_json


def hidden_states(model: Path, utterances: list[Utterance]) -> Tensor:
    """All frames of all utterances (L + 1, N, D)."""
    session = onnxruntime.InferenceSession(model)
    names = [output.name for output in session.get_outputs() if output.name.startswith("hidden_state_")]
    states = []
    for utterance in utterances:
        waveform = utterance.waveform()[None].numpy()
        lengths = np.array([waveform.shape[1]])
        states.append(np.stack(session.run(names, {"waveforms": waveform, "lengths": lengths}))[:, 0])
    return torch.from_numpy(np.concatenate(states, axis=1))


class Probes:
    """One linear classifier per hidden state."""

    def __init__(self, states_LND: Tensor, phonemes_N: Tensor, classes: int, steps: int = 400) -> None:
        self.mean = states_LND.mean(1, keepdim=True)
        self.scale = states_LND.std(1, keepdim=True) + 1e-5
        L, N, D = states_LND.shape
        self.weight = torch.zeros(L, D, classes, requires_grad=True)
        self.bias = torch.zeros(L, 1, classes, requires_grad=True)
        optimizer = torch.optim.Adam([self.weight, self.bias], lr=5e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            chosen = torch.randint(N, (1024,), generator=generator)
            logits = self.logits(states_LND[:, chosen]).flatten(0, 1)
            loss = F.cross_entropy(logits, phonemes_N[chosen].repeat(L))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def logits(self, states_LND: Tensor) -> Tensor:
        """(L + 1, N, classes)."""
        return (states_LND - self.mean) / self.scale @ self.weight + self.bias

    @torch.no_grad()
    def accuracy(self, states_LND: Tensor, phonemes_N: Tensor) -> Tensor:
        """Share of frames whose phoneme is right, per hidden state."""
        return (self.logits(states_LND).argmax(-1) == phonemes_N).float().mean(1)


def compare(model: str, corpus: list[Utterance], utterances: int = 150) -> dict[str, Any]:
    """Accuracy, error and size of the forms of one model; half of the speakers teach the probes, the others test."""
    speakers = sorted({utterance.name.split("-")[0] for utterance in corpus})
    random.Random(0).shuffle(speakers)
    teaching = set(speakers[::2])
    order = random.Random(0).sample(corpus, len(corpus))
    train = [one for one in order if one.name.split("-")[0] in teaching][:utterances]
    test = [one for one in order if one.name.split("-")[0] not in teaching][:utterances]
    inventory = sorted({phoneme for one in (*train, *test) for phoneme in one.frame_phonemes()})
    number = {phoneme: index for index, phoneme in enumerate(inventory)}

    def phonemes(chosen: list[Utterance]) -> Tensor:
        return torch.tensor([number[phoneme] for one in chosen for phoneme in one.frame_phonemes()])

    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, quantize in (("float32", None), ("int8", "int8")):
            export(model, f"{folder}/{name}", format="onnx", quantize=quantize)  # type: ignore[arg-type]
        everything = Path(folder) / "everything.onnx"
        quantize_dynamic(f"{folder}/float32/model.onnx", everything, op_types_to_quantize=["MatMul", "Gemm", "Conv"])
        forms = {
            "float32": Path(folder) / "float32" / "model.onnx",
            "int8": Path(folder) / "int8" / "model.onnx",
            "int8, convolutions too": everything,
        }
        probes = Probes(hidden_states(forms["float32"], train), phonemes(train), len(inventory))
        plain = hidden_states(forms["float32"], test)
        reference = probes.accuracy(plain, phonemes(test))
        for name, path in forms.items():
            states = hidden_states(path, test)
            accuracy = probes.accuracy(states, phonemes(test))
            rows[name] = {
                "megabytes": round(path.stat().st_size / 1e6, 2),
                "best_accuracy": round(float(accuracy.max()), 4),
                "largest_relative_loss_of_accuracy": round(float(((reference - accuracy) / reference).max()), 4),
                "largest_relative_error_of_a_hidden_state": round(
                    float(((states - plain).norm(dim=(1, 2)) / plain.norm(dim=(1, 2))).max()), 4
                ),
            }
    return rows


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure what int8 costs in a task.")
    parser.add_argument("--model", required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    record = {
        "command": f"python -m lab.int8 --model {arguments.model} --corpus CORPUS --output OUTPUT",
        "metric": "frame phoneme accuracy of linear probes on synthetic speech, other speakers than they learned from",
        "machine": f"{platform.machine()}, onnxruntime {onnxruntime.__version__}",
        "models": compare(arguments.model, read_corpus(arguments.corpus)),
    }
    write_json(arguments.output, record)
    print(arguments.output.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
