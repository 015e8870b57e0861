"""Who speaks in a corpus."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lab.espeak import ACCENTS, VARIANTS, EspeakVoice
from lab.hibari import HibariVoice
from lab.speech import FIRST_SPEAKER
from lab.voices import Speaker, Voice


def cast(
    count: int,
    key: str,
    engine: str = "espeak",
    *,
    accents: Sequence[str] = ACCENTS,
    near: int = 25,
    rates: tuple[int, int] = (140, 205),
) -> list[Speaker]:
    """So many speakers, a function of the key: women and men in turn, as far as possible no timbre twice.

    Args:
        count: how many.
        key: seed of everything.
        engine: whose voices; "hibari" has one accent.
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
        voice: Voice
        if engine == "hibari":
            voice = HibariVoice.random(rng, sex, spread=near / 25)
        else:
            accent, variant = timbres[sex][number // 2 % len(timbres[sex])]
            pitch, pitch_range = (rng.randint(50 - near, 50 + near) for _ in range(2))
            voice = EspeakVoice(accent, variant, pitch, pitch_range, rng.randint(*rates))
        speakers.append(Speaker(FIRST_SPEAKER + number, sex, voice))
    return speakers
