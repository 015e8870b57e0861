"""The map of layer similarity against the pytorch-cka package at equal minibatch, and against the forward pass.

python -m benchmarks.similarity [--quick] --json FILE

13 layers × 1000 frames × 768 features, 20 s of speech, what a Base model makes. The package is asked in both of its
ways: `compute_cka`, which takes the layers from a model as it runs over a data loader (here a model that only hands
them on), and `cka_from_features`. The forward pass is the teacher's, optimized in the processor's fastest type; a
stream is minibatches out of the shuffle buffer, with all that is copied for it. Needs the package: pip install
pytorch-cka
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn

from benchmarks.common import Report, interleaved, matrix_rate, parse, parser
from skill_speech import optimize
from skill_speech.encoder import Encoder, wavlm_config
from skill_speech.similarity import MinibatchCKA, View, unbiased_hsic
from skill_speech.similarity.cka import HALVES

LAYERS, FRAMES, WIDTH = 13, 1000, 768
TIMES_AS_FAST = 3.0
FORWARD_OVER_MAP = 10.0
"""The map may cost a tenth of the forward pass."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    options = parse(parser("similarity", __doc__), arguments)
    try:
        from cka import cka_from_features, compute_cka
    except ImportError:
        print("benchmarks.similarity compares with the pytorch-cka package: pip install pytorch-cka", file=sys.stderr)
        return 2
    report = Report("map of layer similarity, 13 layers x 1000 frames x 768", options)
    layers = base_layers()
    handed_on, names = Layers(layers), [f"layers.{number}" for number in range(LAYERS)]
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    estimators = {name: MinibatchCKA(FRAMES, gram_dtype=dtype) for name, dtype in types.items()}
    # What a run measures: normalized frames as well, and both on halves of the audio.
    both = {"views": get_args(View), "halves": HALVES}
    estimators |= {f"whole {name}": MinibatchCKA(FRAMES, gram_dtype=dtype, **both) for name, dtype in types.items()}
    torch.manual_seed(0)
    teacher = optimize(Encoder(wavlm_config()))
    waveform_BT = torch.randn(1, 320 * FRAMES + 80)

    functions: dict[str, Callable[[], Any]] = {
        "compute_cka": lambda: compute_cka(
            handed_on, handed_on, [[torch.arange(FRAMES)]], layers=names, device="cpu", progress=False
        )[0],
        "cka_from_features": lambda: cka_from_features(layers, layers),
        "float32": lambda: normalized(unbiased_hsic(layers, torch.float32)),
        "bfloat16": lambda: normalized(unbiased_hsic(layers, torch.bfloat16)),
        "forward": lambda: teacher(waveform_BT),
    }
    for name, estimator in estimators.items():
        functions[f"stream {name}"] = partial(estimator.update, [layer_ND[None] for layer_ND in layers])
        for _ in range(8):  # then the shuffle buffers are full, and every update measures one minibatch
            functions[f"stream {name}"]()
    seconds = interleaved(functions, 3 if options.quick else 12)
    reference_LL = normalized(unbiased_hsic(layers, torch.float64))
    floor = LAYERS * FRAMES * FRAMES * WIDTH  # half of 2 × N² × D: Gram matrices are symmetric
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        ours, stream = seconds[name].minimum, seconds[f"stream {name}"].minimum
        details = {
            "error": float((functions[name]() - reference_LL).abs().max()),
            "GFLOP": floor / 1e9,
            "of_peak": floor / ours / matrix_rate(dtype, options.threads),
        }
        goal, share = (TIMES_AS_FAST, FORWARD_OVER_MAP) if dtype == torch.bfloat16 else (None, None)
        for peer in ("compute_cka", "cka_from_features"):
            report.add(f"{name}: {peer}", seconds[peer].minimum, ours, goal, **details)
        report.add(f"{name}: forward pass", seconds["forward"].minimum, ours, share)
        report.add(f"{name}, stream: compute_cka", seconds["compute_cka"].minimum, stream)
        report.add(f"{name}, stream: forward pass", seconds["forward"].minimum, stream, share)
        whole = seconds[f"stream whole {name}"].minimum
        report.add(f"{name}, stream with both views and halves: forward pass", seconds["forward"].minimum, whole)
    difference = float((functions["compute_cka"]().double() - reference_LL).abs().max())
    report.figures["error_of_the_package"] = difference
    report.write(options.json)
    return 0


class Layers(nn.Module):
    """A model whose layers are given: what is measured is the comparison alone."""

    def __init__(self, layers: Sequence[Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Given(layer_ND) for layer_ND in layers)

    def forward(self, _frames_N: Tensor) -> None:
        """Let every layer hand on its output."""
        for layer in self.layers:
            layer()


class _Given(nn.Module):
    def __init__(self, layer_ND: Tensor) -> None:
        super().__init__()
        self.output_ND = layer_ND

    def forward(self) -> Tensor:
        return self.output_ND


def base_layers() -> list[Tensor]:
    """Layers that drift away from the first one, with features of very different variance, as in a trained model."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    layers = [noise(FRAMES, WIDTH) @ (noise(WIDTH, WIDTH) * torch.logspace(0, -2, WIDTH))]
    for _ in range(LAYERS - 1):
        moved_ND = torch.tanh(layers[-1] @ noise(WIDTH, WIDTH) / WIDTH**0.5)
        layers.append(layers[-1] + 0.3 * layers[-1].std() * moved_ND + 0.2)
    return layers


def normalized(hsic_LL: Tensor) -> Tensor:
    """CKA of HSIC."""
    return hsic_LL / torch.outer(hsic_LL.diagonal(), hsic_LL.diagonal()).sqrt()


if __name__ == "__main__":
    sys.exit(main())
