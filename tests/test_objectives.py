"""Distances between frames, and what is done to what the student hears."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from skill_speech import Encoder, InputError, compress
from skill_speech.compression import AnalysisConfig
from skill_speech.data import AudioBatch
from skill_speech.distillation import (
    METHODS,
    Distillation,
    DistillationLoss,
    InputConfig,
    LossConfig,
    Stage1Config,
    Stage2Config,
    StudentInput,
    Target,
    UnitLoss,
    UnitsConfig,
    make_targets,
)
from skill_speech.distillation.inputs import colored_noise, convolve, factor_for, room
from skill_speech.distillation.loss import mean_of, temporal_distance
from skill_speech.distillation.units import find_units, units_of
from skill_speech.encoder import EncoderOutput, hubert_config, wavlm_config
from skill_speech.kernels import attach_kernels

SMALL: dict[str, Any] = {"hidden_size": 32, "num_heads": 2, "units": 48, "channels": 16, "depth": 3}
SMALL |= {"positional_kernel": 16, "positional_groups": 4}
STAGES = ("stage1", "stage2")


# The temporal distance.


def dense(student: np.ndarray, teacher: np.ndarray, valid: np.ndarray) -> float:
    """By the matrices of frames by frames, in float64."""
    total, pairs = 0.0, 0
    for s, t, counts in zip(student, teacher, valid, strict=True):
        s, t = (x[counts] / np.linalg.norm(x[counts], axis=-1, keepdims=True) for x in (s, t))
        total += float(((s @ s.T - t @ t.T) ** 2).sum())
        pairs += int(counts.sum()) ** 2
    return total / pairs


@pytest.mark.parametrize("frames", [5, 60])
def test_the_temporal_distance_is_that_of_the_gram_matrices(frames: int) -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(3, frames, 8)), rng.normal(size=(3, frames, 8))
    teacher = student + 0.05 * teacher  # nearly the same: what is left of large numbers
    valid = np.arange(frames) < np.array([frames, frames - 1, frames // 2])[:, None]
    tensors = [torch.tensor(x, dtype=torch.float32) for x in (student, teacher)]
    assert temporal_distance(*tensors, torch.tensor(valid)).item() == pytest.approx(
        dense(student, teacher, valid), rel=1e-3
    )
    everything = np.ones((3, frames), bool)
    assert temporal_distance(*tensors).item() == pytest.approx(dense(student, teacher, everything), rel=1e-3)
    assert temporal_distance(tensors[0], 3 * tensors[0]).item() == pytest.approx(0, abs=1e-6)  # the length is no matter


def test_it_is_as_right_in_bfloat16_however_close_the_frames_are() -> None:
    rng = np.random.default_rng(0)
    student = rng.normal(size=(2, 40, 8))
    everything = np.ones((2, 40), bool)
    for apart in (1.0, 1e-2, 1e-3):
        teacher = student + apart * rng.normal(size=(2, 40, 8))
        tensors = [torch.tensor(x, dtype=torch.float32) for x in (student, teacher)]
        with torch.autocast("cpu", torch.bfloat16):
            found = temporal_distance(*tensors).item()
        assert found == pytest.approx(dense(student, teacher, everything), rel=0.01)


def test_its_gradient_is_a_finite_difference() -> None:
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 7, 4)), rng.normal(size=(2, 7, 4))
    everything = np.ones((2, 7), bool)
    given = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    temporal_distance(given, torch.tensor(teacher, dtype=torch.float32)).backward()
    for place in ((0, 0, 0), (1, 6, 3)):
        values = []
        for sign in (1, -1):
            moved = student.copy()
            moved[place] += sign * 1e-5
            values.append(dense(moved, teacher, everything))
        assert given.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-3, abs=1e-7)


def test_a_distance_is_a_choice_of_terms() -> None:
    weights = LossConfig(l1=2.0, l2=0.5, temporal=3.0)
    assert weights.of("l1-cosine").weights() == {"l1": 2.0, "l2": 0.5, "cosine": 1.0, "temporal": 0.0}
    assert weights.of("temporal").weights() == {"l1": 0.0, "l2": 0.0, "cosine": 0.0, "temporal": 3.0}
    assert weights.of("both") == weights
    states = [torch.randn(2, 9, 6) for _ in range(4)]
    others = [torch.randn(2, 9, 6) for _ in range(4)]
    terms = DistillationLoss(make_targets("all-layers", 3), 6, weights, distance="both").of_layers(states, others)
    of_pairs = [temporal_distance(s, t) for s, t in zip(states, others, strict=True)]
    assert terms["temporal"].item() == pytest.approx(torch.stack(of_pairs).mean().item(), rel=1e-5)
    expected = 2.0 * terms["l1"] + 0.5 * terms["l2"] + terms["cosine"] + 3.0 * terms["temporal"]
    assert terms["distillation"].item() == pytest.approx(expected.item(), rel=1e-6)
    alone = DistillationLoss(make_targets("all-layers", 3), 6, weights, distance="temporal").of_layers(states, others)
    assert alone.keys() == {"distillation", "temporal"}


def test_learned_weights_are_those_of_the_formula() -> None:
    """And at their best each is one over its target's distance, which is what their gradient leads to."""
    torch.manual_seed(0)
    states, others = ([torch.randn(2, 9, 6) for _ in range(4)] for _ in range(2))
    targets = make_targets("all-layers", 3)
    loss = DistillationLoss(targets, 6, LossConfig(target_weights="learned"))
    with torch.no_grad():
        loss.log_variances_K.copy_(torch.tensor([0.3, -0.5, 0.0, 1.0]))
    shown, total = loss._compare(states, others, None)
    distances = []
    for one, other in zip(states, others, strict=True):
        s, t = one.double().numpy(), other.double().numpy()
        cosine = (s * t).sum(-1) / (np.linalg.norm(s, axis=-1) * np.linalg.norm(t, axis=-1))
        distances.append(np.abs(s - t).mean() + 1 - cosine.mean())
    weights = np.exp(-np.array([0.3, -0.5, 0.0, 1.0]))
    assert total.item() == pytest.approx(np.mean(weights * distances - np.log(weights)), rel=1e-5)
    assert shown["distillation"].item() == pytest.approx(np.mean(distances) - 1, rel=1e-5)
    assert [shown[f"weight_{k}"].item() for k in (1, 2, 3, 4)] == pytest.approx(weights.tolist())
    with torch.no_grad():
        loss.log_variances_K.copy_(torch.tensor(distances).log())
    loss._compare(states, others, None)[1].backward()
    assert loss.log_variances_K.grad.abs().max().item() < 1e-6


