"""The metrics agree with an independent computation: by hand, by brute force, or by another library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest
from scipy.interpolate import interp1d
from scipy.optimize import brentq
from sklearn.metrics import roc_curve

from skill_speech.evaluation.corpora.utterances import Turn
from skill_speech.evaluation.metrics import (
    character_error_rate,
    diarization_error,
    equal_error_rate,
    frame_accuracy,
    max_term_weighted_value,
    phoneme_error_rate,
    slot_type_f1,
    slot_value_cer,
    turns_of,
    word_error_rate,
)
from skill_speech.evaluation.metrics.term_weighted_value import BETA


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein's distance, as its definition says it."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, start=1):
        before, row = row, [i] + [0] * len(hypothesis)
        for j, heard in enumerate(hypothesis, start=1):
            row[j] = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (wanted != heard))
    return row[-1]


def random_words(rng: np.random.Generator, shortest: int) -> list[str]:
    return list(rng.choice(["a", "b", "cd", "e"], rng.integers(shortest, 9)))


def test_word_and_phoneme_error_rates_are_edits_over_the_length_of_all_references():
    rng = np.random.default_rng(0)
    references = [random_words(rng, 1) for _ in range(50)]
    hypotheses = [random_words(rng, 0) for _ in range(50)]
    rate = 100 * sum(map(edits, references, hypotheses)) / sum(map(len, references))
    assert word_error_rate([" ".join(r) for r in references], [" ".join(h) for h in hypotheses]) == pytest.approx(rate)
    assert phoneme_error_rate(references, hypotheses) == pytest.approx(rate)


def test_an_empty_hypothesis_misses_every_word():
    assert word_error_rate(["one two", "three"], ["", "three"]) == pytest.approx(100 * 2 / 3)


def test_character_error_rate_counts_every_space():
    rng = np.random.default_rng(1)
    texts = [["".join(rng.choice(list("ab "), rng.integers(1, 9))) for _ in range(50)] for _ in range(2)]
    expected = 100 * sum(map(edits, *texts)) / sum(map(len, texts[0]))
    assert character_error_rate(*texts) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "f1", "cer"),
    [
        ("PLAY B-artist ABBA E-artist", "PLAY B-artist ABBA E-artist", 100, 0),
        # The type is right, one of four letters is not.
        ("PLAY B-artist ABBA E-artist", "PAY B-artist ABBE E-artist", 100, 25),
        # No slot was heard: the value is missing altogether.
        ("PLAY B-artist ABBA E-artist", "PLAY ABBA", 0, 100),
        # One of the two types: P = 1, R = 1/2. The other value's three letters are missing: 3 of 7.
        ("B-artist ABBA E-artist B-year TEN E-year", "B-artist ABBA E-artist", 200 / 3, 300 / 7),
        # A slot too many costs precision (P = 1/2, R = 1) and no value.
        ("B-artist ABBA E-artist", "B-artist ABBA E-artist B-year TEN E-year", 200 / 3, 0),
        # Of two values of a type the nearer one counts: ABBB for ABBA, 1 of 4.
        ("B-artist ABBA E-artist", "B-artist QQQQ E-artist B-artist ABBB E-artist", 100, 25),
        # A mark that is never closed marks nothing.
        ("B-artist ABBA E-artist", "B-artist ABBA", 0, 100),
        ("GO ON", "GO ON", 100, 0),
        # Two marks touch: the opening ones go first, `NEW E-artistYORK`, then the closing ones: 5 of 8 are missing.
        ("B-city NEW YORK E-city", "B-city NEW E-artistB-city  YORK E-city", 100, 62.5),
        # Where they do not touch, marks of others are no letters.
        ("B-city NEW YORK E-city", "B-city NEW B-artist YORK E-city", 100, 0),
        ("B-city NEW YORK E-city", "B-city NEW E-artist YORK E-city", 100, 0),
        # Marks within a reference's value stay (15 letters, of which 11 are the mark and a space).
        ("B-city NE B-artist YO E-city", "B-city NE YO E-city", 100, 100 * 9 / 14),
        # A value closes at the first mark that begins like its own: the type is heard, of ABBA too.
        ("B-play ABBA E-play", "B-play ABBA E-playlist", 100, 0),
        # A hundred errors a letter and more are as good as silence; one letter less is not.
        ("B-a X E-a", f"B-a {'Y' * 100} E-a", 100, 100),
        ("B-a X E-a", f"B-a {'Y' * 99} E-a", 100, 9900),
    ],
)
def test_slot_metrics_by_hand(reference, hypothesis, f1, cer):
    assert slot_type_f1([reference], [hypothesis]) == pytest.approx(f1)
    assert slot_value_cer([reference], [hypothesis]) == pytest.approx(cer)


def test_slot_f1_is_averaged_over_sentences_and_cer_over_letters():
    references = ["B-a XX E-a", "B-a YYYYYY E-a"]
    hypotheses = ["B-b XX E-b", "B-a YYYYYY E-a"]
    assert slot_type_f1(references, hypotheses) == pytest.approx(50)
    assert slot_value_cer(references, hypotheses) == pytest.approx(100 * 2 / 8)


@pytest.mark.parametrize("decimals", [6, 1])  # few decimals make many ties
def test_equal_error_rate_is_where_the_curve_of_scikit_learn_meets_the_diagonal(decimals):
    rng = np.random.default_rng(2)
    for _ in range(20):
        labels = rng.integers(0, 2, 60)
        labels[:2] = 0, 1
        scores = np.round(labels * rng.uniform(0, 2) + rng.standard_normal(60), decimals)
        alarms, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
        curve = interp1d(alarms, hits)
        expected = brentq(lambda x, curve=curve: 1 - x - curve(x), 0, 1)
        assert equal_error_rate(labels, scores) == pytest.approx(100 * expected, abs=1e-6)


def test_equal_error_rate_of_separated_and_of_reversed_trials():
    assert equal_error_rate([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]) == 0
    assert equal_error_rate([1, 1, 0, 0], [0.1, 0.2, 0.3, 0.4]) == 100
    # One of two targets is below one of two non-targets.
    assert equal_error_rate([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]) == 50


def brute_force_mtwv(scores: np.ndarray, matches: np.ndarray) -> float:
    best = 0.0
    for threshold in np.unique(scores[np.isfinite(scores)]):
        losses = []
        for row, wanted in zip(scores, matches, strict=True):
            if wanted.any():
                detected = row >= threshold
                misses = (wanted & ~detected).sum() / wanted.sum()
                alarms = (~wanted & detected).sum() / (~wanted).sum()
                losses.append(misses + BETA * alarms)
        best = max(best, 1 - float(np.mean(losses)))
    return 100 * best


def test_mtwv_agrees_with_trying_every_threshold():
    assert pytest.approx(12.49) == BETA  # 1 / 100 · (1 / 0.0008 - 1)
    rng = np.random.default_rng(3)
    for _ in range(20):
        matches = rng.random((6, 40)) < 0.1
        scores = np.round(rng.standard_normal((6, 40)) + 2.5 * matches, rng.integers(1, 4))
        scores[:, :5] = -np.inf  # documents that were not looked at
        assert max_term_weighted_value(scores, matches) == pytest.approx(brute_force_mtwv(scores, matches))


def test_mtwv_by_hand():
    matches = np.array([[True, False, False], [False, True, True], [False, False, False]])
    assert max_term_weighted_value(np.where(matches, 1.0, 0.0), matches) == pytest.approx(100)
    assert max_term_weighted_value(np.where(matches, 0.0, 1.0), matches) == 0
    # The first query finds its document first of all, the second neither of its two: (1 + 0) / 2.
    scores = np.array([[3.0, 0.0, 0.0], [2.0, 1.0, 1.0], [9.0, 0.0, 0.0]])
    assert max_term_weighted_value(scores, matches) == pytest.approx(50)


def brute_force_der(reference: Sequence[Turn], hypothesis: Sequence[Turn], seconds: float, step: float) -> tuple:
    """Errors and spoken time of one recording on a grid, for the best of all matches of speakers."""
    times = np.arange(step / 2, seconds, step)

    def activity(turns: Sequence[Turn], names: Sequence[str]) -> np.ndarray:
        return np.array(
            [[any(t.speaker == n and t.start <= time < t.end for t in turns) for time in times] for n in names]
        )

    names = [sorted({turn.speaker for turn in turns}) for turns in (reference, hypothesis)]
    size = max(map(len, names))
    real, found = np.zeros((size, len(times)), bool), np.zeros((size, len(times)), bool)
    real[: len(names[0])], found[: len(names[1])] = activity(reference, names[0]), activity(hypothesis, names[1])
    counts = np.maximum(real.sum(0), found.sum(0)).sum()
    errors = min(counts - (real & found[list(order)]).sum() for order in permutations(range(size)))
    return errors, real.sum()


def random_turns(rng: np.random.Generator, speakers: str) -> list[Turn]:
    turns = []
    for speaker in speakers:
        times = np.sort(rng.choice(np.arange(0, 50), 4, replace=False)) / 10
        turns += [Turn(speaker, times[0], times[1]), Turn(speaker, times[2], times[3])]
    return turns


def test_diarization_error_agrees_with_counting_tenths_of_a_second():
    rng = np.random.default_rng(4)
    references = {f"r{n}": random_turns(rng, "AB") for n in range(5)}
    hypotheses = {name: random_turns(rng, "xy") for name in references}
    counted = [brute_force_der(references[name], hypotheses[name], 5.0, 0.1) for name in references]
    expected = 100 * sum(errors for errors, _ in counted) / sum(spoken for _, spoken in counted)
    assert diarization_error(references, hypotheses) == pytest.approx(expected)


def test_diarization_error_by_hand():
    reference = {"r": [Turn("A", 0.0, 2.0), Turn("B", 1.0, 3.0)]}
    assert diarization_error(reference, {"r": [Turn("0", 1.0, 3.0), Turn("1", 0.0, 2.0)]}) == pytest.approx(0)
    assert diarization_error(reference, {"r": []}) == pytest.approx(100)
    # One speaker throughout: 2 of 4 s are missed where A and B overlap or change; 3 s were found, A's 2 are right.
    assert diarization_error(reference, {"r": [Turn("0", 0.0, 3.0)]}) == pytest.approx(100 * (1 + 1) / 4)
    # A false alarm of 1 s after the end counts, there is no collar.
    late = [*reference["r"], Turn("A", 3.0, 4.0)]
    assert diarization_error(reference, {"r": late}) == pytest.approx(25)


def test_turns_are_the_runs_of_active_frames():
    active = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], dtype=bool)
    assert turns_of(active, 0.02) == [Turn("0", 0.0, 0.04), Turn("0", 0.06, 0.08), Turn("1", 0.04, 0.08)]
    assert frame_accuracy(active, ~active) == 0
    assert math.isclose(frame_accuracy(active, np.ones((4, 2), bool)), 62.5)
