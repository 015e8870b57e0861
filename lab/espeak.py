"""espeak-ng through ctypes: text in, samples and timed phonemes out.

The library comes in the wheel espeakng-loader, so nothing has to be installed on the machine. It keeps global state:
one process speaks one utterance at a time, and work is spread over processes.
"""

from __future__ import annotations

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
END_OF_LIST, PHONEME = 0, 7
UTF8 = 1
STRESS_MARKS = "',=_:|%"
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
class Spoken:
    """An utterance: int16 samples (T,) at `sample_rate`, and (seconds, phoneme) where each phoneme starts."""

    samples_T: npt.NDArray[np.int16]
    sample_rate: int
    phonemes: tuple[tuple[float, str], ...]


class Espeak:
    """The library, initialised once per process; see `espeak()`."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise SystemExit("synthetic speech needs the lab's packages: pip install 'skill-speech[lab]'") from None
        self._library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate = int(self._library.espeak_Initialize(SYNCHRONOUS, 0, data, PHONEME_EVENTS | DONT_EXIT))
        if self.sample_rate <= 0:
            raise SystemExit("espeak-ng cannot be initialised: its data folder is missing from espeakng-loader")
        self._chunks: list[npt.NDArray[np.int16]] = []
        self._events: list[tuple[float, str]] = []
        self._callback = _Callback(self._receive)  # kept, or it would be collected while C still calls it
        self._library.espeak_SetSynthCallback(self._callback)
        self._voice: Voice | None = None

    def speak(self, text: str, voice: Voice) -> Spoken:
        """Speak a sentence.

        Raises:
            ValueError: espeak-ng has no such voice.
        """
        if voice != self._voice:
            if self._library.espeak_SetVoiceByName(f"{voice.accent}+{voice.variant}".encode()):
                raise ValueError(f"espeak-ng has no voice {voice.accent}+{voice.variant}")
            for parameter, value in ((RATE, voice.rate), (PITCH, voice.pitch), (RANGE, voice.pitch_range)):
                self._library.espeak_SetParameter(parameter, value, 0)
            self._voice = voice
        self._chunks, self._events = [], []
        encoded = text.encode()
        self._library.espeak_Synth(encoded, len(encoded) + 1, 0, 0, 0, UTF8, None, None)
        samples_T = np.concatenate(self._chunks) if self._chunks else np.zeros(0, np.int16)
        return Spoken(samples_T, self.sample_rate, tuple(self._events))

    def _receive(self, wave: Any, count: int, events: Any) -> int:
        if count > 0 and wave:
            self._chunks.append(np.ctypeslib.as_array(wave, (count,)).copy())
        index = 0
        while events[index].type != END_OF_LIST:
            event = events[index]
            if event.type == PHONEME:
                name = VARIANT.sub("", event.id.string.decode("utf-8", "replace").strip(STRESS_MARKS))
                if name:  # pauses and bare stress marks have no name
                    self._events.append((event.audio_position / 1000, name))
            index += 1
        return 0


@lru_cache(maxsize=1)
def espeak() -> Espeak:
    """This process's library."""
    return Espeak()