def test_frames_are_normalized_before_layers_are_averaged() -> None:
    torch.manual_seed(0)
    states = [torch.randn(2, 9, 6) * scale + scale for scale in (1.0, 50.0)]
    wanted = np.mean(
        [
            (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
            for x in (state.double().numpy() for state in states)
        ],
        axis=0,
    )
    np.testing.assert_allclose(mean_of(states, [0, 1], normalize_frames=True).numpy(), wanted, atol=1e-3)
    loss = DistillationLoss([Target((0, 1), (0, 1), 0)], 6, LossConfig(normalize_frames=True))
    assert loss.of_layers(states, [7 * state - 3 for state in states])["l1"].item() == pytest.approx(0, abs=1e-3)


# Units.


def output(layers: list[torch.Tensor]) -> EncoderOutput:
    lengths_B = torch.full((len(layers[0]),), layers[0].shape[1])
    return EncoderOutput(layers[0], layers[0], tuple(layers[1:]), layers[-1], lengths_B)


def test_units_are_guessed_where_frames_are_masked() -> None:
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(5, 6))
    student, teacher = ([torch.tensor(rng.normal(size=(2, 9, 6))).float() for _ in range(4)] for _ in range(2))
    mask = rng.random((2, 9)) < 0.4
    valid = np.arange(9) < np.array([9, 6])[:, None]
    torch.manual_seed(0)
    loss = DistillationLoss(make_targets("all-layers", 3), 6)
    loss.units = UnitLoss(torch.tensor(centroids), 2, 0.5)
    weight, bias = (x.detach().double().numpy() for x in (loss.units.guess.weight, loss.units.guess.bias))
    logits = student[3].double().numpy() @ weight.T + bias
    apart = ((teacher[2].double().numpy()[:, :, None] - centroids) ** 2).sum(-1)
    log_likelihood = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    of_frames = -np.take_along_axis(log_likelihood, apart.argmin(-1)[..., None], -1)[..., 0]
    for given, counts in (((None, None), valid | True), ((valid, None), valid), ((valid, mask), valid & mask)):
        tensors = [None if one is None else torch.tensor(one) for one in given]
        total, terms = loss(output(student), output(teacher), tensors[0], (), tensors[1])
        assert terms["units"].item() == pytest.approx(of_frames[counts].mean(), rel=1e-5)
        assert total.item() == pytest.approx((terms["distillation"] + 0.5 * terms["units"]).item(), rel=1e-6)
    total, terms = loss(output(student), output(teacher), None, (), torch.zeros(2, 9, dtype=torch.bool))
    assert terms["units"].item() == 0


