"""Running one stage on Lightning: loggers, checkpoints, progress, and going on where a run stopped."""

from __future__ import annotations

import copy
import csv
import json
import logging
import pickle
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lhotse import CutSet
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader

from .. import ranks
from ..data import Position, TrainingBatches
from ..errors import InputError
from ..files import write_json
from ..progress import Meter
from .module import Distillation, StageConfig
from .parallel import Strategy, gather, placement
from .shrinking import Shrinking

logger = logging.getLogger(__name__)

Precision = Literal["bf16", "float32"]
Batches = Callable[[Position, int, int], TrainingBatches]
Reader = Callable[[Iterable[CutSet]], DataLoader[Any]]


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
    validate_every: int = 1_000,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Train one stage to its end, from its last checkpoint if there is one; every rank calls it.

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
        validate_every: updates between validations.
        on_step: called after updates, with their number.

    Returns:
        updates made in all; seconds taken by this call and audio seconds seen in it; mean losses on the validation
        set before the first update and after the last.

    Raises:
        InputError: the loss is not finite; the disk is full; all checkpoints are damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    accumulate = batches_per_rank(module.stage, ranks.count(), name)
    if ranks.count() > 1:
        module.freeze_what_the_loss_does_not_reach()
    whole = None
    if ranks.count() > 1 and strategy == "fsdp":
        whole = module.student, module.loss
        module.student, module.loss = copy.deepcopy(module.student), copy.deepcopy(module.loss)
    started = time.perf_counter()
    checkpoints = ModelCheckpoint(
        folder / "checkpoints",
        filename="{step}",
        monitor="step",
        mode="max",
        save_top_k=2,
        every_n_train_steps=checkpoint_every,
        save_on_train_epoch_end=False,
        save_last=True,
        enable_version_counter=False,
    )
    watch = _Watch(name, module, on_step)
    shrinks = module.lagrangian is not None and module.stage.shrink_every > 0
    fsdp = ranks.count() > 1 and strategy == "fsdp"
    if shrinks and fsdp:
        logger.info("%s: with fsdp, units are removed by surgery alone, not on the way", name)
    shrinking = [Shrinking()] if shrinks and not fsdp else []
    csv_log = CsvLogger(folder / "metrics.csv")
    at_start = folder / "validation_at_start.json"
    last = ranks.on_first(lambda: _newest_checkpoint(folder / "checkpoints"))
    with warnings.catch_warnings():
        _silence_lightning()
        trainer = lightning.Trainer(
            max_steps=module.stage.steps,
            max_epochs=-1,
            accumulate_grad_batches=accumulate,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            accelerator="auto",
            **placement(strategy),
            # Distillation.configure_gradient_clipping says what is clipped; this has to be set for it to be called.
            gradient_clip_val=module.stage.clip_norm or None,
            logger=[csv_log, TensorBoardLogger(folder, name="", version="", sub_dir=None)],
            callbacks=[checkpoints, watch, *shrinking],
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
        data = _Data(training, validation, read)
        module.validation_batches = len(validation or ())

        def validate() -> dict[str, float]:
            if validation is None:
                return {}
            [results] = trainer.validate(module, dataloaders=data.val_dataloader(), verbose=False)
            return {key.removeprefix("validation/"): float(value) for key, value in results.items()}

        try:
            if not ranks.on_first(at_start.exists):
                losses = validate()
                ranks.on_first(lambda: write_json(at_start, losses))
            trainer.fit(module, datamodule=data, ckpt_path=last, weights_only=True)
            means = validate()
        except OSError as error:
            if error.errno == 28:
                raise InputError(f"{folder}: the disk is full; make room and run the same command again") from None
            raise
    if trainer.interrupted:
        raise KeyboardInterrupt
    if whole is not None:
        for sharded, own in zip((module.student, module.loss), whole, strict=True):
            gather(sharded, own)
        module.student, module.loss = whole
    return {
        "steps": trainer.global_step,
        "seconds": time.perf_counter() - started,
        "audio_seconds": sum(ranks.gathered(watch.audio_seconds)),
        "validation_at_start": json.loads(at_start.read_text(encoding="utf-8")),
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


def _newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read, or None where there is none; damaged ones are named.

    Raises:
        InputError: there are checkpoints, all of them damaged.
    """
    found = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in found:
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        # What a truncated archive is to torch depends on where it ends.
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
            logger.warning("%s: damaged checkpoint (%s); trying an older one", path, type(error).__name__)
        else:
            return path
    if found:
        raise InputError(f"{folder}: every checkpoint is damaged; delete the folder to start the stage anew")
    return None


class CsvLogger(Logger):
    """One row per logged step in a file that survives going on: rows beyond the checkpoint are written anew."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._rows: dict[int, dict[str, Any]] = {}
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self._rows = {int(row["step"]): row for row in csv.DictReader(file)}

    @property
    def name(self) -> str:
        """Lightning wants one."""
        return "csv"

    @property
    def version(self) -> str:
        """Lightning wants one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Merge into the row of that step."""
        row = self._rows.setdefault(step or 0, {"step": step or 0})
        row |= {name: f"{value:.6g}" for name, value in metrics.items() if name != "epoch"}

    @rank_zero_only
    def save(self) -> None:
        """Write the file whole."""
        if not self._rows:
            return
        names = dict.fromkeys(name for row in self._rows.values() for name in row)
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self._rows[step] for step in sorted(self._rows))
        temporary.replace(self.path)

    def finalize(self, status: str) -> None:
        """Write what has been logged since the last time."""
        self.save()

    def forget_after(self, step: int) -> None:
        """Drop rows beyond a step."""
        self._rows = {number: row for number, row in self._rows.items() if number <= step}


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
        self._start = Position(state["epoch"], state["batch"])

    @property
    def _module(self) -> Distillation:
        assert self.trainer is not None
        module = self.trainer.lightning_module
        assert isinstance(module, Distillation)
        return module


class _Watch(Callback):
    """Shows the progress, tells the caller, and stops at a loss that is not a number."""

    def __init__(self, name: str, module: Distillation, on_step: Callable[[int], None] | None) -> None:
        self.name, self.module, self.on_step = name, module, on_step
        self.audio_seconds = 0.0
        self._meter: Meter | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the bar at the step the run stands at."""
        for log in trainer.loggers:
            if isinstance(log, CsvLogger):
                log.forget_after(trainer.global_step)
        if trainer.global_step:
            logger.info("%s: going on at step %d of %d", self.name, trainer.global_step, self.module.stage.steps)
        if trainer.is_global_zero:
            self._meter = Meter(self.name, self.module.stage.steps, trainer.global_step)
            self._meter.__enter__()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One batch further."""
        loss = float(outputs["loss"])
        if loss != loss or loss in (float("inf"), float("-inf")):
            raise InputError(
                f"{self.name}: the loss is {loss} at step {trainer.global_step}: lower the learning rate or use "
                f"float32; the last checkpoint is kept"
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
