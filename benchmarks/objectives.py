"""What a step costs with each method, against `skill`: WavLM Base's shape with random weights, stage 1.

python -m benchmarks.objectives [--quick] --json FILE

An update as `compress` makes it (gates, loss, backward, clipping, AdamW), methods taking turns, each in a process of
its own. Ratios are the time of `skill` over the method's; memory is the process's at its peak.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.common import Report, interleaved, parse, parser, timed_types
from benchmarks.training_step import TYPES, Worker, our_step, teacher_shape, waveforms, work
from skill_speech.distillation import (
    METHODS,
    DistillationLoss,
    LossConfig,
    StudentInput,
    Target,
    UnitLoss,
    make_targets,
)
from skill_speech.distillation.acceleration import reuse_memory

GOAL = 1 / 1.1
"""A distance may add a tenth to a step."""

NAMES = ("skill", "dphubert", "all-layers", "star", "skill-star", "masked", "noisy", "skill-units")
QUICK = ("skill", "skill-star")
GROUPS = ((0,), (1, 2, 3), (4, 5, 6, 7, 8), (9, 10, 11, 12))


def make_loss(name: str) -> tuple[DistillationLoss, StudentInput]:
    """The objective of a method, with four clusters where it has any."""
    config, objective = teacher_shape(), METHODS[name]
    targets = [Target(group, group, number) for number, group in enumerate(GROUPS)]
    if objective.targets != "skill":
        targets = make_targets(objective.targets, config.num_layers)
    loss = DistillationLoss(targets, config.hidden_size, LossConfig(), distance=objective.distance)
    if objective.units:
        loss.units = UnitLoss(torch.randn(objective.units, config.hidden_size), 9, 0.1)
    return loss, StudentInput(objective.input)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    made = parser("objectives", __doc__)
    made.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    made.add_argument("--repeats", type=int, default=None, help="rounds (default: 7; 1 with --quick)")
    made.add_argument(
        "--audio", type=float, nargs=2, default=None, help="utterances and seconds of each (default: 2 10)"
    )
    options: Any = parse(made, arguments)
    utterances, seconds = options.audio or ((2, 1.0) if options.quick else (2, 10.0))
    if options.worker:
        name, stage, precision = options.worker
        torch.manual_seed(0)
        reuse_memory()
        loss, student_input = make_loss(name)
        audio = waveforms(int(utterances), seconds)
        work(our_step(stage, audio, TYPES[precision], loss=loss, student_input=student_input))
        return 0
    names = QUICK if options.quick else NAMES
    report = Report(f"training step by method, WavLM Base, stage 1, {utterances:g} x {seconds:g} s", options)
    more = ["--audio", str(utterances), str(seconds)]
    for precision in timed_types(options):
        # Two processes at a time: all of them would not fit into every machine.
        for name in names[1:]:
            workers = {
                side: Worker("objectives", side, "stage 1", precision, options, more) for side in (names[0], name)
            }
            repeats = options.repeats or (1 if options.quick else 7)
            times = interleaved(
                {side: worker.step for side, worker in workers.items()}, repeats, warm_up=1 if options.quick else 2
            )
            peaks = {side: worker.peak() for side, worker in workers.items()}
            skill, method = (times[side].minimum for side in (names[0], name))
            report.add(f"{name}, {precision}", skill, method, GOAL, gib=peaks[name], gib_of_skill=peaks[names[0]])
    report.write(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
