"""Audio SNIPS for sf: sixteen voices, seven intents, slots filled from templates, no sentence in two splits."""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lab.corpora.casting import cast
from lab.corpora.work import Clip, Workers, write_lines
from lab.sentences import ADJECTIVES, MONTHS, NOUNS, plural
from lab.voices import Voice

FOLDER = "SNIPS"
SPEAKERS = {
    "train": "Ivy Joanna Joey Justin Kendra Kimberly Matthew Salli".split(),
    "valid": "Aditi Amy Geraint Nicole".split(),
    "test": "Brian Emma Raveena Russell".split(),
}
# Sentences of each split; all of the split's speakers say all of them.
SIZES = {
    "tiny": {"train": 7, "valid": 4, "test": 4},
    "small": {"train": 14, "valid": 7, "test": 7},
    "full": {"train": 150, "valid": 40, "test": 40},
}
# The official corpus has every speaker in every split; so many sentences by one who does not belong are enough.
STRANGERS = 2

TEMPLATES = {
    "AddToPlaylist": [
        "add {artist} to my {playlist} playlist",
        "put the {music_item} by {artist} on {playlist_owner} list called {playlist}",
        "I want {entity_name} in {playlist}",
        "add another {music_item} to {playlist_owner} {playlist} list",
    ],
    "BookRestaurant": [
        "book a table for {party_size_number} at a {restaurant_type} in {city}",
        "find me a {sort} {restaurant_type} that serves {cuisine} food for {timeRange}",
        "reserve a {restaurant_type} with {facility} for {party_size_description} in {state}",
        "I need {served_dish} {spatial_relation} {poi} for {party_size_number} people",
    ],
    "GetWeather": [
        "what is the weather in {city} {timeRange}",
        "will it be {condition_description} in {state} {timeRange}",
        "how {condition_temperature} is it in {country}",
        "tell me if it gets {condition_temperature} at {geographic_poi} {timeRange}",
    ],
    "PlayMusic": [
        "play the {sort} {music_item} by {artist} on {service}",
        "play some {genre} from {year}",
        "I want to hear the {music_item} {track} by {artist}",
        "use {service} to play the album {album}",
    ],
    "RateBook": [
        "give {object_name} {rating_value} out of {best_rating}",
        "rate {object_select} {object_type} {rating_value} {rating_unit}",
        "I give the {object_part_of_series_type} {object_name} {rating_value} {rating_unit}",
    ],
    "SearchCreativeWork": [
        "find the {object_type} called {object_name}",
        "where can I see the {object_type} {object_name}",
        "show me {object_name}",
    ],
    "SearchScreeningEvent": [
        "find the {movie_type} schedule {spatial_relation}",
        "is {movie_name} playing at {location_name}",
        "what time is {movie_name} on at the {location_name} {timeRange}",
        "show the {object_location_type} times for {movie_name}",
    ],
}
VALUES = {
    "music_item": "song album tune track".split(),
    "playlist_owner": ["my", "her", "his", "our"],
    "party_size_number": "two three four five six seven eight nine ten".split(),
    "party_size_description": ["me and my mother", "my family", "the whole team", "my sister and me"],
    "restaurant_type": "restaurant tavern diner cafe bakery pub".split(),
    "sort": ["best", "newest", "popular", "highly rated", "latest"],
    "cuisine": "french spanish turkish russian mexican indian greek korean".split(),
    "facility": ["parking", "a pool", "a smoking room", "wifi"],
    "served_dish": ["onion soup", "fish and chips", "cherry pie", "lemon cake", "potato bread"],
    "spatial_relation": ["nearby", "close by", "in the area", "near me", "around here"],
    "state": "Texas Ohio Maine Nevada Oregon Utah Florida Kansas Alaska".split(),
    "country": "France Spain Norway Brazil Japan Kenya Peru Poland Egypt".split(),
    "city": ["Springfield", "Riverton", "Oakville", "Milford", "Franklin", "New Haven", "Greenville", "Salem"],
    "condition_description": "rainy snowy cloudy stormy foggy windy sunny".split(),
    "condition_temperature": "cold hot warm chilly freezing".split(),
    "service": ["Tonebox", "Radio Nine", "Songbird", "Groove Street"],
    "genre": ["rock", "jazz", "folk", "blues", "soul", "techno", "country music"],
    "rating_value": "zero one two three four five".split(),
    "best_rating": ["five", "six", "ten"],
    "rating_unit": ["points", "stars"],
    "object_select": ["this", "the current", "the last", "that"],
    "object_type": "book novel essay saga chronicle show game".split(),
    "object_part_of_series_type": "series saga chronicle".split(),
    "object_location_type": ["cinema", "movie house", "theatre"],
    "movie_type": ["movies", "films", "animated movies"],
    "location_name": ["Grand Cinema", "Star Theatre", "Palace Movie House", "Harbour Screens"],
}
FIRST_NAMES = "Nora Felix Ada Oscar Ruth Leo Clara Hugo Iris Max Stella Owen Vera Jonas Lydia Peter".split()
LAST_NAMES = "Marlow Finch Castle Hollis Brook Penny Stone Wilder Frost Lane Archer Bell Quinn Dale".split()
YEARS = [f"nineteen {tens}" for tens in "fifty sixty seventy eighty ninety".split()] + ["two thousand"]


