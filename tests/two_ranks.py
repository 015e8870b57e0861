"""A stage 1 on two processes whose student gets smaller; tests/test_shrinking.py starts it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from skill_speech import ranks
from skill_speech.data import AudioBatch, Position
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, make_targets
from skill_speech.distillation.training import run_stage
from skill_speech.encoder import Encoder, hubert_config
from skill_speech.pruning import Budget, Lagrangian, attach_gates, find_gates

SHAPE: dict[str, Any] = {"hidden_size": 32, "num_heads": 2, "units": 64, "channels": 16, "depth": 3}
SHAPE |= {"positional_kernel": 8, "positional_groups": 4}


class Noise(IterableDataset[AudioBatch]):
    """Other batches on every rank."""

    def __init__(self, start: Position, rank: int, world_size: int) -> None:
        self.start, self.rank, self.world_size = start, rank, world_size

    def __iter__(self):
        for number in range(self.start.batch + self.rank, 10_000, self.world_size):
            generator = torch.Generator().manual_seed(number)
            yield AudioBatch(torch.randn(2, 4_000, generator=generator), torch.tensor([4_000, 4_000]), ("a", "b"))

    def position(self, count: int) -> Position:
        return Position(0, self.start.batch + count)


def work(output: str) -> None:
    ranks.join()
    folder = Path(output)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Pre-norm: the last norm is no part of the loss.
    teacher = Encoder(hubert_config(**SHAPE, pre_norm=True, conv_norm="layer"))
    student = attach_gates(Encoder(teacher.config))
    student.load_state_dict(teacher.state_dict(), strict=False)
    with torch.no_grad():
        for gate in find_gates(student):  # a layer that loses everything, and others that lose a part
            closed = len(gate.module.log_alpha) if gate.kind != "channels" and gate.layer == 1 else 8
            gate.module.log_alpha[:closed] = -30.0 if gate.kind != "heads" or gate.layer == 1 else 2.0
    stage = StageConfig(steps=6, warmup_steps=1, sparsity_steps=1, shrink_every=3, accumulate=2, batch_seconds=0.5)
    lagrangian = Lagrangian(Budget.of(teacher.config, sparsity=0.5), 1)
    module = Distillation(teacher, student, DistillationLoss(make_targets("all-layers", 3), 32), stage, lagrangian)
    before = student.num_parameters()
    run_stage(
        module,
        Noise,
        None,
        lambda batches: DataLoader(batches, batch_size=None),
        folder / "stage1",
        name="stage1",
        precision="float32",
    )
    weights = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    layers = [(len(layer.heads), layer.units) for layer in student.config.layers]
    torch.save({"weights": weights, "before": before, "layers": layers}, folder / f"rank{ranks.rank()}.pt")
