"""Targets, loss and the training module."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from skill_speech.distillation import (
    Distillation,
    DistillationLoss,
    LossConfig,
    StageConfig,
    Target,
    Targets,
    layer_numbers,
    make_targets,
)
from skill_speech.encoder import Encoder, wavlm_config
from skill_speech.errors import InputError
from skill_speech.pruning import Budget, Lagrangian, attach_gates

CLUSTERS = SimpleNamespace(groups=((0,), (1, 2, 5), (3, 4), (6, 7, 8, 9, 10, 11, 12)), medoids=(0, 2, 4, 9))


def states(seed: int, layers: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 7, 6, generator=generator) for _ in range(layers)]


def test_dphubert_targets_are_the_published_ones():
    targets = make_targets("dphubert", 12)
    assert [target.teacher for target in targets] == [(0,), (4,), (8,), (12,)]
    assert [target.projection for target in targets] == [0, 1, 1, 1]
    assert [target.teacher for target in make_targets("dphubert", 24)] == [(0,), (8,), (16,), (24,)]


def test_skill_targets_average_each_cluster_on_both_sides():
    targets = make_targets("skill", 12, CLUSTERS)
    assert [target.teacher for target in targets] == [target.student for target in targets] == list(CLUSTERS.groups)
    assert [target.projection for target in targets] == [0, 1, 2, 3]


def test_other_methods():
    mean = make_targets("skill-teacher-mean", 12, CLUSTERS)
    assert [target.student for target in mean] == [(0,), (5,), (4,), (12,)]
    assert [target.teacher for target in mean] == list(CLUSTERS.groups)
    assert [target.teacher for target in make_targets("medoid", 12, CLUSTERS)] == [(0,), (2,), (4,), (9,)]
    assert [target.student for target in make_targets("all-layers", 3)] == [(0,), (1,), (2,), (3,)]
    equal = make_targets("equal-groups", 12, count=4)
    assert [target.teacher for target in equal] == [(0, 1, 2), (3, 4, 5), (6, 7, 8, 9), (10, 11, 12)]
    assert [target.student for target in equal] == [target.teacher for target in equal]
    assert [target.teacher for target in make_targets("equal-groups", 3, count=4)] == [(0,), (1,), (2,), (3,)]
    shared = make_targets("skill", 12, CLUSTERS, share_projections=True)
    assert [target.projection for target in shared] == [0, 1, 1, 1]


def test_unknown_targets_are_refused_with_the_known_ones():
    with pytest.raises(InputError, match="unknown targets 'magic'; known: skill, "):
        make_targets("magic", 12)


@pytest.mark.parametrize("count", [None, 0, 14])
def test_equal_groups_need_a_number_of_them(count):
    with pytest.raises(InputError, match="from 1 to 13"):
        make_targets("equal-groups", 12, count=count)


METHODS_TARGETS = get_args(Targets)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("targets", METHODS_TARGETS)
def test_kept_layers_are_targets_of_their_own_beside_those_of_every_method(targets, shared):
    options = {"count": 4, "share_projections": shared}
    without = make_targets(targets, 12, CLUSTERS, **options)
    kept = make_targets(targets, 12, CLUSTERS, **options, keep=(9, 12))
    assert kept[-2:] == [Target((9,), (9,), None), Target((12,), (12,), None)]
    # The method's own are as they were, but for what the kept layers stand for already.
    own = [(target.teacher, target.student) for target in without]
    left = [pair for pair in own if pair not in [((9,), (9,)), ((12,), (12,))]]
    assert [(target.teacher, target.student) for target in kept[:-2]] == left
    assert len(own) - len(left) == {"all-layers": 2, "dphubert": 1, "medoid": 1}.get(targets, 0)
    numbers = {target.projection for target in kept[:-2]}
    assert numbers == set(range(len(numbers)))
    layers = [(target.teacher, target.student) for target in kept]
    assert len(layers) == len(set(layers))


def test_a_kept_layer_has_no_projection_to_hide_behind():
    """A student whose layers are the teacher's but for a linear map: the map is learned away everywhere else."""
    teacher = states(1)
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(6, 6))[0]
    student = [state @ turn for state in teacher]
    for keep, far in (((), False), ((3,), True)):
        loss = DistillationLoss(make_targets("all-layers", 4, keep=keep), 6)
        for projection in loss.projections:
            projection.weight.data = turn.clone()  # P S = S turnᵀ
        assert len(loss.projections) == 5 - len(keep)
        terms = loss.of_layers(student, teacher)
        wanted = (student[3] - teacher[3]).abs().mean() / 5 if far else torch.tensor(0.0)
        assert terms["l1"].item() == pytest.approx(wanted.item(), abs=1e-6)


def test_every_layer_may_be_kept():
    loss = DistillationLoss(make_targets("all-layers", 4, keep=range(5)), 6)
    assert not list(loss.parameters())
    assert loss.of_layers(states(1), states(1))["distillation"].item() == pytest.approx(-1)