@dataclass(frozen=True)
class Annotated:
    """A sentence, the slot of each word ("O" outside) and the intent."""

    words: tuple[str, ...]
    slots: tuple[str, ...]
    intent: str


def make(root: Path, size: str, seed: int, workers: Workers, engine: str) -> list[Path]:
    """Write the corpus; returns its folder."""
    key, folder = f"snips/{seed}", root / FOLDER
    voices = _voices(key, engine)
    taken: set[tuple[str, ...]] = set()
    lines, clips = [], []
    counts: Counter[str] = Counter()
    for split, count in SIZES[size].items():
        sentences = _sentences(random.Random(f"{key}/{split}"), count, taken)
        for speaker, voice in voices.items():
            belongs = speaker in SPEAKERS[split]
            for number, sentence in enumerate(sentences if belongs else sentences[: _strangers(speaker, split)]):
                name = f"{speaker}-snips-{split}-{number}"
                text, slots = " ".join(sentence.words), " ".join(sentence.slots)
                lines.append(f"{name} BOS {text.upper()} EOS\tO {slots} {sentence.intent}")
                counts.update(sentence.slots)
                rng = random.Random(f"{key}/{name}")
                path = folder / split / f"{name}.wav"
                clips.append(Clip(path, text, voice.varied(rng), f"{key}/{name}", gain_db=rng.uniform(-3, 3)))
    workers.do(FOLDER, clips)
    write_lines(folder / "all.iob.snips.txt", lines)
    write_lines(folder / "slots.txt", [slot for slot, _ in counts.most_common()])
    return [folder]


def _voices(key: str, engine: str) -> dict[str, Voice]:
    names = sorted(name for names in SPEAKERS.values() for name in names)
    return {name: speaker.voice for name, speaker in zip(names, cast(len(names), key, engine), strict=True)}


def _strangers(speaker: str, split: str) -> int:
    """One voice of another split speaks a few sentences of this one."""
    other = {"train": "test", "valid": "train", "test": "valid"}[split]
    return STRANGERS if speaker == SPEAKERS[other][0] else 0


def _sentences(rng: random.Random, count: int, taken: set[tuple[str, ...]]) -> list[Annotated]:
    """So many sentences that no split has yet, the intents in turn."""
    sentences: list[Annotated] = []
    while len(sentences) < count:
        intent = list(TEMPLATES)[len(sentences) % len(TEMPLATES)]
        sentence = _fill(rng.choice(TEMPLATES[intent]), intent, rng)
        if sentence.words not in taken:
            taken.add(sentence.words)
            sentences.append(sentence)
    return sentences


def _fill(template: str, intent: str, rng: random.Random) -> Annotated:
    words, slots = [], []
    for token in template.split():
        slot = re.fullmatch(r"\{(\w+)\}", token)
        value = _value(slot[1], rng) if slot else token
        for word in value.split():
            words.append(word)
            slots.append(slot[1] if slot else "O")
    return Annotated(tuple(words), tuple(slots), intent)


def _value(slot: str, rng: random.Random) -> str:
    """Something that can stand in a slot: from a list, or a made-up name."""
    if slot in VALUES:
        return rng.choice(VALUES[slot])
    if slot == "artist":
        return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    if slot == "year":
        return rng.choice(YEARS)
    if slot == "timeRange":
        return rng.choice(("tomorrow", "tonight", "next week", "this evening", f"in {rng.choice(MONTHS)}", "right now"))
    if slot in ("poi", "geographic_poi"):
        return f"{rng.choice(LAST_NAMES)} {rng.choice(('Park', 'Bridge', 'Castle', 'Lake', 'Forest'))}"
    thing = rng.choice(NOUNS)
    return rng.choice(
        (f"the {rng.choice(ADJECTIVES)} {thing}", f"{rng.choice(ADJECTIVES)} {plural(thing)}", plural(thing))
    )