def test_units_are_the_clusters_of_a_layer() -> None:
    """Three kinds of sound, far apart: k-means finds them, whatever the seed, and again with the same one."""
    torch.manual_seed(0)
    encoder = Encoder(hubert_config(**SMALL)).eval()
    time_T = torch.arange(12_000) / 16_000
    waveforms_BT = torch.stack([torch.sin(2 * math.pi * hertz * time_T) for hertz in (100.0, 1_000.0, 4_000.0)])
    lengths_B = torch.tensor([12_000, 12_000, 6_000])
    batch = AudioBatch(waveforms_BT, lengths_B, ("a", "b", "c"))
    found_KD = find_units(encoder, [batch], 0, 3, seed=0)
    assert torch.equal(found_KD, find_units(encoder, [batch], 0, 3, seed=0))
    with torch.inference_mode():
        out = encoder(waveforms_BT, lengths_B)
    units = [units_of(out.layers[0][b : b + 1, 2 : int(n) - 2], found_KD) for b, n in enumerate(out.lengths_B)]
    assert {len(one.unique()) for one in units} == {1}
    assert len({int(one[0, 0]) for one in units}) == 3
    with pytest.raises(InputError, match="frames of speech are too few for 500 units"):
        find_units(encoder, [batch], 0, 500, seed=0)


# Masks.


def test_masks_cover_the_share_that_is_asked_for() -> None:
    torch.manual_seed(0)
    for share, length in ((0.4, 10), (0.65, 3), (0.0, 10)):
        student = StudentInput("masked", InputConfig(mask_share=share, mask_frames=length))
        mask_BT = student.mask(500, 200)
        assert mask_BT.float().mean().item() == pytest.approx(share, abs=0.02)
        # Spans of whole length, but where an utterance begins or ends.
        inner = torch.diff(mask_BT.float(), dim=1)
        for row in range(20):
            changes = inner[row].nonzero().flatten().tolist()
            runs = [b - a for a, b in itertools.pairwise(changes) if inner[row][a] > 0]
            assert not runs or min(runs) >= length
    assert StudentInput("noisy").mask(10, 2) is None


@pytest.mark.parametrize("family", [hubert_config, wavlm_config])
@pytest.mark.parametrize("style", [{}, {"pre_norm": True}])
def test_frames_are_masked_in_the_student_alone(family: Any, style: dict[str, Any]) -> None:
    torch.manual_seed(0)
    teacher, student = (Encoder(family(**SMALL, **style)) for _ in range(2))
    seen: dict[str, torch.Tensor] = {}
    for name, encoder in (("teacher", teacher), ("student", student)):
        encoder.positional_conv.register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: args[0].detach().clone()})
        )
    loss, stage = DistillationLoss(make_targets("dphubert", 3), 32), Stage2Config(steps=2)
    module = Distillation(teacher, student, loss, stage, student_input=StudentInput("masked"))
    waveforms_BT = torch.randn(2, 24_000)
    module.train().distil(waveforms_BT, seed=1)
    torch.manual_seed(1)
    mask_BT = StudentInput("masked").mask(74, 2)
    assert 0.1 < mask_BT.float().mean() < 0.9
    heard_BTD = seen["student"]
    h_0 = attach_kernels(student)(waveforms_BT).features_BTD
    assert not heard_BTD[mask_BT].any()
    torch.testing.assert_close(heard_BTD[~mask_BT], h_0[~mask_BT])
    assert (seen["teacher"] != 0).any(-1).all()
    # What is compared of h_0 is h_0 itself; and in evaluation nothing is masked.
    module.eval().distil(waveforms_BT, seed=1)
    assert (seen["student"] != 0).any(-1).all()


# Noise.


def test_the_ratio_of_signal_and_noise_is_what_was_asked_for() -> None:
    torch.manual_seed(0)
    speech_BT = torch.randn(40, 16_000) * torch.linspace(0.01, 1, 40)[:, None]
    for snr in (-5.0, 0.0, 17.0):
        config = InputConfig(noisy_share=1.0, snr_low=snr, snr_high=snr, reverberation_share=0.0)
        for noise in ([], [torch.randn(3_000), torch.randn(40_000)]):
            heard_BT = StudentInput("noisy", config, noise).waveforms(speech_BT)
            added_BT = heard_BT - speech_BT
            ratio_B = 10 * torch.log10(speech_BT.double().square().mean(-1) / added_BT.double().square().mean(-1))
            assert (ratio_B - snr).abs().max() < 0.1


