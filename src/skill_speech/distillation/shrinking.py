"""Stage 1 with a student that gets smaller: units whose gate has closed for good are removed between updates."""

from __future__ import annotations

import logging
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from ..encoder import Encoder
from ..errors import InputError
from ..pruning import Budget, Widths, closed_for_good, count_macs, human, replace_parameters, shrink
from ..pruning.size import as_float
from .module import Distillation

logger = logging.getLogger(__name__)

# Share of the student's multiply-accumulates that a cut has to save: where the student is compiled, every cut has it
# compiled again.
LEAST_GAIN = 0.02


def worth_removing(student: Encoder, below: float, budget: Budget, round_to: int = 1) -> dict[str, Tensor]:
    """`closed_for_good`, or nothing where too little would be saved."""
    kept = closed_for_good(student, below, budget, round_to)
    before, after = Widths.of(student.config), Widths.of(student.config)
    for name, index in kept.items():
        kind, number = name.split(".")
        getattr(after, kind)[int(number)] = len(index)
    costs = [as_float(count_macs(student.config, widths)) for widths in (before, after)]
    return kept if costs[1] <= (1 - LEAST_GAIN) * costs[0] else {}


class Shrinking(Callback):
    """Looks at the gates every `StageConfig.shrink_every` updates, once the target sparsity is reached.

    What is removed depends on the weights and on the number of the update alone, so that a run that continues from a
    checkpoint does what it would have done. The look is at the beginning of an update: no gradient is there then, and
    a checkpoint of the update before is the same whoever looks first.

    Args:
        round_to: what surgery will make the widths multiples of.
    """

    def __init__(self, round_to: int = 1) -> None:
        self.round_to = round_to

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """See that every rank holds the whole student.

        Raises:
            InputError: the strategy shards it.
        """
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            raise InputError(
                f"stage1.shrink_every: units can be removed on one device or with ddp, not with "
                f"{type(trainer.strategy).__name__}; set it to 0"
            )

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look, and cut where it is worth it."""
        assert isinstance(pl_module, Distillation)
        assert pl_module.lagrangian is not None
        stage, step = pl_module.stage, trainer.global_step
        begins = pl_module.batches_seen % stage.accumulate == 0
        if not begins or step < stage.sparsity_steps or step % stage.shrink_every:
            return
        student = pl_module.student
        # All ranks have the same weights; that they also do the same is not left to rounding.
        budget = pl_module.lagrangian.budget
        kept = trainer.strategy.broadcast(worth_removing(student, stage.shrink_below, budget, self.round_to))
        if not kept:
            return
        replace_parameters(trainer.optimizers, shrink(student, kept))
        # Compiled programs are those of the old widths, and only a few are kept.
        torch.compiler.reset()
        _wrap_again(trainer)
        logger.info(
            "step %d: closed units removed; the student has %s parameters and %s MACs per second of audio left",
            step,
            human(student.num_parameters()),
            human(as_float(count_macs(student.config, Widths.of(student.config)))),
        )

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log how large the student is that is being trained, closed gates included."""
        assert isinstance(pl_module, Distillation)
        pl_module.log("train/parameters", float(pl_module.student.num_parameters()))


def _wrap_again(trainer: lightning.Trainer) -> None:
    """Tell distributed training about the new parameters."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = strategy.lightning_module
        strategy.configure_ddp()