@pytest.mark.parametrize(
    ("said", "layers"),
    [(None, ()), (9, (9,)), ("9,12", (9, 12)), (" 12, 9", (9, 12)), ([12, 9, 12], (9, 12)), ("0", (0,)), ((3,), (3,))],
)
def test_layers_as_a_person_names_them(said, layers):
    assert layer_numbers(said) == layers


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("9,x", "'x'"),
        ("9,,12", "''"),
        ("", "''"),
        ("9-12", "'9-12'"),
        ("9.5", "'9.5'"),
        (-1, "-1"),
        ([9, -3], "-3"),
        ([], "no layer"),
        ([True], "True"),
        ([9.0], "9"),
        ([9, 10**5000], "a number of more than 50 digits"),
        ("1" * 5000, "'111"),
        ({"a": 1}, "{'a': 1}"),
        ([[9]], "[9]"),
    ],
)
def test_layers_that_are_none_are_refused_in_one_line(said, named):
    with pytest.raises(InputError) as caught:
        layer_numbers(said)
    message = str(caught.value)
    assert message.startswith(f"keep_layers names {named}")
    assert message.endswith("; it must be whole numbers from 0, such as 9,12")
    assert "\n" not in message
    assert len(message) < 200


def test_a_layer_that_the_teacher_does_not_have():
    with pytest.raises(InputError, match="keep_layers names layer 13; the teacher's layers are numbered 0 to 12"):
        make_targets("skill", 12, CLUSTERS, keep=(9, 13))


@pytest.mark.parametrize(
    "config",
    [LossConfig(), LossConfig(l1=0.5, l2=2.0, cosine=0.3), LossConfig(cosine=2.0, cosine_form="log-sigmoid")],
)
@pytest.mark.parametrize("masked", [False, True])
def test_loss_equals_the_formula_frame_by_frame(config, masked):
    targets = [Target((0,), (0,), 0), Target((1, 3), (1, 3), 1), Target((2, 4), (4,), 1)]
    loss = DistillationLoss(targets, 6, config)
    torch.manual_seed(0)
    for weight in loss.parameters():
        torch.nn.init.normal_(weight)
    student, teacher = states(1), states(2)
    lengths = [7, 4] if masked else [7, 7]
    valid = (torch.arange(7) < torch.tensor(lengths)[:, None]) if masked else None
    expected = []
    for target in targets:
        weight, bias = (x.detach().double().numpy() for x in loss.projections[target.projection].parameters())
        values = []
        for b, length in enumerate(lengths):
            for t in range(length):
                wanted = np.mean([teacher[i][b, t].double().numpy() for i in target.teacher], axis=0)
                got = weight @ np.mean([student[i][b, t].double().numpy() for i in target.student], axis=0) + bias
                cosine = got @ wanted / (np.linalg.norm(got) * np.linalg.norm(wanted))
                term = -cosine if config.cosine_form == "raw" else np.log1p(np.exp(-cosine))
                difference = got - wanted
                values.append(
                    config.l1 * np.abs(difference).mean() + config.l2 * (difference**2).mean() + config.cosine * term
                )
        expected.append(np.mean(values))
    assert loss.of_layers(student, teacher, valid)["distillation"].item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_projections_start_as_the_identity():
    """A student equal to its teacher starts with no L1 distance and a cosine of one."""
    loss = DistillationLoss(make_targets("all-layers", 4), 6)
    terms = loss.of_layers(states(1), states(1))
    assert terms["l1"].item() == pytest.approx(0, abs=1e-7)
    assert terms["cosine"].item() == pytest.approx(-1)


def tiny_module(steps: int = 8, gates: bool = True, control: Any = Lagrangian) -> Distillation:
    torch.manual_seed(0)
    config = wavlm_config(
        hidden_size=24, num_heads=2, units=32, channels=8, depth=3, positional_kernel=8, positional_groups=4
    )
    teacher, student = Encoder(config), Encoder(config)
    student.load_state_dict(teacher.state_dict())
    stage = StageConfig(steps=steps, warmup_steps=2, sparsity_steps=2, batch_seconds=4)
    sizes = control(Budget.of(config, sparsity=0.3), 2, steps) if gates else None
    if gates:
        attach_gates(student)
        sizes.prepare(student)
    return Distillation(teacher, student, DistillationLoss(make_targets("dphubert", 3), 24), stage, sizes)


def test_optimizer_has_the_published_groups_and_schedule():
    module = tiny_module(steps=10)
    weights, gates, multipliers = module.make_optimizer().param_groups
    assert (gates["peak"], multipliers["peak"], weights["peak"]) == (0.02, 0.02, 2e-4)
    assert multipliers["maximize"]
    assert not gates["maximize"]
    trained = {id(weight) for group in (weights, gates, multipliers) for weight in group["params"]}
    assert trained == {id(weight) for weight in module.parameters()}
    rates = [module.config.rate(step) for step in range(10)]
    assert gates["lr"] == 0.02 * rates[0]
    assert rates == pytest.approx([0.5, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0])


def test_the_teacher_is_frozen_and_not_in_the_checkpoint():
    module = tiny_module()
    assert not any(weight.requires_grad for weight in module.teacher.parameters())
    assert not any(name.startswith("_teacher") or "teacher" in name for name in module.state_dict())


def test_a_step_is_a_function_of_the_seed():
    waveforms_BT = torch.randn(2, 4_000)
    losses = []
    for noise in (1, 2):
        module = tiny_module().train()
        torch.manual_seed(noise)  # what other code did to the global state does not matter
        losses.append(tuple(module(waveforms_BT, step=0, seed=number)[0].item() for number in range(2)))
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]
