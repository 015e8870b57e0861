"""The neural voice of the package hibari-tts (Apache-2.0): natural speech with the times of its phonemes.

    pip install --no-deps --require-hashes --requirement lab/hibari.txt

Optional: neither the tests nor the demo need it. It has one voice, an American woman's; speakers are made of it between
its network, which says a spectrum every 12.5 ms, and its vocoder: pitch and pitch range of F0, and of the spectrum the
place of the formants, tilt and breath. Its phonemes get espeak-ng's names, so that speech of both has one inventory.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from lab.voices import Spoken, Word

FRAME = 0.025
"""Seconds of a frame in which the network counts durations."""
LATE = 0.05
"""Seconds by which a phoneme is heard before the durations say so; measured at the hiss of sibilants."""
SPECTRUM = ("lh", "theta", "ln", "lr", "phi", "f0")
"""The network's outputs, as the vocoder takes them: harmonics, their phase, noise, the rest and its phase, F0 in Hz."""
DURATIONS = "/Clip_output_0"
"""Inside the network: frames of every symbol."""
VOICED = 40.0
"""F0 below means that a frame has none, as in the vocoder."""
BREATH_FROM = 2_000.0
"""Hz above which breath is heard."""
STRESS = "ˈˌ"
WEAK = "@-"
NAMES = {
    "A": "eI",
    "I": "aI",
    "O": "oU",
    "W": "aU",
    "Y": "OI",
    "æ": "a",
    "a": "a",
    "ɑ": "A",
    "ɒ": "0",
    "ɔ": "O",
    "ə": "@",
    "ɐ": "@",
    "ᵊ": WEAK,
    "ɛ": "E",
    "ɜ": "3",
    "ɚ": "3",
    "ɪ": "I",
    "ᵻ": "I",
    "i": "i",
    "u": "u",
    "ʊ": "U",
    "ʌ": "V",
    "ɡ": "g",
    "ŋ": "N",
    "ɹ": "r",
    "ʃ": "S",
    "ʒ": "Z",
    "ð": "D",
    "θ": "T",
    "ʤ": "dZ",
    "ʧ": "tS",
    "ɾ": "t",
    "T": "t",
    "ʔ": "?",
    **{letter: letter for letter in "bdfhjklmnpstvwz"},
}
"""What espeak-ng calls a symbol."""
MERGED = {
    "Ar": "A@",
    "Or": "O@",
    "Er": "e@",
    "3r": "3",
    "@r": "3",
    "Ir": "i@3",
    "Ur": "U@",
    f"{WEAK}l": "@L",
    f"{WEAK}r": "3",
}
"""Two of its phonemes that are one of espeak-ng's within a word."""


@dataclass(frozen=True)
class HibariVoice:
    """How a speaker sounds.

    Attributes:
        pitch: semitones above the network's voice.
        pitch_range: factor of the movement of the pitch.
        rate: factor of the speed.
        formants: factor of their frequencies; a longer vocal tract has lower ones.
        tilt_db: how much louder 8 kHz is, in relation to 0 Hz.
        breath_db: noise above BREATH_FROM, in relation to the harmonics.
    """

    ENGINE: ClassVar[str] = "hibari-tts"

    pitch: float = 0.0
    pitch_range: float = 1.0
    rate: float = 1.0
    formants: float = 1.0
    tilt_db: float = 0.0
    breath_db: float = -60.0

    @classmethod
    def random(cls, rng: random.Random, sex: str, spread: float = 1.0) -> HibariVoice:
        """Somebody; with a smaller spread people differ less in pitch, its range and speed."""
        woman = sex == "F"
        wide = [spread * rng.uniform(-1, 1) for _ in range(3)]
        return cls(
            pitch=round(1 + 4 * wide[0] if woman else -10 + 4 * wide[0], 2),
            pitch_range=round(1 + 0.4 * wide[1], 3),
            rate=round(1.04 + 0.16 * wide[2], 3),
            formants=round(rng.uniform(0.95, 1.1) if woman else rng.uniform(0.8, 0.93), 3),
            tilt_db=round(rng.uniform(-9, 9), 2),
            breath_db=round(rng.uniform(-50, -12), 2),
        )

    @classmethod
    def reader(cls) -> HibariVoice:
        """The American who reads the words of lexicons: the network's own voice."""
        return cls()

    def varied(self, rng: random.Random) -> HibariVoice:
        """The same person at another moment."""
        return replace(
            self,
            pitch=self.pitch + rng.uniform(-0.7, 0.7),
            pitch_range=self.pitch_range * rng.uniform(0.92, 1.08),
            rate=self.rate * rng.uniform(0.94, 1.06),
        )

    def with_prosody(self, pitch: float, pitch_range: float, rate: float) -> HibariVoice:
        """The same person in another mood; pitch and pitch range are added, in steps of which 50 are an octave."""
        return replace(
            self,
            pitch=self.pitch + 12 * pitch / 50,
            pitch_range=self.pitch_range * 2 ** (pitch_range / 50),
            rate=self.rate * rate,
        )

    def speak(self, text: str) -> Spoken:
        """Speak a sentence, the same every time.

        Raises:
            ValueError: a word is not spoken as one word, a number say.
        """
        return hibari().speak(text, self)


