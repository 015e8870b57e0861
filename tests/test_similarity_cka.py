"""CKA estimators against dense textbook formulas, known populations, and each other."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from skill_speech.data import AudioBatch
from skill_speech.encoder import Encoder, wavlm_config
from skill_speech.errors import InputError
from skill_speech.similarity import ExactCKA, MinibatchCKA, compare_layers, estimate_cka, unbiased_hsic


def gaussians(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def related_layers(utterances: int, frames: int, seed: int = 0) -> list[Tensor]:
    """Four layers of different widths that share some of their content, and have means far from zero."""
    common = gaussians(utterances, frames, 6, seed=seed)
    layers = []
    for number, width in enumerate((5, 8, 6, 12)):
        mixing = gaussians(6, width, seed=100 + number)
        noise = gaussians(utterances, frames, width, seed=1000 * seed + number + 1)
        layers.append(common @ mixing + (0.5 + number) * noise + 3 * number)
    return layers


def gram(x_ND: Tensor) -> Tensor:
    return x_ND.double() @ x_ND.double().T


def song_equation_5(K: Tensor, M: Tensor) -> float:
    """HSIC_1 with explicit loops."""
    n = len(K)
    trace = sum(float(K[i, j] * M[i, j]) for i in range(n) for j in range(n) if i != j)
    sum_k = sum(float(K[i, j]) for i in range(n) for j in range(n) if i != j)
    sum_m = sum(float(M[i, j]) for i in range(n) for j in range(n) if i != j)
    chain = sum(
        float(K[i, j] * M[j, k]) for i in range(n) for j in range(n) for k in range(n) if i != j and j != k
    )  # 1ᵀKM1
    return (trace + sum_k * sum_m / ((n - 1) * (n - 2)) - 2 / (n - 2) * chain) / (n * (n - 3))


def hsic_as_u_statistic(K: Tensor, M: Tensor) -> float:
    """What HSIC_1 estimates, as the mean over all ordered quadruples of distinct frames (Song et al. 2012, eq. 4)."""
    terms = [
        float(K[i, j] * (M[i, j] + M[q, r] - 2 * M[i, q])) for i, j, q, r in itertools.permutations(range(len(K)), 4)
    ]
    return sum(terms) / len(terms)


def dense_biased_cka(x_ND: Tensor, y_ND: Tensor) -> float:
    """HSIC_0 of the centered Gram matrices, normalized (Kornblith et al. 2019, eq. 3 and 4)."""
    n = len(x_ND)
    H = torch.eye(n, dtype=torch.float64) - 1 / n
    K, M = H @ gram(x_ND) @ H, H @ gram(y_ND) @ H
    return float((K @ M).trace() / ((K @ K).trace() * (M @ M).trace()).sqrt())


def dense_unbiased_cka(layers: list[Tensor]) -> Tensor:
    """HSIC_1 (Song et al. 2012, eq. 5) from whole Gram matrices in float64, normalized."""
    grams = [gram(layer.flatten(0, 1)).fill_diagonal_(0) for layer in layers]
    n = len(grams[0])

    def hsic(K: Tensor, M: Tensor) -> Tensor:
        chain = (K @ M).sum()
        return (K @ M).trace() + K.sum() * M.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * chain

    hsic_LL = torch.stack([torch.stack([hsic(K, M) for M in grams]) for K in grams])
    return hsic_LL / torch.outer(hsic_LL.diagonal(), hsic_LL.diagonal()).sqrt()


def wide_layers(frames: int) -> list[Tensor]:
    """Four layers of 96 features whose variances fall by a factor of a thousand, each further from the first."""
    layers = [gaussians(1, frames, 96) * torch.logspace(0, -1.5, 96)]
    for number in range(3):
        mixing = gaussians(96, 96, seed=10 + number) / 96**0.5
        layers.append(layers[-1] + 2 * torch.tanh(layers[-1] @ mixing))
    return layers


def test_hsic_equals_the_textbook_formula_and_its_u_statistic():
    layers = [gaussians(7, width, seed=width) + width for width in (3, 4, 9)]
    hsic_LL = unbiased_hsic(layers)
    for (i, K), (j, M) in itertools.product(enumerate(map(gram, layers)), repeat=2):
        assert float(hsic_LL[i, j]) == pytest.approx(song_equation_5(K, M), rel=1e-8)
        assert float(hsic_LL[i, j]) == pytest.approx(hsic_as_u_statistic(K, M), rel=1e-8)


def test_hsic_of_independent_frames_has_mean_zero():
    values = []
    for trial in range(1500):
        layers = [gaussians(12, 4, seed=2 * trial + side) + 5 for side in (0, 1)]
        values.append(float(unbiased_hsic(layers)[0, 1]))
    values_R = torch.tensor(values)
    assert abs(values_R.mean()) < 3 * values_R.std() / len(values) ** 0.5


def test_minibatch_estimator_equals_the_dense_formula_on_one_minibatch():
    layers = related_layers(4, 15)
    estimator = MinibatchCKA(batch_frames=64)
    estimator.update(layers)
    torch.testing.assert_close(estimator.compute(), dense_unbiased_cka(layers), rtol=1e-5, atol=1e-6)


def test_bfloat16_gram_matrices_and_blocks_keep_the_dense_values():
    """600 frames: blocks of 256, one of them cut off; layers with a mean far larger than what tells frames apart."""
    layers = [layer + 50 for layer in wide_layers(600)]
    dense_LL = dense_unbiased_cka(layers)
    assert float(dense_LL.min()) < 0.8
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-4)):
        estimator = MinibatchCKA(batch_frames=600, gram_dtype=dtype)
        estimator.update(layers)
        torch.testing.assert_close(estimator.compute(), dense_LL, rtol=0, atol=tolerance)


def test_exact_estimator_equals_the_dense_formula():
    layers = related_layers(4, 15)
    estimator = ExactCKA()
    estimator.update(layers)
    cka_LL = estimator.compute()
    assert cka_LL.dtype == torch.float64
    for (i, x), (j, y) in itertools.product(enumerate(layers), repeat=2):
        assert float(cka_LL[i, j]) == pytest.approx(dense_biased_cka(x.flatten(0, 1), y.flatten(0, 1)), rel=1e-9)


@pytest.mark.parametrize("estimator", [ExactCKA, lambda: MinibatchCKA(64)])
def test_invariant_to_rotation_scale_and_shift_but_not_to_linear_maps(estimator):
    x, y = related_layers(3, 50)[1:3]
    rotation = torch.linalg.qr(gaussians(8, 8, seed=5)).Q

    def cka(a: Tensor, b: Tensor) -> float:
        made = estimator()
        made.update([a, b])
        return float(made.compute()[0, 1])

    before = cka(x, y)
    assert 0.1 < before < 0.9
    assert cka(x @ rotation, y) == pytest.approx(before, rel=1e-4)
    assert cka(1e6 * x, 1e-6 * y) == pytest.approx(before, rel=1e-4)
    assert cka(x - 100, y + 100) == pytest.approx(before, rel=1e-3)
    assert cka(x @ rotation, x) == pytest.approx(1, rel=1e-4)
    assert abs(cka(x * torch.tensor([30.0] + [1.0] * 7), y) - before) > 0.05


def test_minibatches_agree_with_the_population_where_the_plug_in_estimate_of_a_minibatch_does_not():
    """y = x A + e of independent gaussians: CKA = ‖A‖² / (‖I‖ ‖AᵀA + I‖)."""
    width = 12
    A = gaussians(width, width, seed=1) / 5
    population = float(A.square().sum() / (width**0.5 * (A.T @ A + torch.eye(width)).norm()))
    x = gaussians(1, 24_000, width, seed=2)
    y = x @ A + gaussians(1, 24_000, width, seed=3)
    estimator = MinibatchCKA(batch_frames=24)
    estimator.update([x, y])
    assert float(estimator.compute()[0, 1]) == pytest.approx(population, abs=0.01)
    biased = sum(dense_biased_cka(x[0, at : at + 24], y[0, at : at + 24]) for at in range(0, 2400, 24)) / 100
    assert biased > population + 0.1


def test_the_two_estimators_agree_within_the_sampling_error():
    layers = related_layers(40, 100)
    minibatch, exact = MinibatchCKA(256), ExactCKA()
    for at in range(0, 40, 8):
        for estimator in (minibatch, exact):
            estimator.update([layer[at : at + 8] for layer in layers])
    cka_LL = minibatch.compute()
    assert torch.equal(cka_LL, cka_LL.T)
    assert torch.equal(cka_LL.diagonal(), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(cka_LL, exact.compute(), rtol=0, atol=0.01)


@pytest.mark.parametrize("estimator", [ExactCKA, lambda: MinibatchCKA(16, seed=3)])
def test_padding_is_excluded(estimator):
    layers = related_layers(5, 30)
    lengths_B = torch.tensor([30, 7, 0, 18, 1])
    for layer in layers:
        layer[torch.arange(30) >= lengths_B[:, None]] = torch.nan
    padded, plain = estimator(), estimator()
    padded.update(layers, lengths_B)
    plain.update([torch.cat([layer[b, :n] for b, n in enumerate(lengths_B.tolist())])[None] for layer in layers])
    assert torch.equal(padded.compute(), plain.compute())


def test_exact_estimate_does_not_depend_on_the_batches():
    layers = related_layers(12, 50)
    whole, parts = ExactCKA(), ExactCKA()
    whole.update(layers)
    for at in range(12):
        parts.update([layer[at : at + 1] for layer in layers])
    torch.testing.assert_close(whole.compute(), parts.compute(), rtol=1e-10, atol=0)


def test_memory_does_not_grow_and_every_frame_is_used_once():
    estimator, seen = MinibatchCKA(batch_frames=16), []
    measure = estimator._measure

    def spy(rows_N: Tensor) -> Tensor:
        seen.append(estimator._buffers[0][rows_N, 0].tolist())
        return measure(rows_N)

    estimator._measure = spy
    for utterance in range(30):
        ids = torch.arange(53.0) + 53 * utterance
        estimator.update([ids[None, :, None], gaussians(1, 53, 2, seed=utterance)])
        assert [buffer_FD.shape for buffer_FD in estimator._buffers] == [(128, 1), (128, 2)]
        assert estimator._filled <= 128
    estimator.compute()
    assert sorted(itertools.chain.from_iterable(seen)) == list(range(30 * 53))
    # A minibatch of neighboring frames would come from one utterance; the buffer holds those of two or three.
    assert all(len({int(frame) // 53 for frame in frames}) >= 2 for frames in seen)
    assert all(len(frames) >= 8 for frames in seen)


def test_minibatches_mix_utterances_so_that_neighboring_frames_do_not_inflate_similarity():
    """Each utterance moves along a straight line, at the same pace in both layers but in unrelated directions."""
    steps = torch.linspace(-1, 1, 64)[None, :, None]
    x, y = (steps * gaussians(200, 1, 5, seed=side) + 0.05 * gaussians(200, 64, 5, seed=side + 2) for side in (0, 1))
    mixed, exact, neighbors = MinibatchCKA(256), ExactCKA(), torch.zeros(2, 2, dtype=torch.float64)
    for at in range(200):
        mixed.update([x[at : at + 1], y[at : at + 1]])
        exact.update([x[at : at + 1], y[at : at + 1]])
        neighbors += unbiased_hsic([x[at], y[at]])
    inflated = float(neighbors[0, 1] / (neighbors[0, 0] * neighbors[1, 1]).sqrt())
    truth = float(exact.compute()[0, 1])
    assert truth < 0.1
    assert inflated > 0.6
    assert abs(float(mixed.compute()[0, 1]) - truth) < 0.1


def test_halves_of_the_utterances_are_measured_as_if_there_were_no_others():
    """In the order of the frames that a minibatch of all has."""
    layers = related_layers(24, 9)
    estimator = MinibatchCKA(24 * 9, views=("raw", "normalized"), halves=20)
    for at in range(0, 24, 5):
        estimator.update([layer[at : at + 5] for layer in layers])
    found = estimator.similarity()
    assert found.raw_halves_HLL.shape == found.normalized_halves_HLL.shape == (20, 4, 4)
    for view, tensors in (("raw", layers), ("normalized", [unit_frames(layer) for layer in layers])):
        cka_LL, halves_HLL = found.of(view)
        torch.testing.assert_close(cka_LL, dense_unbiased_cka(tensors), rtol=1e-5, atol=1e-6)
        chosen = set()
        for half_LL in halves_HLL:
            dense = {
                parts: dense_unbiased_cka([layer[[b for b in range(24) if b % 8 in parts]] for layer in tensors])
                for parts in itertools.combinations(range(8), 4)
                if parts not in chosen
            }
            nearest = min(dense, key=lambda parts: float((dense[parts] - half_LL).abs().max()))
            torch.testing.assert_close(half_LL, dense[nearest], rtol=1e-5, atol=1e-6)
            chosen.add(nearest)
        assert len(chosen) == 20


def unit_frames(x_BTD: Tensor) -> Tensor:
    """Zero mean and unit variance over features, in float64."""
    centered_BTD = x_BTD.double() - x_BTD.double().mean(-1, keepdim=True)
    return centered_BTD / centered_BTD.square().mean(-1, keepdim=True).sqrt()


def test_halves_of_a_sample_scatter_as_samples_do():
    """So that what agrees between halves would agree between samples: the spread is right within a third."""
    seen, halves = [], []
    for seed in range(60):
        estimator = MinibatchCKA(64, views=("raw", "normalized"), halves=20)
        estimator.update(related_layers(32, 8, seed=7 * seed + 3))
        found = estimator.similarity()
        seen.append(found.raw_LL[0, 3])
        halves.append((found.raw_halves_HLL[:, 0, 3] - found.raw_LL[0, 3]).square().mean())
    assert float(torch.stack(halves).mean().sqrt() / torch.stack(seen).std()) == pytest.approx(1, abs=0.33)


def test_huge_values_own_raw_similarity_and_not_that_of_normalized_frames():
    """Two layers that have nothing in common but one feature, which is huge in few frames, as in trained encoders."""
    layers = [gaussians(32, 20, 16, seed=side) for side in (1, 2)]
    shared = 100 * gaussians(32, 20, seed=3) * (gaussians(32, 20, seed=4) > 2)
    for layer in layers:
        layer[:, :, 5] = shared
    estimator = MinibatchCKA(128, views=("raw", "normalized"))
    estimator.update(layers)
    found = estimator.similarity()
    assert float(found.raw_LL[0, 1]) > 0.99
    assert float(found.of("normalized")[0][0, 1]) < 0.3


def test_a_layer_whose_normalized_frames_are_all_the_same_has_raw_similarity_alone():
    layers = related_layers(20, 10)
    layers[1] = gaussians(20, 10, 1).exp() * torch.tensor([1.0, 2.0, -4.0])
    estimator = MinibatchCKA(64, views=("raw", "normalized"), halves=4)
    estimator.update(layers)
    found = estimator.similarity()
    assert found.normalized_LL is None
    assert found.raw_LL.isfinite().all()
    with pytest.raises(InputError, match="a layer is constant once its frames are normalized"):
        found.of("normalized")


def test_compute_does_not_end_the_pass():
    layers = related_layers(10, 40)
    estimator = MinibatchCKA(32)
    estimator.update([layer[:5] for layer in layers])
    estimator.compute()
    estimator.update([layer[5:] for layer in layers])
    exact = ExactCKA()
    exact.update(layers)
    torch.testing.assert_close(estimator.compute(), exact.compute(), rtol=0, atol=0.06)


@pytest.mark.parametrize("estimator", [ExactCKA, MinibatchCKA])
def test_constant_and_broken_layers_are_named(estimator):
    layers = related_layers(2, 20)
    layers[2] = torch.full_like(layers[2], 0.1)
    made = estimator(first_layer=1)
    made.update(layers)
    with pytest.raises(InputError, match="layer h_3 is constant over all frames"):
        made.compute()
    layers[1][0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="layer h_2 has values that are not finite"):
        estimator(first_layer=1).update(layers)


@pytest.mark.parametrize("estimator", [ExactCKA, MinibatchCKA])
def test_too_few_frames_are_refused(estimator):
    with pytest.raises(InputError, match="0 frames of speech are too few"):
        estimator().compute()
    made = estimator()
    made.update(related_layers(1, 1))
    with pytest.raises(InputError, match="1 frames of speech are too few"):
        made.compute()


def test_too_small_minibatches_are_refused():
    with pytest.raises(InputError, match="batch_frames is 3"):
        MinibatchCKA(3)


def tiny_encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(
        wavlm_config(
            hidden_size=24, num_heads=2, units=32, channels=8, depth=3, positional_kernel=8, positional_groups=4
        )
    )


def speech(batches: int) -> list[AudioBatch]:
    lengths_B = torch.tensor([16_000, 9_000, 12_345])
    made = []
    for number in range(batches):
        waveforms_BT = gaussians(3, 16_000, seed=number)
        waveforms_BT[torch.arange(16_000) >= lengths_B[:, None]] = 0
        made.append(AudioBatch(waveforms_BT, lengths_B, ("a", "b", "c")))
    return made


def test_estimate_cka_runs_an_encoder():
    encoder, calls = tiny_encoder().train(), []
    found = estimate_cka(encoder, speech(3), batch_frames=32, progress=lambda: calls.append(1))
    cka_LL = found.raw_LL
    assert encoder.training
    assert len(calls) == 3
    assert cka_LL.shape == (4, 4)
    exact = estimate_cka(encoder, speech(3), estimator="exact")
    exact_LL = exact.raw_LL
    torch.testing.assert_close(found.normalized_LL, exact.normalized_LL, rtol=0, atol=0.1)
    assert float((exact.normalized_LL - exact_LL).abs().max()) > 1e-4
    assert (len(found.raw_halves_HLL), len(exact.raw_halves_HLL)) == (20, 0)
    few = estimate_cka(encoder, speech(2), batch_frames=32)
    assert len(few.raw_halves_HLL) == 0
    torch.testing.assert_close(cka_LL, exact_LL, rtol=0, atol=0.1)
    without_LL = estimate_cka(encoder, speech(3), estimator="exact", include_features=False).raw_LL
    torch.testing.assert_close(without_LL, exact_LL[1:, 1:])
    reference = ExactCKA()
    for batch in speech(3):
        with torch.no_grad():
            out = encoder.eval()(batch.waveforms_BT, batch.lengths_B)
        for b, frames in enumerate(out.lengths_B.tolist()):
            reference.update([layer[b : b + 1, :frames] for layer in out.layers])
    torch.testing.assert_close(exact_LL, reference.compute())


def test_a_student_is_compared_layer_by_layer():
    teacher, student = tiny_encoder(), tiny_encoder()
    same_L = compare_layers(teacher, student, speech(3))
    torch.testing.assert_close(same_L, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-6)
    with torch.no_grad():
        for weight in student.layers[1].parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
    found_L = compare_layers(teacher.train(), student, speech(3))
    assert teacher.training
    states = [[], []]
    for batch in speech(3):
        for encoder, kept in zip((teacher, student), states, strict=True):
            with torch.no_grad():
                out = encoder.eval()(batch.waveforms_BT, batch.lengths_B)
            kept.append([torch.cat([x[b, :n] for b, n in enumerate(out.lengths_B)]) for x in out.layers])
    for layer, value in enumerate(found_L.tolist()):
        x_ND, y_ND = (torch.cat([batch[layer] for batch in kept])[None] for kept in states)
        assert value == pytest.approx(float(dense_unbiased_cka([x_ND, y_ND])[0, 1]), abs=1e-5)
    assert found_L[:2].min() > 0.999 > found_L[2:].max()


def test_estimate_cka_names_a_broken_layer_and_an_unknown_estimator():
    encoder = tiny_encoder()
    with torch.no_grad():
        encoder.layers[1].feed_forward_norm.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="layer h_2 "):
        estimate_cka(encoder, speech(1), include_features=False)
    with pytest.raises(InputError, match="unknown CKA estimator 'debiased'; known: minibatch, exact"):
        estimate_cka(encoder, speech(1), estimator="debiased")
    with pytest.raises(InputError, match="0 frames"):
        estimate_cka(encoder, [])
