"""A stage 1 on two processes whose student gets smaller: python -m tests.two_ranks FOLDER."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, IterableDataset

from skill_speech.data import AudioBatch
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, make_targets
from skill_speech.distillation.training import run_stage
from skill_speech.encoder import Encoder, hubert_config
from skill_speech.pruning import Budget, Lagrangian, attach_gates, find_gates

SHAPE = {"hidden_size": 32, "num_heads": 2, "units": 64, "channels": 16, "depth": 3}
SHAPE |= {"positional_kernel": 8, "positional_groups": 4}


class Noise(IterableDataset[AudioBatch]):
    """Other batches on every rank."""

    def __init__(self, start: int, rank: int) -> None:
        self.start, self.rank = start, rank

    def __iter__(self):
        for number in range(self.start, 10_000):
            generator = torch.Generator().manual_seed(2 * number + self.rank)
            yield AudioBatch(torch.randn(2, 4_000, generator=generator), torch.tensor([4_000, 4_000]), ("a", "b"))


def main(folder: Path) -> None:
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
        lambda start, rank, world_size: DataLoader(Noise(start, rank), batch_size=None),
        None,
        folder / "stage1",
        name="stage1",
        precision="float32",
        devices=2,
    )
    weights = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    layers = [(len(layer.heads), layer.units) for layer in student.config.layers]
    torch.save(
        {"weights": weights, "before": before, "layers": layers}, folder / f"rank{module.trainer.global_rank}.pt"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
