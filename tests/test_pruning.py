"""Gates, budgets, the Lagrangian and surgery."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from skill_speech.checkpoints import load_encoder
from skill_speech.encoder import Encoder, EncoderConfig, LayerConfig, full_layers, wavlm_config
from skill_speech.errors import InputError
from skill_speech.pruning import (
    Budget,
    HardConcrete,
    Lagrangian,
    Widths,
    attach_gates,
    check_rounding,
    config_after_surgery,
    count_macs,
    count_parameters,
    find_gates,
    fix_gates,
    prune,
)
from tests.transformers_models import TINY, VARIANTS, build, save


def gated(variant: str, folder, seed: int = 0) -> Encoder:
    kind, overrides = VARIANTS[variant]
    encoder = load_encoder(save(build(kind, TINY | overrides), folder))
    return attach_gates(encoder)


def set_random_gates(encoder: Encoder, rng: random.Random, soft: bool = False) -> None:
    """Log-alphas far from zero (gates 0 or 1), or spread out; sometimes a whole layer without heads or units."""
    with torch.no_grad():
        for gate in find_gates(encoder):
            size = len(gate.module.log_alpha)
            kept = rng.choice([0, size, rng.randint(0, size)]) if gate.kind != "channels" else rng.randint(1, size)
            order = torch.tensor(rng.sample(range(size), size))
            spread = torch.rand(size) * 3 if soft else torch.full((size,), 40.0)
            gate.module.log_alpha[order[:kept]] = spread[:kept]
            gate.module.log_alpha[order[kept:]] = -40.0
            if soft:
                gate.module.fixed_count = kept


@pytest.mark.parametrize("variant", VARIANTS)
def test_expected_size_at_hard_gates_equals_counted_parameters(variant, tmp_path):
    encoder = gated(variant, tmp_path)
    rng = random.Random(0)
    for _ in range(25):  # 25 masks for each of 13 variants
        set_random_gates(encoder, rng)
        expected = count_parameters(config_after_surgery(encoder), Widths.expected(encoder))
        student = prune(encoder)
        assert student.num_parameters() == sum(weight.numel() for weight in student.state_dict().values())
        assert round(float(expected.detach()), 6) == student.num_parameters()
        assert count_parameters(student.config, Widths.of(student.config)) == student.num_parameters()


def test_masks_of_the_test_empty_whole_sublayers(tmp_path):
    encoder = gated("wavlm-base", tmp_path)
    rng = random.Random(0)
    seen = set()
    for _ in range(25):
        set_random_gates(encoder, rng)
        layers = prune(encoder).config.layers
        seen |= {("no heads", not layer.heads) for layer in layers} | {
            ("no units", not layer.units) for layer in layers
        }
    assert {("no heads", True), ("no units", True), ("no heads", False), ("no units", False)} <= seen


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("unequal", [False, True], ids=["equal", "unequal"])
def test_pruned_student_equals_gated_student(variant, unequal, tmp_path):
    encoder = gated(variant, tmp_path).eval()
    rng = random.Random(1)
    torch.manual_seed(1)
    waveforms = torch.randn(2, 8_000)
    lengths = torch.tensor([8_000, 5_003]) if unequal else None
    for _ in range(5):
        set_random_gates(encoder, rng, soft=True)
        student = prune(encoder)
        with torch.inference_mode():
            before, after = encoder(waveforms, lengths), student(waveforms, lengths)
        for gated_state, pruned_state in zip(
            (*before.layers, before.last_hidden_state_BTD), (*after.layers, after.last_hidden_state_BTD), strict=True
        ):
            assert float((gated_state - pruned_state).norm() / gated_state.norm()) < 1e-5


@pytest.mark.parametrize("variant", ["hubert-base", "hubert-large", "wavlm-large"])
def test_norms_over_all_channels_would_change_the_model_at_surgery(variant, tmp_path, monkeypatch):
    """What DPHuBERT does: the reason for gate-aware norms."""
    from skill_speech.encoder.layers import ChannelNorm

    encoder = gated(variant, tmp_path).eval()
    set_random_gates(encoder, random.Random(1), soft=True)
    student = prune(encoder)
    waveforms = torch.randn(1, 8_000)
    aware = ChannelNorm.forward
    with torch.inference_mode():
        monkeypatch.setattr(ChannelNorm, "forward", lambda self, x, gates=None: aware(self, x))
        before = encoder(waveforms).layer_outputs[-1]
        monkeypatch.undo()
        after = student(waveforms).layer_outputs[-1]
    assert float((before - after).norm() / before.norm()) > 1e-4


def test_a_pruned_student_can_be_pruned_again(tmp_path):
    encoder = gated("wavlm-large", tmp_path).eval()
    rng = random.Random(3)
    set_random_gates(encoder, rng, soft=True)
    once = attach_gates(prune(encoder)).eval()
    set_random_gates(once, rng, soft=True)
    twice = prune(once)
    waveforms = torch.randn(1, 6_000)
    with torch.inference_mode():
        for a, b in zip(once(waveforms).layers, twice(waveforms).layers, strict=True):
            assert float((a - b).norm() / a.norm()) < 1e-5
    assert set(twice.config.layers[0].heads) <= set(once.config.layers[0].heads)


@pytest.mark.parametrize("count", [count_parameters, count_macs])
def test_gradient_of_the_expected_size_against_finite_differences(count, tmp_path):
    encoder = gated("wavlm-large", tmp_path)
    config = config_after_surgery(encoder)
    for gate in find_gates(encoder):
        gate.module.double()
        torch.nn.init.normal_(gate.module.log_alpha, std=1.5)
    count(config, Widths.expected(encoder)).backward()
    step = 1e-4
    for gate in find_gates(encoder):
        weight = gate.module.log_alpha
        with torch.no_grad():
            for index in (0, len(weight) - 1):
                kept = weight[index].item()
                sizes = []
                for sign in (1, -1):
                    weight[index] = kept + sign * step
                    sizes.append(float(count(config, Widths.expected(encoder))))
                weight[index] = kept
                numeric = (sizes[0] - sizes[1]) / (2 * step)
                assert float(weight.grad[index]) == pytest.approx(numeric, rel=1e-4, abs=1e-3), gate.name


@pytest.mark.parametrize("variant", VARIANTS)
def test_macs_agree_with_torch_flop_counter(variant, tmp_path):
    encoder = gated(variant, tmp_path)
    set_random_gates(encoder, random.Random(2))
    for model in (encoder, prune(encoder)):
        seconds = 1.5
        counter = FlopCounterMode(display=False)
        # The counter does not know the CPU's fused attention; the plain one is two matrix products.
        backend = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
        with counter, backend, torch.no_grad():
            model.eval().requires_grad_(False)(torch.randn(1, round(seconds * 16_000)))
        macs = counter.get_total_flops() / 2 / seconds
        if model.config.conv_norm == "group":  # the statistics of the norm over time, which no layer's products are
            first = model.config.convs[0]
            frames = (round(seconds * 16_000) - first.kernel) // first.stride + 1
            macs -= first.kernel * (first.kernel * (frames + first.channels) + first.channels) / seconds
        assert count_macs(model.config, Widths.of(model.config), seconds) == pytest.approx(macs, rel=1e-9)


def test_gate_draws_have_the_stated_probability_of_being_open():
    torch.manual_seed(0)
    gate = HardConcrete(5, 0.3)
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor([-4.0, -1.5, 0.0, 1.0, 3.0]))
    draws = torch.stack([gate.gates() for _ in range(20_000)])
    assert draws.min() == 0
    assert draws.max() == 1
    torch.testing.assert_close((draws > 0).float().mean(0), gate.keep_probability().detach(), atol=0.012, rtol=0)


def test_evaluation_gates_keep_the_rounded_expectation_with_soft_values():
    gate = HardConcrete(4, 0.5).eval()
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor([-6.0, 4.0, 0.3, -5.0]))
    open_share = gate.keep_probability().sum().item()
    values = gate.gates()
    assert int((values > 0).sum()) == round(open_share) == 2
    assert values[1].item() == pytest.approx(torch.sigmoid(torch.tensor(4.0 / (2 / 3) * 0.8)).item())
    assert values[0] == values[3] == 0


def test_a_convolution_keeps_at_least_one_channel(tmp_path):
    encoder = gated("hubert-base", tmp_path).eval()
    with torch.no_grad():
        for gate in find_gates(encoder):
            gate.module.log_alpha.fill_(-50)
    student = prune(encoder)
    assert [conv.channels for conv in student.config.convs] == [1] * 7
    assert set(student.config.layers) == {LayerConfig((), 0)}
    assert torch.isfinite(student(torch.randn(1, 4_000)).last_hidden_state_BTD).all()


@pytest.mark.parametrize("spread", [0.05, 6.0], ids=["undecided", "decided"])
@pytest.mark.parametrize("what", [{"sparsity": 0.75}, {"macs": 0.35}, {"sparsity": 0.6, "macs": 0.3}])
def test_fixed_gates_meet_the_budget_to_within_one_percent(spread, what):
    config = wavlm_config(hidden_size=192, num_heads=6, units=768, channels=128, positional_kernel=64)
    encoder = attach_gates(Encoder(config))
    torch.manual_seed(0)
    with torch.no_grad():
        for gate in find_gates(encoder):
            gate.module.log_alpha.normal_(-1, spread)
    budget = Budget.of(config, **what)
    fix_gates(encoder, budget, missed="cut")
    student = prune(encoder)
    shares = []
    if budget.parameters:
        shares.append(student.num_parameters() / budget.parameters)
    if budget.macs:
        shares.append(count_macs(student.config, Widths.of(student.config)) / budget.macs)
    assert max(shares) <= 1 + 1e-9
    assert max(shares) > 0.99


@pytest.mark.parametrize("round_to", [8, 32])
@pytest.mark.parametrize("what", [{"sparsity": 0.75}, {"sparsity": 0.6, "macs": 0.3}])
def test_rounded_widths_are_multiples_and_use_the_budget_up(round_to, what):
    config = wavlm_config(hidden_size=192, num_heads=6, units=770, channels=132, positional_kernel=64)
    encoder = attach_gates(Encoder(config))
    torch.manual_seed(0)
    with torch.no_grad():
        for gate in find_gates(encoder):
            gate.module.log_alpha.normal_(-1, 6.0)
    budget = Budget.of(config, **what)
    check_rounding(encoder, budget, round_to)
    fix_gates(encoder, budget, round_to, missed="cut")
    student = prune(encoder)
    widths = Widths.of(student.config)
    assert {width % round_to for width in (*widths.channels, *widths.units)} == {0}
    assert min(widths.channels) >= round_to
    # Nothing more fits: a block of units of any layer would be too much.
    assert float(budget.excess(encoder, widths)) <= 0
    for layer, units in enumerate(widths.units):
        if units + round_to <= 770:
            more = replace(widths, units=[*widths.units[:layer], units + round_to, *widths.units[layer + 1 :]])
            assert float(budget.excess(encoder, more)) > 0


def test_a_vector_narrower_than_the_multiple_stays_whole_or_goes():
    encoder = attach_gates(Encoder(wavlm_config(hidden_size=48, num_heads=4, units=20, channels=12, depth=2)))
    with torch.no_grad():
        for gate, value in zip(find_gates(encoder), [-9.0] * 7 + [9.0, 9.0, 9.0, -9.0], strict=True):
            gate.module.log_alpha.fill_(value)
    fix_gates(encoder, None, 32)
    config = prune(encoder).config
    assert [conv.channels for conv in config.convs] == [12] * 7
    assert [layer.units for layer in config.layers] == [20, 0]
    with pytest.raises(InputError, match="round_to is 32: the student exceeds the budget even"):
        check_rounding(encoder, Budget.of(config.replace(layers=full_layers(2, 4, 20)), sparsity=0.7), 32)
    with pytest.raises(InputError, match="round_to is 0; it must be at least 1"):
        check_rounding(encoder, Budget.of(encoder.config, sparsity=0.7), 0)


def test_fixing_without_correction_rounds_the_expected_counts():
    encoder = attach_gates(Encoder(wavlm_config(hidden_size=48, num_heads=4, units=64, channels=16, depth=2)))
    expected = {gate.name: round(float(gate.module.keep_probability().detach().sum())) for gate in find_gates(encoder)}
    fix_gates(encoder)
    assert {gate.name: gate.module.fixed_count for gate in find_gates(encoder)} == expected


def test_lagrangian_drives_the_expected_size_to_the_target():
    torch.manual_seed(0)
    config = wavlm_config(hidden_size=48, num_heads=4, units=96, channels=32, depth=4, positional_kernel=16)
    encoder = attach_gates(Encoder(config))
    budget = Budget.of(config, sparsity=0.5)
    lagrangian = Lagrangian(budget, ramp_steps=50)
    optimizer = torch.optim.AdamW(
        [
            {"params": [gate.module.log_alpha for gate in find_gates(encoder)]},
            {"params": list(lagrangian.parameters()), "maximize": True},
        ],
        lr=0.05,
        weight_decay=0,
    )
    for step in range(600):
        penalty, _ = lagrangian.penalty(encoder, step)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
    expected = float(count_parameters(config_after_surgery(encoder), Widths.expected(encoder)).detach())
    assert expected / budget.parameters == pytest.approx(1, abs=0.03)


def test_target_rises_linearly_and_penalty_is_the_formula():
    config = wavlm_config(hidden_size=48, num_heads=4, units=96, channels=32, depth=2, positional_kernel=16)
    encoder = attach_gates(Encoder(config))
    lagrangian = Lagrangian(Budget.of(config, sparsity=0.8), ramp_steps=10)
    with torch.no_grad():
        lagrangian.lambda1.fill_(2.0)
        lagrangian.lambda2.fill_(3.0)
    for step, target in ((0, 0.0), (5, 0.4), (10, 0.8), (99, 0.8)):
        penalty, logged = lagrangian.penalty(encoder, step)
        size = float(count_parameters(config_after_surgery(encoder), Widths.expected(encoder)))
        s = 1 - size / Encoder(config).num_parameters()
        assert float(logged["sparsity_target"]) == pytest.approx(target)
        assert float(logged["sparsity_expected"]) == pytest.approx(s, abs=1e-6)
        assert float(penalty) == pytest.approx(2 * (s - target) + 3 * (s - target) ** 2, rel=1e-5)


def test_base_plus_at_75_percent_is_the_published_size():
    budget = Budget.of(wavlm_config(), sparsity=0.75)
    assert budget.parameters == pytest.approx(23.6e6, rel=0.01)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ({}, "no budget"),
        ({"sparsity": 1.5}, "between 0 and 1"),
        ({"sparsity": 0.5, "parameters": "2M"}, "only one"),
        ({"parameters": "many"}, "write a number"),
        ({"parameters": "200M"}, "the teacher has only 94.4M"),
        ({"macs": -1}, "must be positive"),
    ],
)
def test_budgets_that_cannot_be_are_refused(what, message):
    with pytest.raises(InputError, match=message):
        Budget.of(wavlm_config(), **what)


def test_a_size_out_of_reach_names_the_smallest_reachable_one():
    encoder = attach_gates(Encoder(wavlm_config(hidden_size=48, num_heads=4, units=96, channels=32, depth=2)))
    with torch.no_grad():
        for gate in find_gates(encoder):
            gate.module.log_alpha.fill_(-50)
    least = prune(encoder).num_parameters()
    Budget.of(encoder.config, parameters=least + 1).check(encoder)
    with pytest.raises(InputError, match=r"out of reach: .* still has"):
        Budget.of(encoder.config, parameters=least - 1).check(encoder)


def test_config_describes_what_is_left(tmp_path):
    encoder = gated("wavlm-base", tmp_path).eval()
    set_random_gates(encoder, random.Random(5), soft=True)
    student = prune(encoder)
    assert EncoderConfig.from_dict(student.config.to_dict()) == student.config
    for gate in find_gates(encoder):
        kept = int((gate.module.gates() > 0).sum())
        config = student.config
        left = {
            "channels": [conv.channels for conv in config.convs],
            "heads": [len(layer.heads) for layer in config.layers],
            "units": [layer.units for layer in config.layers],
        }[gate.kind][gate.layer]
        assert left == kept
