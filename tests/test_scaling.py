"""The cost model of docs/scaling-costs.md: what it states is what it computes."""

from __future__ import annotations

import json

import pytest
import torch

from lab import scaling
from skill_speech.encoder import wavlm_config
from skill_speech.pruning import Widths


def test_the_documents_state_what_the_model_says() -> None:
    """Run `python -m lab.scaling tables` when this fails."""
    model = json.loads(json.dumps(scaling.build()))
    assert model == json.loads((scaling.RESULTS / "scaling.json").read_text(encoding="utf-8"))
    assert all(page.read_text(encoding="utf-8") == text for page, text in scaling.documents(model).items())
    assert sorted(sum(scaling.DOCUMENTS.values(), ())) == sorted(scaling.tables(model))


def test_the_published_schedule_by_hand() -> None:
    """75,000 updates of four times 160 s, and the multiply-accumulates of four and of 1 + 3 · share forward passes."""
    config = wavlm_config()
    work = scaling.macs(config, Widths.of(config))
    measured = {"teachers": [], "audio_seconds_per_cpu_second": {"decoded": 1.0, "encoded": 1.0}}
    found = scaling.cost("wavlm-base-plus", 960, measured, stretched=False)
    assert found["epochs"] * 960 == pytest.approx(75_000 * 640 / 3600)
    share = found["student_share_of_macs"]
    assert 0.1 < share < 0.5
    flops = 2 * work * 640 * (50_000 * 4 + 25_000 * (1 + 3 * share))
    assert found["exaflop"] == pytest.approx(flops / 1e18)
    low, high = found["accelerators"]["H100"]["hours"]
    assert high == pytest.approx(flops / (989e12 * 0.15) / 3600)
    assert low < high
    stretched = scaling.cost("wavlm-base-plus", 100_000, measured, stretched=True)
    assert stretched["epochs"] == pytest.approx(1)
    assert stretched["updates"] == pytest.approx(100_000 * 3600 / 640, abs=1)


def test_the_shapes_are_those_of_the_teachers() -> None:
    sizes = {"wavlm-base-plus": 94.4e6, "hubert-base": 94.4e6, "wavlm-large": 315.5e6, "hubert-large": 315.4e6}
    for name, size in sizes.items():
        config = scaling.TEACHERS[name]()
        whole = float(scaling.count_parameters(config, Widths.of(config)))
        assert whole == pytest.approx(size, rel=0.003), name
        small = float(scaling.count_parameters(config, scaling.student_widths(config)))
        assert small == pytest.approx(0.25 * whole, rel=1e-6)


def test_what_is_kept_for_the_way_back_is_counted_once() -> None:
    linear = torch.nn.Linear(8, 8)
    x = torch.randn(4, 8)

    def work() -> torch.Tensor:
        y = linear(x)
        return (y * y).sum() + y.exp().sum()

    # y, and what exp gives; x and the weights are there anyway.
    assert scaling.saved_bytes(work) == 2 * 4 * 8 * 4
