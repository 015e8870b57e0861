"""The controls of the size: exact, one-shot, and what surgery does about a missed budget."""

from __future__ import annotations

import pytest
import torch

from skill_speech.encoder import Encoder, LearnedScale, hubert_config, wavlm_config
from skill_speech.pruning import (
    Budget,
    Exact,
    Lagrangian,
    MissedBudgetError,
    OneShot,
    Widths,
    attach_gates,
    find_gates,
    fix_gates,
    magnitude,
    prune,
    sensitivity,
)
from skill_speech.pruning.importance import _fitting, _prices, choose, value_for_cost

SMALL = {"hidden_size": 48, "num_heads": 4, "units": 96, "channels": 24, "depth": 4}
SMALL |= {"positional_kernel": 16, "positional_groups": 4}
FAMILIES = {"hubert": hubert_config, "wavlm": wavlm_config}
BUDGETS = [{"sparsity": 0.5}, {"sparsity": 0.8}, {"macs": 0.4}, {"sparsity": 0.5, "macs": 0.4}]


def gated(family: str = "wavlm", **changes: object) -> Encoder:
    torch.manual_seed(0)
    return attach_gates(Encoder(FAMILIES[family](**SMALL | changes)))


def random_gradients(encoder: Encoder, generator: torch.Generator) -> None:
    for gate in find_gates(encoder):
        shape = gate.module.log_alpha.shape
        gate.module.log_alpha.grad = 1e-3 * torch.randn(shape, generator=generator) - 5e-4


def gaps(encoder: Encoder, budget: Budget) -> list[float]:
    """Expected sparsities beyond their targets."""
    pairs = budget.sparsities(encoder, Widths.expected(encoder))
    return [float(value.detach()) - target for value, target in pairs]


