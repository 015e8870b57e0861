"""What the processes of tests/test_distributed.py do; they find it by its name."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from skill_speech import InputError, compress
from skill_speech.compression import CompressionResult
from skill_speech.data import AudioBatch, AudioTally
from skill_speech.distillation.stage import Stage
from skill_speech.run import ranks
from skill_speech.similarity import ExactCKA, LayerScales, MinibatchCKA


def observed_compress(observations: str, die_at: int | None = None, **settings: Any) -> CompressionResult:
    """`compress` that writes what each update and each rank worked with to a folder.

    gradients-STAGE-STEP.pt has the gradients by name, gathered where they are sharded; ids-RANK.jsonl
    the stage, the step and the cuts of every batch. With `die_at` every rank stops without a word in stage 1 behind so
    many updates.
    """
    folder = Path(observations)
    folder.mkdir(exist_ok=True)
    # The batches of the update at hand by whose tally has counted them. A tally is kept, not its address: that of one
    # which is gone (the validation of stage 1) may be another's later.
    ids: dict[AudioTally, list[list[str]]] = {}
    add = AudioTally.add

    def counted(self: AudioTally, batch: AudioBatch) -> None:
        ids.setdefault(self, []).append(sorted(batch.ids))
        add(self, batch)

    def observe(stage: Stage) -> None:
        gradients, step = {}, stage.state.step - 1
        for name, weight in stage.module.named_parameters():
            if weight.grad is not None:
                gathers = getattr(weight.grad, "full_tensor", None)
                gradients[name] = weight.grad.clone() if gathers is None else gathers()
        if ranks.is_first():
            torch.save(gradients, folder / f"gradients-{stage.name}-{step}.pt")
        with (folder / f"ids-{ranks.rank()}.jsonl").open("a") as file:
            for batch in ids.pop(stage.tally):
                file.write(json.dumps([stage.name, step, batch]) + "\n")
        if die_at is not None and stage.name == "stage1" and stage.state.step == die_at:
            raise InputError("stopped by the test")

    with patch.object(AudioTally, "add", counted):
        return compress(**settings, on_step=observe)


def lose_a_rank(how: str, clock: str = "") -> None:
    """Rank 1 goes while the others wait for it; `clock` gets the time when it is killed."""
    ranks.join()
    if ranks.rank() == 1:
        if how == "killed":
            Path(clock).write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "mistake":
            raise InputError("there is no such thing")
        raise ZeroDivisionError("a defect")
    ranks.sum_in_place(torch.ones(1))


def on_first_only(folder: str) -> Any:
    """`on_first` with a value and with a mistake, and sums, as every rank saw them."""
    ranks.join()
    calls = Path(folder) / f"calls-{ranks.rank()}"
    value = ranks.on_first(lambda: calls.write_text("called"))
    try:
        ranks.on_first(lambda: _refuse())
    except InputError as error:
        message = str(error)
    total = torch.tensor([ranks.rank() + 1.0])
    ranks.sum_in_place(total)
    similar = compare(ranks.share(calibration()))
    return ranks.gathered((value, message, float(total), ranks.share([0, 1, 2, 3, 4]), *similar))


def calibration() -> list[list[torch.Tensor]]:
    """Three batches of the states of three layers, far from zero and each about elsewhere."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for number in range(3):
        base = torch.randn(2, 40, 6, generator=generator)
        mixed = base @ torch.randn(6, 5, generator=torch.Generator().manual_seed(1)) + torch.randn(
            2, 40, 5, generator=generator
        )
        batches.append([base + 3 * number, mixed - number, base.square() + 10])
    return batches


def compare(batches: list[list[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Exact and minibatch CKA, and the scales, of some batches."""
    exact, minibatch, scales = ExactCKA(), MinibatchCKA(batch_frames=16), LayerScales()
    for layers in batches:
        exact.update(layers)
        scales.update(layers)
        # Minibatches are drawn within a rank: what tells the ranks' audio apart, here all of it, they do not see.
        minibatch.update([layer_BTD - layer_BTD.mean((0, 1)) for layer_BTD in layers])
    return exact.compute(), minibatch.compute(), scales.compute()


def _refuse() -> None:
    raise InputError(f"refused by {ranks.rank()}")
