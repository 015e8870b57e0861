"""The lab: synthetic speech in LibriSpeech's layout, units, and pre-training that goes on where it was killed."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.fft import dct

pytest.importorskip("espeakng_loader")

from lab.corpus import read_corpus
from lab.features import HOP, WINDOW, log_mel, mfcc
from lab.pretraining import Iteration, PretrainingConfig, Streams, Target, mix, prediction_loss, pretrain, random_mask
from lab.speech import make_speakers, make_speech
from lab.units import mfcc_units, phoneme_units, speaker_units
from skill_speech import load_encoder
from skill_speech.data import prepare

TEACHERS = Path(__file__).parents[1] / "lab" / "teachers"


def digest(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(tmp_path_factory.mktemp("speech"), hours=0.05, seed=3, jobs=1, subsets=("train", "dev"))


def test_the_corpus_is_a_function_of_the_seed_whatever_the_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    again = make_speech(tmp_path / "again", hours=0.05, seed=3, jobs=2, subsets=("train", "dev"))
    assert digest(again) == digest(corpus)
    other = make_speech(tmp_path / "other", hours=0.01, seed=4, jobs=1)
    assert not set(digest(other).values()) & set(digest(corpus).values())


def test_the_corpus_is_read_as_librispeech(corpus: Path) -> None:
    cuts = list(prepare(corpus / "train"))
    assert all(cut.supervisions[0].text.isupper() and cut.supervisions[0].speaker.isdigit() for cut in cuts)
    assert all(cut.sampling_rate == 16_000 for cut in cuts)
    speakers = [{cut.supervisions[0].speaker for cut in prepare(corpus / name)} for name in ("train", "dev")]
    assert not speakers[0] & speakers[1]
    listed = [line.split("|")[0].strip() for line in (corpus / "SPEAKERS.TXT").read_text().splitlines()[1:]]
    assert set(listed) == speakers[0] | speakers[1]


def test_phonemes_lie_within_their_utterance_and_follow_its_sound(corpus: Path) -> None:
    silent, spoken = [], []
    for utterance in read_corpus(corpus):
        assert (np.diff(utterance.starts) >= 0).all()
        assert utterance.starts[-1] < len(utterance.samples_T) / 16_000
        energy = log_mel(utterance.waveform()[None])[0].mean(-1).numpy()
        names = utterance.frame_phonemes()
        assert len(names) == len(energy) == utterance.frames
        silent += [e for e, name in zip(energy, names, strict=True) if name in ("t", "k", "p")]
        spoken += [e for e, name in zip(energy, names, strict=True) if name in ("a", "E", "I", "aI", "oU", "i:")]
    # Vowels are loud and the closures of plosives are not: the times are right.
    assert np.mean(spoken) > np.mean(silent) + 1


def test_speakers_are_all_different() -> None:
    assert len({speaker.voice for speaker in make_speakers(300, seed=0)}) == 300


def test_log_mel_and_mfcc_equal_a_plain_computation() -> None:
    waveform = torch.randn(3_000, generator=torch.Generator().manual_seed(0))
    frames = (3_000 - WINDOW) // HOP + 1
    got = log_mel(waveform[None])[0]
    assert got.shape == (frames, 40)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    last = waveform[(frames - 1) * HOP :][:WINDOW].double().numpy() * window
    power = (
        np.abs(np.array([np.sum(last * np.exp(-2j * np.pi * k * np.arange(WINDOW) / 512)) for k in range(257)])) ** 2
    )
    hertz = np.arange(257) * 16_000 / 512
    edges = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 8_000 / 700), 42) / 2595) - 1)
    wanted = [np.log(power @ np.interp(hertz, edges[m : m + 3], [0, 1, 0], 0, 0) + 1e-6) for m in range(40)]
    np.testing.assert_allclose(got[-1].numpy(), wanted, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(mfcc(waveform)[-1, :13], dct(np.array(wanted), norm="ortho")[:13], atol=0.02)


def test_about_the_stated_share_is_masked_in_spans() -> None:
    mask = random_mask(np.random.default_rng(0), (200, 250), 4, 0.37)
    assert mask.float().mean().item() == pytest.approx(0.37, abs=0.01)
    runs = np.diff(np.flatnonzero(np.diff(np.pad(mask[0].numpy(), 1).astype(int)) != 0))[::2]
    assert runs[:-1].min() >= 4  # the last one may be cut off by the end


def test_mixing_changes_at_most_half_of_a_crop() -> None:
    crops = torch.randn(40, 8_000, generator=torch.Generator().manual_seed(0))
    changed = (mix(np.random.default_rng(0), crops, share=1.0) != crops).float().mean(1)
    assert 0 < changed.max() <= 0.5
    assert torch.equal(mix(np.random.default_rng(0), crops, share=0.0), crops)


def test_units_have_one_label_per_frame(corpus: Path) -> None:
    utterances = read_corpus(corpus)[:20]
    phonemes, inventory = phoneme_units(utterances)
    clusters = mfcc_units(utterances, 8, seed=0)
    speakers = speaker_units(utterances)
    for utterance, one, other, who in zip(utterances, phonemes, clusters, speakers, strict=True):
        assert len(one) == len(other) == len(who) == utterance.frames
        assert [inventory[label] for label in one] == utterance.frame_phonemes()
    assert {int(label) for labels in clusters for label in labels} == set(range(8))
    named = {
        (utterance.name.split("-")[0], int(label))
        for utterance, who in zip(utterances, speakers, strict=True)
        for label in who
    }
    assert len(named) == len({name for name, _ in named}) == len({label for _, label in named})


def test_crops_of_a_stream_carry_the_units_of_their_frames(corpus: Path) -> None:
    utterances = read_corpus(corpus)[:10]
    numbers = [np.arange(u.frames) + 1_000 * index for index, u in enumerate(utterances)]
    waveforms, units = Streams(utterances, [numbers, [-one for one in numbers]]).batch(np.random.default_rng(0), 8, 1.0)
    assert waveforms.shape == (8, 49 * HOP + WINDOW)
    assert units.shape == (8, 2, 50)
    assert torch.equal(units[:, 1], -units[:, 0])
    for waveform, labels in zip(waveforms, units[:, 0], strict=True):
        index, frame = divmod(int(labels[0]), 1_000)
        if labels[-1] // 1_000 == index:
            whole = utterances[index].waveform()
            assert torch.equal(waveform[:-80], whole[frame * HOP :][: len(waveform) - 80])


def test_a_unit_ahead_is_that_of_a_later_frame_of_the_crop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 4, generator=generator)
    units = torch.randint(4, (2, 6), generator=generator)
    mask = torch.tensor([[True, False, True, True, False, True], [False, True, True, False, True, True]])
    loss, values = prediction_loss(logits, units, mask, 2, 0.5)
    wanted: dict[bool, list[float]] = {True: [], False: []}
    for row in range(2):
        for frame in range(4):
            share = logits[row, frame].double().softmax(-1)[units[row, frame + 2]]
            wanted[bool(mask[row, frame])].append(-float(share.log()))
    assert float(values["loss_masked"]) == pytest.approx(np.mean(wanted[True]), rel=1e-5)
    assert float(loss) == pytest.approx(np.mean(wanted[True]) + 0.5 * np.mean(wanted[False]), rel=1e-5)


@pytest.mark.parametrize("family", ["hubert", "wavlm"])
def test_pretraining_learns_and_goes_on_where_it_was_killed(corpus: Path, tmp_path: Path, family: str) -> None:
    utterances = read_corpus(corpus)
    config = PretrainingConfig(
        family=family,
        hidden_size=32,
        depth=2,
        num_heads=2,
        units=64,
        channels=16,
        positional_kernel=16,
        warm_steps=10,
        iterations=[
            Iteration([Target("mfcc", 10)], steps=60, learning_rate=2e-3),
            Iteration([Target("layer", 8, 1, at=1), Target("phonemes", ahead=3)], steps=10, fresh=False),
        ],
        crop_seconds=1.0,
        warmup_steps=5,
    )
    encoder = pretrain(config, utterances, tmp_path / "whole", bf16=False)
    with (tmp_path / "whole/log.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["round"] == "round1"]
    assert float(rows[-1]["loss_unmasked"]) < np.log(10)
    saved = load_encoder(tmp_path / "whole")
    for name, weight in saved.state_dict().items():
        torch.testing.assert_close(weight, encoder.state_dict()[name], rtol=1e-3, atol=1e-3)
    # Without the last round's checkpoint the run goes on from the round before, to the same weights.
    (tmp_path / "whole/round2.checkpoint.pt").unlink()
    again = pretrain(config, utterances, tmp_path / "whole", bf16=False)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in encoder.state_dict().items())


@pytest.mark.parametrize("folder", sorted(path.parent for path in TEACHERS.glob("*/model.safetensors")))
def test_bundled_teachers_are_small_and_have_their_log_and_configuration(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_size <= 12e6
    config = PretrainingConfig.read(folder / "config.yaml")
    with (folder / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["step"]) for r in rows if r["round"] == "round1"][-1] == config.iterations[0].steps
    encoder = load_encoder(folder)
    assert encoder.config == config.make_encoder().config
    assert 5e6 < encoder.num_parameters() < 6e6
    assert json.loads((folder / "config.json").read_text())["model_type"] == "skill-speech"


def test_a_bundled_teacher_tells_phonemes_apart(corpus: Path) -> None:
    """A linear probe on an upper layer names the phoneme of a frame of unseen speech far more often than on log-mel."""
    utterances = [u for u in read_corpus(corpus) if u.frames > 150][:24]
    labels, _ = phoneme_units(utterances)
    encoder = load_encoder(TEACHERS / "hubert-mini")

    def accuracy(features: list[torch.Tensor]) -> float:
        train, test = features[:18], features[18:]
        x, y = torch.cat(train), torch.from_numpy(np.concatenate(labels[:18]))
        mean, scale = x.mean(0), x.std(0) + 1e-5
        x = torch.nn.functional.pad((x - mean) / scale, (0, 1), value=1)
        onehot = torch.nn.functional.one_hot(y, int(max(label.max() for label in labels)) + 1).float()
        weight = torch.linalg.solve(x.T @ x + 10 * torch.eye(x.shape[1]), x.T @ onehot)
        z = torch.nn.functional.pad((torch.cat(test) - mean) / scale, (0, 1), value=1)
        return (z @ weight).argmax(1).eq(torch.from_numpy(np.concatenate(labels[18:]))).float().mean().item()

    with torch.inference_mode():
        layers = [encoder(utterance.waveform()[None]).layers[9][0] for utterance in utterances]
    filterbanks = [log_mel(utterance.waveform()[None])[0] for utterance in utterances]
    assert accuracy(layers) > 1.3 * accuracy(filterbanks)