def test_padding_stays_silent_and_does_not_count() -> None:
    torch.manual_seed(0)
    lengths_B = torch.tensor([16_000, 4_000, 9_000])
    speech_BT = torch.randn(3, 16_000) * (torch.arange(16_000) < lengths_B[:, None])
    config = InputConfig(noisy_share=1.0, snr_low=10.0, snr_high=10.0, reverberation_share=0.0, speakers_share=0.5)
    for _ in range(5):
        heard_BT = StudentInput("noisy", config).waveforms(speech_BT, lengths_B)
        for heard_T, speech_T, length in zip(heard_BT, speech_BT, lengths_B.tolist(), strict=True):
            assert not heard_T[length:].any()
            powers = [x_T[:length].double().square().mean() for x_T in (speech_T, heard_T - speech_T)]
            assert 10 * math.log10(powers[0] / powers[1]) == pytest.approx(10, abs=0.1)


def test_shares_of_noise_and_rooms_are_those_that_were_asked_for() -> None:
    torch.manual_seed(0)
    speech_BT = torch.randn(400, 2_000)
    config = InputConfig(noisy_share=0.3, reverberation_share=0.0)
    changed_B = (StudentInput("noisy", config).waveforms(speech_BT) != speech_BT).any(-1)
    assert changed_B.float().mean().item() == pytest.approx(0.3, abs=0.06)
    config = InputConfig(noisy_share=0.0, reverberation_share=0.5)
    heard_BT = StudentInput("masked-noisy", config).waveforms(speech_BT)
    changed_B = (heard_BT != speech_BT).any(-1)
    assert changed_B.float().mean().item() == pytest.approx(0.5, abs=0.07)
    # As loud as before.
    torch.testing.assert_close(heard_BT.square().mean(-1), speech_BT.square().mean(-1), rtol=1e-4, atol=0)


def test_other_speakers_are_of_the_same_batch() -> None:
    torch.manual_seed(0)
    speech_BT = torch.stack([torch.sin(torch.arange(8_000) * 0.01 * k) for k in range(1, 5)])
    config = InputConfig(noisy_share=1.0, speakers_share=1.0, reverberation_share=0.0, snr_low=0, snr_high=0)
    added_BT = StudentInput("noisy", config).waveforms(speech_BT) - speech_BT
    for number, added_T in enumerate(added_BT):
        alike = [abs(torch.cosine_similarity(added_T, other_T, dim=0).item()) for other_T in speech_BT]
        assert max(alike) == pytest.approx(1, abs=1e-4)
        assert alike.index(max(alike)) != number


def test_silence_stays_silent() -> None:
    torch.manual_seed(0)
    speech_BT = torch.zeros(2, 4_000)
    assert not StudentInput("noisy", InputConfig(noisy_share=1.0)).waveforms(speech_BT).any()
    assert factor_for(torch.ones(3), torch.zeros(3), 0.0) == 0


def test_noise_has_its_color_and_rooms_their_decay() -> None:
    torch.manual_seed(0)
    for slope in (0.0, 1.0, 2.0):
        power_F = torch.stack([torch.fft.rfft(colored_noise(4_096, slope)).abs().square() for _ in range(200)]).mean(0)
        low, high = power_F[16:32].mean(), power_F[256:512].mean()
        assert math.log2((low / high).item()) == pytest.approx(4 * slope, abs=0.4)
    response_T = torch.stack([room(0.4, 16_000).square() for _ in range(200)]).mean(0)
    start, end = response_T[1:321].mean(), response_T[-320:].mean()
    assert 10 * math.log10((start / end).item()) == pytest.approx(60 * (0.4 - 0.02) / 0.4, abs=1)
    speech_T, response_T = torch.randn(500), torch.randn(70)
    wanted = np.convolve(speech_T.double().numpy(), response_T.double().numpy())[:500]
    np.testing.assert_allclose(convolve(speech_T, response_T).numpy(), wanted, atol=1e-4)


