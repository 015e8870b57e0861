"""The training module of both stages: a frozen teacher, a student with or without gates."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import lightning
import torch
from torch import Tensor

from .. import ranks
from ..encoder import Encoder
from ..pruning import Lagrangian, find_gates, shrink_like
from .acceleration import Compiled, reuse_memory, teacher_for_computing
from .loss import DistillationLoss
from .parallel import average_whole_gradients, clip_gradients, count_batches_anew, shard

if TYPE_CHECKING:
    from ..data import AudioBatch

NO_AUDIO_SAMPLES = 16_000
"""Silence that stands for a batch without audio."""

Parts = tuple[Encoder, DistillationLoss, Lagrangian | None]


@dataclass(frozen=True)
class StageConfig:
    """How long and how fast one stage learns; the defaults are the published ones of stage 1.

    Attributes:
        steps: optimiser updates.
        learning_rate: peak learning rate of weights and projections.
        warmup_steps: updates until the peak; from there the rate falls linearly to zero.
        batch_seconds: seconds of audio in a batch.
        accumulate: batches per update, over all processes: with four of them and 4, each takes one.
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

    Everything random in a step (gates, dropout) is drawn from a seed that is a function of `seed` and the number of the
    batch, so that a run that continues from a checkpoint draws what it would have drawn. Ranks work on batches of
    different numbers: each draws its own gates, as DPHuBERT's GPUs do and as the batches of one process do that are
    accumulated; the gradient of the shared log α is the mean over these draws, a less noisy one than a common draw
    would give. The penalty has nothing random in it and is the same on every rank.

    Attributes:
        batches_seen: of all ranks.
        validation_batches: how many the validation set has; ranks may be given repeated ones beyond.
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
        self._computing: dict[tuple[torch.dtype, torch.device], Compiled] = {}
        self._running: Compiled | None = None
        self.student, self.loss, self.lagrangian = student, loss, lagrangian
        self.stage, self.seed = stage, seed
        self.batches_seen = self.validation_batches = 0
        self.skipped = 0
        """Updates that were left out because the loss or a gradient was not finite."""
        self.skipped_in_a_row = 0
        self.returns = 0
        """How often an earlier state was restored because many updates in a row were left out."""
        self.counts_go_on = False
        """An earlier state is or has been restored: what is counted does not begin again there."""
        self._clock, self._audio = time.perf_counter(), 0.0
        self._sharded = False

    @property
    def teacher(self) -> Encoder:
        """The frozen teacher."""
        return self._teacher[0]

    def freeze_what_the_loss_does_not_reach(self) -> None:
        """Leave weights out of the training that get no gradient, such as the final norm of a pre-norm student.

        An optimiser passes over them anyway; sharded ranks would wait for theirs. (DDP finds them by itself in every
        step: there they may change when the student shrinks.) A short forward pass tells: it depends on the teacher's
        family, the targets, and the layers that pruning has emptied.
        """
        weights = list(self.parameters())
        with torch.enable_grad():
            total = self._distil(torch.randn(1, self.student.config.sampling_rate // 2), None)["distillation"]
            if self.lagrangian is not None:
                total = total + self.lagrangian(self.student, 0)[0]
            for weight, gradient in zip(weights, torch.autograd.grad(total, weights, allow_unused=True), strict=True):
                weight.requires_grad_(gradient is not None and weight.numel() > 0)

    def configure_model(self) -> None:
        """Shard the student, where the strategy has a mesh of devices for that."""
        if self.device_mesh is not None and not self._sharded:
            shard(self.student, self.loss, self.device_mesh["data_parallel"])
            self._sharded = True

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """What sharding leaves whole is averaged here."""
        if self._sharded:
            average_whole_gradients(self)

    def on_fit_start(self) -> None:
        """Bring the teacher to where the student is."""
        self.teacher.to(self.device)
        reuse_memory()

    def training_step(self, batch: AudioBatch, batch_idx: int) -> Tensor:
        """Loss of one cropped batch, penalty included."""
        torch.manual_seed((self.seed * 1_000_003 + self.batches_seen + ranks.rank()) * 1_009)
        self.batches_seen += ranks.count()
        # Batches are about equally long: what this rank has seen stands for the others.
        self._audio += ranks.count() * batch.waveforms_BT.numel() / self.student.config.sampling_rate
        usable = bool(batch.ids)
        # Without audio there is nothing to learn, but every rank has to take part in the update.
        terms = self._distil(batch.waveforms_BT if usable else self._no_audio(), None)
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

    def on_validation_epoch_start(self) -> None:
        """Nothing has been summed yet."""
        self._sums: dict[str, float] = {}

    def validation_step(self, batch: AudioBatch, batch_idx: int) -> None:
        """Distillation loss of a padded batch, summed over its frames; it decides nothing."""
        if not batch.ids:
            # A sharded student is run by all ranks or by none.
            self._distil(self._no_audio(), None)
            return
        terms = self._distil(batch.waveforms_BT, batch.lengths_B)
        if batch_idx * ranks.count() + ranks.rank() >= self.validation_batches:
            return  # a repeated one, so that all ranks have equally many
        frames = int(self.student.num_frames(batch.lengths_B).sum())
        for name, value in {**terms, "frames": torch.ones(())}.items():
            self._sums[name] = self._sums.get(name, 0.0) + frames * float(value)

    def _no_audio(self) -> Tensor:
        return torch.zeros(1, NO_AUDIO_SAMPLES, device=self.device)

    def on_validation_epoch_end(self) -> None:
        """Log the means over all frames of all ranks.

        Into the row of the last update, and beyond a stage into the one behind; Lightning counts otherwise.
        """
        parts = ranks.gathered(self._sums)
        frames = sum(part.get("frames", 0.0) for part in parts)
        for name in dict.fromkeys(name for part in parts for name in part if name != "frames"):
            self.log(f"validation/{name}", sum(part.get(name, 0.0) for part in parts) / frames)
        self.log("step", float(self.global_step - (self.trainer.state.fn == "fit")))

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
        if (dtype, self.device) not in self._computing:
            teacher = teacher_for_computing(self.teacher.to(self.device), dtype, self._compiles)
            self._computing[dtype, self.device] = Compiled(teacher, self._compiles)
        return self._computing[dtype, self.device]

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
        """Clip, and log the norm there was; gradients that are not finite are dropped, and the weights stay.

        AdamW leaves weights without a gradient alone, moments and step counts too. The update counts as made: the
        schedule and the target sparsity go on, so that a stage is never longer than its steps.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        limit = self.stage.clip_norm or float("inf")
        norm = clip_gradients(weights, limit)
        # Every rank leaves out what one of them does.
        if ranks.largest(int(not norm.isfinite())):
            optimizer.zero_grad(set_to_none=True)
            self.skipped, self.skipped_in_a_row = self.skipped + 1, self.skipped_in_a_row + 1
        else:
            self.skipped_in_a_row = 0
        self.log_dict({"train/gradient_norm": norm, "train/skipped": float(self.skipped)})

    def on_train_batch_end(self, outputs: Any, batch: AudioBatch, batch_idx: int) -> None:
        """Log the speed since the last time."""
        # The last batch of an update.
        whole = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
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
        """Remember the position in the data, and what was left out."""
        checkpoint |= {name: getattr(self, name) for name in _COUNTS}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue at the position in the data, with a student of the size that it had there.

        After `go_back`, behind the data that led nowhere.
        """
        shrink_like(self.student, checkpoint.get("state_dict", {}), "student.")  # sharded ranks have none
        for name in () if self.counts_go_on else _COUNTS:
            setattr(self, name, checkpoint[name])
        count_batches_anew(checkpoint, self.trainer.accumulate_grad_batches)

    def parts(self) -> Parts:
        """Copies of what is trained, for `go_back`."""
        return copy.deepcopy((self.student, self.loss, self.lagrangian))

    def go_back(self, parts: Parts) -> None:
        """Train these parts from here on, which are to be of the start; a checkpoint may be loaded into them.

        The student as it is may have lost units that were there in an earlier state, or be sharded for good. Data and
        counts go on, whatever the checkpoint says.
        """
        self.student, self.loss, self.lagrangian = copy.deepcopy(parts)
        self._sharded, self._running = False, None
        self.skipped_in_a_row, self.returns, self.counts_go_on = 0, self.returns + 1, True


_COUNTS = ("batches_seen", "skipped", "skipped_in_a_row", "returns")
