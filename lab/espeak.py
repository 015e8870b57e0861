"""espeak-ng through ctypes: text in, samples, timed words and timed phonemes out.

The library comes in the wheel espeakng-loader, so nothing has to be installed on the machine. It keeps global state:
one process speaks one utterance at a time, and work is spread over processes.
"""

from __future__ import annotations

import _ctypes
import ctypes
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

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
class Voice:
    """How a speaker sounds.

    Attributes:
        accent: an espeak-ng language, "en-us" say.
        variant: an espeak-ng voice variant, "f3" say.
        pitch, pitch_range: 0 to 99.
        rate: words per minute.
    """

    accent: str
    variant: str
    pitch: int
    pitch_range: int
    rate: int


@dataclass(frozen=True)
class Word:
    """A word as it was spoken: what stands between two spaces of the text, when (seconds), and its phonemes."""

    text: str
    start: float
    end: float
    phonemes: tuple[str, ...]


@dataclass(frozen=True)
class Spoken:
    """An utterance.

    Attributes:
        samples_T: int16.
        sample_rate: Hz.
        phonemes: (seconds, phoneme) where each phoneme starts.
        words: in order, without the pauses between them. Two that espeak-ng speaks as one ("of the") are one.
    """

    samples_T: npt.NDArray[np.int16]
    sample_rate: int
    phonemes: tuple[tuple[float, str], ...]
    words: tuple[Word, ...]


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

    def speak(self, text: str, voice: Voice) -> Spoken:
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
