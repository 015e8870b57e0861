"""Who speaks in a corpus."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from lab.espeak import Voice
from lab.speech import ACCENTS, FIRST_SPEAKER, VARIANTS, Speaker


def cast(
    count: int, key: str, *, accents: Sequence[str] = ACCENTS, near: int = 25, rates: tuple[int, int] = (140, 205)
) -> list[Speaker]:
    """So many speakers, a function of the key: women and men in turn, as far as possible no timbre twice.

    Args:
        count: how many.
        key: seed of everything.
        accents: to choose from.
        near: how far pitch and pitch range may be from the middle, at most 50.
        rates: slowest and fastest, in words per minute.
    """
    rng = random.Random(f"cast/{key}")
    timbres = {sex: [(accent, variant) for accent in accents for variant in VARIANTS[sex]] for sex in "FM"}
    for pairs in timbres.values():
        rng.shuffle(pairs)
    speakers = []
    for number in range(count):
        sex = "FM"[number % 2]
        accent, variant = timbres[sex][number // 2 % len(timbres[sex])]
        pitch, pitch_range = (rng.randint(50 - near, 50 + near) for _ in range(2))
        voice = Voice(accent, variant, pitch, pitch_range, rng.randint(*rates))
        speakers.append(Speaker(FIRST_SPEAKER + number, sex, voice))
    return speakers


def vary(voice: Voice, rng: random.Random) -> Voice:
    """The same person at another moment."""
    return replace(
        voice,
        pitch=_within(voice.pitch + rng.randint(-3, 3)),
        pitch_range=_within(voice.pitch_range + rng.randint(-4, 4)),
        rate=round(voice.rate * rng.uniform(0.94, 1.06)),
    )


def with_prosody(voice: Voice, pitch: float, pitch_range: float, rate: float) -> Voice:
    """The same person in another mood: pitch and pitch range are added, the rate is multiplied."""
    return replace(
        voice,
        pitch=_within(voice.pitch + pitch),
        pitch_range=_within(voice.pitch_range + pitch_range),
        rate=round(voice.rate * rate),
    )


def _within(value: float) -> int:
    return max(0, min(99, round(value)))
