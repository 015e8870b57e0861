"""A stage that is killed and resumed ends in the same bits: every family, every precision, whatever was made when."""

from __future__ import annotations

import errno
import itertools
import threading
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from skill_speech import InputError
from skill_speech.data import AudioBatch
from skill_speech.distillation import Distillation, DistillationLoss, StageConfig, checkpoints, make_targets
from skill_speech.distillation.acceleration import Compiled
from skill_speech.distillation.logs import full_disk_is_said_once
from skill_speech.distillation.stage import Stage
from skill_speech.encoder import Encoder, EncoderConfig, hubert_config, wavlm_config
from skill_speech.files import sha256
from skill_speech.pruning import Budget, Exact, Lagrangian, attach_gates, magnitude
from tests.test_bad_numbers import Noise, same

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE: dict[str, Any] = {"hidden_size": 24, "num_heads": 2, "units": 32, "channels": 8, "depth": 2}
SHAPE |= {"positional_kernel": 8, "positional_groups": 4}
FAMILIES = {"hubert": hubert_config(**SHAPE), "wavlm": wavlm_config(**SHAPE)}
STEPS, EVERY = 7, 3


def module_of(config: EncoderConfig, control: Any = Exact, **stage: Any) -> Distillation:
    """A gated student with dropout: both draw in every update."""
    torch.manual_seed(0)
    config = replace(config, hidden_dropout=0.1, attention_dropout=0.1)
    teacher = Encoder(config)
    student = attach_gates(Encoder(config))
    student.load_state_dict(teacher.state_dict(), strict=False)
    stages = StageConfig(steps=STEPS, warmup_steps=1, sparsity_steps=2, batch_seconds=4, **stage)
    sizes = control(Budget.of(config, sparsity=0.4), 2, STEPS)
    sizes.prepare(student, magnitude(student))
    return Distillation(teacher, student, DistillationLoss(make_targets("all-layers", 2), 24), stages, sizes)


def train(config: EncoderConfig, folder: Path, precision: Any, control: Any = Exact, **how: Any) -> Distillation:
    module = module_of(config, control)
    Stage(
        module,
        lambda start, rank, world_size: Noise(start, lambda number, batch: batch),  # type: ignore[arg-type, return-value]
        [0],  # type: ignore[list-item]
        lambda batches: DataLoader(_validation() if isinstance(batches, list) else batches, batch_size=None),  # type: ignore[arg-type, return-value]
        folder,
        name="stage1",
        precision=precision,
        validate_every=STEPS,
        **{"checkpoint_every": EVERY, **how},
    ).run()
    return module


def _validation() -> Any:
    return [AudioBatch(torch.ones(1, 3_000), torch.tensor([3_000]), ("v",))]


def killed(config: EncoderConfig, folder: Path, precision: Any, step: int, *more: Any, **how: Any) -> None:
    def stop(stage: Stage) -> None:
        if stage.state.step == step:
            raise SystemExit("killed")

    with pytest.raises(SystemExit):
        train(config, folder, precision, *more, on_step=stop, **how)


def test_a_full_disk_in_the_thread_of_a_writer_is_not_printed_and_anything_else_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def die(error: BaseException) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", threading.__excepthook__)  # pytest has one of its own
        for error, printed in ((OSError(errno.ENOSPC, "full"), False), (OSError(errno.EIO, "broken"), True)):
            with full_disk_is_said_once():
                thread = threading.Thread(target=die, args=(error,))
                thread.start()
                thread.join()
            assert ("Traceback" in capsys.readouterr().err) == printed
        assert threading.excepthook is threading.__excepthook__


