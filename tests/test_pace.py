"""Stages that fit into a given time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from skill_speech import InputError, compress
from skill_speech.compression import plan
from skill_speech.distillation import (
    DistillationLoss,
    HeadTraining,
    OutputLoss,
    StageConfig,
    StudentInput,
    make_targets,
)
from skill_speech.distillation.pace import FINISHING_SECONDS, MARGIN, Pace, fit, measure_pace
from skill_speech.encoder import Encoder, hubert_config, wavlm_config
from skill_speech.heads import HeadConfig, make_head
from skill_speech.pruning import Budget, attach_gates
from tests.test_compression import QUICK, SMALL, speech, teacher  # noqa: F401 (fixtures)

PUBLISHED = StageConfig().in_updates(), StageConfig(steps=25_000, warmup_steps=5_000)


def test_shares_of_a_stage_are_the_published_numbers_and_follow_its_length() -> None:
    assert (PUBLISHED[0].warmup_steps, PUBLISHED[0].sparsity_steps) == (15_000, 5_000)
    short = StageConfig(steps=200).in_updates()
    assert (short.warmup_steps, short.sparsity_steps) == (60, 20)
    given = StageConfig(steps=200, warmup_steps=50, sparsity_steps=1).in_updates(100)
    assert (given.steps, given.warmup_steps, given.sparsity_steps) == (100, 25, 0)
    none = StageConfig(steps=10, warmup_steps=0, sparsity_steps=0).in_updates()
    assert (none.warmup_steps, none.sparsity_steps) == (0, 0)


def test_the_whole_takes_as_long_as_it_may() -> None:
    pace = Pace(teacher=0.01, stage1=2.0, stage2=0.5, start=7.0)
    first, second = fit(30, pace, PUBLISHED, spent=20, encoded_seconds=1_500, encoded_in_each=0.3)
    takes = first.steps * 2.0 + second.steps * 0.5 + 7 + 20 + 1_500 * 0.01 + FINISHING_SECONDS
    takes += (first.steps + second.steps) * 0.3 * 0.01
    assert 0.0 <= 1_800 * MARGIN - takes <= 2.5
    assert first.steps / second.steps == pytest.approx(2, rel=0.01)
    assert first.warmup_steps / first.steps == pytest.approx(0.3, rel=0.01)
    assert second.warmup_steps / second.steps == pytest.approx(0.2, rel=0.01)


def test_a_run_that_starts_behind_stage_1_spends_all_on_stage_2() -> None:
    pace = Pace(teacher=0.01, stage1=2.0, stage2=0.5, start=7.0)
    first, second = fit(30, pace, PUBLISHED, with_stage1=False)
    assert first.steps == PUBLISHED[0].steps
    assert second.steps == pytest.approx((1_800 * MARGIN - 17) / 0.5, abs=1)


def test_too_little_time_is_said_with_the_time_that_would_do() -> None:
    pace = Pace(teacher=0.01, stage1=60.0, stage2=30.0, start=7.0)
    with pytest.raises(
        InputError, match=r"minutes is 5: on this machine an update takes 50 s.*give at least 18.3"
    ) as e:
        fit(5, pace, PUBLISHED)
    fit(float(str(e.value).split("at least ")[1].split(",")[0]), pace, PUBLISHED)


@pytest.mark.parametrize("family", [hubert_config, wavlm_config])
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_updates_are_timed_on_copies(family: Any, precision: Any) -> None:
    torch.manual_seed(0)
    encoder = Encoder(family(**SMALL))
    gated = attach_gates(Encoder(encoder.config))
    before = [weight.clone() for model in (encoder, gated) for weight in model.state_dict().values()]
    stage = StageConfig(steps=4, batch_seconds=60, accumulate=2)
    head = make_head(HeadConfig("ctc", outputs=9), encoder.config)
    loss = DistillationLoss(
        make_targets("all-layers", len(encoder.layers)),
        encoder.config.hidden_size,
        outputs=OutputLoss(head, HeadTraining()),
        distance="both",
    )
    budget, seen = Budget.of(encoder.config, sparsity=0.5), []
    loss.outputs.register_forward_hook(lambda *_: seen.append(1))
    heard = StudentInput("masked-noisy")
    pace = measure_pace(encoder, gated, budget, (stage, stage), precision, loss, heard)
    assert len(seen) == 8  # a first update and three more of each stage have the head
    assert pace.stage1 > pace.teacher > 0
    assert pace.stage2 > 0
    after = [weight for model in (encoder, gated) for weight in model.state_dict().values()]
    assert all(map(torch.equal, before, after))
    assert all(weight.grad is None for weight in gated.parameters())


def test_a_run_keeps_the_lengths_that_it_began_with(
    teacher: str,  # noqa: F811
    speech: str,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = QUICK | {"minutes": 1.0, "validation_seconds": 0.0}
    given: list[Any] = []
    monkeypatch.setattr(plan, "measure_pace", lambda *them: given.append(them) or Pace(0.0, 2.5, 0.5, 0.0))
    settings |= {"method": "star", "input": "noisy"}
    with caplog.at_level("INFO"):
        compress(teacher, speech, str(tmp_path / "run"), **settings)
    loss, heard, _ = given[0][-3:]
    assert loss.config.temporal
    assert not loss.config.l1
    assert heard.kind == "noisy"
    kept = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (kept["minutes"], kept["stage1"]["steps"], kept["stage2"]["steps"]) == (1.0, 15, 15)
    assert "1 minutes: 15 updates of 2.5 s in stage 1 and 15 of 0.5 s in stage 2" in caplog.text
    monkeypatch.setattr(plan, "measure_pace", lambda *_: Pace(0.0, 5.0, 5.0, 0.0))
    assert compress(teacher, speech, str(tmp_path / "run"), **settings).already_done
    with pytest.raises(InputError, match=r"minutes \(was 1.0, now 9.0\)"):
        compress(teacher, speech, str(tmp_path / "run"), **settings | {"minutes": 9.0})
