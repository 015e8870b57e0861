"""One training step of both stages against DPHuBERT's, in one run.

python -m benchmarks.training_step [--quick] --json FILE

The shape is WavLM Base's (94.4 M parameters) with random weights, on 2 utterances of 10 s of noise; the pruned student
has 23.6 M. A step is the frozen teacher's forward pass, the student's forward and backward passes (with gates
in stage 1), the loss and AdamW. The peer is DPHuBERT's step, rebuilt from Transformers' modules, in eager mode.
Each side has a process of its own and they take turns; the minimum of the repeats counts. On some processors the
peer is slower in bfloat16 than in float32: a row of its own compares with its faster type.

The useful operations of a step are the multiply-accumulates of the layers' matrix products and convolutions, once for
the teacher and three times for the student, two operations each; `share_of_matrix_rate` is their number over the time
taken and over the rate of a plain matrix product on the same machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Options, Report, interleaved, matrix_rate, parse, parser, timed_types
from benchmarks.dphubert import NAME, published_step
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, StudentInput, make_targets
from skill_speech.distillation.acceleration import reuse_memory
from skill_speech.distillation.weight_norm import attach_weight_norm
from skill_speech.encoder import Encoder, EncoderConfig, LayerConfig, wavlm_config
from skill_speech.profiling import peak_memory
from skill_speech.pruning import Budget, Lagrangian, Widths, attach_gates, count_macs, shrink

GOAL = 6.0
"""Times as fast as the peer, in stage 1, bfloat16 on a CPU."""

STAGES = ("stage 1", "stage 2")
SIDES = ("peer", "ours", "ours without dropout")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def teacher_shape() -> EncoderConfig:
    """WavLM Base, with its dropout."""
    return wavlm_config(hidden_dropout=0.1, attention_dropout=0.1, feature_dropout=0.1)


def student_shape() -> EncoderConfig:
    """What a student of 23.6 M parameters looks like: 3 heads and 576 units a layer, 200 to 260 channels."""
    base = teacher_shape()
    channels = (200, 220, 230, 240, 250, 260, 260)
    return base.replace(
        convs=tuple(dataclasses.replace(conv, channels=n) for conv, n in zip(base.convs, channels, strict=True)),
        layers=tuple(LayerConfig((1, 5, 9), 576) for _ in base.layers),
        feature_scale=True,
    )


def waveforms(utterances: int, seconds: float) -> Tensor:
    """Noise (B, T) at 16 kHz."""
    return torch.randn(utterances, round(16_000 * seconds), generator=torch.Generator().manual_seed(0))


def useful_operations(stage: str, utterances: int, seconds: float) -> float:
    """Floating-point operations of one step."""

    def forward(config: EncoderConfig) -> float:
        return 2 * float(count_macs(config, Widths.of(config), seconds)) * seconds * utterances

    return forward(teacher_shape()) + 3 * forward(teacher_shape() if stage == "stage 1" else student_shape())


def our_step(
    stage: str,
    audio: Tensor,
    dtype: torch.dtype,
    dropout: bool = True,
    kept: Mapping[str, Tensor] | None = None,
    loss: DistillationLoss | None = None,
    student_input: StudentInput | None = None,
) -> Callable[[], float]:
    """A function that makes one update as `compress` does and returns the loss.

    Args:
        stage: one of STAGES.
        audio: what is learned from, at every step.
        dtype: of autocast.
        dropout: the student has the teacher's.
        kept: units that are left, as `shrink` takes them.
        loss: by default DPHuBERT's.
        student_input: by default clean.
    """
    config = teacher_shape()
    teacher = Encoder(config.without_dropout())
    gated = stage == "stage 1"
    shape = config if gated else student_shape()
    student = Encoder(shape if dropout else shape.without_dropout())
    lagrangian = None
    if gated:
        student.load_state_dict(teacher.state_dict())
        attach_gates(student)
        if kept is not None:
            shrink(student, kept)
        lagrangian = Lagrangian(Budget.of(config, sparsity=0.75), 5_000)
    attach_weight_norm(student)
    loss = loss or DistillationLoss(make_targets("dphubert", config.num_layers), config.hidden_size)
    module = Distillation(teacher, student, loss, StageConfig(), lagrangian, student_input).to(audio.device).train()
    module.teacher.to(audio.device).eval()
    optimizer = module.make_optimizer()
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(audio.device.type, dtype, enabled=dtype != torch.float32):
            total, _ = module(audio, step=1_000)
        total.backward()
        torch.nn.utils.clip_grad_norm_(weights, module.config.clip_norm)
        optimizer.step()
        return float(total.detach())

    return step


def peer_step(stage: str, audio: Tensor, dtype: torch.dtype) -> Callable[[], float]:
    """A function that makes one update as DPHuBERT does."""
    config = teacher_shape()
    shape = config if stage == "stage 1" else student_shape()
    return published_step(config, shape, audio, stage == "stage 1", dtype != torch.float32)


def make_step(side: str, stage: str, precision: str, utterances: int, seconds: float) -> Callable[[], float]:
    """The step of one of `SIDES`."""
    torch.manual_seed(0)
    audio, dtype = waveforms(utterances, seconds), TYPES[precision]
    if side == "peer":
        return peer_step(stage, audio, dtype)
    reuse_memory()
    return our_step(stage, audio, dtype, dropout=side == "ours")


class Worker:
    """A process that makes the steps of one side alone, so that memory and allocator are its own.

    Args:
        benchmark: module in benchmarks/ that takes --worker SIDE STAGE PRECISION.
        side, stage, precision: what to make.
        options: of the benchmark.
        more: arguments.
    """

    def __init__(
        self, benchmark: str, side: str, stage: str, precision: str, options: Options, more: Sequence[str] = ()
    ) -> None:
        command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--json", "-", "--threads", str(options.threads)]
        command += ["--worker", side, stage, precision, *(["--quick"] if options.quick else []), *more]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: str) -> float:
        """Let it make a "step", or ask for the bytes at its "peak", which ends it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{question}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process that makes the steps ended with status {self.process.wait()}")
        return float(json.loads(answer))

    def step(self) -> float:
        """Make one step; its loss."""
        return self.ask("step")

    def peak(self) -> float:
        """GiB of resident memory at the peak; ends the process."""
        bytes_at_peak = self.ask("peak")
        self.process.communicate()
        return bytes_at_peak / 2**30


