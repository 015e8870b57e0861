"""The lab's fine-tuned teachers and the routes to a small one of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest
import torch
import transformers
from lhotse.cut import Cut

pytest.importorskip("espeakng_loader")

from lab.heads.data import TASKS, UNKNOWN, Sizes, label, labels_of, make_data, read_cuts, text
from lab.heads.finetuning import Batches, FinetuningConfig, finetune, loss_of, tokenizer_of, with_new_head
from lab.heads.routes import ROUTES, Budget, Cell, cells, run_cell, with_old_head
from lab.heads.scoring import Errors, count_errors, interval, resampled_rates
from lab.heads.tables import tables, write_tables
from skill_speech import load_encoder, load_model
from skill_speech.data.audio import load_waveform
from skill_speech.heads import HeadOutput
from tests.transformers_models import TINY, build

TINY_SIZES = Sizes(corpora="tiny", casts=2, speakers=3, unseen_speakers=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), TINY_SIZES)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build("Hubert", TINY).save_pretrained(folder)
    return folder


def tuned(tiny: Path, data: Path, task: str, folder: Path) -> Path:
    model = with_new_head(load_encoder(tiny), task, labels_of(data, task), seed=0)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_what_is_learned_has_its_text_or_label_and_other_speakers_are_scored(data: Path, task: str) -> None:
    train, labeled, test = (read_cuts(data, task, split) for split in ("train", "labeled", "test"))
    said = {cut.id: cut.supervisions[0].to_dict() for cut in train}
    assert len(said) == len(train)
    assert len({cut.recording_id for cut in train}) == len(train)
    assert 0 < len(labeled) < len(train) / 3
    assert all(said[one.id] == one.supervisions[0].to_dict() for one in labeled)
    assert not {cut.supervisions[0].speaker for cut in train} & {cut.supervisions[0].speaker for cut in test}
    if task == "ctc":
        assert all(text(cut) for cut in [*train, *test])
        assert not {text(cut) for cut in train} & {text(c) for c in test}
        return
    assert labels_of(data, task) == sorted({label(cut) for cut in train} | {label(cut) for cut in test})
    assert (UNKNOWN in labels_of(data, task)) == (task == "keywords")
    assert task != "keywords" or all(cut.duration == 2.0 for cut in train)


def test_data_of_other_sizes_is_refused(data: Path) -> None:
    assert make_data(data, TINY_SIZES) == data
    with pytest.raises(SystemExit, match="data of other sizes"):
        make_data(data, replace(TINY_SIZES, casts=3))


def test_batches_hold_no_more_than_they_may_and_every_cut_once_an_epoch(data: Path) -> None:
    cuts = read_cuts(data, "ctc", "train")
    batches, again = Batches(cuts, 12.0, seed=3), Batches(cuts, 12.0, seed=3)
    seen: list[str] = []
    number = 0
    while len(seen) < len(cuts):
        batch = batches[number]
        assert len(batch) == 1 or len(batch) * max(cut.duration for cut in batch) <= 12.0
        seen += [cut.id for cut in batch]
        number += 1
    assert sorted(seen) == sorted(cut.id for cut in cuts)
    assert [cut.id for cut in again[number + 2]] == [cut.id for cut in batches[number + 2]]
    assert [cut.id for cut in Batches(cuts, 12.0, seed=4)[0]] != [cut.id for cut in batches[0]]


def test_the_loss_is_that_of_transformers(tiny: Path, data: Path) -> None:
    """Of a padded batch; Transformers sums over utterances and tokens if it is told to."""
    model = with_new_head(load_encoder(tiny), "ctc", [], seed=0).eval()
    theirs = build("Hubert", TINY | {"vocab_size": 32, "pad_token_id": 0, "ctc_loss_reduction": "mean"}, "ForCTC")
    theirs.hubert.load_state_dict(transformers.HubertModel.from_pretrained(tiny).state_dict())
    theirs.lm_head.load_state_dict(model.head.lm_head.state_dict())
    batch = read_cuts(data, "ctc", "train")[:3]
    tokenizer = tokenizer_of(model)
    waveforms = [torch.from_numpy(load_waveform(cut)) for cut in batch]
    mask = [torch.ones(len(waveform_T), dtype=torch.long) for waveform_T in waveforms]
    tokens = [torch.tensor(tokenizer.encode(text(cut))) for cut in batch]
    padded = torch.nn.utils.rnn.pad_sequence
    with torch.no_grad():
        wanted = theirs(
            padded(waveforms, batch_first=True),
            attention_mask=padded(mask, batch_first=True),
            labels=padded(tokens, batch_first=True, padding_value=-100),
        ).loss
        torch.testing.assert_close(loss_of(model, batch, tokenizer), wanted, rtol=1e-4, atol=0)


def test_a_saved_teacher_is_read_by_transformers(tiny: Path, data: Path, tmp_path: Path) -> None:
    tuned(tiny, data, "ctc", tmp_path)
    processor = transformers.Wav2Vec2Processor.from_pretrained(tmp_path)
    assert processor.tokenizer("IT'S ME").input_ids == tokenizer_of(load_model(tmp_path)).encode("it's me")
    assert processor.tokenizer.pad_token_id == load_model(tmp_path).head.config.blank
    assert processor.feature_extractor.do_normalize is False


@pytest.mark.parametrize("task", ["ctc", "emotions"])
def test_finetuning_learns_leaves_the_convolutions_and_goes_on(
    task: str, tiny: Path, data: Path, tmp_path: Path
) -> None:
    cuts = read_cuts(data, task, "train")[:2]
    config = FinetuningConfig(12, 4.0, 3e-3)
    model = with_new_head(load_encoder(tiny), task, labels_of(data, task), seed=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        first = float(loss_of(model.eval(), cuts, tokenizer_of(model)))
    finetune(model, cuts, config, tmp_path)
    with torch.no_grad():
        assert float(loss_of(model, cuts, tokenizer_of(model))) < 0.95 * first
    changed = {name.split(".")[1] for name, tensor in model.state_dict().items() if not tensor.equal(before[name])}
    assert "convs" not in changed
    assert {"layers", "projection"} <= changed
    assert all(weight.requires_grad for weight in model.parameters())
    # From the checkpoint: nothing is left to do.
    again = with_new_head(load_encoder(tiny), task, labels_of(data, task), seed=1)
    finetune(again, cuts, config, tmp_path)
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in again.state_dict().items())


def test_wrong_words_are_counted_as_jiwer_does_for_all_at_once(
    data: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = read_cuts(data, "ctc", "test")
    model = with_new_head(load_encoder(tiny), "ctc", [], seed=0).eval()
    tokenizer = tokenizer_of(model)
    heard = {cut.id: text(cut).replace("THE ", "A ").replace(" OF", "") for cut in cuts}
    spoken: dict[int, Cut] = {len(load_waveform(cut)): cut for cut in cuts}

    def say(waveforms: list[Any]) -> HeadOutput:
        tokens = torch.tensor([[one, 0] for one in tokenizer.encode(heard[spoken[len(waveforms[0])].id])]).flatten()
        return HeadOutput(torch.nn.functional.one_hot(tokens, 32)[None].float())

    monkeypatch.setattr(model, "forward", say)
    scored = count_errors(model, cuts)
    wanted = jiwer.wer([text(cut) for cut in cuts], [heard[cut.id] for cut in cuts])
    assert scored.rate == pytest.approx(100 * wanted)
    assert 0 < scored.rate < 50


def test_intervals_are_those_of_a_proportion_and_differences_are_paired() -> None:
    rng = np.random.default_rng(0)
    errors = (rng.random(400) < 0.2).astype(int).tolist()
    one = Errors(errors, [1] * 400)
    low, high = interval(resampled_rates([one]))
    share = one.rate / 100
    half = 196 * (share * (1 - share) / 400) ** 0.5
    assert (low, high) == pytest.approx((one.rate - half, one.rate + half), abs=0.6)
    worse = Errors([1] * 8 + errors[8:], [1] * 400)
    gain = resampled_rates([worse]) - resampled_rates([one])
    assert gain.min() >= 0
    assert interval(gain)[1] - interval(gain)[0] < (high - low) / 2
    assert resampled_rates([one, worse]).mean() == pytest.approx((one.rate + worse.rate) / 2, abs=0.2)


def test_the_old_head_on_a_student_that_is_the_teacher_gives_its_logits(tiny: Path, data: Path, tmp_path: Path) -> None:
    folder = tuned(tiny, data, "keywords", tmp_path / "tuned")
    load_encoder(folder).save_pretrained(tmp_path / "student")
    model = with_old_head(tmp_path / "student", folder)
    waveform_T = load_waveform(read_cuts(data, "keywords", "test")[0])
    with torch.no_grad():
        assert model([waveform_T]).logits.equal(load_model(folder)([waveform_T]).logits)


def made_up(results: Path, name: str, rate: int, **values: Any) -> None:
    errors = [int(number < rate) for number in range(100)]
    record = {"teacher": "t", "task": "emotions", "parameters": 1_250_000, "rate": float(rate)}
    (results / f"{name}.json").write_text(json.dumps(record | {"errors": errors, "counts": [1] * 100} | values))


def test_tables_follow_from_the_records(tmp_path: Path) -> None:
    made_up(tmp_path, "teacher", 10, parameters=5_800_000)
    for seed, (whole, old) in enumerate([(11, 20), (13, 26), (12, 23)]):
        made_up(tmp_path, f"whole{seed}", whole, route="whole", seed=seed)
        made_up(tmp_path, f"old{seed}", old, route="old-head", seed=seed)
    made_up(tmp_path, "new0", 15, route="new-head", seed=0)
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in tables(tmp_path).splitlines()[2:]]
    assert [row[1] for row in rows] == ["fine-tuned", "`whole`", "`new-head`", "`old-head`"]
    assert [row[0] for row in rows] == ["t, emotions (error)", "", "", ""]
    assert rows[0][2] == "5.80 M"
    assert rows[1][3].startswith("12.0 [")
    assert rows[1][4:] == ["11.0, 13.0, 12.0", "1.20×", ""]
    assert rows[2][6].startswith("+4.0 [")  # of the one seed that both have
    assert rows[3][6].startswith("+11.0 [")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- heads -->\nold\n<!-- end -->\nafter\n")
    write_tables(tmp_path, page)
    assert page.read_text() == f"before\n<!-- heads -->\n{tables(tmp_path)}<!-- end -->\nafter\n"
    (tmp_path / "teacher.json").unlink()
    with pytest.raises(SystemExit, match="no record of the teacher t-emotions"):
        tables(tmp_path)


TINY_BUDGET = Budget(
    sparsity=0.3, stage1=4, stage2=4, labeled=2, batch_seconds=5.0, calibration_seconds=20, validation_seconds=5
)


@pytest.mark.slow
def test_a_tiny_cell_of_every_route(tiny: Path, data: Path, tmp_path: Path) -> None:
    teacher = tuned(tiny, data, "ctc", tmp_path / "tuned")
    records = {}
    for cell in cells(["tiny"], ["ctc"], ROUTES, [1]):
        record = run_cell(cell, teacher, data, tmp_path / "cells", TINY_BUDGET)
        records[cell.route] = record
        assert len(record["errors"]) == len(read_cuts(data, "ctc", "test"))
        assert record["rate"] > 0
    assert records["new-head"]["parameters"] == records["old-head"]["parameters"]
    assert records["whole"]["parameters"] == pytest.approx(records["old-head"]["parameters"], rel=0.02)
    assert [bool(records[route]["losses"]) for route in ROUTES] == [route == "new-head" for route in ROUTES]
    whole = load_model(tmp_path / "cells" / "tiny-ctc-whole-seed1" / "model")
    assert not whole.head.lm_head.weight.equal(load_model(teacher).head.lm_head.weight)  # it has learned
    assert tokenizer_of(whole).encode("it's me") == tokenizer_of(load_model(teacher)).encode("it's me")
    runs = {name: tmp_path / "cells" / f"tiny-ctc-{name}-seed1" for name in ("headless", "new-head")}
    surgeries = {(run / "surgery" / "model.safetensors").read_bytes() for run in runs.values()}
    assert len(surgeries) == 1
    again = run_cell(Cell("tiny", "ctc", "old-head", 1), teacher, data, tmp_path / "cells", TINY_BUDGET)
    assert again["errors"] == records["old-head"]["errors"]
