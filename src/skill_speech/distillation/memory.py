"""What a training step needs of memory, before anything is computed.

    needed = 16 bytes * student's parameters + 1.2 * saved activations, on an accelerator + 4 bytes * all parameters
             + 2 bytes * teacher's parameters in bf16

The 16 bytes are the gradient, AdamW's two moments and the copy of the start that a stage keeps; the weights themselves
are in the process already, but not on an accelerator. Saved activations are what autograd keeps of a step for its
backward pass: they are counted, not guessed, by a forward pass on tensors that have shapes and no contents. The factor
stands for what comes and goes beside them. `lab/memory.py` compares it with measured peaks.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import size
from ..run import ranks
from .module import Config, Distillation
from .parallel import Precision

logger = logging.getLogger(__name__)

WORKING_SHARE = 1.2
MOST_OF_MEMORY = 0.9
"""Of what is available: the rest is for what nobody counts."""

LONGEST_SECONDS = 15.6
SHORTEST_BATCH_SECONDS = 4.0
"""Utterances of `TrainingBatches`: at most and, twice the shortest one, at least so long."""

NEGLIGIBLE = 2**28
"""Bytes of activations, generously bounded, below which nobody needs an estimate."""


def needed_bytes(module: Distillation, batch_seconds: float, precision: Precision) -> int:
    """The memory that a stage with batches of so many seconds takes, beyond what the process holds now."""
    student = _parameters(module)
    onto = 4 * (student + _parameters(module.teacher)) if torch.cuda.is_available() else 0
    computing = 2 * _parameters(module.teacher) if precision == "bf16" else 0
    return 16 * student + onto + computing + round(WORKING_SHARE * saved_bytes(module, batch_seconds, precision))


def saved_bytes(module: Distillation, batch_seconds: float, precision: Precision) -> int:
    """What autograd keeps between forward and backward of one batch, the weights themselves not counted.

    In bf16 the converted weights are among it.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    rate = module.student.config.sampling_rate
    longest = min(LONGEST_SECONDS, batch_seconds)
    shape = max(1, round(batch_seconds / longest)), round(longest * rate)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    training = module.student.training
    module.student.train()
    # Tensors without contents draw no random numbers, but nothing promises that.
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weights = [*module.student.parameters(), *module.loss.parameters()]
        # Held until the end: the address of a storage that is gone may be another one's.
        held = [mode.from_tensor(weight) for weight in weights]
        own = {weight.untyped_storage()._cdata for weight in held}
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
        ):
            waveforms_BT = torch.empty(shape)
            with torch.no_grad():
                teacher = module.teacher(waveforms_BT)
            student = module.student(waveforms_BT)
            terms = module.loss(student, teacher)
        found = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
        del terms, student, teacher
    module.student.train(training)
    return found


def available_bytes(system: Path = Path("/")) -> int | None:
    """Memory that can be had: of the accelerator, or of the machine and the control groups around; None where unknown.

    Args:
        system: where the folders `proc` and `sys` are.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    try:
        lines = (system / "proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    found += _left_in_groups(system)
    return min(found) if found else None


def _left_in_groups(system: Path) -> list[int]:
    """What every control group around this process has left, in bytes; of versions 1 and 2, and of those that limit."""
    try:
        lines = (system / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if not controllers:
            root, limit, usage, prefix = "sys/fs/cgroup", "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):
            root, limit, usage = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            prefix = "total_"
        else:
            continue
        own = Path(name.lstrip("/"))  # in a container it may be the host's name, and the root is the group itself
        for group in (own, *own.parents):
            folder = system / root / group
            try:
                left = int((folder / limit).read_text()) - int((folder / usage).read_text())
            except (OSError, ValueError):  # no such group, or "max"
                continue
            found.append(left + _cached(folder / "memory.stat", prefix))
    return found


def _cached(path: Path, prefix: str) -> int:
    """Bytes of files in memory, which count as used and are given back when memory is short."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    names = (f"{prefix}inactive_file", f"{prefix}active_file")
    return sum(int(count) for name, count in map(str.split, lines) if name in names)


def available_to_each() -> int | None:
    """Memory that each rank can have, the same number on all of them; None where unknown.

    Ranks without accelerators share the machine's.
    """
    found = ranks.gathered(available_bytes())
    sharing = 1 if torch.cuda.is_available() else ranks.local_count()
    known = [number for number in found if number is not None]
    return min(known) // sharing if len(known) == len(found) else None


def fit_batch(module: Distillation, stage: Config, precision: Precision, name: str, available: int | None) -> Config:
    """The stage, with smaller batches and more of them in an update where they would not fit into memory.

    Raises:
        InputError: not even the smallest batches fit.
    """
    if available is None or (_bound(module, stage.batch_seconds) < NEGLIGIBLE and available > 2 * NEGLIGIBLE):
        return stage
    room = MOST_OF_MEMORY * available
    fitting = stage
    while (needed := needed_bytes(module, fitting.batch_seconds, precision)) > room:
        if fitting.batch_seconds / 2 < SHORTEST_BATCH_SECONDS:
            raise InputError(
                f"{name}: batches of {fitting.batch_seconds:g} s need about {size(needed)} more memory and "
                f"{size(available)} are available: use a machine with more memory, or a smaller teacher"
            )
        fitting = replace(fitting, batch_seconds=fitting.batch_seconds / 2, accumulate=fitting.accumulate * 2)
    logger.info(
        "%s: batches of %g s need about %s more memory, %s are available",
        *(name, fitting.batch_seconds, size(needed), size(available)),
    )
    if fitting is not stage:
        logger.warning(
            "%s: batches of %g s need too much memory; using %d batches of %g s per update instead",
            *(name, stage.batch_seconds, fitting.accumulate, fitting.batch_seconds),
        )
    return fitting


def _bound(module: Distillation, batch_seconds: float) -> float:
    """More bytes than the activations of a batch can take, without a forward pass."""
    config = module.student.config
    samples = batch_seconds * config.sampling_rate
    numbers, stride = 0.0, 1
    for conv in config.convs:
        stride *= conv.stride
        numbers += 10 * conv.channels * samples / stride
    frames = samples / stride
    per_utterance = min(batch_seconds, LONGEST_SECONDS) * config.sampling_rate / stride
    for layer in config.layers:
        numbers += frames * (10 * layer.units + 40 * config.hidden_size + 10 * len(layer.heads) * per_utterance)
    return 4 * numbers + 16 * _parameters(module)


def _parameters(module: nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())