def work(step: Callable[[], float]) -> None:
    """What a worker does."""
    for question in sys.stdin:
        print(json.dumps(step() if question.strip() == "step" else peak_memory()), flush=True)
        if question.strip() == "peak":
            return


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    made = parser("training_step", __doc__)
    made.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    made.add_argument("--repeats", type=int, default=None, help="rounds (default: 7; 1 with --quick)")
    options: Any = parse(made, arguments)
    utterances, seconds = (2, 1.0) if options.quick else (2, 10.0)
    if options.worker:
        work(make_step(*options.worker, utterances, seconds))
        return 0
    repeats = options.repeats or (1 if options.quick else 7)
    report = Report(f"training step, WavLM Base, {utterances} x {seconds:g} s; the peer is {NAME}", options)
    rates = {name: matrix_rate(dtype, options.threads) for name, dtype in TYPES.items()}
    report.figures["matrix_rate_flops"] = rates
    report.figures["peer"] = NAME
    for stage in STAGES:
        fastest = {"peer": (math.inf, ""), "ours": (math.inf, "")}
        for precision in timed_types(options):
            workers = {side: Worker("training_step", side, stage, precision, options) for side in SIDES}
            times = interleaved(
                {side: worker.step for side, worker in workers.items()}, repeats, warm_up=1 if options.quick else 2
            )
            peaks = {side: worker.peak() for side, worker in workers.items()}
            operations = useful_operations(stage, utterances, seconds)
            peer, ours = times["peer"].minimum, times["ours"].minimum
            fastest = {side: min(fastest[side], (times[side].minimum, precision)) for side in fastest}
            report.add(
                f"{stage}, {precision}",
                peer,
                ours,
                GOAL if precision == "bfloat16" else None,
                ratio_without_dropout=peer / times["ours without dropout"].minimum,
                audio_per_second=utterances * seconds / ours,
                peer_audio_per_second=utterances * seconds / peer,
                share_of_matrix_rate=operations / ours / rates[precision],
                peer_share=operations / peer / rates[precision],
                gib=peaks["ours"],
                peer_gib=peaks["peer"],
                operations=operations,
                medians={side: timing.median for side, timing in times.items()},
            )
        (peer, their_type), (ours, our_type) = fastest["peer"], fastest["ours"]
        report.add(f"{stage}, {our_type} against the peer in {their_type}", peer, ours)
    report.write(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
