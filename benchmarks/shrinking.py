"""Stage 1 of the published schedule with a student that gets smaller, against DPHuBERT's, in one run.

python -m benchmarks.shrinking [--quick] [--device cuda] --json FILE

Nobody has days for a benchmark, so the schedule is put together from two parts. *When* units go: the gates of a WavLM
Base learn through all 50,000 published updates, with the real gates, Lagrangian, optimizer and criterion, but with
a given importance of every unit in place of the network, chosen so that the student has the published widths (about 3
heads and 560 units a layer, 200 to 260 channels); `stand_in` in lab/results/shrinking.json holds it against the gates
of a real network. *What an update costs*: whole updates are timed at several widths along that path, ours and
DPHuBERT's taking turns, and between them the time is linear in the multiply-accumulates. With --quick the schedule has
a tenth of the updates and gates that learn ten times as fast, and the utterances are short.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Report, interleaved, matrix_rate, parse, parser, timed_types
from benchmarks.dphubert import NAME
from benchmarks.training_step import TYPES, our_step, peer_step, teacher_shape, waveforms
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, make_targets
from skill_speech.distillation.acceleration import reuse_memory
from skill_speech.distillation.shrinking import worth_removing
from skill_speech.encoder import Encoder, EncoderConfig
from skill_speech.pruning import (
    Budget,
    Lagrangian,
    Widths,
    attach_gates,
    count_macs,
    find_gates,
    replace_parameters,
    shrink,
)
from skill_speech.pruning.shrinking import RESERVE
from skill_speech.pruning.size import as_float

GOALS = {"cpu": 10.0, "cuda": 2.5}
"""Times as fast as the peer over all of stage 1."""

PUBLISHED = StageConfig()
STAGE2_STEPS = 25_000
SPARSITY = 0.75
# Of every kind of unit, how much an average one is worth beside what it costs: this makes the published widths.
WORTH = {"channels": 0.27, "heads": 0.15, "units": 0.12}


@dataclass(frozen=True)
class Point:
    """The student from one step of stage 1 on: the numbers of its units by gate, its parameters and MACs per second."""

    step: int
    kept: dict[str, Tensor]
    parameters: int
    macs: float


def path_of_the_gates(
    config: EncoderConfig, stage: StageConfig, worth: Mapping[str, float], seed: int = 0
) -> tuple[list[Point], list[float]]:
    """Where and how far the student is cut in stage 1, its full width first, and the expected sparsity until then.

    Args:
        config: the teacher's.
        stage: of which everything counts but what the weights learn by.
        worth: of every kind of unit, how much an average one is worth beside what it costs.
        seed: of importances and draws.
    """
    torch.manual_seed(seed)
    student = attach_gates(Encoder(config.without_dropout())).train()
    budget = Budget.of(student.config, sparsity=SPARSITY)
    lagrangian = Lagrangian(budget, stage.sparsity_steps)
    loss = DistillationLoss(make_targets("dphubert", config.num_layers), config.hidden_size)
    optimizer = Distillation(Encoder(student.config), student, loss, stage, lagrangian).make_optimizer()
    importance = _importance(student, budget, worth)
    points, sparsities = [_point(0, student)], []
    for step in range(stage.steps):
        if stage.shrink_every and step >= stage.sparsity_steps and step % stage.shrink_every == 0:
            kept = worth_removing(student, stage.shrink_below, budget)
            if kept:
                replace_parameters([optimizer], shrink(student, kept))
                points.append(_point(step, student))
                room = budget.enlarged(RESERVE).excess(student, Widths.of(student.config))
                if float(room) < 0.005:  # of the teacher: nothing is left to remove
                    break
        closed = [
            (importance[gate.name][gate.module.kept_units] * (1 - gate.module.gates()).square()).sum()
            for gate in find_gates(student)
        ]
        penalty, logged = lagrangian.penalty(student, step)
        sparsities.append(float(logged["sparsity_expected"]))
        optimizer.zero_grad()
        (torch.stack(closed).sum() + penalty).backward()
        optimizer.step()
        stage.set_rates(optimizer, step + 1)
    return points, sparsities


def _importance(student: Encoder, budget: Budget, worth: Mapping[str, float]) -> dict[str, Tensor]:
    """What the units (U,) of every gate vector are worth, in shares of the teacher's parameters."""
    config = student.config
    # Of a channel, to and from neighbors that keep about half of theirs.
    channel = config.convs[1].kernel * config.convs[1].channels
    costs = {"channels": channel, "heads": 4 * config.hidden_size * config.head_size, "units": 2 * config.hidden_size}
    return {
        # Some layers are worth more than others, and within a layer some units.
        gate.name: (0.3 * torch.randn(()) + torch.randn(gate.module.all_units)).exp()
        * (worth[gate.kind] * costs[gate.kind] / budget.teacher_parameters)
        for gate in find_gates(student)
    }


def _point(step: int, student: Encoder) -> Point:
    kept = {gate.name: gate.module.kept_units.clone() for gate in find_gates(student)}
    macs = as_float(count_macs(student.config, Widths.of(student.config)))
    return Point(step, kept, student.num_parameters(), macs)


class Worker:
    """A process that makes the updates of one student alone, so that memory and allocator are its own."""

    def __init__(self, context: SpawnContext, *arguments: Any) -> None:
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_make_updates, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def step(self) -> float:
        """Make one update; its loss."""
        self.pipe.send("step")
        return float(self.pipe.recv())

    def end(self) -> None:
        """Let it go."""
        self.pipe.close()
        self.process.join()


