"""The training step on a GPU: ours, compiled, against DPHuBERT's, rebuilt from Transformers' modules, in eager mode.

python -m benchmarks.gpu_step [--quick] --json FILE

WavLM Base's shape with random weights, bfloat16, 160 s of audio a step (10 utterances of 16 s; 2 with --quick): the
published batch of one GPU. A step is the frozen teacher's forward pass, the student's forward and backward passes, the
loss and AdamW. `model_flop_utilisation` is the step's useful operations over its time and over the rate of a large
bfloat16 matrix product measured in the same run. Where there is no GPU the script says so and ends with status 2.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common import Report, interleaved, matrix_rate, parse, parser
from benchmarks.dphubert import NAME
from benchmarks.training_step import STAGES, our_step, peer_step, useful_operations, waveforms

GOAL = 2.0
"""Times as fast as the peer."""

UTILISATION_GOAL = 0.4
"""Of the measured matrix rate, on an H100."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    made = parser("gpu_step", __doc__)
    options = parse(made, arguments)
    if not torch.cuda.is_available():
        reason = "torch sees no CUDA GPU here; run it where there is one, or benchmarks.training_step on a CPU"
        print(f"benchmarks.gpu_step: {reason}", file=sys.stderr)
        return 2
    utterances, seconds = (2 if options.quick else 10), 16.0
    title = (
        f"training step on {torch.cuda.get_device_name()}, bfloat16, {utterances} x {seconds:g} s; the peer is {NAME}"
    )
    report = Report(title, options)
    rate = matrix_rate(torch.bfloat16, options.threads, device="cuda")
    report.figures |= {"matrix_rate_flops": rate, "peer": NAME, "utilisation_goal": UTILISATION_GOAL}
    audio = waveforms(utterances, seconds).cuda()
    for stage in STAGES:
        torch.manual_seed(0)
        sides: dict[str, Callable[[], float]] = {
            "peer": peer_step(stage, audio, torch.bfloat16),
            "ours": our_step(stage, audio, torch.bfloat16),
        }
        started = time.perf_counter()
        sides["ours"]()  # compiles
        compiling = time.perf_counter() - started
        # A step returns its loss as a number, which waits for the GPU.
        times = interleaved(sides, 3 if options.quick else 20, warm_up=3)
        memory = {name: _memory(step) for name, step in sides.items()}
        operations = useful_operations(stage, utterances, seconds)
        peer, ours = times["peer"].median, times["ours"].median
        details: dict[str, Any] = {
            "audio_per_second": utterances * seconds / ours,
            "model_flop_utilisation": operations / ours / rate,
            "peer_utilisation": operations / peer / rate,
            "seconds_of_compiling": compiling,
            "gib_of_a_step": memory["ours"],
            "peer_gib_of_a_step": memory["peer"],
            "operations": operations,
        }
        report.add(f"{stage}, bfloat16", peer, ours, GOAL, **details)
        del sides
    report.write(options.json)
    return 0


def _memory(step: Callable[[], float]) -> float:
    """GiB that one step takes on the GPU beyond what lies there between steps."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


if __name__ == "__main__":
    sys.exit(main())
