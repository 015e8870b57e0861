"""Units that are removed while stage 1 is under way: nothing changes for those that stay."""

# ruff: noqa: F401, F811

from __future__ import annotations

import copy
import csv
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from skill_speech import InputError, compress, load_encoder
from skill_speech.distillation import DistillationLoss, StageConfig, make_targets
from skill_speech.distillation.shrinking import worth_removing
from skill_speech.encoder import Encoder, hubert_config
from skill_speech.pruning import (
    Budget,
    Lagrangian,
    Widths,
    attach_gates,
    closed_for_good,
    count_macs,
    count_parameters,
    find_gates,
    fix_gates,
    prune,
    replace_parameters,
    shrink,
    shrink_like,
)
from skill_speech.pruning.cutting import Survivors, cut, selections
from skill_speech.pruning.size import as_float
from skill_speech.run import ranks
from skill_speech.run.signals import Stopped
from tests import two_ranks
from tests.test_compression import QUICK, SMALL, kill_at, same, speech, teacher, weights
from tests.transformers_models import TINY, VARIANTS, build, save

GATES = ("channels.1", "channels.6", "heads.0", "heads.1", "units.0", "units.1")


def gated(variant: str, folder: Path) -> Encoder:
    kind, overrides = VARIANTS[variant]
    encoder = load_encoder(save(build(kind, TINY | overrides), folder))
    return attach_gates(encoder)


def close_some(encoder: Encoder, seed: int) -> dict[str, Tensor]:
    """Close gates for good and leave the others undecided; layer 0 may lose everything. What stays, by gate."""
    rng, kept = random.Random(seed), {}
    with torch.no_grad():
        for gate in find_gates(encoder):
            size = len(gate.module.log_alpha)
            least = 1 if gate.kind == "channels" else 0
            number = 0 if not least and gate.layer == seed % 2 else rng.randint(least, size - 1)
            index = torch.tensor(sorted(rng.sample(range(size), number)), dtype=torch.long)
            gate.module.log_alpha.normal_(1.0, 1.0)
            closed = torch.ones(size, dtype=torch.bool)
            closed[index] = False
            gate.module.log_alpha[closed] = -40.0
            kept[gate.name] = index
    return kept


def assert_same_weights(one: Encoder, other: Encoder) -> None:
    """Up to the last bit: a processor's sigmoid depends on where in the vector a number stands."""
    assert one.config == other.config
    for name, weight in other.state_dict().items():
        torch.testing.assert_close(one.state_dict()[name], weight, rtol=1e-6, atol=1e-7, msg=name)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_function_in_evaluation_stays_the_same(variant: str, seed: int, tmp_path: Path) -> None:
    encoder = gated(variant, tmp_path).eval()
    kept = close_some(encoder, seed)
    whole = copy.deepcopy(encoder)
    shrink(encoder, kept)
    assert [len(layer.heads) for layer in encoder.config.layers].count(0) >= 1
    assert encoder.num_parameters() < whole.num_parameters()
    torch.manual_seed(0)
    waveforms = torch.randn(2, 6_000)
    with torch.inference_mode():
        after, before = encoder(waveforms), whole(waveforms)
    for one, other in zip(
        (*after.layers, after.last_hidden_state_BTD), (*before.layers, before.last_hidden_state_BTD), strict=True
    ):
        assert relative(one, other) < 1e-5
    # Surgery makes the same student of it, weight by weight, and the teacher's numbers of the heads are kept.
    assert_same_weights(prune(encoder), prune(whole))


def test_size_counts_what_is_gone_as_zero(tmp_path: Path) -> None:
    encoder = gated("wavlm-base", tmp_path)
    budget_of = encoder.config
    budget = Budget.of(budget_of, sparsity=0.6)
    kept = close_some(encoder, 0)
    whole = copy.deepcopy(encoder)
    lagrangian = Lagrangian(budget, 0)
    with torch.no_grad():
        lagrangian.lambda1.fill_(1.0)
    shrink(encoder, kept)
    for widths in (Widths.expected, Widths.rounded):
        small, large = (count_parameters(one.config, widths(one)) for one in (encoder, whole))
        assert as_float(small) == pytest.approx(as_float(large), rel=1e-7)
    penalties = [lagrangian.penalty(one, 5) for one in (encoder, whole)]
    assert penalties[0][0].item() == pytest.approx(penalties[1][0].item(), rel=1e-6)
    # Smaller than what is open: some have to be closed.
    tight = Budget.of(budget_of, parameters=0.9 * as_float(count_parameters(whole.config, Widths.rounded(whole))))
    for one in (encoder, whole):
        fix_gates(one, tight, missed="cut")
    assert_same_weights(prune(encoder), prune(whole))


