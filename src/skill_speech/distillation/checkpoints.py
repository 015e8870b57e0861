"""Checkpoints of a stage: written whole, checked when they are read, the last few and milestones kept."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files import atomic_write, require_space, sha256
from ..run import ranks
from .parallel import sharded_like, whole

logger = logging.getLogger(__name__)


@dataclass
class StageState:
    """How far a stage is: all that a checkpoint holds.

    Attributes:
        step: updates made, those that were left out among them.
        epoch, batch: position in the data; the same for any number of ranks.
        batches: seen by all ranks together.
        skipped: updates that were left out because the loss or a gradient was not finite.
        skipped_in_a_row: the last so many.
        returns: how often an earlier state was restored because many updates in a row were left out.
        audio: what was wrong with the audio so far, as `AudioTally.state_dict`.
        weights: of student, projections and control, by name; only in a checkpoint.
        optimizer: its state dict; only in a checkpoint.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    batches: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    returns: int = 0
    audio: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)


def saved(state: StageState, module: nn.Module, optimizer: torch.optim.Optimizer) -> StageState:
    """A state to be written, with weights and moments as they are now; every rank calls it, the first one has them."""
    moments = optimizer.state_dict()
    moments["state"] = {
        number: {name: whole(value) for name, value in values.items()} for number, values in moments["state"].items()
    }
    weights = {name: whole(tensor) for name, tensor in module.state_dict().items()}
    return replace(state, weights=weights, optimizer=moments)


