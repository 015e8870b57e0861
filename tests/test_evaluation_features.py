"""What heads are trained on, and the heads: each piece against its formula or another implementation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from skill_speech.errors import InputError
from skill_speech.evaluation.filterbanks import Filterbanks
from skill_speech.evaluation.heads import (
    AdditiveMarginSoftmax,
    BidirectionalLSTM,
    CTCHead,
    Downstream,
    PooledHead,
    XVector,
    weighted_sums,
)
from skill_speech.evaluation.protocol import SpecAugmentConfig
from skill_speech.evaluation.silence import trim_silence
from skill_speech.evaluation.spec_augment import spec_augment
from skill_speech.evaluation.tasks.query_by_example import detection_scores, subsequence_cost
from skill_speech.evaluation.upstream import open_upstream, split_name
from skill_speech.evaluation.vocabulary import BLANK, CHARACTERS, END, Vocabulary
from tests.transformers_models import TINY, VARIANTS, build, save

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def kaldi_filterbanks(waveform: np.ndarray) -> np.ndarray:
    """Kaldi's log-mel filterbanks by their definition, a frame at a time."""
    mel = lambda hertz: 1127 * np.log1p(hertz / 700)  # noqa: E731
    edges = np.linspace(mel(20), mel(8000), 82)
    bins = mel(np.arange(256) * 16000 / 512)
    filters = [
        np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
        for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False)
    ]
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
    frames = []
    for start in range(0, len(waveform) - 399, 160):
        frame = waveform[start : start + 400] - waveform[start : start + 400].mean()
        frame = frame - 0.97 * np.r_[frame[0], frame[:-1]]
        power = np.abs(np.fft.rfft(frame * window, 512)[:256]) ** 2
        frames.append(np.log(np.maximum(np.array(filters) @ power, np.finfo(np.float32).eps)))
    return np.array(frames)


def slopes(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x, ((2, 2), (0, 0)), mode="edge")
    return np.array([np.polyfit(np.arange(-2, 3), padded[t : t + 5], 1)[0] for t in range(len(x))])


