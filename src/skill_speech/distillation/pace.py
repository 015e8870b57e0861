"""How long an update takes on this machine, and stages that fit into a given time."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from ..encoder import Encoder
from ..errors import InputError
from ..kernels.rounding import Rounding
from ..pruning import Budget, Exact, OneShot, fix_gates, magnitude, prune
from ..run import ranks
from .inputs import StudentInput
from .loss import DistillationLoss
from .module import Distillation, Stage1Config, Stage2Config
from .parallel import Precision
from .quantization import attach_quantization

REPEATS = 3
MEASURED_SECONDS = 30.0
"""Of audio in an update that is timed; longer ones take longer in proportion."""

UTTERANCE_SECONDS = 10.0
LEAST_UPDATES = 20
MARGIN = 0.93
"""Of the time that is planned: the rest is for a machine that does not always run as it did when it was measured."""

FINISHING_SECONDS = 10.0
"""For writing the model and the report."""


@dataclass(frozen=True)
class Pace:
    """What takes how long, in seconds.

    Attributes:
        teacher: a forward pass of the teacher, for each second of audio.
        stage1, stage2: an update.
        start: what is made on first use, in both stages.
    """

    teacher: float
    stage1: float
    stage2: float
    start: float


def measure_pace(
    teacher: Encoder,
    gated: Encoder,
    budget: Budget,
    stages: tuple[Stage1Config, Stage2Config],
    precision: Precision,
    loss: DistillationLoss,
    student_input: StudentInput | None = None,
    quantization: Rounding | None = None,
) -> Pace:
    """Time a few updates of both stages on noise; every rank calls it, as all train at the same time.

    Args:
        teacher: stays as it is.
        gated: stays as it is; stage 2 is timed with a student of the budget's size.
        budget: for that student.
        stages: as they are asked for.
        precision: that is computed in.
        loss: between the two, with the head's outputs where there is a head.
        student_input: what is done to the student's speech.
        quantization: of stage 2.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    small = copy.deepcopy(gated)
    OneShot(budget, 0).prepare(small, magnitude(small))
    fix_gates(small, budget, 1, "cut")
    pruned = prune(small)
    if quantization is not None:
        attach_quantization(pruned, quantization)
    utterances_BT = _noise(MEASURED_SECONDS, teacher.config.sampling_rate).to(device)
    seconds, starts = [], []
    for student, stage, control in (
        (copy.deepcopy(gated), stages[0], Exact(budget, 0, stages[0].steps)),
        (pruned, stages[1], None),
    ):
        if control is not None:
            control.prepare(student)
        module = Distillation(teacher, student, copy.deepcopy(loss), stage, control, student_input).to(device).train()
        rate = teacher.config.sampling_rate
        waveforms_BT = _noise(min(stage.batch_seconds, MEASURED_SECONDS), rate).to(device)
        first, each = _time_update(module, waveforms_BT, precision)
        longer = stage.batch_seconds * rate / waveforms_BT.numel() * math.ceil(stage.accumulate / ranks.count())
        seconds.append(each * longer)
        starts.append(max(0.0, first - each))

    @torch.no_grad()
    def encode() -> None:
        teacher(utterances_BT)

    _, forward = _timed(encode, device)
    each = forward * teacher.config.sampling_rate / utterances_BT.numel()
    found = Pace(each, seconds[0], seconds[1], sum(starts))
    return max(ranks.gathered(found), key=lambda pace: pace.stage1)


def fit(
    minutes: float,
    pace: Pace,
    stages: tuple[Stage1Config, Stage2Config],
    *,
    spent: float = 0.0,
    encoded_seconds: float = 0.0,
    encoded_in_each: float = 0.0,
    with_stage1: bool = True,
) -> tuple[Stage1Config, Stage2Config]:
    """Stages of such lengths that the whole takes so many minutes; their proportions stay.

    Args:
        minutes: for everything.
        pace: of this machine.
        stages: stage 1 and stage 2 in any lengths.
        spent: seconds that are gone already.
        encoded_seconds: of audio that the teacher encodes once, in all.
        encoded_in_each: of audio that is encoded for each update on the average, for validation.
        with_stage1: otherwise there is a stage 2 alone.

    Raises:
        InputError: there is not time for some updates; says how many minutes it would take.
    """
    share = stages[0].steps / (stages[0].steps + stages[1].steps) if with_stage1 else 0.0
    each = share * pace.stage1 + (1 - share) * pace.stage2 + encoded_in_each * pace.teacher
    other = spent + pace.start + encoded_seconds * pace.teacher + FINISHING_SECONDS
    updates = math.floor((60 * MARGIN * minutes - other) / each)
    if updates < LEAST_UPDATES:
        least = (other + LEAST_UPDATES * each) / (60 * MARGIN)
        raise InputError(
            f"minutes is {minutes:g}: on this machine an update takes {each:.2g} s, and the rest of the run "
            f"{other / 60:.1f} minutes; give at least {math.ceil(10 * least) / 10:g}, or smaller batches "
            "(--stage1.batch_seconds, --stage2.batch_seconds)"
        )
    first = max(1, round(share * updates))
    lengths = (first if with_stage1 else stages[0].steps), max(1, updates - first if with_stage1 else updates)
    return stages[0].in_updates(lengths[0]), stages[1].in_updates(lengths[1])


def _noise(seconds: float, rate: int) -> Tensor:
    """Utterances of noise (B, T), so many seconds in all."""
    count = max(1, round(seconds / UTTERANCE_SECONDS))
    return 0.1 * torch.randn(count, round(seconds * rate / count))


def _time_update(module: Distillation, waveforms_BT: Tensor, precision: str) -> tuple[float, float]:
    """Seconds of the first update and of one of the others."""
    optimizer = module.make_optimizer()

    def update() -> None:
        with torch.autocast(waveforms_BT.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = module.distil(waveforms_BT, None, 0)[0]
        loss.backward()
        if module.control is not None:
            module.control.move(module.student, 0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return _timed(update, waveforms_BT.device)


def _timed(do: Callable[[], None], device: torch.device) -> tuple[float, float]:
    seconds = []
    for _ in range(1 + REPEATS):
        started = time.perf_counter()
        do()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds[0], median(seconds[1:])