def loaded(state: StageState, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights and moments of a checkpoint where they belong; every rank calls it.

    Raises:
        InputError: they do not fit.
    """
    now = module.state_dict()
    if state.weights.keys() != now.keys() or any(now[name].shape != x.shape for name, x in state.weights.items()):
        raise InputError(_OTHER_VERSION)
    module.load_state_dict({name: sharded_like(now[name], tensor) for name, tensor in state.weights.items()})
    moments = dict(state.optimizer)
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments["state"] = {
        number: {
            name: sharded_like(parameters[number], value) if value.shape == parameters[number].shape else value
            for name, value in values.items()
        }
        for number, values in moments["state"].items()
    }
    optimizer.load_state_dict(moments)


_OTHER_VERSION = (
    "the checkpoints of this stage were written by another version of skill-speech: delete the folder `checkpoints` to "
    "start the stage again, or use that version"
)


def write_state(path: Path, state: StageState) -> None:
    """Write a checkpoint, synced and renamed, with its SHA-256 beside it in the form of `sha256sum`.

    First the hash takes its place and then the checkpoint, so that a killed process leaves both, or a hash of nothing.

    Raises:
        InputError: the disk has no room for it.
    """
    values = vars(state)
    require_space(path.parent, _bytes_of(values), "a checkpoint")
    with atomic_write(path) as temporary:
        # A file of Python's says that the disk is full; torch's own says that a write failed.
        with temporary.open("wb") as file:
            torch.save(values, file)
        with atomic_write(hash_of(path)) as beside:
            beside.write_text(f"{sha256(temporary)}  {path.name}\n", encoding="ascii")


def read_state(path: Path) -> StageState:
    """What is in a checkpoint whose hash has been looked at: containers, numbers and tensors, on the CPU.

    Raises:
        InputError: something else is in it, it is damaged in spite of its hash, or another version has written it.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    # What a damaged archive is to torch depends on where it is damaged.
    except Exception as error:
        raise InputError(
            f"{path}: not a checkpoint of this program ({type(error).__name__}); delete it and its hash to resume "
            "from the previous one"
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a checkpoint of this program; delete it and its hash")
    kinds = {field.name: type(getattr(StageState(), field.name)) for field in fields(StageState)}
    if values.keys() != kinds.keys() or any(not isinstance(values[name], kind) for name, kind in kinds.items()):
        raise InputError(_OTHER_VERSION)
    return StageState(**values)


def hash_of(path: Path) -> Path:
    """The file that holds the hash of a checkpoint."""
    return path.with_name(f"{path.name}.sha256")


class CheckpointFolder:
    """The checkpoints of one stage, step=N.ckpt.

    Args:
        path: the folder.
        every: updates between the regular ones; others were written because of the time, or because the run was told to
            stop. When depends on the machine: only regular ones are returned to by a run that diverges.
        keep: how many of the newest regular ones are kept, and of the others since then.
        milestone_every: regular ones at multiples of this are kept permanently; 0 for none.
        minutes: between checkpoints, at most; 0 for no such limit. They are counted from `saved_now`.
    """

    def __init__(
        self, path: Path, *, every: int, keep: int = 2, milestone_every: int = 0, minutes: float = 0.0
    ) -> None:
        self.path, self.every, self.keep, self.milestone_every = path, every, keep, milestone_every
        self.minutes, self._saved_at = minutes, time.monotonic()

    def saved_now(self) -> None:
        """Count the minutes from here on."""
        self._saved_at = time.monotonic()

    def save(self, state: StageState) -> None:
        """Write a checkpoint on the first rank, and remove what need not be kept any more.

        Raises:
            InputError: the disk has no room for it.
        """
        if ranks.is_first():
            self.path.mkdir(parents=True, exist_ok=True)
            write_state(self.at(state.step), state)
        self.saved_now()
        ranks.on_first(self.prune)

    def load(self, step: int) -> StageState:
        """The checkpoint of a step, whose hash has been looked at.

        Raises:
            InputError: not a checkpoint of skill-speech, or of another version.
        """
        return read_state(self.at(step))

    def at(self, step: int) -> Path:
        """Where the checkpoint of that step is."""
        return self.path / f"step={step}.ckpt"

    def is_regular(self, step: int) -> bool:
        """Whether a checkpoint is due at that step, however long ago the last one was."""
        return step % self.every == 0

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due: at that step, or because the last one is too long ago for any rank."""
        if self.is_regular(step) or not self.minutes:
            return self.is_regular(step)
        return bool(ranks.largest(int(time.monotonic() - self._saved_at >= 60 * self.minutes)))

    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, ascending."""
        names = [path.name.removeprefix("step=").removesuffix(".ckpt") for path in self.path.glob("step=*.ckpt")]
        return sorted(int(name) for name in names if name.isdigit())

    def newest(self, before: int | None = None) -> int | None:
        """The step of the newest checkpoint that is as it was written; None where there is none.

        Args:
            before: only regular ones of earlier steps than this.

        Raises:
            InputError: there are some, and all of them are damaged.
        """
        steps = self.steps()
        if before is not None:
            steps = [step for step in steps if step < before and self.is_regular(step)]
        for step in reversed(steps):
            if reason := _damage(self.at(step)):
                logger.warning("%s: damaged checkpoint (%s); trying an older one", self.at(step), reason)
            else:
                return step
        if steps:
            raise InputError(f"{self.path}: every checkpoint is damaged; delete the folder to restart the stage")
        return None

    def forget_after(self, step: int | None) -> None:
        """Remove the checkpoints of later steps, the newest first; all of them for None."""
        for later in reversed(self.steps()):
            if step is None or later > step:
                self._remove(later)

    def prune(self) -> None:
        """Remove what need not be kept."""
        regular = [step for step in self.steps() if self.is_regular(step)]
        last = regular[-1] if regular else -1
        keep = regular[-self.keep :] + [step for step in self.steps() if step > last][-self.keep :]
        for step in self.steps():
            milestone = self.milestone_every and step and step % self.milestone_every == 0 and step in regular
            if step not in keep and not milestone:
                self._remove(step)

    def _remove(self, step: int) -> None:
        # In this order: what is left of a removal that was killed is a checkpoint, which the next one sees.
        hash_of(self.at(step)).unlink(missing_ok=True)
        self.at(step).unlink(missing_ok=True)


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, if anything."""
    try:
        stated = hash_of(path).read_text(encoding="ascii").split()[0]
        return None if sha256(path) == stated else "its SHA-256 does not match"
    except (OSError, ValueError, IndexError):
        return "its SHA-256 cannot be read"


def _bytes_of(checkpoint: Any) -> int:
    """About what it takes on the disk: its tensors and a little."""
    if isinstance(checkpoint, torch.Tensor):
        return checkpoint.numel() * checkpoint.element_size() + 512
    if isinstance(checkpoint, dict):
        return 1024 + sum(map(_bytes_of, checkpoint.values()))
    if isinstance(checkpoint, list | tuple):
        return sum(map(_bytes_of, checkpoint))
    return 64