@pytest.mark.parametrize("control", [Exact, Lagrangian])
@pytest.mark.parametrize("precision", ["bf16", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_stage_ends_in_the_same_bits(tmp_path: Path, family: str, precision: Any, control: Any) -> None:
    whole = train(FAMILIES[family], tmp_path / "whole", precision, control)
    killed(FAMILIES[family], tmp_path / "run", precision, EVERY + 1, control)
    assert (tmp_path / f"run/checkpoints/step={EVERY}.ckpt").exists()
    assert same(whole, train(FAMILIES[family], tmp_path / "run", precision, control))


def test_a_checkpoint_of_another_version_is_one_line(tmp_path: Path) -> None:
    killed(FAMILIES["hubert"], tmp_path, "float32", EVERY + 1)
    path = tmp_path / f"checkpoints/step={EVERY}.ckpt"
    state = torch.load(path, weights_only=True)
    state["weights"]["student.a_new_name"] = state["weights"].popitem()[1]
    torch.save(state, path)
    checkpoints.hash_of(path).write_text(f"{sha256(path)}  {path.name}")
    with pytest.raises(InputError, match="were written by another version of skill-speech: delete the folder"):
        train(FAMILIES["hubert"], tmp_path, "float32")


def test_slow_updates_are_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses minutes, not a stage; of such checkpoints few are kept, and which were written changes no bit."""
    config, rarely = FAMILIES["wavlm"], {"checkpoint_every": 1_000}
    now = itertools.count(step=60.0)  # the clock is asked once when training starts, and once after an update
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "time", SimpleNamespace(monotonic=lambda: next(now)))
        killed(config, tmp_path / "run", "bf16", 6, checkpoint_minutes=2.0, **rarely)
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("*.ckpt"))
    assert names == ["step=2.ckpt", "step=4.ckpt"]
    assert same(
        train(config, tmp_path / "whole", "bf16", checkpoint_minutes=0.0, **rarely),
        train(config, tmp_path / "run", "bf16", **rarely),
    )
    assert [path.name for path in (tmp_path / "whole/checkpoints").glob("*.ckpt")] == [f"step={STEPS}.ckpt"]


@pytest.mark.parametrize("removal", [1, 9, 10])
def test_a_kill_among_the_removals_of_checkpoints_leaves_what_a_whole_run_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removal: int
) -> None:
    """The 9th is of the checkpoint that goes when the last one was written, the 10th of its other file."""
    config, unlink, left = FAMILIES["hubert"], Path.unlink, removal

    def counted(path: Path, **options: Any) -> None:
        nonlocal left
        left -= path.name.startswith("step=") and path.exists()
        if not left:
            raise SystemExit("killed")
        unlink(path, **options)

    train(config, tmp_path / "whole", "float32", checkpoint_every=1)
    with monkeypatch.context() as here:
        here.setattr(Path, "unlink", counted)
        with pytest.raises(SystemExit):
            train(config, tmp_path / "run", "float32", checkpoint_every=1)
    train(config, tmp_path / "run", "float32", checkpoint_every=1)
    names = [sorted(path.name for path in (tmp_path / run / "checkpoints").iterdir()) for run in ("whole", "run")]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("family", "precision", "compiles"),
    [
        *product(FAMILIES, (torch.bfloat16, torch.float32), [False]),
        pytest.param("wavlm", torch.bfloat16, True, marks=pytest.mark.slow),
    ],
)
def test_a_student_draws_from_the_seed_alone_whatever_is_made_on_first_use(
    family: str, precision: torch.dtype, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an update whose teacher and programs are yet to be made, and of the same one when they are there."""
    # The program is traced as ever; what traces it, not the C++ compiler behind, is what could draw.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    module = module_of(FAMILIES[family], compile=compiles).train()
    before, call, seed = [], Compiled.__call__, torch.manual_seed

    def watched(self: Compiled, *inputs: Any) -> Any:
        if self.encoder is module.student:
            before.append(torch.get_rng_state())
        return call(self, *inputs)

    seeded = []
    monkeypatch.setattr(torch, "manual_seed", lambda number: seeded.append(number) or seed(number))
    monkeypatch.setattr(Compiled, "__call__", watched)
    waveforms_BT = 0.1 * torch.randn(2, 4_000)
    after = []
    for _ in range(2):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            module(waveforms_BT, step=0, seed=5)
        after.append(torch.get_rng_state())
    assert len(set(seeded)) == 1
    seed(seeded[0])
    assert all(torch.equal(state, torch.get_rng_state()) for state in before)
    assert torch.equal(*after)
    assert not torch.equal(after[0], torch.get_rng_state())  # there were draws