def test_those_that_stay_draw_what_they_would_have_drawn(tmp_path: Path) -> None:
    encoder = gated("hubert-base", tmp_path).train()
    kept = close_some(encoder, 0)
    whole = copy.deepcopy(encoder)
    shrink(encoder, kept)
    for small, large in zip(find_gates(encoder), find_gates(whole), strict=True):
        torch.manual_seed(3)
        few = small.module.gates()
        torch.manual_seed(3)
        torch.testing.assert_close(few, large.module.gates()[kept[small.name]], rtol=1e-6, atol=1e-6)


def optimizer(encoder: Encoder, loss: DistillationLoss, lagrangian: Lagrangian) -> torch.optim.AdamW:
    gates = [gate.module.log_alpha for gate in find_gates(encoder)]
    others = [weight for weight in encoder.parameters() if all(weight is not gate for gate in gates)]
    groups: list[dict[str, Any]] = [{"params": [*others, *loss.parameters()], "weight_decay": 0.1}]
    groups.append({"params": gates, "lr": 0.02})
    groups.append({"params": list(lagrangian.parameters()), "maximize": True})
    # The gradient of a key's bias is zero but for rounding, which the usual epsilon would blow up.
    return torch.optim.AdamW(groups, lr=1e-3, eps=1e-4)


def train(encoder: Encoder, target: Encoder, loss: DistillationLoss, penalty: Lagrangian, by: Any, seed: int) -> None:
    torch.manual_seed(seed)
    waveforms = torch.randn(2, 4_000)
    with torch.no_grad():
        wanted = target(waveforms).layers
    by.zero_grad()
    (loss.of_layers(encoder(waveforms).layers, wanted)["distillation"] + penalty(encoder, 3)[0]).backward()
    by.step()


