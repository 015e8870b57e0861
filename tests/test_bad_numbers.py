"""Losses that are not finite: the update is left out, many in a row go back, and all of it goes on after a kill."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from skill_speech import InputError
from skill_speech.data import AudioBatch, AudioTally, BadAudio, Position
from skill_speech.data.tally import Note
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, make_targets
from skill_speech.distillation.stage import Stage
from skill_speech.files import sha256
from skill_speech.pruning import Budget, Exact, Lagrangian
from tests.test_distillation import tiny_module
from tests.two_ranks import teacher_and_student

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, EVERY = 18, 4


class Noise(IterableDataset[AudioBatch]):
    """An endless sequence of batches, each a function of its number; `change` may spoil them."""

    def __init__(self, start: Position, change: Callable[[int, AudioBatch], AudioBatch]) -> None:
        self.start, self.change = start, change

    def position(self, used: int) -> Position:
        return replace(self.start, batch=self.start.batch + used)

    def __iter__(self) -> Iterator[AudioBatch]:
        number = self.start.batch
        while True:
            generator = torch.Generator().manual_seed(number)
            waveforms_BT = 0.1 * torch.randn(2, 3_000, generator=generator)
            yield self.change(number, AudioBatch(waveforms_BT, torch.tensor([3_000, 3_000]), ("a", "b")))
            number += 1


def spoiled_in(*ranges: range) -> Callable[[int, AudioBatch], AudioBatch]:
    def change(number: int, batch: AudioBatch) -> AudioBatch:
        if any(number in bad for bad in ranges):
            return batch._replace(waveforms_BT=batch.waveforms_BT * torch.inf)
        return batch

    return change


def run(
    folder: Path, change: Any, steps: int = STEPS, control: Any = Lagrangian, **options: Any
) -> tuple[Distillation, dict[str, Any]]:
    module = tiny_module(steps=steps, control=control)
    return module, train(module, folder, change, **options)


def train(
    module: Distillation, folder: Path, change: Any, first: int = 0, batches: int = 0, **options: Any
) -> dict[str, Any]:
    stage = Stage(
        module,
        lambda start, rank, world_size: Noise(replace(start, batch=max(first, start.batch)), change),
        None,
        lambda batches: DataLoader(batches, batch_size=None),
        folder,
        name="stage1",
        precision="float32",
        **{"checkpoint_every": EVERY, **options},
    )
    stage.state.batches = batches
    return stage.run() | {"batches": stage.state.batches}


def killed(folder: Path, change: Any, step: int, after_return: bool = False) -> None:
    def stop(stage: Stage) -> None:
        if stage.state.step == step and (stage.state.returns or not after_return):
            raise SystemExit("killed")

    with pytest.raises(SystemExit):
        run(folder, change, on_step=stop)


def same(one: Distillation, other: Distillation) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in one.state_dict().items())


def steps_logged(folder: Path) -> list[int]:
    with (folder / "metrics.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("control", [Exact, Lagrangian])
def test_an_update_that_is_not_finite_changes_nothing_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, control: Any
) -> None:
    states: dict[int, list[torch.Tensor]] = {}

    def keep(stage: Stage) -> None:
        moments = [value for state in stage.optimizer.state.values() for value in state.values()]
        states[stage.state.step] = [x.detach().clone() for x in [*stage.module.state_dict().values(), *moments]]

    module, result = run(tmp_path, spoiled_in(range(7, 9)), control=control, on_step=keep)
    assert (result["steps"], result["skipped"], result["returns"]) == (STEPS, 2, 0)
    for step in range(2, STEPS + 1):
        unchanged = all(map(torch.equal, states[step - 1], states[step]))
        assert unchanged == (step in (8, 9)), step  # batch 7 makes update 8
    assert all(value.isfinite().all() for value in module.state_dict().values())
    assert caplog.text.count("left out: the loss is nan") == 2
    assert "2 of 18 updates were left out" in caplog.text
    assert steps_logged(tmp_path) == list(range(STEPS))


def test_finite_gradients_do_not_hide_a_loss_that_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Distillation.distil

    def overflow(self: Any, waveforms_BT: Any, lengths_B: Any, seed: Any, labels: Any) -> Any:
        total, terms = original(self, waveforms_BT, lengths_B, seed, labels)
        if seed == 3 * 1_009:  # of the batch of that number
            total = total + torch.tensor(torch.inf)
        return total, terms

    monkeypatch.setattr(Distillation, "distil", overflow)
    assert run(tmp_path, spoiled_in())[1]["skipped"] == 1


@pytest.mark.parametrize("step", [6, 9])
def test_a_run_with_updates_left_out_goes_on_to_the_same_bits(tmp_path: Path, step: int) -> None:
    bad = spoiled_in(range(5, 6), range(7, 10), range(16, 17))
    whole, result = run(tmp_path / "whole", bad)
    assert result["skipped"] == 5
    killed(tmp_path / "run", bad, step)
    again, going_on = run(tmp_path / "run", bad)
    assert same(whole, again)
    assert going_on["skipped"] == 5


def test_many_in_a_row_go_back_and_on_with_other_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = spoiled_in(range(10, 15))  # updates 11 to 15, behind the checkpoint of step 8
    whole, result = run(tmp_path / "whole", bad)
    assert (result["steps"], result["skipped"], result["returns"]) == (STEPS, 5, 1)
    assert result["batches"] == 15 + STEPS - 8
    assert "5 updates in a row left out: back to the weights of step 8, and on with other data" in caplog.text
    assert steps_logged(tmp_path / "whole") == list(range(STEPS))
    for step, after_return in ((9, True), (13, False)):
        folder = tmp_path / f"{step}{after_return}"
        killed(folder, bad, step, after_return)
        again, going_on = run(folder, bad)
        assert same(whole, again), (step, after_return)
        assert (going_on["skipped"], going_on["returns"]) == (5, 1)


def test_many_in_a_row_before_the_first_checkpoint_go_back_to_the_start(tmp_path: Path) -> None:
    _, result = run(tmp_path, spoiled_in(range(2, 7)))
    assert (result["skipped"], result["returns"]) == (5, 1)
    assert result["batches"] == 7 + STEPS


def shrinking_module() -> Distillation:
    """A module whose student loses units before update 10."""
    teacher, student = teacher_and_student()
    stage = StageConfig(steps=STEPS, warmup_steps=1, sparsity_steps=1, shrink_every=9, batch_seconds=4)
    lagrangian = Lagrangian(Budget.of(teacher.config, sparsity=0.5), 1)
    return Distillation(teacher, student, DistillationLoss(make_targets("all-layers", 3), 32), stage, lagrangian)


def test_a_student_that_has_lost_units_goes_back_to_when_it_had_them(tmp_path: Path) -> None:
    """To a checkpoint, and to the start: as runs do that begin there and with the data behind the bad batches."""
    bad = spoiled_in(range(10, 15))  # updates 11 to 15; at update 10 units are removed
    for every, back in ((8, 8), (STEPS, 0)):
        module = shrinking_module()
        student = module.student
        result = train(module, tmp_path / f"run{back}", bad, checkpoint_every=every)
        assert (result["skipped"], result["returns"]) == (5, 1)
        assert [layer.units for layer in module.student.config.layers] == [56, 0, 56]
        reference = shrinking_module()
        folder = tmp_path / f"reference{back}"
        if back:
            folder.joinpath("checkpoints").mkdir(parents=True)
            state = torch.load(tmp_path / "run8/checkpoints/step=8.ckpt", weights_only=True)
            assert state["weights"]["student.layers.0.feed_forward.output.weight"].shape[1] == 64
            state |= {"batches": 15, "batch": 15}
            path = folder / "checkpoints/step=8.ckpt"
            torch.save(state, path)
            path.with_name("step=8.ckpt.sha256").write_text(f"{sha256(path)}  {path.name}\n")
        before = 0 if back else 15  # seeds are those of the batches' numbers, counted from the first one that is read
        referred = train(reference, folder, spoiled_in(), first=15, batches=before, checkpoint_every=every)
        assert referred["batches"] == result["batches"] == 15 + STEPS - back
        assert same(module, reference)
        assert student is not module.student


def test_what_never_gets_better_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"5 updates in a row left out, after 3 returns .*lower the learning rate"):
        run(tmp_path / "later", spoiled_in(range(10, 1_000)))
    with pytest.raises(InputError, match="at step 5, 5 updates in a row left out, and there is no earlier state"):
        run(tmp_path / "at once", spoiled_in(range(1_000)))
    with pytest.raises(InputError, match="not finite in any of its 3 updates"):
        run(tmp_path / "short", spoiled_in(range(1_000)), steps=3)


def test_a_batch_without_audio_is_an_update_left_out_and_bad_audio_is_bounded(tmp_path: Path) -> None:
    def gone(number: int, batch: AudioBatch) -> AudioBatch:
        notes = tuple(Note("missing", f"{number}.wav", f"{number}.wav: no such file", True) for _ in "ab")
        return AudioBatch(torch.empty(0, 0), torch.zeros(0, dtype=torch.int64), (), notes) if number == 6 else batch

    whole, result = run(tmp_path / "whole", gone)
    assert result["skipped"] == 1
    assert (result["audio"]["read"], result["audio"]["left_out"]) == (2 * STEPS, 2)
    assert result["audio"]["kinds"]["missing"]["files"] == {"6.wav": "6.wav: no such file"}
    killed(tmp_path / "run", gone, 10)
    again, going_on = run(tmp_path / "run", gone)
    assert same(whole, again)
    assert going_on["audio"] == result["audio"]
    with pytest.raises(
        BadAudio, match=r"2 of 14 cuts cannot be used, more than the 0.1% that max_bad allows: .*6\.wav: no such file"
    ):
        run(tmp_path / "strict", gone, audio=AudioTally("0.1%"))
