"""espeak-ng through ctypes: text in, samples, timed words and timed phonemes out.

The library comes in the wheel espeakng-loader, so nothing has to be installed on the machine. It keeps global state:
one process speaks one utterance at a time, and work is spread over processes.
"""

from __future__ import annotations

import _ctypes
import ctypes
import random
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lab.voices import Spoken, Word

SYNCHRONOUS = 2
PHONEME_EVENTS = 0x0001
DONT_EXIT = 0x8000
RATE, PITCH, RANGE = 1, 3, 4
END_OF_LIST, WORD, PHONEME = 0, 1, 7
UTF8 = 1
STRESS_MARKS = "',=_:|%"
PAUSE = "_"
# Accents write variants of a phoneme with these behind its name: @2, a#, r-, t[. One inventory serves all accents.
VARIANT = re.compile(r"(?<=.)[#\-\[2]+$")

ACCENTS = ("en", "en-us", "en-029", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-us-nyc")
VARIANTS = {
    "F": "f1 f2 f3 f4 f5 Alicia Andrea Annie anika aunty belinda grandma linda steph steph2 steph3".split(),
    "M": (
        "m1 m2 m3 m4 m5 m6 m7 m8 Alex Andy Denis Diogo Gene Henrique Hugo Jacky Lee Marco Mario Michael Mike "
        "Reed adam antonio benjamin boris caleb david ed edward gustave ian iven john max michel miguel "
        "norbert pablo paul pedro quincy rob robert sandro shelby travis victor zac"
    ).split(),
}


class _Name(ctypes.Union):
    _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Name),
    )


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True)
class EspeakVoice:
    """How a speaker sounds.

    Attributes:
        accent: an espeak-ng language, "en-us" say.
        variant: an espeak-ng voice variant, "f3" say.
        pitch, pitch_range: 0 to 99.
        rate: words per minute.
    """

    ENGINE: ClassVar[str] = "espeak-ng"

    accent: str
    variant: str
    pitch: int
    pitch_range: int
    rate: int

    def __str__(self) -> str:
        return f"{self.accent}+{self.variant} pitch {self.pitch} range {self.pitch_range} rate {self.rate}"

    @classmethod
    def random(cls, rng: random.Random, sex: str) -> EspeakVoice:
        """Somebody."""
        return cls(
            accent=rng.choice(ACCENTS),
            variant=rng.choice(VARIANTS[sex]),
            pitch=rng.randint(25, 75),
            pitch_range=rng.randint(25, 75),
            rate=rng.randint(135, 215),
        )

    @classmethod
    def reader(cls) -> EspeakVoice:
        """The American who reads the words of lexicons."""
        return cls("en-us", "f3", 50, 50, 170)

    def varied(self, rng: random.Random) -> EspeakVoice:
        """The same person at another moment."""
        return replace(
            self,
            pitch=_within(self.pitch + rng.randint(-3, 3)),
            pitch_range=_within(self.pitch_range + rng.randint(-4, 4)),
            rate=round(self.rate * rng.uniform(0.94, 1.06)),
        )

    def with_prosody(self, pitch: float, pitch_range: float, rate: float) -> EspeakVoice:
        """The same person in another mood: pitch and pitch range are added, the rate is multiplied."""
        return replace(
            self,
            pitch=_within(self.pitch + pitch),
            pitch_range=_within(self.pitch_range + pitch_range),
            rate=round(self.rate * rate),
        )

    def speak(self, text: str) -> Spoken:
        """Speak a sentence.

        Raises:
            ValueError: espeak-ng has no such voice.
        """
        return espeak().speak(text, self)


def _within(value: float) -> int:
    return max(0, min(99, round(value)))


class Espeak:
    """The library, loaded once per utterance; see `espeak()`.

    Voices with flutter, breath or noise go on where the utterance before left them, even through the library's own
    `espeak_Initialize`. Unloading the library and setting both of its random seeds forgets everything, so that an
    utterance is a function of its text and voice, to the sample. It takes 6 ms.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise SystemExit(
                "synthetic speech needs the lab's packages: pip install espeakng-loader scikit-learn"
            ) from None
        self._path = espeakng_loader.get_library_path()
        self._data = espeakng_loader.get_data_path().encode()
        self._library: Any = None
        self._callback = _Callback(self._receive)  # kept, or it would be collected while C still calls it
        self._chunks: list[npt.NDArray[np.int16]] = []
        self._events: list[tuple[float, str | int]] = []
        self._load()

    def speak(self, text: str, voice: EspeakVoice) -> Spoken:
        """Speak a sentence.

        Raises:
            ValueError: espeak-ng has no such voice.
        """
        self._load()
        if self._library.espeak_SetVoiceByName(f"{voice.accent}+{voice.variant}".encode()):
            raise ValueError(f"espeak-ng has no voice {voice.accent}+{voice.variant}")
        for parameter, value in ((RATE, voice.rate), (PITCH, voice.pitch), (RANGE, voice.pitch_range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks, self._events = [], []
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, UTF8, None, None)
        samples_T = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        phonemes = tuple((time, what) for time, what in self._events if isinstance(what, str) and what != PAUSE)
        words = _words(text, self._events, len(samples_T) / self.sample_rate)
        return Spoken(samples_T, self.sample_rate, phonemes, words)

    def _load(self) -> None:
        if self._library is not None:
            self._library.espeak_Terminate()
            _ctypes.dlclose(self._library._handle)
        self._library = ctypes.CDLL(self._path)
        self.sample_rate = int(self._library.espeak_Initialize(SYNCHRONOUS, 0, self._data, PHONEME_EVENTS | DONT_EXIT))
        if self.sample_rate <= 0:
            raise SystemExit("espeak-ng cannot be initialized: its data folder is missing from espeakng-loader")
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        ctypes.CDLL(None).srand(1)

    def _receive(self, wave: Any, count: int, events: Any) -> int:
        if count > 0 and wave:
            self._chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type != END_OF_LIST:
            self._hear(events[index])
            index += 1
        return 0

    def _hear(self, event: Any) -> None:
        if event.type == WORD:
            self._events.append((event.audio_position / 1000, event.text_position - 1))
        elif event.type == PHONEME:
            mark = event.id.string.decode("utf-8", "replace")
            name = VARIANT.sub("", mark.strip(STRESS_MARKS))
            if name or mark.startswith(PAUSE):  # and not a bare stress mark
                self._events.append((event.audio_position / 1000, name or PAUSE))


def _words(text: str, events: list[tuple[float, str | int]], seconds: float) -> tuple[Word, ...]:
    """Words from the events: an integer is the place in the text where a word starts, PAUSE is a pause.

    A number of several words has several such events within its digits, and in some languages a pause; they stay one
    word.
    """
    words: list[Word] = []
    places: list[int] = []
    place = 0
    spoken: list[tuple[float, str]] = []
    for time, what in (*events, (seconds, PAUSE)):
        token_place = text.rfind(" ", 0, what + 1) + 1 if isinstance(what, int) else place
        if spoken and (token_place != place or what == PAUSE):
            token = text[place:].split(maxsplit=1)[0]
            word = Word(token, spoken[0][0], time, tuple(phoneme for _, phoneme in spoken))
            if places and places[-1] == place:
                word = Word(token, words[-1].start, time, words.pop().phonemes + word.phonemes)
                places.pop()
            words.append(word)
            places.append(place)
            spoken = []
        place = token_place
        if isinstance(what, str) and what != PAUSE:
            spoken.append((time, what))
    return tuple(words)


@lru_cache(maxsize=1)
def espeak() -> Espeak:
    """This process's library."""
    return Espeak()
