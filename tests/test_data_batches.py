"""Batches as a function of cuts and seed; crops, restarts, ranks, workers, splits."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import AudioSource, CutSet, Recording, SupervisionSegment
from lhotse.cut import Cut

from skill_speech.data import (
    AudioTally,
    BadAudio,
    Position,
    TrainingBatches,
    WaveformDataset,
    audio_loader,
    evaluation_batches,
    load_waveform,
    prepare,
    split_cuts,
    streams,
    tallied,
)
from skill_speech.data import batches as batches_file
from skill_speech.data.tally import Note
from skill_speech.errors import InputError


def imagined(durations: list[float], speakers: list[str] | None = None) -> CutSet:
    """Cuts without files, for all that reads no audio: made-up ids r0, r1 …"""
    cuts = []
    for number, duration in enumerate(durations):
        samples = round(duration * 16_000)
        source = AudioSource(type="file", channels=[0], source=f"/nowhere/{number}.wav")
        cut = Recording(f"r{number}", [source], 16_000, samples, samples / 16_000).to_cut()
        if speakers is not None:
            cut.supervisions = [SupervisionSegment(cut.id, cut.id, 0.0, cut.duration, speaker=speakers[number])]
        cuts.append(cut)
    return CutSet(cuts)


def many(count: int = 400) -> CutSet:
    generator = random.Random(1)
    return imagined([generator.uniform(2.0, 15.0) for _ in range(count)])


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> CutSet:
    """24 real files of 0.5 to 1.5 s, half of them at 22.05 kHz."""
    folder = tmp_path_factory.mktemp("speech")
    generator = np.random.default_rng(0)
    for number in range(24):
        rate = 22_050 if number % 2 else 16_000
        noise = generator.standard_normal(int(rate * generator.uniform(0.5, 1.5))).astype("float32") * 0.1
        soundfile.write(folder / f"{number:02d}.wav", noise, rate, subtype="FLOAT")
    return prepare(folder)


def contents(batches: list[CutSet]) -> list[list[tuple[str, float, float]]]:
    return [[(cut.id, cut.start, cut.duration) for cut in batch] for batch in batches]


def first(count: int, batches: TrainingBatches) -> list[list[tuple[str, float, float]]]:
    return contents(list(islice(batches, count)))


def test_same_seed_same_batches_and_another_seed_others() -> None:
    cuts = many()
    batches = first(60, TrainingBatches(cuts, batch_seconds=60, seed=3))
    random.seed(99)
    torch.manual_seed(99)
    assert first(60, TrainingBatches(cuts, batch_seconds=60, seed=3)) == batches
    assert first(60, TrainingBatches(cuts, batch_seconds=60, seed=4)) != batches


def test_every_epoch_has_every_cut_once_in_another_order() -> None:
    endless = (cut.id for batch in TrainingBatches(many(), batch_seconds=60) for cut in batch)
    epochs = [list(islice(endless, 400)) for _ in range(3)]
    assert all(sorted(epoch) == sorted(f"r{number}" for number in range(400)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_seeds_do_not_share_epochs() -> None:
    """lhotse seeds an epoch with seed + epoch, by which seed 1 would repeat seed 0 one epoch later."""
    cuts = imagined([3.0] * 5)
    of_seed_0 = [[cut.id for cut in batch] for batch in islice(TrainingBatches(cuts, batch_seconds=4, seed=0), 30)]
    of_seed_1 = [[cut.id for cut in batch] for batch in islice(TrainingBatches(cuts, batch_seconds=4, seed=1), 25)]
    assert of_seed_0[5:30] != of_seed_1


@pytest.mark.parametrize("start", [1, 7, 100])
def test_start_batch_equals_dropping_the_first_ones(start: int) -> None:
    cuts = many(200)
    whole = first(start + 40, TrainingBatches(cuts, batch_seconds=60, seed=5))
    assert first(40, TrainingBatches(cuts, batch_seconds=60, seed=5, start=Position(0, start))) == whole[start:]


def test_batches_are_about_batch_seconds_and_of_similar_durations() -> None:
    cuts = many(2000)
    duration = {cut.id: cut.duration for cut in cuts}
    seconds, kept = [], []
    for batch in islice(TrainingBatches(cuts, batch_seconds=100), 150):
        full = [duration[cut.id] for cut in batch]
        assert len(full) * min(full) <= 100
        seconds.append(sum(full))
        kept.append(sum(cut.duration for cut in batch))
    assert np.mean(kept) > 90
    assert sum(kept) / sum(seconds) > 0.97, "cropping to the shortest loses little when durations are similar"


# Percentiles of the durations of LibriSpeech's 960 h, as lhotse describes them, without the speed perturbation there.
LIBRISPEECH = {0: 1.0, 1: 2.4, 5: 3.8, 10: 5.5, 25: 10.5, 50: 13.8, 75: 15.2, 90: 15.8, 95: 16.0, 99: 16.6, 100: 27.0}


def test_published_batches_are_as_full_as_the_published_ones() -> None:
    """DPHuBERT's own have 153 s of the 160 and crop less than 1 % away; it drops what is longer than 15.6 s."""
    places = np.random.default_rng(0).uniform(0, 100, 12_000)
    cuts = imagined(np.interp(places, list(LIBRISPEECH), list(LIBRISPEECH.values())).tolist())
    short = {cut.id: cut.duration for cut in cuts if cut.duration <= 15.6}
    seconds, kept, whole = [], 0.0, 0.0
    for batch in islice(TrainingBatches(cuts, batch_seconds=160), 700):
        seconds.append(sum(cut.duration for cut in batch))
        assert seconds[-1] <= 160
        kept += sum(cut.duration for cut in batch if cut.id in short)
        whole += sum(short[cut.id] for cut in batch if cut.id in short)
    assert np.mean(seconds) > 152
    assert 1 - kept / whole < 0.01


