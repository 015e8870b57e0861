"""The training module of both stages: a frozen teacher, a student with or without gates."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import lightning
import torch
from torch import Tensor

from ..encoder import Encoder
from ..pruning import Lagrangian, find_gates, shrink_like
from .acceleration import Compiled, reuse_memory, teacher_for_computing
from .loss import DistillationLoss

if TYPE_CHECKING:
    from ..data import AudioBatch


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
        shrink_every: updates between looks for units to remove for good, once the target sparsity is reached (stage 1
            only); 0 removes none before surgery.
        shrink_below: probability of being open under which a gate has closed for good.
        student_dropout: keep the teacher's dropout in the student, as published; without it a step is cheaper.
        compile: have torch.compile make programs of teacher and student. "auto" does so on a GPU; on a CPU the
            encoder's own operations are faster. Where compiling fails, training goes on without.
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
    shrink_every: int = 500
    shrink_below: float = 1e-3
    student_dropout: bool = True
    compile: bool | Literal["auto"] = "auto"


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
        self._computing: dict[torch.dtype, Compiled] = {}
        self._running: Compiled | None = None
        self.student, self.loss, self.lagrangian = student, loss, lagrangian
        self.stage, self.seed = stage, seed
        self.batches_seen = 0
        self._clock, self._audio = time.perf_counter(), 0.0

    @property
    def teacher(self) -> Encoder:
        """The frozen teacher."""
        return self._teacher[0]

    def on_fit_start(self) -> None:
        """Bring the teacher to where the student is."""
        self.teacher.to(self.device)
        reuse_memory()

    def training_step(self, batch: AudioBatch, batch_idx: int) -> Tensor:
        """Loss of one cropped batch, penalty included."""
        torch.manual_seed((self.seed * 1_000_003 + self.batches_seen) * 1_009 + self.global_rank)
        self.batches_seen += 1
        self._audio += batch.waveforms_BT.numel() / self.student.config.sampling_rate
        terms = self._distil(batch.waveforms_BT, None)
        total = terms["distillation"]
        logged: dict[str, Any] = {name: value.detach() for name, value in terms.items()}
        if self.lagrangian is not None:
            penalty, more = self.lagrangian(self.student, self.global_step)
            total = total + penalty
            logged |= {"penalty": penalty.detach(), **more}
        self.log_dict({f"train/{name}": value for name, value in logged.items()})
        return total

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """Distillation loss of a padded batch, logged; it decides nothing."""
        terms = self._distil(batch.waveforms_BT, batch.lengths_B)
        frames = int(self.student.num_frames(batch.lengths_B).sum())
        self.log_dict({f"validation/{name}": value for name, value in terms.items()}, batch_size=frames)

    def _distil(self, waveforms_BT: Tensor, lengths_B: Tensor | None) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher = self._teacher_now()(waveforms_BT, lengths_B)
        student = self._student_now()(waveforms_BT, lengths_B)
        valid_BT = None
        if lengths_B is not None:
            frames = torch.arange(teacher.features_BTD.shape[1], device=waveforms_BT.device)
            valid_BT = frames < teacher.lengths_B[:, None]
        terms: dict[str, Tensor] = self.loss(student.layers, teacher.layers, valid_BT)
        return terms

    def _teacher_now(self) -> Compiled:
        """The teacher in the type that is computed in."""
        kind = self.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        if dtype not in self._computing:
            self._computing[dtype] = Compiled(teacher_for_computing(self.teacher, dtype), self._compiles)
        return self._computing[dtype]

    def _student_now(self) -> Compiled:
        if self._running is None or self._running.encoder is not self.student:
            self._running = Compiled(self.student, self._compiles)
        return self._running

    @property
    def _compiles(self) -> bool:
        return self.device.type == "cuda" if self.stage.compile == "auto" else self.stage.compile

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip, and log the norm there was."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        limit = self.stage.clip_norm or float("inf")
        self.log("train/gradient_norm", torch.nn.utils.clip_grad_norm_(weights, limit))

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
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)

        def rate(step: int) -> float:
            # The first update is the step numbered 1 of the schedule.
            step += 1
            if step <= stage.warmup_steps:
                return step / stage.warmup_steps
            return max(0.0, (stage.steps - step) / max(1, stage.steps - stage.warmup_steps))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remember the position in the data."""
        checkpoint["batches_seen"] = self.batches_seen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the position in the data, with a student of the size that it had there."""
        shrink_like(self.student, checkpoint["state_dict"], "student.")
        self.batches_seen = checkpoint["batches_seen"]
