"""IEMOCAP for er: two actors per session say the same sentences in every emotion, which only prosody tells apart."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from lab.corpora.casting import cast
from lab.corpora.channel import Channel
from lab.corpora.sentences import Sentences
from lab.corpora.work import Clip, Made, Workers, write_lines
from lab.sentences import random_clause
from lab.voices import Speaker

FOLDER = "IEMOCAP_full_release"
SESSIONS = 5
TURNS_PER_DIALOG = 16
PAUSE = 0.8
# Scripted sentences, the same in all sessions, and improvised ones, which only one session has.
SIZES = {"tiny": (1, 1), "small": (3, 3), "full": (8, 8)}


@dataclass(frozen=True)
class Emotion:
    """How a mood changes a voice: pitch and range are added, the rate multiplied, loudness and tilt in dB."""

    pitch: float
    pitch_range: float
    rate: float
    gain_db: float
    tilt_db: float
    valence: float
    activation: float


EMOTIONS = {
    "neu": Emotion(0, 0, 1.0, 0, 0, valence=3.0, activation=2.5),
    "hap": Emotion(14, 22, 1.07, 2, 2, valence=4.5, activation=3.5),
    "exc": Emotion(19, 26, 1.12, 3, 3, valence=4.5, activation=4.0),
    "ang": Emotion(5, 10, 1.20, 5, 7, valence=1.5, activation=4.5),
    "sad": Emotion(-10, -22, 0.80, -5, -5, valence=2.0, activation=1.5),
    "fru": Emotion(3, 4, 1.08, 2, 3, valence=2.0, activation=3.5),
}
SCORED = ("neu", "hap", "ang", "sad")


@dataclass(frozen=True)
class _Turn:
    name: str
    emotion: str
    clip: Clip


def make(root: Path, size: str, seed: int, workers: Workers, engine: str) -> list[Path]:
    """Write the corpus; returns its folder."""
    key, folder = f"iemocap/{seed}", root / FOLDER
    scripted, improvised = SIZES[size]
    actors = iter(cast(2 * SESSIONS, key, engine, accents=("en-us", "en", "en-gb-x-rp"), near=10, rates=(155, 180)))
    sentences = Sentences(key, random_clause)
    script = [sentences.next(shortest=4) for _ in range(scripted)]
    dialogs: dict[Path, list[_Turn]] = {}
    for number in range(1, SESSIONS + 1):
        pair = {speaker.sex: speaker for speaker in (next(actors), next(actors))}
        own = [sentences.next(shortest=4) for _ in range(improvised)]
        for kind, texts in (("script", script), ("impro", own)):
            dialogs |= _dialogs(folder / f"Session{number}", f"Ses{number:02}F_{kind}", pair, texts, key)
    turns = [turn for dialog in dialogs.values() for turn in dialog]
    made = iter(workers.do(FOLDER, [turn.clip for turn in turns]))
    for path, dialog in dialogs.items():
        _write_labels(path, dialog, [next(made) for _ in dialog])
    return [folder]


def _dialogs(
    session: Path, stem: str, actors: dict[str, Speaker], texts: list[str], key: str
) -> dict[Path, list[_Turn]]:
    """The file of labels of every dialog, and the dialog's turns."""
    rng = random.Random(f"{key}/{session.name}/{stem}")
    # Some are excited instead of happy, and now and then somebody is frustrated, which is not scored.
    said = [
        (sex, text, rng.choice(("hap", "exc")) if emotion == "hap" else emotion)
        for text in texts
        for emotion in SCORED
        for sex in actors
    ]
    said += [(rng.choice("FM"), text, "fru") for text in texts]
    rng.shuffle(said)
    dialogs = {}
    for first in range(0, len(said), TURNS_PER_DIALOG):
        dialog = f"{stem}{first // TURNS_PER_DIALOG + 1:02}"
        turns = []
        for number, (sex, text, emotion) in enumerate(said[first : first + TURNS_PER_DIALOG]):
            name = f"{dialog}_{sex}{number:03}"
            path = session / "sentences" / "wav" / dialog / f"{name}.wav"
            turns.append(_Turn(name, emotion, _clip(path, text, actors[sex], EMOTIONS[emotion], f"{key}/{name}")))
        dialogs[session / "dialog" / "EmoEvaluation" / f"{dialog}.txt"] = turns
    return dialogs


def _clip(path: Path, text: str, actor: Speaker, emotion: Emotion, seed: str) -> Clip:
    rng = random.Random(seed)
    voice = actor.voice.with_prosody(
        emotion.pitch + rng.uniform(-5, 5),
        emotion.pitch_range + rng.uniform(-6, 6),
        emotion.rate * rng.uniform(0.94, 1.06),
    )
    channel = Channel(tilt_db=emotion.tilt_db + rng.uniform(-2, 2), snr_db=rng.uniform(22, 35), color=1.0)
    return Clip(path, text, voice, seed, channel, emotion.gain_db + rng.uniform(-2, 2))


def _write_labels(path: Path, turns: list[_Turn], made: list[Made]) -> None:
    """As the corpus has them: a line for each turn, then what each annotator said."""
    lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
    clock = PAUSE
    for turn, result in zip(turns, made, strict=True):
        mood = EMOTIONS[turn.emotion]
        scores = f"[{mood.valence:.4f}, {mood.activation:.4f}, 3.0000]"
        end = clock + result.seconds
        lines += [f"[{clock:.4f} - {end:.4f}]\t{turn.name}\t{turn.emotion}\t{scores}", "C-E2:\t(synthetic);\t()", ""]
        clock = end + PAUSE
    write_lines(path, lines)