def test_all_cuts_of_a_batch_are_cropped_within_bounds_to_the_shortest() -> None:
    cuts = many()
    whole = {cut.id: cut for cut in cuts}
    offsets = []
    for batch in islice(TrainingBatches(cuts, batch_seconds=60), 80):
        (length,) = {cut.num_samples for cut in batch}
        assert length == min(whole[cut.id].num_samples for cut in batch)
        for cut in batch:
            start = cut.start * 16_000
            assert start == pytest.approx(round(start), abs=1e-6)
            assert 0 <= round(start) <= whole[cut.id].num_samples - length
            if whole[cut.id].num_samples > length:
                offsets.append(start / (whole[cut.id].num_samples - length))
    assert 0.4 < np.mean(offsets) < 0.6
    assert 0.2 < np.std(offsets) < 0.35, "uniform: 0.29"


def test_crop_equals_the_samples_of_the_file(speech: CutSet) -> None:
    whole = {cut.id: load_waveform(cut) for cut in speech}
    batches = TrainingBatches(speech, batch_seconds=5, min_seconds=0.5, max_seconds=2)
    dataset = WaveformDataset()
    for cuts in islice(batches, 8):
        batch = dataset[cuts]
        assert batch.waveforms_BT.shape == (len(cuts), batch.lengths_B[0])
        assert batch.ids == tuple(cut.id for cut in cuts)
        for waveform_T, cut in zip(batch.waveforms_BT.numpy(), cuts, strict=True):
            start = round(cut.start * 16_000)
            expected_T = whole[cut.id][start : start + len(waveform_T)]
            np.testing.assert_allclose(waveform_T, expected_T, atol=2e-5 if int(cut.id) % 2 else 0)


def test_long_cuts_become_windows_and_nothing_is_lost() -> None:
    cuts = imagined([100.00001, 3.0, 16.0, 15.6])
    seen = {cut.id: cut for batch in evaluation_batches(cuts, batch_seconds=40) for cut in batch}
    assert set(seen) == {*(f"r0-{index}" for index in range(7)), "r1", "r2-0", "r2-1", "r3"}
    long = [seen[f"r0-{index}"] for index in range(7)]
    assert long[0].start == 0
    assert all(a.end == b.start for a, b in pairwise(long))
    assert sum(cut.num_samples for cut in seen.values()) == sum(cut.num_samples for cut in cuts)
    training = next(iter(TrainingBatches(imagined([100.0]), batch_seconds=200)))
    assert sorted(cut.id for cut in training) == [f"r0-{index}" for index in range(7)]


