"""The neural voice: what is made of its network's output, and, where its package is installed, what it says."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lab.corpora import make_corpora
from lab.corpora.casting import cast
from lab.corpora.librispeech import pronunciation
from lab.espeak import EspeakVoice
from lab.hibari import BREATH_FROM, LATE, HibariVoice, phonemes_in_time, transformed
from lab.speech import make_speakers, make_speech

BINS, FRAMES = 601, 40
HERTZ_N = np.linspace(0, 12_000, BINS)
packaged = pytest.mark.skipif(importlib.util.find_spec("hibari") is None, reason="hibari-tts is not installed")


def spectrum() -> dict[str, Any]:
    """A harmonic spectrum with a formant at 1,000 Hz; voiced but for the last ten frames, F0 from 150 to 250 Hz."""
    formant_NF = np.repeat(-((HERTZ_N[:, None] - 1_000) ** 2) / 2 / 200**2, FRAMES, 1).astype(np.float32)
    f0_F = np.linspace(150, 250, FRAMES).astype(np.float32)
    f0_F[-10:] = 0
    quiet_NF = np.full((BINS, FRAMES), -9, np.float32)
    flat_NF = np.zeros((BINS, FRAMES), np.float32)
    return {"lh": formant_NF, "theta": flat_NF, "ln": quiet_NF, "lr": quiet_NF, "phi": flat_NF, "f0": f0_F}


def test_the_plain_voice_is_the_networks():
    plain, given = transformed(spectrum(), HibariVoice()), spectrum()
    for name in given:
        np.testing.assert_allclose(plain[name], given[name], atol=2e-3, err_msg=name)


def test_pitch_is_in_semitones_and_its_range_a_factor_and_frames_without_stay_without():
    before, after = spectrum()["f0"], transformed(spectrum(), HibariVoice(pitch=12, pitch_range=0.5))["f0"]
    voiced = before > 0
    assert (after[~voiced] == 0).all()
    middle = np.median(before[voiced])
    np.testing.assert_allclose(after[voiced], 2 * middle * (before[voiced] / middle) ** 0.5, rtol=1e-4)


def test_formants_move_and_tilt_and_breath_are_as_loud_as_asked_for():
    moved = transformed(spectrum(), HibariVoice(formants=1.2))["lh"]
    assert HERTZ_N[moved[:, 0].argmax()] == pytest.approx(1_200, abs=20)
    tilted = transformed(spectrum(), HibariVoice(tilt_db=6))["lr"] - spectrum()["lr"]
    decibels = 20 * tilted[:, 0] / np.log(10)
    assert decibels[400] - decibels[0] == pytest.approx(6, abs=1e-3)  # 8 kHz against 0 Hz
    noise = transformed(spectrum() | {"lh": np.zeros((BINS, FRAMES), np.float32)}, HibariVoice(breath_db=-20))["ln"]
    heard = HERTZ_N > BREATH_FROM
    np.testing.assert_allclose(20 * noise[heard, 0] / np.log(10), -20, atol=0.02)
    np.testing.assert_allclose(noise[~heard, 0], -9, atol=1e-3)
    np.testing.assert_allclose(noise[:, -1], -9, atol=1e-3)  # without voice there is no breath


def test_symbols_become_phonemes_in_time():
    # "a bottle more": stress before its vowel, a weak vowel that is one with its l, a vowel that is one with its r.
    symbols = ["", "ɐ", " ", "b", "ˈ", "ɑ", "T", "ᵊ", "l", " ", "m", "ˈ", "ɔ", "ː", "ɹ", ".", ""]
    words = phonemes_in_time(symbols, np.full(len(symbols), 0.1))
    assert [[name for _, name in spoken] for spoken, _ in words] == [["@"], ["b", "A", "t", "@L"], ["m", "O@"]]
    starts = [[start for start, _ in spoken] for spoken, _ in words]
    wanted = [[0.1], [0.3, 0.4, 0.6, 0.7], [1.0, 1.1]]  # stress belongs to what follows
    for mine, other in zip(starts, wanted, strict=True):
        np.testing.assert_allclose(mine, np.array(other) - LATE)
    np.testing.assert_allclose([end for _, end in words], np.array([0.2, 0.9, 1.7]) - LATE)


def test_a_weak_vowel_before_another_sound_is_an_ordinary_one():
    ((spoken, _),) = phonemes_in_time(["ˈ", "O", "p", "ᵊ", "n"], np.full(5, 0.1))
    assert [name for _, name in spoken] == ["oU", "p", "@", "n"]


def test_engines_take_turns_and_speakers_of_espeak_stay_who_they_were():
    people = make_speakers(8, 0, ("hibari", "espeak", "hibari"))
    assert [type(person.voice).__name__[:6] for person in people] == ["Hibari"] * 2 + ["Espeak"] * 2 + ["Hibari"] * 4
    assert "".join(person.sex for person in people) == "FM" * 4
    assert len({person.voice for person in people}) == 8
    assert str(make_speakers(2, 0)[1].voice) == "en-029+miguel pitch 58 range 29 rate 202"
    assert cast(1, "x/0")[0].voice == EspeakVoice("en-gb-scotland", "f2", 44, 39, 185)


def test_a_smaller_spread_makes_people_more_alike():
    for near, most in ((25, 4.0), (10, 1.6)):
        women = [person.voice for person in cast(200, "near", "hibari", near=near)[::2]]
        away = [abs(voice.pitch - 1) for voice in women if isinstance(voice, HibariVoice)]
        assert 0.8 * most < max(away) <= most + 0.01


@packaged
def test_a_sentence_is_said_word_by_word_and_the_same_every_time():
    voice = HibariVoice.random(random.Random(0), "M")
    first, second = (voice.speak("the seventh bird, and a dog's leaves") for _ in range(2))
    np.testing.assert_array_equal(first.samples_T, second.samples_T)
    assert first.samples_T.dtype == np.int16
    assert [word.text for word in first.words] == "the seventh bird, and a dog's leaves".split()
    assert first.words[2].phonemes == ("b", "3", "d")
    seconds = len(first.samples_T) / first.sample_rate
    times = [start for start, _ in first.phonemes]
    assert times == sorted(times)
    assert times[-1] < first.words[-1].end <= seconds
    assert not np.array_equal(
        voice.varied(random.Random(1)).speak("the bird").samples_T, voice.speak("the bird").samples_T
    )
    assert voice.with_prosody(50, 0, 2.0).pitch == voice.pitch + 12


@packaged
def test_sibilants_hiss_where_the_times_say_so():
    # The high band is loudest when the times are moved by nothing: not 30 ms earlier, not 30 ms later.
    shares = {-0.03: 0.0, 0.0: 0.0, 0.03: 0.0}
    for number in range(8):
        spoken = HibariVoice.random(random.Random(number), "FM"[number % 2]).speak(
            "six seats she sees, this zoo shows such shoes"
        )
        power_FN = np.abs(np.fft.rfft(_windows(spoken.samples_T, spoken.sample_rate), axis=1)) ** 2 + 1e-3
        hiss_F = np.log(power_FN[:, 60:].sum(1) / power_FN[:, :30].sum(1))
        spans = zip(spoken.phonemes, spoken.phonemes[1:], strict=False)
        sibilants = [(start, end) for (start, name), (end, _) in spans if name in ("s", "z", "S", "tS")]
        for moved in shares:
            inside = [hiss_F[round((a + moved) * 200) : round((b + moved) * 200)].mean() for a, b in sibilants]
            shares[moved] += float(np.mean(inside))
    assert shares[0.0] == max(shares.values()), shares


@packaged
def test_corpora_and_lexicon_are_spoken_by_it(tmp_path: Path):
    root = make_corpora(
        tmp_path / "corpora", size="tiny", tasks=["pr", "ic", "er", "sf", "qbe"], jobs=1, engine="hibari"
    )
    assert "hibari-tts" in (root / "README.txt").read_text(encoding="utf-8")
    assert pronunciation("yellow", HibariVoice.reader()) == ("j", "E", "l", "oU")
    with pytest.raises(SystemExit, match="holds other synthetic corpora"):
        make_corpora(root, size="tiny", tasks=["pr"], jobs=1)
    speech = make_speech(tmp_path / "speech", hours=0.02, jobs=1, engines=["hibari", "espeak"], speakers=4)
    said = (speech / "SPEAKERS.TXT").read_text(encoding="utf-8")
    assert "HibariVoice" in said
    assert "pitch" in said


def _windows(samples_T: np.ndarray, rate: int) -> np.ndarray:
    """Windows of 10 ms every 5 ms, in float."""
    size = rate // 100
    return np.lib.stride_tricks.sliding_window_view(samples_T.astype(float), size)[:: size // 2] * np.hanning(size)
