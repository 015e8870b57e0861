"""A stage 1 on two ranks whose student gets smaller, in which one of them may have bad numbers or be told to stop."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, IterableDataset

from skill_speech.data import AudioBatch, Position
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, make_targets
from skill_speech.distillation.stage import Stage
from skill_speech.encoder import Encoder, hubert_config
from skill_speech.pruning import Budget, Lagrangian, attach_gates, find_gates
from skill_speech.run import ranks
from skill_speech.run.signals import StopSignals

SHAPE = {"hidden_size": 32, "num_heads": 2, "units": 64, "channels": 16, "depth": 3}
SHAPE |= {"positional_kernel": 8, "positional_groups": 4}


class Noise(IterableDataset[AudioBatch]):
    """Other batches on every rank; some of rank 1's are of infinite numbers."""

    def __init__(self, start: Position, rank: int, bad: range) -> None:
        self.start, self.rank, self.bad = start, rank, bad

    def position(self, used: int) -> Position:
        return replace(self.start, batch=self.start.batch + used)

    def __iter__(self):
        for number in range(self.start.batch // 2, 10_000):
            generator = torch.Generator().manual_seed(2 * number + self.rank)
            waveforms_BT = torch.randn(2, 4_000, generator=generator)
            if self.rank and number in self.bad:
                waveforms_BT *= torch.inf
            yield AudioBatch(waveforms_BT, torch.tensor([4_000, 4_000]), ("a", "b"))


def teacher_and_student() -> tuple[Encoder, Encoder]:
    """A student of which some units have closed for good."""
    torch.manual_seed(0)
    # Pre-norm: the last norm is no part of the loss.
    teacher = Encoder(hubert_config(**SHAPE, pre_norm=True, conv_norm="layer"))
    student = attach_gates(Encoder(teacher.config))
    student.load_state_dict(teacher.state_dict(), strict=False)
    with torch.no_grad():
        for gate in find_gates(student):  # a layer that loses everything, and others that lose a part
            closed = len(gate.module.log_alpha) if gate.kind != "channels" and gate.layer == 1 else 8
            gate.module.log_alpha[:closed] = -30.0 if gate.kind != "heads" or gate.layer == 1 else 2.0
    return teacher, student


def main(folder: str, steps: int = 6, bad: range = range(0), stop_at: int | None = None) -> None:
    """Leaves rankN.pt; with `stop_at`, rank 1 alone is told to stop in that update."""
    ranks.join()
    torch.set_num_threads(1)
    teacher, student = teacher_and_student()
    stage = StageConfig(steps=steps, warmup_steps=1, sparsity_steps=1, shrink_every=3, accumulate=2, batch_seconds=0.5)
    lagrangian = Lagrangian(Budget.of(teacher.config, sparsity=0.5), 1)
    module = Distillation(teacher, student, DistillationLoss(make_targets("all-layers", 3), 32), stage, lagrangian)
    before = student.num_parameters()

    def on_step(stage: Stage) -> None:
        if stage.state.step == stop_at and ranks.rank():
            os.kill(os.getpid(), signal.SIGUSR1)

    with StopSignals() as stop:
        outcome = Stage(
            module,
            lambda start, rank, world_size: Noise(start, rank, bad),
            None,
            lambda batches: DataLoader(batches, batch_size=None),
            Path(folder) / "stage1",
            name="stage1",
            precision="float32",
            checkpoint_every=4,
            stop=stop,
            on_step=on_step,
        ).run()
    weights = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    layers = [(len(layer.heads), layer.units) for layer in module.student.config.layers]
    kept = {"weights": weights, "before": before, "layers": layers}
    kept |= {name: outcome[name] for name in ("steps", "skipped", "returns", "audio")}
    torch.save(kept, Path(folder) / f"rank{ranks.rank()}.pt")