def test_short_cuts_are_dropped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skill_speech.data")
    batches = TrainingBatches(imagined([1.0, 1.99, 2.0, 3.0]), batch_seconds=20)
    assert {cut.id for batch in islice(batches, 4) for cut in batch} == {"r2", "r3"}
    assert "2 of 4 utterances or pieces of them are shorter than 2 s: left out" in caplog.text
    with pytest.raises(InputError, match=r"no audio of at least 2 s: all 2 cuts are shorter \(the longest: 1\.50 s\)"):
        TrainingBatches(imagined([1.0, 1.5]), batch_seconds=20)
    with pytest.raises(InputError, match="there are no cuts"):
        TrainingBatches(CutSet([]), batch_seconds=20)


def test_contradicting_limits_are_refused() -> None:
    with pytest.raises(InputError, match="min_seconds=2 must be positive and at most half of max_seconds=3"):
        TrainingBatches(many(5), batch_seconds=20, max_seconds=3)
    with pytest.raises(InputError, match="batch_seconds=3"):
        TrainingBatches(many(5), batch_seconds=3)


def test_a_corpus_smaller_than_a_batch_gives_batches() -> None:
    batches = list(islice(TrainingBatches(imagined([3.0, 4.0, 5.0, 6.0, 7.0]), batch_seconds=1000), 3))
    assert [len(batch) for batch in batches] == [5, 5, 5]
    assert len(next(iter(TrainingBatches(imagined([3.0]), batch_seconds=8)))) == 1


