"""What a stage trains: a frozen teacher, a student with or without gates, and the loss between them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..encoder import Encoder
from ..kernels import attach_kernels
from ..pruning import Control, find_gates
from .acceleration import Compiled, teacher_for_computing
from .inputs import StudentInput
from .loss import DistillationLoss
from .outputs import Labels

Config = TypeVar("Config", bound="Stage2Config")
Parts = tuple[Encoder, DistillationLoss, Control | None]


@dataclass(frozen=True)
class Stage2Config:
    """How long and how fast a stage learns.

    The defaults are those published for stage 2, but for `accumulate` (published: 4) and `activation_dropout` (0).

    Attributes:
        steps: Number of updates.
        learning_rate: Peak learning rate of weights and projections.
        warmup_steps: Updates of linear warm-up, or a share of `steps` if below 1; the learning rate then decays
            linearly to zero.
        batch_seconds: Seconds of audio per batch.
        accumulate: Batches per update, in total over all processes: with 4 batches on 4 processes, each takes one.
        weight_decay: Weight decay of AdamW, on weights and projections.
        clip_norm: Maximum gradient norm; 0 disables clipping.
        student_dropout: Keep the teacher's dropout in the student, as published; updates are cheaper without it.
        activation_dropout: Dropout in the student's feed-forward blocks; by default, the teacher's.
        compile: Compile teacher and student with torch.compile. "auto" does so on a GPU; on a CPU the encoder's own
            kernels are faster. If compilation fails, training continues without it.
    """

    steps: int = 25_000
    learning_rate: float = 1e-4
    warmup_steps: int | float = 0.2
    batch_seconds: float = 160.0
    accumulate: int = 1
    weight_decay: float = 0.0
    clip_norm: float = 10.0
    student_dropout: bool = True
    activation_dropout: float | None = None
    compile: bool | Literal["auto"] = "auto"

    def in_updates(self: Config, steps: int | None = None) -> Config:
        """The same with every length as a number of updates, and all of them in proportion if it is `steps` long."""
        made = replace(self, steps=steps or self.steps)
        for name in self.lengths():
            length = getattr(self, name)
            share = length if 0 < length < 1 else length / self.steps
            made = replace(made, **{name: round(share * made.steps)})
        return made

    @classmethod
    def lengths(cls) -> list[str]:
        """The settings that are a part of `steps`."""
        return [field.name for field in fields(cls) if field.name.endswith("_steps")]

    def rate(self, step: int) -> float:
        """The share of the peak learning rate after so many updates: a linear warm-up, then a linear decay to zero."""
        number = step + 1  # the first update is the step numbered 1 of the schedule
        if number <= self.warmup_steps:
            return number / self.warmup_steps
        return max(0.0, (self.steps - number) / max(1, self.steps - self.warmup_steps))

    def set_rates(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Give the groups of an optimizer, which know their "peak", the learning rates after so many updates."""
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * self.rate(step)


@dataclass(frozen=True)
class Stage1Config(Stage2Config):
    """Stage 1 learns what to remove as well.

    The defaults are those published for stage 1, but for `accumulate` (published: 4) and `activation_dropout` (0).

    Attributes:
        gate_learning_rate: Peak learning rate of gates and multipliers.
        sparsity_steps: Updates over which the lagrangian control raises the target sparsity from zero, or a share of
            `steps` if below 1.
        shrink_every: After `sparsity_steps` updates, check every N updates for closed units and remove them
            permanently; 0 leaves them to surgery.
        shrink_below: Close a gate permanently when its probability of being open falls below X.
    """

    steps: int = 50_000
    learning_rate: float = 2e-4
    warmup_steps: int | float = 0.3
    gate_learning_rate: float = 0.02
    sparsity_steps: int | float = 0.1
    shrink_every: int = 500
    shrink_below: float = 1e-3


StageConfig = Stage1Config
"""Its name in version 0.1, where both stages had the same settings."""


