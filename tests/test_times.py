"""Budgets of time: the table of component times, its expectation, and what comes of it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator

from skill_speech import InputError
from skill_speech.encoder import Encoder, EncoderConfig, hubert_config, wavlm_config
from skill_speech.pruning import (
    Budget,
    Curve,
    Exact,
    OneShot,
    Surface,
    Times,
    Widths,
    attach_gates,
    count_macs,
    find_gates,
    fix_gates,
    macs_by_component,
    magnitude,
    prune,
)
from skill_speech.pruning.importance import choose
from skill_speech.timing import _ascending, measure_times, read_times, write_times

SMALL = {"hidden_size": 48, "num_heads": 4, "units": 96, "channels": 24, "depth": 4}
SMALL |= {"positional_kernel": 16, "positional_groups": 4}
MACHINE = {"processor": "Abacus 3", "threads": 1, "precision": "float32"}


def gated(config: EncoderConfig | None = None) -> Encoder:
    torch.manual_seed(0)
    return attach_gates(Encoder(config or wavlm_config(**SMALL)))


def some_machine(config: EncoderConfig, seed: int = 0) -> Times:
    """Times that ascend somehow, at widths that are not evenly spaced."""
    rng = np.random.default_rng(seed)

    def curve(*widths: int) -> Curve:
        return Curve(widths, rng.random(len(widths)).cumsum().tolist())

    channels = (1, 5, 13, 24)
    convs = [
        Surface(inputs, channels, rng.random((len(inputs), 4)).cumsum(0).cumsum(1).tolist())
        for inputs in ([1], *[channels] * (len(config.convs) - 1))
    ]
    return Times(
        utterance=10.0,
        fixed=0.5,
        convs=convs,
        projection=curve(*channels),
        attention=curve(0, 1, 2, 4),
        feed_forward=curve(0, 10, 40, 96),
        encoder=json.loads(json.dumps(config.to_dict())),
        machine=MACHINE,
    )


def machine_of_macs(config: EncoderConfig) -> Times:
    """One whose every multiply-accumulate takes a nanosecond, which two widths of each component tell."""
    whole = Widths.of(config)

    def macs(what: str, **changes: Any) -> float:
        return 1e-8 * macs_by_component(config, dataclasses.replace(whole, **changes))[what]

    places, layers = range(len(config.convs)), range(config.num_layers)

    def front_end(**channels: int) -> float:
        """Of an otherwise empty front end."""
        return macs("front end", channels=[channels.get(f"c{place}", 0) for place in places])

    units, heads, last = whole.units[0], whole.heads[0], places[-1]
    convs = [Surface([1], [0, 24], [[0.0, front_end(c0=24)]])]
    for place in places[1:]:
        # All three terms in which a neighbor has channels, less the first convolution's own or the projection's.
        both = front_end(**{f"c{place - 1}": 24, f"c{place}": 24})
        alone = front_end(**{f"c{place - 1}": 24}) + front_end(**{f"c{place}": 24})
        convs.append(Surface([0, 24], [0, 24], [[0.0, 0.0], [0.0, both - alone]]))
    return Times(
        utterance=10.0,
        fixed=macs("positional convolution"),
        convs=convs,
        projection=Curve([0, 24], [0.0, front_end(**{f"c{last}": 24})]),
        attention=Curve([0, heads], [0.0, macs("attention") / len(layers)]),
        feed_forward=Curve([0, units], [0.0, macs("feed-forward") / len(layers)]),
        encoder=json.loads(json.dumps(config.to_dict())),
        machine=MACHINE,
    )


def test_times_are_interpolated_between_the_widths_that_were_measured():
    config = wavlm_config(**SMALL)
    times, rng = some_machine(config), np.random.default_rng(1)
    for _ in range(20):
        channels = (1 + 23 * rng.random(len(config.convs))).tolist()
        heads, units = (4 * rng.random(4)).tolist(), (96 * rng.random(4)).tolist()
        expected = times.fixed + np.interp(channels[-1], times.projection.widths, times.projection.seconds)
        expected += np.interp(channels[0], times.convs[0].outputs, times.convs[0].seconds[0])
        for conv, *pair in zip(times.convs[1:], channels, channels[1:], strict=False):
            grid = RegularGridInterpolator((conv.inputs, conv.outputs), np.array(conv.seconds))
            expected += float(grid(pair)[0])
        for curve, widths in ((times.attention, heads), (times.feed_forward, units)):
            expected += sum(np.interp(width, curve.widths, curve.seconds) for width in widths)
        found = times.count(config, Widths(channels, heads, [1] * 4, units))
        assert found == pytest.approx(1000 * expected / 10)


def test_expected_time_is_differentiable_in_the_gates():
    encoder = gated().double()
    times = some_machine(encoder.config)

    def expected() -> torch.Tensor:
        return times.count(encoder.config, Widths.expected(encoder))

    expected().backward()
    for gate in find_gates(encoder):
        alpha = gate.module.log_alpha
        alpha.requires_grad_(False)
        sides = []
        for change in (1e-3, -1e-3):
            alpha[1] += change
            sides.append(float(expected().detach()))
            alpha[1] -= change
        assert float(alpha.grad[1]) == pytest.approx((sides[0] - sides[1]) / 2e-3, rel=1e-5)


@pytest.mark.parametrize("family", [hubert_config, wavlm_config])
def test_a_machine_whose_time_is_its_macs_asks_for_the_same_student(family):
    config = family(**SMALL)
    times, widths = machine_of_macs(config), Widths.of(config)
    if config.relative_buckets == 0:
        random = Widths([5, 20, 7, 1, 24, 13, 9], [1, 0, 4, 3], [1, 0, 1, 1], [0, 90, 17, 96])
        assert times.count(config, random) == pytest.approx(1e-6 * count_macs(config, random))
    assert times.count(config, widths) == pytest.approx(1e-6 * count_macs(config, widths))
    one, other = gated(config), gated(config)
    by_time, by_macs = Budget.of(config, speedup=2.5, times=times), Budget.of(config, macs=0.4)
    importance = magnitude(one)
    chosen, wanted = choose(one, by_time, importance), choose(other, by_macs, importance)
    assert all(torch.equal(chosen[name], wanted[name]) for name in wanted)
    controls = [Exact(budget, 3, 6) for budget in (by_time, by_macs)]
    for encoder, control in zip((one, other), controls, strict=True):
        control.prepare(encoder, importance)
        generator = torch.Generator().manual_seed(0)
        for step in range(6):
            for gate in find_gates(encoder):
                gate.module.log_alpha.grad = torch.randn(gate.module.log_alpha.shape, generator=generator)
            control.move(encoder, step)
    for gate, same in zip(find_gates(one), find_gates(other), strict=True):
        torch.testing.assert_close(gate.module.log_alpha, same.module.log_alpha, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("more", [{}, {"sparsity": 0.6}, {"macs": 0.3}], ids=str)
@pytest.mark.parametrize("kind", [Exact, OneShot])
def test_students_take_no_longer_than_they_may(kind, more):
    encoder = gated()
    times = some_machine(encoder.config)
    budget = Budget.of(encoder.config, speedup=1.6, times=times, **more)
    budget.check(encoder)
    control = kind(budget, 3, 6)
    control.prepare(encoder, magnitude(encoder))
    for step in range(6):
        for gate in find_gates(encoder):
            gate.module.log_alpha.grad = torch.randn_like(gate.module.log_alpha)
        control.move(encoder, step)
    fix_gates(encoder, budget)
    config = prune(encoder).config
    shares = [float(limit.count(config, Widths.of(config)) / limit.target) for limit in budget.limits]
    assert (0.97 if kind is Exact else 0.85) < max(shares) <= 1  # one-shot: heads of this size are large
    whole = times.count(encoder.config, Widths.of(wavlm_config(**SMALL)))
    assert times.count(config, Widths.of(config)) <= whole / 1.6


def test_a_unit_that_costs_no_time_is_no_trouble():
    encoder = gated()
    times = some_machine(encoder.config)
    times = dataclasses.replace(times, feed_forward=Curve([0, 96], [0.3, 0.3]))
    budget = Budget.of(encoder.config, speedup=1.3, times=times)
    OneShot(budget, 0).prepare(encoder, magnitude(encoder))
    assert float(budget.excess(encoder, Widths.of(encoder.config))) <= 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"speedup": 1.0}, "speedup is 1; it must be above 1"),
        ({"speedup": 2.0, "latency": "3ms/s"}, "both set the time"),
        ({"latency": "a while"}, "latency is 'a while'; write milliseconds"),
        ({"latency": "-3ms/s"}, "must be positive"),
        ({"latency": "1e9 ms/s"}, "the teacher has only"),
    ],
)
def test_wrong_budgets_of_time_are_refused(asked, message):
    config = wavlm_config(**SMALL)
    with pytest.raises(InputError, match=message):
        Budget.of(config, times=some_machine(config), **asked)


def test_a_time_out_of_reach_is_refused_with_the_least_one():
    encoder = gated()
    times = some_machine(encoder.config)
    least = times.count(encoder.config, Widths.smallest(encoder))
    assert Budget.of(encoder.config, latency=f"{2 * least}ms/s", times=times).milliseconds == pytest.approx(2 * least)
    with pytest.raises(InputError, match=rf"out of reach: .* ms per second of audio; .* still has {least:.3g}"):
        Budget.of(encoder.config, latency=0.99 * least, times=times).check(encoder)


def test_noise_only_adds_to_a_time():
    assert _ascending([1, 3, 2, 5, 4]).tolist() == [1, 2, 2, 4, 4]
    assert _ascending([[4, 2], [3, 9]]).tolist() == [[2, 2], [3, 9]]


@pytest.fixture(scope="module")
def measured() -> tuple[Encoder, Times]:
    torch.manual_seed(0)
    encoder = Encoder(wavlm_config(**SMALL)).eval()
    before = torch.get_rng_state()
    times = measure_times(encoder, seconds=1, rounds=1)
    assert torch.equal(torch.get_rng_state(), before)
    return encoder, times


def test_what_is_measured_covers_all_widths_and_ascends(measured: tuple[Encoder, Times]) -> None:
    encoder, times = measured
    assert list(times.attention.widths) == [0, 1, 2, 3, 4]
    assert (times.feed_forward.widths[0], times.feed_forward.widths[-1]) == (0, 96)
    for number, conv in enumerate(times.convs):
        assert conv.inputs[-1] == (24 if number else 1)
        assert (conv.outputs[0], conv.outputs[-1]) == (1, 24)
    Times.from_dict(dataclasses.asdict(times))  # which looks at it
    least = times.count(encoder.config, Widths.smallest(attach_gates(encoder)))
    assert 0 < least < times.count(encoder.config, Widths.of(encoder.config))


def test_a_table_is_read_as_it_was_written_and_only_for_its_encoder(
    measured: tuple[Encoder, Times], tmp_path: Path
) -> None:
    config, path = wavlm_config(**SMALL), tmp_path / "times.json"
    write_times(path, measured[1])
    again = read_times(path, config.replace(hidden_dropout=0.5))
    assert dataclasses.asdict(again) == dataclasses.asdict(measured[1])
    with pytest.raises(InputError, match=r"measured on an encoder with other hidden_size, .*layers"):
        read_times(path, wavlm_config(**SMALL | {"hidden_size": 96, "units": 97}))
    values = json.loads(path.read_text())
    for damage, message in (
        ({"attention": {"widths": [0, 4], "seconds": [2.0, 1.0]}}, "a wider component is faster"),
        ({"attention": {"widths": [4, 0], "seconds": [1.0, 2.0]}}, "are not ascending"),
        ({"attention": {"widths": [0, 4], "seconds": [1.0]}}, "not as many seconds as widths"),
        ({"convs": values["convs"][:-1]}, "damaged"),
        ({"convs": [*values["convs"][:-1], {"inputs": [], "outputs": [], "seconds": []}]}, "damaged"),
        ({"fixed": "much"}, "damaged"),
    ):
        path.write_text(json.dumps(values | damage))
        with pytest.raises(InputError, match=message):
            read_times(path, config)