@pytest.mark.parametrize("steps", [1, 60])
@pytest.mark.parametrize("what", BUDGETS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
def test_exact_control_is_at_the_target_before_and_after_every_update(family, pre_norm, what, steps):
    encoder = gated(family, pre_norm=pre_norm)
    budget = Budget.of(encoder.config, **what)
    control, generator = Exact(budget, 0, steps), torch.Generator()
    control.prepare(encoder, magnitude(encoder))
    for step in range(steps + 1):
        assert min(gaps(encoder, budget)) == pytest.approx(0, abs=1e-4 if step == 0 else 1e-5)  # float32 gates
        random_gradients(encoder, generator)
        control.move(encoder, step)
    # Of what the gates closed on average, surgery only has to round.
    fix_gates(encoder, budget)
    assert float(budget.excess(encoder, Widths.of(prune(encoder).config))) <= 1e-9


def test_heads_and_channels_are_decided_from_the_start():
    encoder = gated(units=2_000)
    budget, generator = Budget.of(encoder.config, sparsity=0.5), torch.Generator().manual_seed(0)
    importance = {name: x * torch.randn(len(x), generator=generator).exp() for name, x in magnitude(encoder).items()}
    Exact(budget, 0, 10**6).prepare(encoder, importance)
    large = [gate.module.log_alpha.detach() for gate in find_gates(encoder) if gate.kind != "units"]
    assert torch.cat(large).abs().min() > 8


@pytest.mark.parametrize("what", BUDGETS[:2], ids=str)
def test_in_a_short_run_the_importance_decides_and_in_a_long_one_what_is_learned_does(what):
    """The same units as of a one-shot cut, of which a long run has all to choose from."""
    widths, generator = [], torch.Generator().manual_seed(0)
    # Units of trained encoders differ by orders of magnitude.
    importance = {name: x * torch.randn(len(x), generator=generator).exp() for name, x in magnitude(gated()).items()}
    for steps in (3, 10**6):
        encoder, once = gated(), gated()
        budget = Budget.of(encoder.config, **what)
        control = Exact(budget, 0, steps)
        control.prepare(encoder, importance)
        widths.append(sum(len(gate.module.log_alpha) for gate in find_gates(encoder)))
        random_gradients(encoder, generator)
        control.move(encoder, 0)
        fix_gates(encoder, budget)
        OneShot(budget, 0).prepare(once, importance)
        same = all_ = 0
        for gate, other in zip(find_gates(encoder), find_gates(once), strict=True):
            if gate.kind != "channels":  # of which a share always stays in a one-shot cut
                open_ = set(gate.module.kept_units[gate.module.eval().gates() > 0].tolist())
                same += len(open_ & set(other.module.kept_units.tolist()))
                all_ += len(open_ | set(other.module.kept_units.tolist()))
        assert same > 0.85 * all_
    assert widths[0] < 0.8 * widths[1]
    assert widths[1] == sum(len(x) for x in importance.values())


def test_exchange_opens_what_the_loss_asks_for_at_the_price_of_what_it_does_not():
    encoder = gated("hubert")
    budget = Budget.of(encoder.config, sparsity=0.5)
    control = Exact(budget, 0, 1_000, rate=0.1)
    for gate in find_gates(encoder):
        gate.module.remember_gradients()
        torch.nn.init.zeros_(gate.module.log_alpha)
    control.move(encoder, 0)  # without a gradient: to the size
    wanted = [gate.module for gate in find_gates(encoder) if gate.kind == "units"][1]
    for step in range(200):
        for gate in find_gates(encoder):
            gate.module.log_alpha.grad = torch.zeros_like(gate.module.log_alpha)
        wanted.log_alpha.grad = torch.where(torch.arange(96) < 30, -1.0, 0.0)
        control.move(encoder, step)
    keep = wanted.keep_probability().detach()
    others = torch.cat([g.module.keep_probability().detach() for g in find_gates(encoder) if g.module is not wanted])
    assert keep[:30].min() > 0.95
    assert keep[30:].max() < 0.85
    assert others.mean() < 0.87
    assert gaps(encoder, budget) == [pytest.approx(0, abs=1e-5)]


def test_learned_moments_go_with_the_units_that_are_removed():
    from skill_speech.pruning import shrink

    encoder = gated()
    control = Exact(Budget.of(encoder.config, sparsity=0.5), 0, 10)
    control.prepare(encoder, magnitude(encoder))
    random_gradients(encoder, torch.Generator())
    control.move(encoder, 0)
    gate = find_gates(encoder)[-1]
    before = gate.module.gradient_square.clone()
    kept = torch.tensor([0, 2, 5])
    shrink(encoder, {gate.name: kept})
    assert torch.equal(find_gates(encoder)[-1].module.gradient_square, before[kept])
    random_gradients(encoder, torch.Generator())
    control.move(encoder, 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_sensitivity_is_the_squared_norm_of_the_derivative(family):
    """Against finite differences of every unit's factor, on one utterance and with many projections."""
    encoder = gated(family, units=12, channels=8, depth=2).eval()
    teacher = Encoder(encoder.config).eval()
    teacher.load_state_dict({k: v for k, v in encoder.state_dict().items() if "scale" not in k})
    wave = torch.randn(1, 2_000, generator=torch.Generator().manual_seed(1))

    def outputs(output):
        return [output.layers[1], output.layers[2]]

    found = sensitivity(teacher, encoder, outputs, [wave] * 300)
    teacher.double()
    normal = [y.detach() for y in outputs(teacher(wave.double()))]
    for gate in find_gates(encoder):
        parent, _, name = gate.place.rpartition(".")
        plain = getattr(teacher.get_submodule(parent), name)
        scale = LearnedScale(len(gate.module.log_alpha)).double().requires_grad_(False)
        setattr(teacher.get_submodule(parent), name, scale)
        exact = torch.zeros(len(scale.weight))
        for unit in range(len(exact)):
            states = []
            for sign in (1, -1):
                scale.weight.fill_(1.0)[unit] += sign * 1e-4
                states.append([y.detach() for y in outputs(teacher(wave.double()))])
            exact[unit] = sum(
                float(((a - b) / 2e-4 / y.std()).square().mean()) for a, b, y in zip(*states, normal, strict=True)
            )
        setattr(teacher.get_submodule(parent), name, plain)
        assert float(found[gate.name].sum() / exact.sum()) == pytest.approx(1, abs=0.25)
        assert torch.corrcoef(torch.stack([found[gate.name], exact]))[0, 1] > 0.9


@pytest.mark.parametrize("what", BUDGETS, ids=str)
def test_one_shot_removes_the_least_important_for_their_cost_before_the_first_update(what):
    encoder, whole = gated(), gated()
    budget = Budget.of(encoder.config, **what)
    importance = {
        gate.name: torch.rand(len(gate.module.log_alpha), generator=torch.Generator().manual_seed(n))
        for n, gate in enumerate(find_gates(encoder))
    }
    OneShot(budget, 0).prepare(encoder, importance)
    widths = Widths.of(encoder.config)
    assert -0.003 < float(budget.excess(encoder, widths)) <= 0
    values = value_for_cost(whole, budget, importance)
    kept, gone = [], []
    for gate in find_gates(encoder):
        mask = torch.zeros(gate.module.all_units, dtype=torch.bool)
        mask[gate.module.kept_units] = True
        value_U = values[gate.name]
        assert not mask.any() or mask.all() or value_U[mask].min() > value_U[~mask].max()
        if gate.kind != "channels":  # of which a share always stays
            kept.append(value_U[mask])
            getattr(widths, gate.kind)[gate.layer] += 1
            fits = float(budget.excess(encoder, widths)) <= 0
            getattr(widths, gate.kind)[gate.layer] -= 1
            gone.append(value_U[~mask])
            assert mask.all() or not fits
    # Beyond the first one that is too big, smaller ones of less value stand in its room.
    worse = torch.cat(kept) < torch.cat(gone).max()
    assert int(worse.sum()) <= 10
    encoder.train()
    assert all(bool((gate.module.gates() == 1).all()) for gate in find_gates(encoder))


@pytest.mark.parametrize("what", [{"sparsity": 0.6, "macs": 0.45}, {"sparsity": 0.4, "macs": 0.3}], ids=str)
def test_several_budgets_are_used_up_together(what):
    """No mixture of the prices that are tried one by one keeps more of the importance; equal weights keep less."""
    encoder = gated(units=200, depth=6)
    budget = Budget.of(encoder.config, **what)
    importance = {
        gate.name: torch.rand(len(gate.module.log_alpha), generator=torch.Generator().manual_seed(n)).double()
        for n, gate in enumerate(find_gates(encoder))
    }
    prices = _prices(encoder, budget)

    def worth(kept):
        return sum(float(importance[name][index].sum()) for name, index in kept.items())

    def mixed(share):
        weights = torch.tensor([share, 1 - share], dtype=torch.float64)
        return _fitting(encoder, budget, {name: importance[name] / (weights @ prices[name]) for name in prices})

    tried = [worth(mixed(share)) for share in torch.linspace(0, 1, 31).tolist()]
    found = worth(choose(encoder, budget, importance))
    assert found >= 0.995 * max(tried)
    assert found > tried[15]


def test_surgery_refuses_to_cut_what_the_gates_left_open():
    """Gates as they start, at a tenth of the way: once cut to a quarter without a word."""
    encoder = gated()
    budget = Budget.of(encoder.config, sparsity=0.75)
    with pytest.raises(MissedBudgetError, match=r"the gates are open for .* removed\), the budget is .* missed_budget"):
        fix_gates(encoder, budget)
    size = Widths.rounded(encoder)
    fix_gates(encoder, budget, missed="keep")
    assert Widths.of(prune(encoder).config).units == size.units
    fix_gates(encoder, budget, missed="cut")
    assert float(budget.excess(encoder, Widths.of(prune(encoder).config))) <= 0


def test_a_schedule_of_nothing_and_dead_units_do_no_harm():
    encoder = gated()
    budget = Budget.of(encoder.config, sparsity=0.5)
    importance = {name: torch.zeros_like(value) for name, value in magnitude(encoder).items()}
    control = Exact(budget, 0, 5)
    control.prepare(encoder, importance)
    for step in range(5):
        control.move(encoder, step)
    assert gaps(encoder, budget) == [pytest.approx(0, abs=1e-5)]
    assert all(torch.isfinite(gate.module.log_alpha).all() for gate in find_gates(encoder))


def test_controls_log_where_they_are_and_where_they_should_be():
    for kind in (Exact, Lagrangian, OneShot):
        encoder = gated()
        control = kind(Budget.of(encoder.config, sparsity=0.5), 4, 10)
        control.prepare(encoder, magnitude(encoder))
        penalty, logged = control.penalty(encoder, 2)
        assert {"sparsity_expected", "sparsity_target"} <= logged.keys()
        assert (penalty is None) == (kind is not Lagrangian)