class Distillation(nn.Module):
    """Distil a teacher into a student; with a control of its gates, prune it at the same time.

    Ranks draw their own gates, as DPHuBERT's GPUs do and as the batches of one process do that are accumulated; the
    gradient of the shared log α is the mean over these draws, a less noisy one than a common draw would give. The
    penalty has nothing random in it and is the same on every rank.

    Args:
        teacher: is frozen.
        student: what learns, with gates or without.
        loss: between the states of both.
        config: of the stage; says how the optimizer is made and what is compiled.
        control: of the gates.
        student_input: what is done to the student's speech in training.
    """

    def __init__(
        self,
        teacher: Encoder,
        student: Encoder,
        loss: DistillationLoss,
        config: Stage2Config,
        control: Control | None = None,
        student_input: StudentInput | None = None,
    ) -> None:
        super().__init__()
        self.student_input = student_input or StudentInput()
        # Not a submodule: the teacher does not belong into the checkpoints.
        self._teacher = [attach_kernels(teacher).eval().requires_grad_(False)]
        self._computing: dict[tuple[torch.dtype, torch.device], Compiled] = {}
        self._running: Compiled | None = None
        self.student, self.loss, self.control, self.config = attach_kernels(student), loss, control, config

    @property
    def teacher(self) -> Encoder:
        """The frozen teacher."""
        return self._teacher[0]

    @property
    def parts(self) -> Parts:
        """What is trained."""
        return self.student, self.loss, self.control

    @parts.setter
    def parts(self, parts: Parts) -> None:
        self.student, self.loss, self.control = parts

    def forward(
        self,
        waveforms_BT: Tensor,
        lengths_B: Tensor | None = None,
        *,
        step: int | None = None,
        seed: int | None = None,
        labels: Labels = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized (0-d), and its terms (0-d, without gradients).

        Args:
            waveforms_BT: samples.
            lengths_B: of padded waveforms; None where all are equally long.
            step: updates made so far in training, for the control's penalty; None leaves the penalty out.
            seed: of what the student draws (gates, dropout).
            labels: transcript or labels of each utterance, for the head.
        """
        total, terms = self.distil(waveforms_BT, lengths_B, seed, labels)
        shown = {name: value.detach() for name, value in terms.items()}
        if self.control is not None and step is not None:
            penalty, more = self.control.penalty(self.student, step)
            if penalty is not None:
                total = total + penalty
                shown["penalty"] = penalty.detach()
            shown |= more
        return total, shown

    def distil(
        self,
        waveforms_BT: Tensor,
        lengths_B: Tensor | None = None,
        seed: int | None = None,
        labels: Labels = (),
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (0-d) and its terms; what the student draws on the way, it draws from `seed`."""
        with torch.no_grad():
            teacher = self._teacher_now()(waveforms_BT, lengths_B)
        running = self._student_now()
        if seed is not None:
            # Last of all: what is made on first use may draw, and a resumed run uses it first in another update.
            torch.manual_seed(seed)
        heard_BT, mask_BT = waveforms_BT, None
        if self.training:
            heard_BT = self.student_input.waveforms(waveforms_BT, lengths_B)
            mask_BT = self.student_input.mask(self.student.config.num_frames(waveforms_BT.shape[1]), len(waveforms_BT))
            mask_BT = None if mask_BT is None else mask_BT.to(waveforms_BT.device)
        student = running(heard_BT, lengths_B, mask_BT)
        valid_BT = None
        if lengths_B is not None:
            frames = torch.arange(teacher.features_BTD.shape[1], device=waveforms_BT.device)
            valid_BT = frames < teacher.lengths_B[:, None]
        made: tuple[Tensor, dict[str, Tensor]] = self.loss(student, teacher, valid_BT, labels, mask_BT)
        return made

    def make_programs(self) -> None:
        """Bring the teacher to the student's device and make what runs of both, in the type that autocast is in now."""
        self._teacher_now()
        self._student_now()

    def freeze_what_the_loss_does_not_reach(self) -> None:
        """Leave weights out of the training that get no gradient, such as the final norm of a pre-norm student.

        An optimizer passes over them anyway; sharded ranks would wait for theirs. (DDP finds them by itself in every
        step: there they may change when the student shrinks.) A short forward pass tells: it depends on the teacher's
        family, the targets, and the layers that pruning has emptied.
        """
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        with torch.enable_grad():
            total, _ = self.distil(torch.randn(1, self.student.config.sampling_rate // 2))
            if self.control is not None:
                # The multipliers; gates are moved by the control wherever the loss does not reach them.
                unreached = (*self.control.parameters(), *(gate.module.log_alpha for gate in find_gates(self.student)))
                total = total + sum(0.0 * weight.sum() for weight in unreached)
            for weight, gradient in zip(weights, torch.autograd.grad(total, weights, allow_unused=True), strict=True):
                weight.requires_grad_(gradient is not None and weight.numel() > 0)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW; multipliers that are learned ascend. The peak rate of a group is its "peak"."""
        gates = [gate.module.log_alpha for gate in find_gates(self.student)]
        gate_ids = {id(weight) for weight in gates}
        weights = [weight for weight in self.student.parameters() if id(weight) not in gate_ids]
        weights += [weight for name, weight in self.loss.named_parameters() if not name.startswith("outputs.")]
        config, decay = self.config, self.config.weight_decay
        groups: list[dict[str, Any]] = [{"params": weights, "peak": config.learning_rate, "weight_decay": decay}]
        if self.loss.outputs is not None:
            peak = self.loss.outputs.config.learning_rate
            head = list(self.loss.outputs.parameters())
            groups.append({"params": head, "peak": peak or config.learning_rate, "weight_decay": decay})
        if self.control is not None and self.control.gates_learn:
            assert isinstance(config, Stage1Config)
            groups.append({"params": gates, "peak": config.gate_learning_rate})
            multipliers = list(self.control.parameters())
            groups.append({"params": multipliers, "peak": config.gate_learning_rate, "maximize": True})
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        config.set_rates(optimizer, 0)
        return optimizer

    @property
    def _own_device(self) -> torch.device:
        return next(self.student.parameters()).device

    def _teacher_now(self) -> Compiled:
        """The teacher in the type that is computed in."""
        kind = self._own_device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        if (dtype, self._own_device) not in self._computing:
            teacher = teacher_for_computing(self.teacher.to(self._own_device), dtype, self._compiles)
            self._computing[dtype, self._own_device] = Compiled(teacher, self._compiles)
        return self._computing[dtype, self._own_device]

    def _student_now(self) -> Compiled:
        if self._running is None or self._running.encoder is not self.student:
            self._running = Compiled(self.student, self._compiles)
        return self._running

    @property
    def _compiles(self) -> bool:
        return self._own_device.type == "cuda" if self.config.compile == "auto" else self.config.compile
