"""The training module of both stages: a frozen teacher, a student with or without gates."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning
import torch
from torch import Tensor

from ..encoder import Encoder
from ..pruning import Lagrangian, find_gates
from .loss import DistillationLoss

if TYPE_CHECKING:
    from ..data import AudioBatch

NO_AUDIO_SAMPLES = 16_000


@dataclass(frozen=True)
class StageConfig:
    """How long and how fast one stage learns; the defaults are the published ones of stage 1.

    Attributes:
        steps: optimiser updates.
        learning_rate: peak learning rate of weights and projections.
        warmup_steps: updates until the peak; from there the rate falls linearly to zero.
        batch_seconds: seconds of audio in a batch, per process.
        accumulate: batches per update.
        weight_decay: AdamW's, on weights and projections.
        clip_norm: largest gradient norm; 0 does not clip.
        gate_learning_rate: peak learning rate of gates and multipliers (stage 1 only).
        sparsity_steps: updates over which the target sparsity rises from zero (stage 1 only).
        student_dropout: keep the teacher's dropout in the student, as published; without it a step is cheaper.
    """

    steps: int = 50_000
    learning_rate: float = 2e-4
    warmup_steps: int = 15_000
    batch_seconds: float = 160.0
    accumulate: int = 1
    weight_decay: float = 0.0
    clip_norm: float = 10.0
    gate_learning_rate: float = 0.02
    sparsity_steps: int = 5_000
    student_dropout: bool = True


class Distillation(lightning.LightningModule):
    """Distil a teacher into a student; with a Lagrangian, prune it at the same time.

    Everything random in a step is drawn from a seed that is a function of `seed` and the number of batches seen, so
    that a run that continues from a checkpoint draws what it would have drawn.
    """

    def __init__(
        self,
        teacher: Encoder,
        student: Encoder,
        loss: DistillationLoss,
        stage: StageConfig,
        lagrangian: Lagrangian | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        # Not a submodule: the teacher does not belong into the checkpoints.
        self._teacher = [teacher.eval().requires_grad_(False)]
        self.student, self.loss, self.lagrangian = student, loss, lagrangian
        self.stage, self.seed = stage, seed
        self.batches_seen = 0
        self.skipped = 0
        """Updates that were left out because the loss or a gradient was not finite."""
        self.skipped_in_a_row = 0
        self.returns = 0
        """How often an earlier state was restored because many updates in a row were left out."""
        self._carried: dict[str, int] | None = None
        self._clock, self._audio = time.perf_counter(), 0.0

    @property
    def teacher(self) -> Encoder:
        """The frozen teacher."""
        return self._teacher[0]

    def on_fit_start(self) -> None:
        """Bring the teacher to where the student is."""
        self.teacher.to(self.device)

    def training_step(self, batch: AudioBatch, batch_idx: int) -> Tensor:
        """Loss of one cropped batch, penalty included."""
        torch.manual_seed((self.seed * 1_000_003 + self.batches_seen) * 1_009 + self.global_rank)
        self.batches_seen += 1
        self._audio += batch.waveforms_BT.numel() / self.student.config.sampling_rate
        usable = bool(batch.ids)
        # Without audio there is nothing to learn, but every process has to take part in the update.
        waveforms_BT = batch.waveforms_BT if usable else torch.zeros(1, NO_AUDIO_SAMPLES, device=self.device)
        terms = self._distil(waveforms_BT, None)
        total = terms["distillation"]
        logged: dict[str, Any] = {name: value.detach() for name, value in terms.items()}
        if self.lagrangian is not None:
            penalty, more = self.lagrangian(self.student, self.global_step)
            total = total + penalty
            logged |= {"penalty": penalty.detach(), **more}
        if usable:
            self.log_dict({f"train/{name}": value for name, value in logged.items()})
        # A loss that is not finite may have finite gradients. Times NaN, every process sees it in the gradients.
        return total * torch.where(total.detach().isfinite() & usable, 1.0, torch.nan)

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """Distillation loss of a padded batch, logged; it decides nothing."""
        if not batch.ids:
            return
        terms = self._distil(batch.waveforms_BT, batch.lengths_B)
        frames = int(self.student.num_frames(batch.lengths_B).sum())
        self.log_dict({f"validation/{name}": value for name, value in terms.items()}, batch_size=frames)

    def on_validation_epoch_end(self) -> None:
        """Log into the row of the last update, and beyond a stage into the one behind; Lightning counts otherwise."""
        self.log("step", float(self.global_step - (self.trainer.state.fn == "fit")))

    def _distil(self, waveforms_BT: Tensor, lengths_B: Tensor | None) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher = self.teacher(waveforms_BT, lengths_B)
        student = self.student(waveforms_BT, lengths_B)
        valid_BT = None
        if lengths_B is not None:
            frames = torch.arange(teacher.features_BTD.shape[1], device=waveforms_BT.device)
            valid_BT = frames < teacher.lengths_B[:, None]
        terms: dict[str, Tensor] = self.loss(student.layers, teacher.layers, valid_BT)
        return terms

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and log the norm there was; gradients that are not finite are dropped, and the weights stay.

        AdamW leaves weights without a gradient alone, moments and step counts too. The update counts as made: the
        schedule and the target sparsity go on, so that a stage is never longer than its steps.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        limit = self.stage.clip_norm or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(weights, limit)
        if bool(norm.isfinite()):
            self.skipped_in_a_row = 0
        else:
            optimizer.zero_grad(set_to_none=True)
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        self.log_dict({"train/gradient_norm": norm, "train/skipped": float(self.skipped)})

    def on_train_batch_end(self, outputs: Any, batch: AudioBatch, batch_idx: int) -> None:
        """Log the speed since the last time."""
        whole = (batch_idx + 1) % self.stage.accumulate == 0  # the last batch of an update
        if whole and self.global_step % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            now = time.perf_counter()
            self.log("train/audio_seconds_per_second", self._audio / (now - self._clock))
            self._clock, self._audio = now, 0.0

    def on_train_start(self) -> None:
        """Start the clock of the speed."""
        self._clock, self._audio = time.perf_counter(), 0.0

    def configure_optimizers(self) -> Any:
        """AdamW with one linear warm-up and decay for all; the multipliers ascend."""
        gates = [gate.module.log_alpha for gate in find_gates(self.student)]
        gate_ids = {id(weight) for weight in gates}
        weights = [weight for weight in self.student.parameters() if id(weight) not in gate_ids]
        weights += self.loss.parameters()
        stage = self.stage
        groups: list[dict[str, Any]] = [
            {"params": weights, "lr": stage.learning_rate, "weight_decay": stage.weight_decay}
        ]
        if self.lagrangian is not None:
            groups.append({"params": gates, "lr": stage.gate_learning_rate})
            multipliers = list(self.lagrangian.parameters())
            groups.append({"params": multipliers, "lr": stage.gate_learning_rate, "maximize": True})
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

        def rate(step: int) -> float:
            # The first update is the step numbered 1 of the schedule.
            step += 1
            if step <= stage.warmup_steps:
                return step / stage.warmup_steps
            return max(0.0, (stage.steps - step) / max(1, stage.steps - stage.warmup_steps))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the position in the data, and what was left out."""
        checkpoint |= {name: getattr(self, name) for name in _COUNTS}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the position in the data; after `go_back`, behind the data that led nowhere."""
        for name, value in (self._carried or checkpoint).items():
            if name in _COUNTS:
                setattr(self, name, value)
        self._carried = None

    def go_back(self) -> None:
        """The next checkpoint that is loaded restores weights and optimiser only: data and counts go on from here."""
        now = {name: getattr(self, name) for name in _COUNTS}
        self._carried = now | {"skipped_in_a_row": 0, "returns": self.returns + 1}


_COUNTS = ("batches_seen", "skipped", "skipped_in_a_row", "returns")
