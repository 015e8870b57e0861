"""Fluent Speech Commands for ic: its thirty-one intents, each in several wordings, the same in all splits."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from lab.corpora.casting import cast
from lab.corpora.channel import random_channel
from lab.corpora.work import Clip, Workers, write_lines
from lab.voices import Speaker

FOLDER = "fluent_speech_commands_dataset"
TABLES = {"train": "train_data.csv", "valid": "valid_data.csv", "test": "test_data.csv"}
# Speakers, and how often each says every intent; 0 for one speaker after the other saying a third of them.
SIZES = {
    "tiny": {"train": (2, 1), "valid": (2, 0), "test": (2, 0)},
    "small": {"train": (6, 1), "valid": (2, 1), "test": (2, 1)},
    "full": {"train": (24, 1), "valid": (6, 1), "test": (6, 1)},
}
ROOMS = ("kitchen", "bedroom", "washroom")
LANGUAGES = ("Chinese", "English", "German", "Korean")


@dataclass(frozen=True)
class Intent:
    """What is wanted."""

    action: str
    object: str
    location: str


def wordings() -> dict[Intent, list[str]]:
    """Every intent and the ways to say it."""
    phrases = {
        Intent("activate", "music", "none"): ["play the music", "put on some music", "start the music", "music please"],
        Intent("deactivate", "music", "none"): ["stop the music", "pause the music", "turn the music off", "no music"],
        Intent("activate", "lamp", "none"): ["turn on the lamp", "switch the lamp on", "lamp on", "light the lamp"],
        Intent("deactivate", "lamp", "none"): ["turn off the lamp", "switch the lamp off", "lamp off"],
        Intent("increase", "volume", "none"): ["turn up the volume", "make it louder", "I can't hear that", "louder"],
        Intent("decrease", "volume", "none"): ["turn down the volume", "make it quieter", "that's too loud", "softer"],
        Intent("change language", "none", "none"): ["change the language", "switch languages", "use another language"],
    }
    for thing in ("newspaper", "juice", "socks", "shoes"):
        mine = "some juice" if thing == "juice" else f"my {thing}"
        phrases[Intent("bring", thing, "none")] = [
            f"bring me {mine}",
            f"get me {mine}",
            f"fetch {mine}",
            f"I need {mine}",
        ]
    for language in LANGUAGES:
        phrases[Intent("change language", language, "none")] = [
            f"set the language to {language}",
            f"switch to {language}",
            f"I want to speak {language}",
            f"use {language} please",
        ]
    for action, verb, state in (("activate", "on", "dark"), ("deactivate", "off", "bright")):
        phrases[Intent(action, "lights", "none")] = [
            f"turn {verb} the lights",
            f"lights {verb}",
            f"switch the lights {verb}",
            f"it's too {state} here",
        ]
        for room in ROOMS:
            phrases[Intent(action, "lights", room)] = [
                f"turn {verb} the lights in the {room}",
                f"switch {verb} the {room} lights",
                f"{room} lights {verb}",
                f"turn the {room} lights {verb} please",
            ]
    for action, verb, state in (("increase", "up", "cold"), ("decrease", "down", "hot")):
        phrases[Intent(action, "heat", "none")] = [
            f"turn {verb} the heat",
            f"turn the temperature {verb}",
            f"it's too {state}",
            f"heat {verb} please",
        ]
        for room in ROOMS:
            phrases[Intent(action, "heat", room)] = [
                f"turn {verb} the heat in the {room}",
                f"turn the {room} temperature {verb}",
                f"it's too {state} in the {room}",
                f"{room} heat {verb}",
            ]
    return phrases


def make(root: Path, size: str, seed: int, workers: Workers, engine: str) -> list[Path]:
    """Write the corpus; returns its folder."""
    key, folder = f"fluent/{seed}", root / FOLDER
    speakers = cast(sum(count for count, _ in SIZES[size].values()), key, engine)
    clips: list[Clip] = []
    people = ["speakerId,gender"]
    for split, (count, times) in SIZES[size].items():
        here, speakers = speakers[:count], speakers[count:]
        rows = [",path,speakerId,transcription,action,object,location"]
        for place, speaker in enumerate(here):
            rng = random.Random(f"{key}/{split}/{place}")
            name = "".join(rng.choices(string.ascii_letters + string.digits, k=16))
            people.append(f"{name},{'female' if speaker.sex == 'F' else 'male'}")
            for intent, text in _said(rng, times, place):
                path = f"wavs/speakers/{name}/{UUID(int=rng.getrandbits(128), version=4)}.wav"
                columns = (path, name, text, intent.action, intent.object, intent.location)
                rows.append(",".join((str(len(rows) - 1), *columns)))
                clips.append(_clip(folder / path, text, speaker, rng, f"{key}/{path}"))
        write_lines(folder / "data" / TABLES[split], rows)
    write_lines(folder / "data" / "speaker_demographics.csv", people)
    workers.do(FOLDER, clips)
    return [folder]


def _said(rng: random.Random, times: int, place: int) -> list[tuple[Intent, str]]:
    """What a speaker says: every intent so often, or a third of them once."""
    intents = list(wordings().items())
    chosen = intents * times if times else intents[place % 3 :: 3]
    said = [(intent, rng.choice(phrases)) for intent, phrases in chosen]
    rng.shuffle(said)
    return said


def _clip(path: Path, text: str, speaker: Speaker, rng: random.Random, seed: str) -> Clip:
    return Clip(path, text, speaker.voice.varied(rng), seed, random_channel(rng), gain_db=rng.uniform(-6, 4))