def test_no_warnings_from_lhotse(recwarn: pytest.WarningsRecorder) -> None:
    for cuts, batch_seconds in [(many(), 60), (imagined([3.0] * 5), 4), (imagined([3.0]), 1000)]:
        list(islice(TrainingBatches(cuts, batch_seconds=batch_seconds), 20))
        evaluation_batches(cuts, batch_seconds=batch_seconds)
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_take_turns_at_one_sequence(world_size: int) -> None:
    """Disjoint within an epoch, equally many, and the same sequence whatever the number of ranks."""
    cuts = many(600)
    ranks = [
        first(12, TrainingBatches(cuts, batch_seconds=40, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    turns = [batch for turn in zip(*ranks, strict=True) for batch in turn]
    assert turns == first(12 * world_size, TrainingBatches(cuts, batch_seconds=40))
    ids = [cut for batch in turns for cut, *_ in batch]
    assert len(ids) == len(set(ids)) > 40


@pytest.mark.parametrize("used", [0, 3, 30, 55, 56, 57, 131])
def test_a_run_goes_on_from_its_position_with_another_number_of_ranks(used: int) -> None:
    """Also where an epoch ends in the middle of a turn; the position is known to one rank alone."""
    cuts = many(300)
    whole = first(used + 60, TrainingBatches(cuts, batch_seconds=60))
    used -= used % 4
    before = TrainingBatches(cuts, batch_seconds=60, world_size=4)
    list(islice(before, used // 4))
    start = before.position(used)
    assert start.epoch == 0 or start.batch < used
    again = [first(20, TrainingBatches(cuts, batch_seconds=60, start=start, rank=r, world_size=2)) for r in range(2)]
    assert [batch for turn in zip(*again, strict=True) for batch in turn] == whole[used : used + 40]


def test_positions_add_up() -> None:
    cuts = many(60)
    whole = first(60, TrainingBatches(cuts, batch_seconds=60))
    start, taken = Position(), []
    for _ in range(12):
        batches = TrainingBatches(cuts, batch_seconds=60, start=start)
        taken += first(5, batches)
        start = batches.position(5)
    assert taken == whole
    assert start.epoch > 3


def test_data_beyond_what_is_looked_at_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more cuts ahead than the buffers hold, all of them in an epoch, mixed beyond their neighbors."""
    for name in ("LOOKED_AT", "SHUFFLED_AT_ONCE"):
        monkeypatch.setattr(streams, name, 100)
    monkeypatch.setattr(streams.shuffled, "__defaults__", (100,))
    read: list[int] = []

    class Long:
        def __iter__(self) -> Iterator[Cut]:
            read.append(0)
            for cut in imagined([3.0 + number % 7 for number in range(3_000)]):
                read[-1] += 1
                yield cut

    monkeypatch.setattr(batches_file, "SORTED_AT_ONCE", 30)
    batches = TrainingBatches(CutSet(Long()), batch_seconds=10)
    assert read == [100]
    endless = iter(batches)
    some = [int(cut.id[1:]) for batch in islice(endless, 50) for cut in batch]
    ahead = 30 + 100
    assert len(some) < read[1] <= len(some) + ahead
    assert np.mean(np.abs(np.diff(some))) > 20, "neighbors in the data are not neighbors in training"
    some += [int(cut.id[1:]) for batch in islice(endless, 3_000) for cut in batch]
    assert sorted(some[:3_000]) == list(range(3_000))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_change_batches(speech: CutSet, workers: int) -> None:
    options = {"batch_seconds": 5, "min_seconds": 0.5, "max_seconds": 2, "seed": 7}
    dataset = WaveformDataset()
    expected = [dataset[cuts] for cuts in islice(TrainingBatches(speech, **options), 6)]
    loader = audio_loader(TrainingBatches(speech, **options), workers=workers)
    for batch, reference in zip(islice(loader, 6), expected, strict=True):
        assert batch.ids == reference.ids
        torch.testing.assert_close(batch.waveforms_BT, reference.waveforms_BT, rtol=0, atol=0)
        assert torch.equal(batch.lengths_B, reference.lengths_B)


def test_evaluation_batches_are_finite_padded_and_deterministic(speech: CutSet) -> None:
    batches = evaluation_batches(speech, batch_seconds=5, seed=1)
    assert contents(batches) == contents(evaluation_batches(speech, batch_seconds=5, seed=1))
    loader = audio_loader(batches)
    assert len(loader) == len(batches)
    whole = {cut.id: load_waveform(cut) for cut in speech}
    seen = []
    for batch in loader:
        assert batch.waveforms_BT.shape[1] == batch.lengths_B.max()
        assert batch.waveforms_BT.numel() <= 5 * 16_000
        for waveform_T, length, cut_id in zip(batch.waveforms_BT, batch.lengths_B, batch.ids, strict=True):
            np.testing.assert_array_equal(waveform_T[:length], whole[cut_id])
            assert not waveform_T[length:].any()
            seen.append(cut_id)
    assert sorted(seen) == sorted(whole)


def test_limit_takes_a_seeded_random_sample() -> None:
    cuts = many()
    samples = [
        {cut.id for batch in evaluation_batches(cuts, batch_seconds=60, limit_seconds=300, seed=seed) for cut in batch}
        for seed in (0, 0, 1)
    ]
    assert samples[0] == samples[1] != samples[2]
    assert 300 <= sum(cut.duration for cut in cuts if cut.id in samples[0]) < 316
    assert len(evaluation_batches(cuts, batch_seconds=60, limit_seconds=1e9)) == len(
        evaluation_batches(cuts, batch_seconds=60)
    )


def broken_speech(folder: Path, good: int, bad: int) -> CutSet:
    for number in range(good + bad):
        soundfile.write(folder / f"{number:02d}.wav", np.full(8_000, 0.1, dtype="float32"), 16_000)
    cuts = prepare(folder)
    for number in range(bad):
        (folder / f"{number:02d}.wav").write_bytes(b"RIFF")
    return cuts


@pytest.mark.parametrize("workers", [0, 2])
def test_one_bad_file_does_not_end_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int) -> None:
    loader = audio_loader(evaluation_batches(broken_speech(tmp_path, 7, 1), batch_seconds=2), workers=workers)
    tally = AudioTally()
    assert sum(len(batch.ids) for batch in tallied(loader, tally)) == 7
    assert (tally.read, tally.left_out) == (8, 1)
    assert set(tally.kinds) == {"not decodable", "silent"}  # what `broken_speech` writes is one value
    assert tally.kinds["silent"]["cuts"] == 7
    assert "skipped " in caplog.text
    assert "00.wav: cannot be decoded" in caplog.text


def test_too_much_bad_audio_is_one_line_with_a_list(tmp_path: Path) -> None:
    cuts = broken_speech(tmp_path, 40, 11)
    loader = audio_loader(evaluation_batches(cuts, batch_seconds=100, seed=1))
    with pytest.raises(
        BadAudio,
        match=r"^11 of 51 cuts cannot be used, more than the 1% that max_bad allows: .*00\.wav: .*; …\. Repair",
    ) as e:
        list(tallied(loader, AudioTally("1%")))
    assert "\n" not in str(e.value)
    assert str(e.value).count(".wav: cannot be decoded") == 10
    assert len(list(tallied(loader, AudioTally("30%")))) == 1


def test_what_is_read_ahead_does_not_count_and_a_tally_goes_on(tmp_path: Path) -> None:
    loader = audio_loader(evaluation_batches(broken_speech(tmp_path, 6, 2), batch_seconds=1, seed=3), workers=2)
    whole, begun, going_on = AudioTally(), AudioTally(), AudioTally()
    batches = list(loader)
    for batch in batches:
        whole.add(batch)
    for batch in batches[:3]:
        begun.add(batch)
    going_on.load_state_dict(begun.state_dict())
    for batch in batches[3:]:
        going_on.add(batch)
    assert going_on.state_dict() == whole.state_dict()
    assert whole.read == 8


def test_data_that_is_gone_ends_a_run(tmp_path: Path) -> None:
    batches = evaluation_batches(broken_speech(tmp_path, 0, 4), batch_seconds=0.5)
    assert WaveformDataset()[batches[0]].ids == ()
    with pytest.raises(BadAudio, match=r"none of the audio of 3 batches in a row is usable: .*\.wav: cannot be dec"):
        list(tallied(audio_loader(batches), AudioTally()))
    with pytest.raises(BadAudio, match="none of the audio is usable: "):
        list(tallied(audio_loader(batches[:2]), AudioTally()))


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.5 %", 0.005), (0.3, 0.3), ("0", 0.0), ("1e-2", 0.01)])
def test_a_share_is_read(text: str | float, share: float) -> None:
    assert AudioTally(text).max_bad == pytest.approx(share)


@pytest.mark.parametrize("text", ["many", "-1%", "101%", "nan", ""])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="it must be a share such as 1% or"):
        AudioTally(text)


def test_split_is_disjoint_by_speaker_and_small() -> None:
    speakers = [f"speaker{number % 50}" for number in range(400)]
    cuts = imagined([5.0] * 400, speakers)
    train, validation = split_cuts(cuts, validation_seconds=1e6, seed=0)
    assert len(list(train)) + len(validation) == 400
    assert not set(train.speakers) & set(validation.speakers)
    assert 50 <= sum(cut.duration for cut in validation) <= 100, "at most 5 % of 2000 s"
    again = split_cuts(cuts, validation_seconds=1e6, seed=0)[1]
    assert [cut.id for cut in again] == [cut.id for cut in validation]
    assert {cut.id for cut in split_cuts(cuts, validation_seconds=1e6, seed=1)[1]} != {cut.id for cut in validation}


def test_split_falls_back_to_recordings_with_few_speakers() -> None:
    cuts = imagined([5.0] * 100, ["one", "other"] * 50)
    parts = CutSet([part for cut in cuts for part in cut.cut_into_windows(2.5)])
    train, validation = split_cuts(parts, validation_seconds=10, seed=0)
    assert sum(cut.duration for cut in validation) == 10
    assert not {cut.recording_id for cut in train} & {cut.recording_id for cut in validation}


def test_split_of_too_little_data_is_empty_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    train, validation = split_cuts(imagined([5.0] * 4), validation_seconds=10, seed=0)
    assert (len(list(train)), len(validation)) == (4, 0)
    assert "no recording fits into 1.0 s for validation: the validation set is empty" in caplog.text


def test_split_of_a_lazy_manifest_stays_lazy(tmp_path: Path) -> None:
    for number in range(40):
        soundfile.write(tmp_path / f"{number}.wav", np.zeros(1_600), 16_000)
    train, validation = split_cuts(prepare(tmp_path, tmp_path / "cuts.jsonl.gz"), validation_seconds=0.2, seed=0)
    assert train.is_lazy
    assert not validation.is_lazy
    assert (len(list(train)), len(list(validation))) == (38, 2)


def test_what_is_kept_is_said_once_in_a_run(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skill_speech.data")
    of_files = AudioTally("5%")
    tallies = [of_files, of_files.beside(), of_files.beside()]  # analysis and both stages
    for number, tally in enumerate(tallies):
        for kind in ("clipped", "DC offset"):
            tally.note(Note(kind, f"{number}.wav", f"{number}.wav: {kind}", left_out=False))
    assert [message.split(";")[0] for message in caplog.messages] == [
        "warning: kept 0.wav: clipped",
        "warning: kept 0.wav: DC offset",
    ]
    assert [tally.kinds["clipped"]["cuts"] for tally in tallies] == [1, 1, 1]
    assert tallies[1].max_bad == 0.05
    assert "said" not in of_files.state_dict()
