"""Checkpoints of a stage: written whole, checked when they are read, the last few and milestones kept."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ..errors import InputError
from ..files import atomic_write, require_space, sha256
from ..stopping import Stopped, StopSignals
from .logs import CsvLogger

logger = logging.getLogger(__name__)


class HashedCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint as Lightning hands it over, with its SHA-256 beside it in the form of `sha256sum`.

    First the hash takes its place and then the checkpoint, so that a killed process leaves both, or a hash of nothing.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write it, synced and renamed.

        Raises:
            InputError: the disk has no room for it.
        """
        path = Path(path)
        require_space(path.parent, _bytes_of(checkpoint), "a checkpoint")
        with atomic_write(path) as temporary:
            # A file of Python's says that the disk is full; torch's own says that a write failed.
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
            with atomic_write(hash_of(path)) as beside:
                beside.write_text(f"{sha256(temporary)}  {path.name}\n", encoding="ascii")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read it as data."""
        return read_state(Path(path))


def read_state(path: Path) -> dict[str, Any]:
    """What is in a checkpoint whose hash has been looked at: containers, numbers and tensors, on the CPU.

    Raises:
        InputError: something else is in it, or it is damaged in spite of its hash.
    """
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    # What a damaged archive is to torch depends on where it is damaged.
    except Exception as error:
        raise InputError(
            f"{path}: not a checkpoint of this program ({type(error).__name__}); delete it and its hash, and the run "
            "goes on from the one before"
        ) from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: not a checkpoint of this program; delete it and its hash")
    return values


def hash_of(path: Path) -> Path:
    """The file that holds the hash of a checkpoint."""
    return path.with_name(f"{path.name}.sha256")


class CheckpointFolder:
    """The checkpoints of one stage, step=N.ckpt.

    Args:
        path: the folder.
        every: updates between the regular ones; others were written because the run was told to stop.
        keep: how many of the newest regular ones are kept.
        milestone_every: regular ones at multiples of this are kept for good; 0 for none.
    """

    def __init__(self, path: Path, *, every: int, keep: int = 2, milestone_every: int = 0) -> None:
        self.path, self.every, self.keep, self.milestone_every = path, every, keep, milestone_every

    def at(self, step: int) -> Path:
        """Where the checkpoint of that step is."""
        return self.path / f"step={step}.ckpt"

    def is_regular(self, step: int) -> bool:
        """Whether a checkpoint is due at that step."""
        return step % self.every == 0

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
            raise InputError(f"{self.path}: every checkpoint is damaged; delete the folder to start the stage anew")
        return None

    def forget_after(self, step: int | None) -> None:
        """Remove the checkpoints of later steps, the newest first; all of them for None."""
        for later in reversed(self.steps()):
            if step is None or later > step:
                self._remove(later)

    def prune(self) -> None:
        """Remove what need not be kept."""
        regular = [step for step in self.steps() if self.is_regular(step)]
        newest = regular[-self.keep :]
        for step in self.steps():
            milestone = self.milestone_every and step and step % self.milestone_every == 0 and step in regular
            if step not in newest and not milestone and newest and step < newest[-1]:
                self._remove(step)

    def _remove(self, step: int) -> None:
        self.at(step).unlink(missing_ok=True)
        hash_of(self.at(step)).unlink(missing_ok=True)


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, if anything."""
    try:
        stated = hash_of(path).read_text(encoding="ascii").split()[0]
        return None if sha256(path) == stated else "its SHA-256 is another"
    except (OSError, ValueError, IndexError):
        return "its SHA-256 cannot be read"


class Checkpoints(Callback):
    """Saves a stage when a checkpoint is due, at its end, and when the run is told to stop.

    Where a step is validated, its checkpoint is written behind that: everything that belongs to a step is in it, or
    has been logged before.
    """

    def __init__(self, folder: CheckpointFolder, validate_every: int, stop: StopSignals) -> None:
        self.folder, self.validate_every, self.stop = folder, validate_every, stop
        self._seen = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the signals back from Lightning, which would end the loop without a checkpoint."""
        self.stop.install()
        self._seen = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save behind an update."""
        if trainer.global_step == self._seen:  # the update has more batches
            return
        self._seen = trainer.global_step
        validated = bool(trainer.num_val_batches) and self._seen % self.validate_every == 0
        if not validated:
            self._log(trainer)
            self._after_update(trainer, pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save behind the validation of an update."""
        if trainer.state.fn == "fit":
            self._after_update(trainer, pl_module)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save the end."""
        if not self.folder.at(trainer.global_step).exists():
            self._save(trainer)

    def _after_update(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        stop = self.stop.requested is not None
        if trainer.world_size > 1:  # a signal may reach one of several processes
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        # In a row of updates that were skipped, the weights are those of before: not worth going back to.
        due = self.folder.is_regular(trainer.global_step) and not getattr(pl_module, "skipped_in_a_row", 0)
        if due or stop:
            self._save(trainer)
        if stop:
            raise Stopped(self.stop.requested or signal.SIGTERM)

    def _log(self, trainer: lightning.Trainer) -> None:
        """What Lightning is going to log of this update right behind its checkpoint, and what could be lost between."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            values = {
                name: float(value)
                for name, value in trainer.logged_metrics.items()
                if name.startswith("train/") and name != "train/audio_seconds_per_second"  # that is of a moment
            }
            for log in trainer.loggers:
                if isinstance(log, CsvLogger):
                    log.log_metrics(values, trainer.global_step - 1)

    def _save(self, trainer: lightning.Trainer) -> None:
        for log in trainer.loggers:
            log.save()
        trainer.save_checkpoint(self.folder.at(trainer.global_step))
        if trainer.is_global_zero:
            self.folder.prune()


def _bytes_of(checkpoint: Any) -> int:
    """About what it takes on the disk: its tensors and a little."""
    if isinstance(checkpoint, torch.Tensor):
        return checkpoint.numel() * checkpoint.element_size() + 512
    if isinstance(checkpoint, dict):
        return 1024 + sum(map(_bytes_of, checkpoint.values()))
    if isinstance(checkpoint, list | tuple):
        return sum(map(_bytes_of, checkpoint))
    return 64