@pytest.mark.parametrize("variant", ["wavlm-base", "hubert-base", "hubert-large", "wavlm-large"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_next_updates_are_those_without_removal(variant: str, seed: int, tmp_path: Path) -> None:
    encoder = gated(variant, tmp_path)
    target = copy.deepcopy(encoder).eval()
    encoder = attach_gates(Encoder(target.config.without_dropout()))
    encoder.load_state_dict(target.state_dict())
    encoder.train()
    loss = DistillationLoss(make_targets("all-layers", encoder.config.num_layers), encoder.config.hidden_size)
    penalty = Lagrangian(Budget.of(encoder.config, sparsity=0.5), 3)
    by = optimizer(encoder, loss, penalty)
    for step in range(2):  # so that there are moments, of what is going to be removed too
        train(encoder, target, loss, penalty, by, step)
    kept = close_some(encoder, seed)
    plan = selections(encoder.config, Survivors.of(encoder.config, kept))
    whole, whole_loss, whole_penalty = (copy.deepcopy(one) for one in (encoder, loss, penalty))
    whole_by = optimizer(whole, whole_loss, whole_penalty)
    whole_by.load_state_dict(copy.deepcopy(by.state_dict()))
    before = sum(len(group["params"]) for group in by.param_groups)

    replaced = shrink(encoder, kept)
    replace_parameters([by], replaced)
    names = {id(weight): name for name, weight in encoder.named_parameters()}
    old = dict(whole.named_parameters())
    moments = 0
    for weight, state in by.state.items():
        if id(weight) in names:
            name = names[id(weight)]
            for kind in ("exp_avg", "exp_avg_sq"):
                assert torch.equal(state[kind], cut(whole_by.state[old[name]][kind], plan.get(name, ()))), name
                moments += 1
    assert moments > 20
    trained = [weight for group in by.param_groups for weight in group["params"]]
    wanted = [*encoder.parameters(), *loss.parameters(), *penalty.parameters()]
    assert {id(weight) for weight in trained} == {id(weight) for weight in wanted}
    assert len(trained) == len(wanted) <= before

    for step in range(2, 4):
        train(encoder, target, loss, penalty, by, step)
        train(whole, target, whole_loss, whole_penalty, whole_by, step)
    for name, weight in encoder.named_parameters():
        if encoder.config.pre_norm and is_norm_before_nothing(encoder, name):
            continue  # weight decay stops for it, and nothing reads it
        expected = cut(dict(whole.named_parameters())[name], plan.get(name, ()))
        torch.testing.assert_close(
            weight.detach(), expected, rtol=1e-4, atol=3e-6, msg=lambda text, n=name: f"{n}: {text}"
        )
    for one, other in ((loss, whole_loss), (penalty, whole_penalty)):
        for weight, expected in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(weight, expected, rtol=1e-4, atol=3e-6)


def is_norm_before_nothing(encoder: Encoder, name: str) -> bool:
    """Whether it is the norm in front of a sublayer that has no head or unit left."""
    parts = name.split(".")
    layer = encoder.config.layers[int(parts[1])] if parts[0] == "layers" else None
    return layer is not None and (
        (parts[2] == "attention_norm" and not layer.heads) or (parts[2] == "feed_forward_norm" and not layer.units)
    )


def test_a_student_is_cut_like_a_saved_one(tmp_path: Path) -> None:
    encoder = gated("wavlm-large", tmp_path)
    whole = copy.deepcopy(encoder)
    kept = close_some(encoder, 0)
    shrink(encoder, kept)
    # A second time: the numbers are still those among all units.
    shrink(encoder, {"units.1": torch.arange(0, encoder.config.layers[1].units, 2)})
    saved = encoder.state_dict()
    shrink_like(whole, saved)
    assert whole.config == encoder.config
    whole.load_state_dict(saved)
    shrink_like(whole, saved)
    assert same(whole.state_dict(), saved)
    numbers = dict(zip(GATES, (None,) * len(GATES), strict=True))
    for gate in find_gates(encoder):
        numbers[gate.name] = gate.module.kept_units.tolist()
    assert numbers["heads.1"] == kept["heads.1"].tolist()
    assert numbers["units.1"] == kept["units.1"][::2].tolist()


def vector(log_alpha: list[float]) -> Encoder:
    encoder = attach_gates(
        Encoder(
            hubert_config(hidden_size=24, num_heads=2, units=len(log_alpha), channels=8, depth=1, positional_groups=4)
        ),
        ("units",),
    )
    with torch.no_grad():
        find_gates(encoder)[0].module.log_alpha.copy_(torch.tensor(log_alpha))
    return encoder


def test_only_gates_under_the_threshold_are_closed_for_good() -> None:
    open_, nearly, closed = 5.0, -6.0, -12.0  # probabilities 0.999, 0.012, 3e-5
    encoder = vector([closed, open_] * 8 + [nearly] * 8 + [closed] * 16)
    [index] = closed_for_good(encoder, 1e-3).values()
    assert index.tolist() == [*range(1, 16, 2), *range(16, 24)]
    [index] = closed_for_good(encoder, 0.02).values()
    assert index.tolist() == list(range(1, 16, 2))
    assert closed_for_good(encoder, 1e-6) == {}


def test_widths_stay_multiples_and_the_least_probable_go_first() -> None:
    encoder = vector([5.0] * 3 + [-12.0 - number for number in range(13)])
    [index] = closed_for_good(encoder, 1e-3).values()
    assert index.tolist() == list(range(8))
    assert closed_for_good(vector([5.0] * 3 + [-12.0] * 5), 1e-3) == {}
    [index] = closed_for_good(vector([-12.0] * 16), 1e-3).values()
    assert index.tolist() == []
    # What surgery will round to, it finds: 24 units would be no multiple of 32.
    encoder = vector([5.0] * 20 + [-12.0] * 44)
    assert [len(closed_for_good(encoder, 1e-3, round_to=size)["units.0"]) for size in (1, 16, 32)] == [24, 32, 32]


@pytest.mark.parametrize("seed", range(20))
def test_a_removal_never_changes_how_many_gates_are_open(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Many of small probability: together they may be what opens one more gate in evaluation.
    log_alpha = torch.randn(256, generator=generator) * 2 - 7
    encoder = vector(log_alpha.tolist()).eval()
    gate = find_gates(encoder)[0].module
    before = gate.gates()
    kept = closed_for_good(encoder, 0.02)
    assert kept
    shrink(encoder, kept)
    after = find_gates(encoder)[0].module
    assert after.open_count() == gate.open_count()
    torch.testing.assert_close(after.gates(), before[kept["units.0"]], rtol=1e-6, atol=1e-6)
    assert float(before.sum()) == pytest.approx(float(after.gates().sum()))


@pytest.mark.parametrize("what", [{"sparsity": 0.6}, {"macs": 0.5}, {"sparsity": 0.5, "macs": 0.4}])
def test_what_is_left_has_room_for_the_budget(what: dict[str, float]) -> None:
    """The gates have closed too much: the most probable of the closed units stay, whichever layer they are in."""
    torch.manual_seed(0)
    encoder = attach_gates(Encoder(hubert_config(**SMALL)))
    budget = Budget.of(encoder.config, **what)
    with torch.no_grad():
        for gate in find_gates(encoder):
            gate.module.log_alpha.normal_(-20, 3)
    everything = closed_for_good(encoder, 1e-3)
    kept = closed_for_good(encoder, 1e-3, budget)
    assert sum(len(index) for index in kept.values()) > sum(len(index) for index in everything.values())
    # Heads go one by one: none is left that is less probable than one that is gone.
    left, gone = [], []
    for gate in find_gates(encoder):
        if gate.kind == "heads":
            stay = kept.get(gate.name, torch.arange(4)).tolist()
            for head, value in enumerate(gate.module.log_alpha.tolist()):
                (left if head in stay else gone).append(value)
    assert left
    assert max(gone) <= min(left)
    shrink(encoder, kept)
    widths = Widths.of(encoder.config)
    shares = [count_parameters(encoder.config, widths) / budget.parameters] if budget.parameters else []
    shares += [count_macs(encoder.config, widths) / budget.macs] if budget.macs else []
    assert 1.05 <= max(shares) < 1.25


def test_a_cut_waits_until_it_is_worth_it() -> None:
    encoder = attach_gates(Encoder(hubert_config(**SMALL)))
    budget = Budget.of(encoder.config, sparsity=0.5)
    units = [gate.module.log_alpha for gate in find_gates(encoder) if gate.kind == "units"]
    with torch.no_grad():
        units[0][:8] = -30.0
    assert len(closed_for_good(encoder, 1e-3, budget)["units.0"]) == 88
    assert worth_removing(encoder, 1e-3, budget) == {}
    with torch.no_grad():
        for log_alpha in units:
            log_alpha[:64] = -30.0
    assert [len(index) for index in worth_removing(encoder, 1e-3, budget).values()] == [32] * 4


STAGE = StageConfig(
    steps=20,
    warmup_steps=1,
    sparsity_steps=3,
    batch_seconds=5,
    gate_learning_rate=1.5,
    shrink_every=2,
    shrink_below=0.3,
)
# Gates that travel far enough to close for sure in twenty updates, wherever they end.
SHRINKING: dict[str, Any] = QUICK | {
    "stage1": STAGE,
    "sparsity": 0.6,
    "control": "lagrangian",
    "missed_budget": "cut",
}


@pytest.fixture(scope="module")
def shrunk(teacher: str, speech: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    compress(teacher, speech, str(folder), **SHRINKING)
    return folder


def sizes(run: Path) -> dict[int, int]:
    """Parameters of the student by step, as logged."""
    with (run / "stage1/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/parameters"]]
    return {int(row["step"]): int(float(row["train/parameters"])) for row in rows}


def test_the_student_gets_smaller_in_stage_1(shrunk: Path, teacher: str) -> None:
    held = sizes(shrunk)
    encoder = attach_gates(load_encoder(teacher))
    # While it is trained, the positional convolution has a magnitude for each tap beside its weight.
    whole, taps = encoder.num_parameters(), encoder.config.positional_kernel
    assert held[min(held)] == whole + taps  # not before the target is reached
    assert len(set(held.values())) >= 3
    assert list(held.values()) == sorted(held.values(), reverse=True)
    saved = load_file(shrunk / "stage1/student/model.safetensors")
    student = load_encoder(shrunk / "model")
    assert 0.98 * 0.4 < student.num_parameters() / load_encoder(teacher).num_parameters() <= 0.4
    left = sum(tensor.numel() for name, tensor in saved.items() if "kept_units" not in name)
    assert left == held[max(held)] - taps < whole


@pytest.mark.parametrize("step", [13, pytest.param(18, marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_with_the_smaller_student(
    shrunk: Path,
    teacher: str,
    speech: str,
    tmp_path: Path,
    step: int,
) -> None:
    kill_at("stage1", step, teacher, speech, str(tmp_path / "run"), **SHRINKING)
    compress(teacher, speech, str(tmp_path / "run"), **SHRINKING)
    assert same(weights(tmp_path / "run"), weights(shrunk))
    assert sizes(tmp_path / "run") == sizes(shrunk)


def test_surgery_starts_from_a_shrunken_student_alone(
    shrunk: Path,
    teacher: str,
    speech: str,
    tmp_path: Path,
) -> None:
    compress(teacher, speech, str(tmp_path / "run"), start_from=str(shrunk / "stage1"), **SHRINKING)
    assert same(weights(tmp_path / "run"), weights(shrunk))


def test_settings_out_of_range_are_refused(teacher: str, speech: str, tmp_path: Path) -> None:
    for changes, message in (
        ({"shrink_every": -1}, "shrink_every is -1"),
        ({"shrink_below": 0.9}, "a number from 0 to 0.5"),
    ):
        stage = StageConfig(steps=10, warmup_steps=1, sparsity_steps=2, batch_seconds=5, **changes)
        with pytest.raises(InputError, match=message):
            compress(teacher, speech, str(tmp_path / "run"), **QUICK | {"stage1": stage})


@pytest.mark.slow
def test_two_ranks_go_on_together_with_the_smaller_student(tmp_path: Path) -> None:
    """They see different data: their weights stay equal only if the gradients of the new parameters are summed up."""
    ranks.start(two_ranks.main, {"folder": str(tmp_path)}, 2)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["layers"] == [(2, 56), (0, 0), (2, 56)]
    assert sum(weight.numel() for weight in one["weights"].values()) < one["before"]
    assert same(one["weights"], other["weights"])


@pytest.mark.slow
def test_bad_numbers_on_one_rank_are_left_out_and_led_back_from_on_both(tmp_path: Path) -> None:
    """Units are removed behind the checkpoint of update 4, which is returned to."""
    ranks.start(two_ranks.main, {"folder": str(tmp_path), "steps": 14, "bad": range(7, 12)}, 2)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    for outcome in (one, other):
        assert (outcome["steps"], outcome["skipped"], outcome["returns"]) == (14, 5, 1)
        assert outcome["audio"]["read"] == 2 * 2 * (12 + 14 - 4)  # of both
        assert outcome["layers"] == [(2, 56), (0, 0), (2, 56)]
    assert same(one["weights"], other["weights"])
    assert all(weight.isfinite().all() for weight in one["weights"].values())


@pytest.mark.slow
def test_a_stop_signal_to_the_starter_reaches_the_ranks(tmp_path: Path) -> None:
    call = f"two_ranks.main, {{'folder': {str(tmp_path)!r}, 'steps': 100_000}}, 2"
    code = f"from skill_speech.run import ranks; from tests import two_ranks; ranks.start({call})"
    starter = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 240
    while not list(tmp_path.glob("stage1/checkpoints/*.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.5)
    starter.send_signal(signal.SIGUSR1)
    assert starter.wait(timeout=120) == 138


@pytest.mark.slow
def test_a_stop_signal_to_one_rank_stops_both_behind_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="SIGUSR1"):
        ranks.start(two_ranks.main, {"folder": str(tmp_path), "stop_at": 2}, 2)
    assert [path.name for path in (tmp_path / "stage1/checkpoints").glob("*.ckpt")] == ["step=2.ckpt"]
    ranks.start(two_ranks.main, {"folder": str(tmp_path)}, 2)
    one, other = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["steps"] == 6
    assert same(one["weights"], other["weights"])