class Hibari:
    """The package's network and vocoder, in one process; see `hibari()`."""

    def __init__(self) -> None:
        try:
            import onnx
            import onnxruntime
            from hibari import Hibari as Package
            from hibari import dsp
        except ImportError:
            raise SystemExit(
                "hibari's voices need its package: pip install --no-deps --require-hashes --requirement lab/hibari.txt"
            ) from None
        self._package, self._vocoder = Package(), dsp
        self._symbols = {number: symbol for symbol, number in self._package.vocab.items()}
        network = onnx.load(self._package.model_path)
        network.graph.output.append(onnx.helper.make_tensor_value_info(DURATIONS, onnx.TensorProto.FLOAT, None))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(network.SerializeToString(), options)

    def speak(self, text: str, voice: HibariVoice) -> Spoken:
        """Speak a sentence."""
        numbers = self._package.ids(" ".join(self._package.phonemize(text)))
        given = {"ids": np.array([numbers]), "speed": np.array([voice.rate], np.float32)}
        *spectrum, durations = self._session.run([*SPECTRUM, DURATIONS], given)
        changed = transformed(dict(zip(SPECTRUM, (output[0] for output in spectrum), strict=True)), voice)
        noise = np.random.default_rng(random.Random(f"{text}/{voice}").getrandbits(128))
        samples_T = self._vocoder.synth(*(changed[name] for name in SPECTRUM), noise)
        timed = phonemes_in_time([self._symbols.get(number, "") for number in numbers], durations.ravel() * FRAME)
        if len(timed) != len(text.split()):
            raise ValueError(f"hibari does not say {text!r} word by word")
        words = tuple(
            Word(token, spoken[0][0], end, tuple(name for _, name in spoken))
            for token, (spoken, end) in zip(text.split(), timed, strict=True)
        )
        starts = tuple(start for spoken, _ in timed for start in spoken)
        # Changed formants and tilt change the peak; a sample too large would be cut off.
        samples_T = samples_T * min(1.0, 0.99 / (float(np.abs(samples_T).max()) + 1e-9))
        return Spoken((samples_T * 32767).astype(np.int16), self._package.sample_rate, starts, words)


def transformed(spectrum: dict[str, npt.NDArray[np.float32]], voice: HibariVoice) -> dict[str, Any]:
    """What the network said in another voice: log magnitudes and phases (bins, frames) and F0 (frames,)."""
    f0_F = spectrum["f0"]
    voiced_F = f0_F > VOICED
    middle = float(np.median(np.log(f0_F[voiced_F]))) if voiced_F.any() else 0.0
    moved_F = middle + voice.pitch_range * (np.log(np.maximum(f0_F, VOICED)) - middle) + np.log(2) * voice.pitch / 12
    bins = len(spectrum["lh"])
    hertz_N = np.linspace(0, 12_000, bins, dtype=np.float32)
    from_N = np.minimum(np.arange(bins) / voice.formants, bins - 1)
    below_N = np.floor(from_N).astype(int)
    above_N, share_N = np.minimum(below_N + 1, bins - 1), (from_N - below_N).astype(np.float32)[:, None]
    changed: dict[str, Any] = {
        name: (1 - share_N) * spectrum[name][below_N] + share_N * spectrum[name][above_N]
        for name in ("lh", "theta", "ln", "lr")
    }
    changed["phi"] = spectrum["phi"][np.rint(from_N).astype(int)]  # angles have no mean
    tilt_N = (voice.tilt_db * np.log(10) / 20 * (np.minimum(hertz_N, 8_000) / 8_000 - 0.5)).astype(np.float32)[:, None]
    for name in ("lh", "ln", "lr"):
        changed[name] = changed[name] + tilt_N
    breath_N = np.where(hertz_N > BREATH_FROM, voice.breath_db * np.log(10) / 20, -20.0).astype(np.float32)[:, None]
    changed["ln"] = np.logaddexp(changed["ln"], np.where(voiced_F, changed["lh"] + breath_N, -20.0).astype(np.float32))
    return changed | {"f0": np.where(voiced_F, np.exp(moved_F), f0_F).astype(np.float32)}


def phonemes_in_time(
    symbols: list[str], seconds: npt.NDArray[np.float64]
) -> list[tuple[list[tuple[float, str]], float]]:
    """Of every word its phonemes and their starts, and its end, all in seconds.

    A mark of stress is the beginning of what follows, any other mark the end of what was before.
    """
    words: list[tuple[list[tuple[float, str]], float]] = []
    word: list[tuple[float, str]] = []
    clock, began = 0.0, None
    for symbol, lasts in zip((*symbols, " "), (*seconds, 0.0), strict=True):
        if symbol and symbol in STRESS:
            began = clock
        elif symbol in NAMES:
            start = max(0.0, (clock if began is None else began) - LATE)
            name, began = NAMES[symbol], None
            if word and word[-1][1] + name in MERGED:
                word[-1] = (word[-1][0], MERGED[word[-1][1] + name])
            else:
                word.append((start, name))
        elif symbol == " " and word:
            words.append(([(start, name.replace(WEAK, "@")) for start, name in word], max(0.0, clock - LATE)))
            word = []
        clock += float(lasts)
    return words


@lru_cache(maxsize=1)
def hibari() -> Hibari:
    """This process's network."""
    return Hibari()
