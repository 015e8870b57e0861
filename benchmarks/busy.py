"""A training step on a machine that others use too: with threads that are patient, and as OpenMP does it by itself.

python -m benchmarks.busy [--quick] --json FILE

A step of the demo's teacher on 12 s of audio, alone and beside processes that only count. `share` is its time over its
fair share: what it takes with one thread and a core of its own, times the processes there are, over the cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch

from benchmarks.common import Report, parse, parser
from skill_speech import Encoder, load_encoder
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, make_targets
from skill_speech.pruning import attach_gates
from skill_speech.run.patience import PatientThreads

TEACHER = Path(__file__).parents[1] / "lab" / "teachers" / "hubert-mini"
BUSY = 8
SETTLED = 3.0
"""Seconds until the load has been seen."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    options = parse(parser("busy", __doc__), arguments)
    repeats, cores = (3 if options.quick else 9), len(os.sched_getaffinity(0))
    step = make_step()
    torch.set_num_threads(1)
    work = timed(step, repeats)
    torch.set_num_threads(options.threads)
    report = Report(f"a step beside other processes, {cores} cores", options)
    report.figures |= {"seconds_with_one_thread": work}
    alone = timed(step, repeats)
    with PatientThreads():
        report.add("alone", alone, timed(step, repeats), goal=0.95)
    for busy in (1, cores, BUSY):
        with beside(busy):
            fair = work * (busy + 1) / cores
            spinning = timed(step, 2)
            with PatientThreads():
                time.sleep(SETTLED)
                timed(step, max(2, round(SETTLED / fair)))
                patient = timed(step, repeats)
        report.add(
            f"beside {busy}", spinning, patient, share_of_peer=spinning / fair, share=patient / fair, goal_share=2.5
        )
    report.write(options.json)
    return 0


def make_step() -> Callable[[], None]:
    """Forward and backward passes of stage 1, without the optimizer."""
    teacher = load_encoder(TEACHER)
    student = Encoder(teacher.config.without_dropout())
    student.load_state_dict(teacher.state_dict())
    loss = DistillationLoss(make_targets("dphubert", teacher.config.num_layers), teacher.config.hidden_size)
    module = Distillation(teacher, attach_gates(student), loss, StageConfig())
    waveforms_BT = 0.1 * torch.randn(4, 48_000)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            module.distil(waveforms_BT, None, 1)[0].backward()

    step()
    return step


def timed(step: Callable[[], None], repeats: int) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return median(seconds)


@contextmanager
def beside(count: int) -> Iterator[None]:
    """So many other processes, which only count."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


if __name__ == "__main__":
    sys.exit(main())