# Runs.


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, str]:
    """A teacher, speech and noise."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    torch.manual_seed(0)
    Encoder(wavlm_config(**SMALL)).save_pretrained(folder / "teacher")
    for kind, count in (("speech", 16), ("noise", 3)):
        (folder / kind).mkdir()
        for number in range(count):
            samples = int(rng.integers(32_000, 40_000))
            soundfile.write(folder / kind / f"{number}.wav", 0.1 * rng.standard_normal(samples), 16_000)
    return str(folder / "teacher"), str(folder / "speech"), str(folder / "noise")


def settings() -> dict[str, Any]:
    common: dict[str, Any] = {"warmup_steps": 1, "batch_seconds": 6, "learning_rate": 1e-3}
    return {
        "clusters": 2,
        "sparsity": 0.4,
        "analysis": AnalysisConfig(calibration_seconds=12, batch_seconds=6, batch_frames=64),
        "stage1": Stage1Config(steps=3, sparsity_steps=1, **common),
        "stage2": Stage2Config(steps=2, **common),
        "validation_seconds": 6.0,
        "checkpoint_every": 1,
        "precision": "bf16",
    }


@pytest.mark.parametrize(
    "method",
    [
        "skill-star",
        "skill-units",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("star", "masked", "noisy")),
    ],
)
def test_every_method_runs_and_resumes_to_the_bit(method: Any, corpus: tuple[str, str, str], tmp_path: Any) -> None:
    from safetensors.torch import load_file

    teacher, speech, noise = corpus
    given = {**settings(), "method": method, "noise": noise if method == "noisy" else None}
    if method == "skill-units":  # and everything else of the loss that learns
        given |= {"units": UnitsConfig(count=7), "loss": LossConfig(target_weights="learned", normalize_frames=True)}

    class StoppedError(Exception):
        pass

    def stop(stage: Any) -> None:
        if (stage.name, stage.state.step) == ("stage2" if method == "skill-units" else "stage1", 1):
            raise StoppedError

    compress(teacher, speech, str(tmp_path / "whole"), **given)
    with pytest.raises(StoppedError):
        compress(teacher, speech, str(tmp_path / "parts"), **given, on_step=stop)
    compress(teacher, speech, str(tmp_path / "parts"), **given)
    one, other = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    written = (tmp_path / "whole/config.yaml").read_text()
    for name, value in zip(("targets", "distance", "input"), METHODS[method][:3], strict=True):
        assert f"{name}: {value}" in written
    if method == "skill-units":
        stages = [(tmp_path / "whole" / stage / "metrics.csv").read_text().splitlines()[0] for stage in STAGES]
        assert ["train/units" in row for row in stages] == [False, True]
        assert all("train/weight_2" in row for row in stages)
        assert load_file(tmp_path / "whole/stage2/units.safetensors")["centroids"].shape == (7, 32)


def test_any_point_can_be_asked_for(corpus: tuple[str, str, str], tmp_path: Any) -> None:
    teacher, speech, _ = corpus
    point = {"method": "dphubert", "targets": "all-layers", "distance": "both", "input": "masked-noisy"}
    compress(teacher, speech, str(tmp_path / "run"), **settings(), **point)  # type: ignore[arg-type]
    row = (tmp_path / "run/stage1/metrics.csv").read_text().splitlines()[0]
    assert "train/temporal" in row
    assert "train/cosine" in row


def test_bad_noise_is_refused(corpus: tuple[str, str, str], tmp_path: Any) -> None:
    teacher, speech, _ = corpus
    (tmp_path / "silent").mkdir()
    soundfile.write(tmp_path / "silent/a.wav", np.zeros(20_000), 16_000)
    with pytest.raises(InputError, match="no usable noise"):
        compress(teacher, speech, str(tmp_path / "run"), **settings(), input="noisy", noise=str(tmp_path / "silent"))
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="set input to noisy or masked-noisy"):
        compress(teacher, speech, str(tmp_path / "run"), **settings(), noise=str(tmp_path / "silent"))
    with pytest.raises(InputError, match="are all 0"):
        compress(teacher, speech, str(tmp_path / "run"), **settings(), distance="temporal", loss=LossConfig(temporal=0))
    with pytest.raises(InputError, match=r"units.layer is 4; this teacher's last layer is 3"):
        compress(teacher, speech, str(tmp_path / "run"), **settings(), units=UnitsConfig(count=7, layer=4))
    with pytest.raises(InputError, match="snr_low is 5; it must be at most"):
        compress(
            teacher, speech, str(tmp_path / "other"), **settings(), augmentation=InputConfig(snr_low=5, snr_high=1)
        )