def _make_updates(
    pipe: Connection,
    threads: int,
    device: str,
    audio: Tensor,
    precision: str,
    side: str,
    stage: str,
    kept: Mapping[str, Tensor] | None = None,
) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    audio = audio.to(device)
    if side == "ours":
        reuse_memory()
        step = our_step(stage, audio, TYPES[precision], kept=kept)
    else:
        step = peer_step(stage, audio, TYPES[precision])
    with contextlib.suppress(EOFError):
        while pipe.recv():
            pipe.send(step())


def to_be_timed(points: Sequence[Point], number: int) -> list[Point]:
    """Full width, the last one, and some in between, evenly spaced in multiply-accumulates."""
    wanted = np.linspace(points[0].macs, points[-1].macs, number)
    return [min(points, key=lambda point, at=at: abs(point.macs - at)) for at in dict.fromkeys(wanted)]


def _over_the_schedule(points: Sequence[Point], costs: Mapping[float, float], steps: int) -> float:
    """What all updates cost, each at the width that the student has then.

    `costs` maps multiply-accumulates to the cost of an update; in between it is linear.
    """
    known = sorted(costs.items())
    macs, values = [macs for macs, _ in known], [value for _, value in known]
    ends = [*(point.step for point in points[1:]), steps]
    return sum(
        (end - point.step) * float(np.interp(point.macs, macs, values)) for point, end in zip(points, ends, strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    made = parser("shrinking", __doc__)
    made.add_argument("--repeats", type=int, default=None, help="rounds (default: 5; 1 with --quick)")
    made.add_argument(
        "--widths", type=int, default=None, help="at which an update is timed (default: 5; 2 with --quick)"
    )
    made.add_argument("--device", choices=sorted(GOALS), default="cpu")
    options: Any = parse(made, arguments)
    stage, faster = PUBLISHED, 50 if options.quick else 1
    stage = replace(
        stage,
        steps=stage.steps // faster,
        warmup_steps=stage.warmup_steps // faster,
        sparsity_steps=stage.sparsity_steps // faster,
        shrink_every=stage.shrink_every // faster,
        gate_learning_rate=stage.gate_learning_rate * faster,
    )
    points, _ = path_of_the_gates(teacher_shape(), stage, WORTH)
    utterances, seconds = (2, 1.0 if options.quick else 10.0) if options.device == "cpu" else (16, 10.0)
    report = Report(f"stage 1 of WavLM Base, {utterances} x {seconds:g} s; the peer is {NAME}", options)
    report.figures |= {
        "peer": NAME,
        "device": options.device,
        "path": [{"step": point.step, "parameters": point.parameters, "macs": point.macs} for point in points],
        "last_widths": {name: len(kept) for name, kept in points[-1].kept.items()},
    }
    for precision in timed_types(options, options.device):
        _compare(report, precision, points, stage.steps, waveforms(utterances, seconds), options)
    report.write(options.json)
    return 0


def _compare(
    report: Report, precision: str, points: list[Point], steps: int, audio: Tensor, options: argparse.Namespace
) -> None:
    """Time updates in one precision and add up both sides' schedules."""
    repeats = options.repeats or (1 if options.quick else 5)
    chosen = to_be_timed(points, options.widths or (2 if options.quick else 5))
    context, threads, device = get_context("spawn"), options.threads, options.device

    def start(side: str, stage: str, kept: Mapping[str, Tensor] | None = None) -> Worker:
        return Worker(context, threads, device, audio, precision, side, stage, kept)

    # The peer is timed beside every width, two processes at a time: all at once would not fit into every machine.
    times: dict[str, float] = {}
    for stage, names in (("stage 1", [str(point.step) for point in chosen]), ("stage 2", ["ours 2"])):
        kept = {str(point.step): point.kept for point in chosen}
        their_name, theirs = f"peer {stage[-1]}", start("peer", stage)
        for name in names:
            ours = start("ours", stage, kept.get(name))
            found = interleaved({their_name: theirs.step, name: ours.step}, repeats)
            times[name] = found[name].minimum
            times[their_name] = min(times.get(their_name, math.inf), found[their_name].minimum)
            ours.end()
        theirs.end()
    timed = {point.macs: times[str(point.step)] for point in chosen}
    our_time, whole = _over_the_schedule(points, timed, steps), steps * times[str(chosen[0].step)]
    peer, share = steps * times["peer 1"], STAGE2_STEPS / PUBLISHED.steps
    # Of the teacher once and of the student three times, forward and twice backward.
    operations = {point.macs: points[0].macs + 3 * point.macs for point in points}
    details = {
        "seconds_per_update_first": times[str(chosen[0].step)],
        "seconds_per_update_last": times[str(chosen[-1].step)],
        "seconds_per_update_peer": times["peer 1"],
        "timed": {str(round(macs)): value for macs, value in timed.items()},
        "matrix_rate_flops": matrix_rate(TYPES[precision], threads, options.device),
    }
    report.add(
        f"stage 1, {precision}", peer, our_time, GOALS[options.device] if precision == "bfloat16" else None, **details
    )
    report.add(
        f"stage 1, {precision}: full width against shrinking, both ours",
        whole,
        our_time,
        ratio_of_operations=steps * operations[points[0].macs] / _over_the_schedule(points, operations, steps),
    )
    report.add(
        f"stages 1 and 2, {precision}",
        peer + share * steps * times["peer 2"],
        our_time + share * steps * times["ours 2"],
    )


if __name__ == "__main__":
    sys.exit(main())