def test_filterbanks_are_kaldis_with_deltas_normalized_per_utterance():
    waveform = np.random.default_rng(0).standard_normal(8000) * 0.1
    static = kaldi_filterbanks(waveform)
    raw = np.concatenate([static, slopes(static), slopes(slopes(static))], axis=1)
    expected = (raw - raw.mean(0)) / raw.std(0, ddof=1)
    features = Filterbanks()(torch.from_numpy(waveform).float()).numpy()
    assert features.shape == (1 + (8000 - 400) // 160, 240)
    np.testing.assert_allclose(features, expected, atol=2e-3)


@pytest.mark.parametrize("variant", ["hubert-base", "wavlm-large"])
def test_an_encoder_gives_the_hidden_states_of_transformers_and_the_last_behind_the_final_norm(tmp_path, variant):
    kind, overrides = VARIANTS[variant]
    model = build(kind, TINY | overrides)
    waveform = torch.randn(6000)
    with torch.no_grad():
        theirs = model(waveform[None], output_hidden_states=True)
    upstream = open_upstream(str(save(model, tmp_path / "m")), CPU)
    (states,) = upstream.encode([waveform])
    assert states.shape == (upstream.num_states, upstream.num_frames(6000), upstream.width)
    for ours, other in zip(states[:-1], theirs.hidden_states[:-1], strict=True):
        torch.testing.assert_close(ours, other[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states[-1], theirs.last_hidden_state[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("source", ["fbank", "model"])
def test_hidden_states_do_not_depend_on_the_other_utterances_of_a_batch(tmp_path, source):
    if source == "model":
        kind, overrides = VARIANTS["hubert-base"]  # whose group norm sees the padding in Transformers
        source = str(save(build(kind, TINY | overrides), tmp_path / "m"))
    upstream = open_upstream(source, CPU)
    waveforms = [torch.randn(length) for length in (5000, 3000, 450, 200)]
    for together, waveform in zip(upstream.encode(waveforms), waveforms, strict=True):
        (alone,) = upstream.encode([waveform])
        assert alone.shape[1] == upstream.num_frames(len(waveform))
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_another_weight_is_another_fingerprint(tmp_path):
    kind, overrides = VARIANTS["hubert-base"]
    model = build(kind, TINY | overrides)
    one = open_upstream(str(save(model, tmp_path / "one")), CPU)
    same = open_upstream(str(save(model, tmp_path / "same")), CPU)
    with torch.no_grad():
        model.encoder.layers[0].attention.k_proj.bias[0] += 1e-3
    other = open_upstream(str(save(model, tmp_path / "other")), CPU)
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_names_of_models(tmp_path):
    (tmp_path / "run" / "model").mkdir(parents=True)
    assert split_name(str(tmp_path / "run" / "model")) == ("run", str(tmp_path / "run" / "model"))
    assert split_name("microsoft/wavlm-base-plus") == ("wavlm-base-plus", "microsoft/wavlm-base-plus")
    assert split_name("teacher=microsoft/wavlm-base-plus") == ("teacher", "microsoft/wavlm-base-plus")
    assert split_name("fbank") == ("fbank", "fbank")
    for bad in ("=x", "a/b=x", "x=", ""):
        with pytest.raises(InputError):
            split_name(bad)


def test_silence_is_taken_out_where_it_lasts():
    rng = np.random.default_rng(0)
    noise, quiet = rng.standard_normal(16_000).astype("float32") * 0.1, np.zeros(4_800, "float32")
    click = noise[:320]
    with_silence = np.concatenate([quiet, noise, quiet, click, quiet, noise, quiet])
    kept = trim_silence(with_silence)
    # Up to a window of 20 ms before each silence stays with the sound.
    assert 2 * len(noise) - 800 <= len(kept) <= 2 * len(noise) + 800
    short_pause = np.concatenate([noise, np.zeros(800, "float32"), noise])
    assert len(trim_silence(short_pause)) >= len(short_pause) - 320  # a window may go by before the first sound
    assert len(trim_silence(quiet)) == len(quiet)


def test_weighted_sums_are_softmax_means_of_the_states_for_every_model():
    states = [torch.randn(3, frames, 5) for frames in (4, 2)]
    models = [Downstream(3, nn.Linear(5, 1)) for _ in range(2)]
    models[1].weights_L.data = torch.tensor([0.5, -1.0, 2.0])
    for model, sums in zip(models, weighted_sums(models, states, CPU), strict=True):
        weights = model.weights_L.exp() / model.weights_L.exp().sum()
        for row, state in zip(sums, states, strict=True):
            expected = sum(weight * layer for weight, layer in zip(weights, state, strict=True))
            torch.testing.assert_close(row[: state.shape[1]], expected)
            assert (row[state.shape[1] :] == 0).all()
    single = Downstream(1, nn.Linear(5, 1))
    assert [name for name, _ in single.named_parameters()] == ["head.weight", "head.bias"]


def test_the_bidirectional_lstm_is_torchs_on_packed_sequences():
    ours, theirs = BidirectionalLSTM(6, 4), nn.LSTM(6, 4, batch_first=True, bidirectional=True)
    for part, suffix in ((ours.forwards, ""), (ours.backwards, "_reverse")):
        for name, weight in part.named_parameters():
            weight.data = getattr(theirs, name + suffix).data.clone()
    x, lengths = torch.randn(3, 7, 6), torch.tensor([7, 3, 5])
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found = ours(x, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(found[row, :length], expected[row, :length])


def test_ctc_scores_do_not_depend_on_the_padding():
    head = CTCHead(6, 5, projection_size=8, hidden_size=4, layers=2, dropout=0.2).eval()
    one, other = torch.randn(9, 6), torch.randn(4, 6)
    scores = head(pad_sequence([one, other], batch_first=True), torch.tensor([9, 4]))
    torch.testing.assert_close(scores[1, :4], head(other[None], torch.tensor([4]))[0])


def test_the_pooled_head_is_two_linear_layers_around_the_mean():
    head = PooledHead(6, 3, projection_size=4)
    x, weights = torch.randn(2, 5, 6), torch.tensor([[1.0] * 5, [1.0, 1.0, 0.25, 0.0, 0.0]])
    frames = head.output(head.projection(x))
    expected = (frames * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    torch.testing.assert_close(head(x, weights), expected)


def test_the_x_vector_is_snyders():
    vector = XVector(6, projection_size=5, pooled_size=7).eval()
    x = torch.randn(20, 6)
    hidden = vector.projection(x)
    for layer, offsets in zip(vector.frame_layers, ([-2, -1, 0, 1, 2], [-2, 0, 2], [-3, 0, 3], [0], [0]), strict=True):
        reach = offsets[-1]
        rows = [
            F.relu(sum(layer.weight[..., k] @ hidden[t + o] for k, o in enumerate(offsets)) + layer.bias)
            for t in range(reach, len(hidden) - reach)
        ]
        hidden = torch.stack(rows)
    assert len(hidden) == 20 - XVector.context
    pooled = torch.cat([hidden.mean(0), hidden.std(0)])
    expected = F.relu(vector.embedding(pooled))
    padded = torch.cat([x, torch.randn(6, 6)])[None]
    torch.testing.assert_close(vector.embed(padded, torch.tensor([20]))[0], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vector(padded, torch.tensor([20]))[0], F.relu(vector.output(expected)))


def test_additive_margin_softmax_by_its_formula():
    loss = AdditiveMarginSoftmax(4, 3, scale=30.0, margin=0.4)
    x, labels = torch.randn(5, 4), torch.tensor([0, 2, 1, 1, 0])
    cosines = torch.stack([F.cosine_similarity(x, row[None]) for row in loss.weight_CD], dim=1)
    expected = []
    for row, label in zip(cosines, labels, strict=True):
        target = (30 * (row[label] - 0.4)).exp()
        others = sum((30 * value).exp() for place, value in enumerate(row) if place != label)
        expected.append(-(target / (target + others)).log())
    torch.testing.assert_close(loss(x, labels), torch.stack(expected).mean())


def test_spec_augment_masks_stretches_and_keeps_the_rest_of_unwarped_features():
    config = SpecAugmentConfig(time_warp=0, time_masks=2, time_width=5, feature_masks=1, feature_width=4)
    x = torch.rand(3, 40, 16) + 1
    masked = spec_augment(x, [40, 40, 40], config)
    hidden = masked == 0
    assert torch.equal(masked[~hidden], x[~hidden])
    for row in hidden:
        frames, dimensions = row.all(1), row.all(0)
        assert torch.equal(row, frames[:, None] | dimensions)
        assert frames.sum() <= 8
        assert dimensions.sum() <= 3
    assert hidden.any()


def test_the_time_warp_keeps_length_and_order():
    config = SpecAugmentConfig(time_warp=5, time_masks=0, feature_masks=0)
    ramp = torch.arange(50.0)[None, :, None].expand(2, 50, 8)
    warped = spec_augment(ramp, [50, 30], config)
    assert warped.shape == ramp.shape
    assert not torch.equal(warped, ramp)
    for row, length in zip(warped, (50, 30), strict=True):
        assert row[:length].diff(dim=0).median() == pytest.approx(1, abs=0.3)
        assert row[0, 0] == pytest.approx(0, abs=0.6)
        assert row[length - 1, 0] == pytest.approx(length - 1, abs=0.6)
    assert (warped[1, 30:] == 0).all()


def paths_cost(costs: np.ndarray) -> float:
    """The cheapest of all paths, each tried: one document frame per query frame, 0, 1 or 2 further each time."""
    low, high = costs.min(1, keepdims=True), costs.max(1, keepdims=True)
    costs = (costs - low) / np.maximum(high - low, 1e-9)
    best = np.inf
    for start in range(costs.shape[1]):
        for steps in itertools.product((0, 1, 2), repeat=len(costs) - 1):
            places = np.cumsum([start, *steps])
            if places[-1] < costs.shape[1]:
                best = min(best, costs[np.arange(len(costs)), places].mean())
    return best


def test_subsequence_warping_finds_the_cheapest_of_all_paths():
    rng = np.random.default_rng(0)
    documents = [rng.random((4, frames)) for frames in (7, 3, 5)]
    padded = torch.full((3, 4, 7), 99.0)
    for row, costs in zip(padded, documents, strict=True):
        row[:, : costs.shape[1]] = torch.from_numpy(costs)
    found = subsequence_cost(padded, torch.tensor([7, 3, 5]))
    np.testing.assert_allclose(found.numpy(), [paths_cost(costs) for costs in documents], rtol=1e-5)


@pytest.mark.parametrize("distance", ["cosine_exp", "cosine", "euclidean"])
def test_detection_scores_are_normalized_costs_of_normalized_features(distance):
    rng = np.random.default_rng(1)
    queries = [rng.standard_normal((frames, 6)) + 3 for frames in (5, 4, 3)]
    documents = [rng.standard_normal((frames, 6)) + 3 for frames in (8, 6, 9)]
    frames = np.concatenate([*queries, *documents])
    mean, deviation = frames.mean(0), frames.std(0, ddof=1)
    expected = np.zeros((3, 3))
    for row, query in enumerate(queries[:2]):
        for column, document in enumerate(documents):
            one, other = (query - mean) / deviation, (document - mean) / deviation
            if distance == "euclidean":
                costs = np.linalg.norm(one[:, None] - other, axis=2)
            else:
                costs = 1 - one @ other.T / np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
                costs = np.exp(costs) - 1 if distance == "cosine_exp" else costs
            expected[row, column] = -paths_cost(costs)
        expected[row] = (expected[row] - expected[row].mean()) / expected[row].std()
    to_torch = lambda several: [torch.from_numpy(x).float() for x in several]  # noqa: E731
    scores = detection_scores(to_torch(queries), to_torch(documents), [distance], min_frames=4)
    # The last query is too short to be searched for.
    np.testing.assert_allclose(scores[distance].numpy(), expected, atol=1e-3)


def test_the_best_path_loses_repetitions_and_blanks():
    vocabulary = Vocabulary(CHARACTERS)
    a, b = vocabulary.encode(["A", "B"])[:2]
    assert vocabulary.decode([BLANK, a, a, BLANK, a, b, b, END, BLANK]) == ["A", "A", "B"]
    assert vocabulary.encode("A?")[1:] == [2, END]
    assert vocabulary.spelled("A?") == vocabulary.decode([a, 2]) == ["A", "<unk>"]
    assert len(vocabulary) == 3 + 28


def test_transformers_was_compared_with():
    assert int(transformers.__version__.split(".")[0]) >= 5  # whose hidden states end before the final norm
