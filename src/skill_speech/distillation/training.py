"""Running one stage on Lightning: loggers, checkpoints, progress, and going on where a run stopped."""

from __future__ import annotations

import copy
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lhotse import CutSet
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from .. import ranks
from ..data import AudioTally, Position, TrainingBatches
from ..errors import InputError
from ..files import write_json
from ..progress import Meter
from ..stopping import StopSignals
from .checkpoints import CheckpointFolder, Checkpoints, HashedCheckpoints, told_to_stop
from .logs import CsvLogger, events_of
from .module import Distillation, Parts, StageConfig
from .parallel import Strategy, gather, placement
from .shrinking import Shrinking

logger = logging.getLogger(__name__)

Precision = Literal["bf16", "float32"]
Batches = Callable[[Position, int, int], TrainingBatches]
Reader = Callable[[Iterable[CutSet]], DataLoader[Any]]

MOST_SKIPPED_IN_A_ROW = 5
"""Updates that may be left out one after the other before an earlier state is restored."""

MOST_RETURNS = 3
"""How often a stage may restore an earlier state."""


def run_stage(
    module: Distillation,
    training: Batches,
    validation: Sequence[CutSet] | None,
    read: Reader,
    folder: Path,
    *,
    name: str,
    precision: Precision = "bf16",
    strategy: Strategy = "ddp",
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    milestone_every: int = 0,
    validate_every: int = 1_000,
    round_to: int = 1,
    max_bad: float | str = "1%",
    stop: StopSignals | None = None,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train one stage to its end, from its last checkpoint if there is one; every rank calls it.

    An update whose loss or gradient is not finite is left out. After `MOST_SKIPPED_IN_A_ROW` of them one after the
    other, weights and optimiser are restored from the last regular checkpoint before them, and training goes on with
    the data that comes next; after `MOST_RETURNS` of that, it is an error.

    Args:
        module: what to train; holds its result afterwards, on every rank.
        training: makes the training batches from (where to start, rank, number of ranks).
        validation: batches whose loss is logged, at the end always; None for no validation.
        read: makes a loader of batches.
        folder: gets checkpoints/, metrics.csv and TensorBoard's events.
        name: of the stage, for the progress bar.
        precision: "bf16" computes in bfloat16 where that is safe and keeps float32 weights.
        strategy: how ranks share the work where there are several: "ddp" keeps the student on each, "fsdp" shards it
            and the optimiser's state.
        checkpoint_every: updates between checkpoints.
        keep_checkpoints: how many of the newest are kept.
        milestone_every: checkpoints at multiples of this are kept for good; 0 for none.
        validate_every: updates between validations.
        round_to: what surgery will make the student's widths multiples of.
        max_bad: the share of cuts whose audio may be unusable.
        stop: who is told to stop; then a checkpoint is written behind the update at hand.
        on_step: called after updates, with their number.

    Returns:
        updates made in all, how many of them were left out, and how often an earlier state was restored; seconds taken
        by this call and audio seconds seen in it; what was wrong with the audio; mean losses on the validation set
        before the first update and after the last.

    Raises:
        InputError: the loss stays not finite; too much audio is bad; the disk is full; all checkpoints are damaged.
        Stopped: by `stop`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accumulate = batches_per_rank(module.stage, ranks.count(), name)
    fsdp, whole = ranks.count() > 1 and strategy == "fsdp", None
    if fsdp:
        module.freeze_what_the_loss_does_not_reach()
        whole = module.student, module.loss
        module.student, module.loss = copy.deepcopy(module.student), copy.deepcopy(module.loss)
    started = time.perf_counter()
    stop = stop or StopSignals()
    kept = CheckpointFolder(
        folder / "checkpoints", every=checkpoint_every, keep=keep_checkpoints, milestone_every=milestone_every
    )
    shrinks = module.lagrangian is not None and module.stage.shrink_every > 0
    if shrinks and fsdp:
        logger.info("%s: with fsdp, units are removed by surgery alone, not on the way", name)
    shrinking = [Shrinking(round_to)] if shrinks and not fsdp else []
    watch = _Watch(name, module, AudioTally(max_bad), on_step)
    # What a stage begins with can be returned to without a checkpoint of it.
    at_first = module.parts()
    data, at_start = _Data(training, validation, read), folder / "validation_at_start.json"
    module.validation_batches = len(validation or ())

    def new_trainer(first: int) -> lightning.Trainer:
        log = CsvLogger(folder / "metrics.csv")
        log.go_on_behind(first)
        if not first and at_start.exists():
            log.log_metrics({f"validation/{key}": value for key, value in _read(at_start).items()}, 0)
        where = placement(strategy)
        plugins = [HashedCheckpoints(), *where.pop("plugins", ())]
        return lightning.Trainer(
            max_steps=module.stage.steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            accelerator="auto",
            # Distillation.configure_gradient_clipping says what is clipped; this has to be set for it to be called.
            gradient_clip_val=module.stage.clip_norm or None,
            plugins=plugins,
            logger=[log, events_of(log, folder)],
            callbacks=[watch, *shrinking, Checkpoints(kept, validate_every, stop)],
            enable_checkpointing=False,
            **where,
            log_every_n_steps=max(1, min(50, module.stage.steps // 20)),
            val_check_interval=validate_every * accumulate,
            check_val_every_n_epoch=None,
            limit_val_batches=0 if validation is None else 1.0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )

    def validate(trainer: lightning.Trainer) -> dict[str, float]:
        if validation is None:
            return {}
        [results] = trainer.validate(module, dataloaders=data.val_dataloader(), verbose=False)
        found = {key: float(value) for key, value in results.items() if key.startswith("validation/")}
        return {key.removeprefix("validation/"): value for key, value in found.items()}

    with warnings.catch_warnings():
        _silence_lightning()
        last = ranks.on_first(kept.newest)
        trainer = new_trainer(last or 0)
        try:
            if not ranks.on_first(at_start.exists):
                losses = validate(trainer)
                ranks.on_first(lambda: write_json(at_start, losses))
            while True:
                try:
                    with stop.deferred():
                        checkpoint = None if last is None else kept.at(last)
                        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
                        told_to_stop(stop)
                    break
                except _Diverged as end:
                    last = _way_back(kept, end, name, module, at_first)
                    data.go_on()
                    trainer = new_trainer(last or 0)
            means = validate(trainer)
        except OSError as error:
            if error.errno == 28:
                raise InputError(f"{folder}: the disk is full; make room and run the same command again") from None
            raise
        except SIGTERMException:  # Lightning's, between its handler and ours
            stop.raise_if_requested()
            raise
        except SystemExit as end:
            if isinstance(end.__context__, KeyboardInterrupt):  # so Lightning passes Ctrl-C on
                raise KeyboardInterrupt from None
            raise
    if whole is not None:
        for sharded, own in zip((module.student, module.loss), whole, strict=True):
            gather(sharded, own)
        module.student, module.loss = whole
    if module.skipped_in_a_row == trainer.global_step:
        raise InputError(f"{name}: the loss was not finite in any of its {trainer.global_step} updates")
    if module.skipped:
        logger.warning("%s: %d of %d updates were left out", name, module.skipped, trainer.global_step)
    return {
        "steps": trainer.global_step,
        "skipped": module.skipped,
        "returns": module.returns,
        "seconds": time.perf_counter() - started,
        "audio_seconds": sum(ranks.gathered(watch.audio_seconds)),
        "audio": watch.tally.of_all_ranks().state_dict(),
        "validation_at_start": ranks.on_first(lambda: _read(at_start)),
        "validation": means,
    }


def batches_per_rank(stage: StageConfig, processes: int, name: str) -> int:
    """How many batches of an update each rank takes.

    Raises:
        InputError: the batches of an update cannot be divided among so many.
    """
    if stage.accumulate % processes:
        raise InputError(
            f"{name}.accumulate is {stage.accumulate}: these batches of an update cannot be shared evenly by "
            f"{processes} processes; give a multiple of {processes}, or another number of devices"
        )
    return stage.accumulate // processes


class _Diverged(Exception):  # noqa: N818 (it is on its way to be mended)
    """Many updates in a row were left out."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(step, loss)
        self.step, self.loss = step, loss


def _way_back(kept: CheckpointFolder, end: _Diverged, name: str, module: Distillation, at_first: Parts) -> int | None:
    """Bring the module back to the start of the stage; the step of the checkpoint to load then, None for none.

    Later checkpoints are removed, so that a process that is killed now goes the same way again.

    Raises:
        InputError: the weights are still those of the start, or this has been tried often enough.
    """
    advice = "lower the learning rate, use float32, or look at the data; the last checkpoint is kept"
    said = f"{name}: the loss is {end.loss} at step {end.step}, {module.skipped_in_a_row} updates in a row left out"
    if module.returns >= MOST_RETURNS:
        raise InputError(f"{said}, after {module.returns} returns to an earlier state: {advice}")
    unchanged_since = end.step - module.skipped_in_a_row
    if not unchanged_since:
        raise InputError(f"{said}, and there is no earlier state to return to: {advice}")
    good = ranks.on_first(lambda: kept.newest(before=unchanged_since))
    logger.warning("%s: back to the weights of step %d, and on with other data", said, good or 0)
    ranks.on_first(lambda: kept.forget_after(good))
    module.go_back(at_first)
    return good


def _read(path: Path) -> dict[str, float]:
    values: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
    return values


class _Data(lightning.LightningDataModule):
    """Hands the loaders over when Lightning knows where the run stands, and remembers the position in the data."""

    def __init__(self, training: Batches, validation: Sequence[CutSet] | None, read: Reader) -> None:
        super().__init__()
        self.training, self.validation, self.read = training, validation, read
        self._start, self._seen_before = Position(), 0
        self._batches: TrainingBatches | None = None

    def train_dataloader(self) -> DataLoader[Any]:
        """From the batch that comes next."""
        self._seen_before = self._module.batches_seen
        self._batches = self.training(self._start, ranks.rank(), ranks.count())
        return self.read(self._batches)

    def val_dataloader(self) -> Any:
        """This rank's share, every time, padded with repeats: a rank with nothing to do would keep others waiting."""
        if self.validation is None:
            return []
        missing = -len(self.validation) % ranks.count()
        return self.read(ranks.share([*self.validation, *[self.validation[0]] * missing]))

    def state_dict(self) -> dict[str, Any]:
        """The position, for checkpoints: the same for any number of ranks."""
        position = self._start
        if self._batches is not None:
            position = self._batches.position(self._module.batches_seen - self._seen_before)
        return {"epoch": position.epoch, "batch": position.batch}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Start there."""
        if not self._module.counts_go_on:
            self._start = Position(state["epoch"], state["batch"])

    def go_on(self) -> None:
        """Start behind what has been seen, whatever the next checkpoint says."""
        self._start, self._batches = Position(**self.state_dict()), None

    @property
    def _module(self) -> Distillation:
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, Distillation)
        return module


class _Watch(Callback):
    """Shows the progress, tells the caller, and sees updates that are left out."""

    def __init__(
        self, name: str, module: Distillation, tally: AudioTally, on_step: Callable[[int], None] | None
    ) -> None:
        self.name, self.module, self.tally, self.on_step = name, module, tally, on_step
        # Held-out audio is read again and again: it is counted by itself, and named.
        self.held_out = AudioTally(tally.max_bad)
        self.audio_seconds = 0.0
        self._skipped = 0
        self._meter: Meter | None = None

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the audio that was used, by all ranks."""
        return copy.deepcopy(self.tally.of_all_ranks().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of the checkpoint: the first rank goes on with what all have counted, whoever they were."""
        if self.module.counts_go_on:
            return
        nothing = AudioTally(self.tally.max_bad).state_dict()
        self.tally.load_state_dict(state_dict if ranks.is_first() else nothing)

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the audio, before anything is learned of it."""
        self.tally.add(batch)
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.tally.check()

    def on_validation_batch_start(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the audio here too."""
        self.held_out.add(batch)
        self.held_out.check()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the bar at the step the run stands at."""
        self._skipped = self.module.skipped
        if trainer.global_step:
            logger.info("%s: going on at step %d of %d", self.name, trainer.global_step, self.module.stage.steps)
        if trainer.is_global_zero:
            self._meter = Meter(self.name, self.module.stage.steps, trainer.global_step)
            self._meter.__enter__()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One batch further."""
        if self.module.skipped > self._skipped:
            losses, self._skipped = ranks.gathered(float(outputs["loss"])), self.module.skipped
            loss = next((loss for loss in losses if not math.isfinite(loss)), losses[0])
            if self.module.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
                raise _Diverged(trainer.global_step, loss)
            logger.warning(
                "%s: update %d left out: the loss is %g, or a gradient is not finite (%d so far)",
                *(self.name, trainer.global_step, loss, self._skipped),
            )
        self.audio_seconds += batch.waveforms_BT.numel() / self.module.student.config.sampling_rate
        if self._meter is not None:
            metrics = trainer.callback_metrics
            note = f"loss {float(metrics['train/distillation']):.3f}" if "train/distillation" in metrics else ""
            if "train/sparsity_expected" in metrics:
                wanted, now = float(metrics["train/sparsity_target"]), float(metrics["train/sparsity_expected"])
                note += f"  sparsity {now:.1%} (target {wanted:.1%})"
            self._meter.advance(trainer.global_step - self._meter.done, note)
        if self.on_step is not None:
            self.on_step(trainer.global_step)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the bar."""
        if self._meter is not None:
            self._meter.__exit__(None, None, None)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar here too."""
        if self._meter is not None:
            self._meter.__exit__(type(exception), exception, None)


def _silence_lightning() -> None:
    """Its advice on workers, folders and our own choices says nothing to a user."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
    # FSDP warns of changes in place of what a module returns; there are none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module.*returned a view")
    torch.set_float32_matmul_precision("high")
