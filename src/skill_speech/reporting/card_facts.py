"""What the metadata of a model card states: read from a teacher's card, said by a user, and never guessed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..checkpoints.model_files import ModelFiles
from ..errors import InputError
from ..limits import shown

if TYPE_CHECKING:
    from huggingface_hub import CardData

MAX_CARD = 2**20
"""Bytes of a teacher's README that is read."""

HUB = "https://huggingface.co"

UNKNOWN = "unknown"
"""Name of a license that nobody stated; the hub wants one beside `other`."""

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
SAID = {
    "language": (re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual"), "a code such as en or pt-BR"),
    "datasets": (re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", re.ASCII), "a hub ID such as openslr/librispeech_asr"),
    "license": (re.compile(r"[a-z0-9][a-z0-9.+-]*"), "an identifier of the hub such as apache-2.0"),
    "base_model": (HUB_ID, "a hub ID such as microsoft/wavlm-base-plus"),
}
"""What a user may say for a card, as options of `export`: what each word has to be."""


@dataclass(frozen=True)
class Stated:
    """What a model's own card says in its metadata; None and empty where there is no card or it says nothing.

    Attributes:
        license: identifier of the hub.
        license_name, license_link: of a license that the hub has no identifier for ("other").
        language, datasets: as they are listed.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()

    def license_metadata(self, source: str) -> dict[str, Any]:
        """The license of what is made of the model at `source`: the same, or `other` where none is stated."""
        hub = hub_id(source)
        if self.license is None:
            return {"license": "other", "license_name": UNKNOWN} | ({"license_link": f"{HUB}/{hub}"} if hub else {})
        values = {"license": self.license}
        if self.license_name:
            values["license_name"] = self.license_name
        link = self.license_link
        if link and "://" not in link:  # a file of the teacher's, which is not here
            link = f"{HUB}/{hub}/blob/main/{link}" if hub else None
        return values | ({"license_link": link} if link else {})


def stated_by(source: str, revision: str | None) -> Stated:
    """What the card of a model states, on the hub or in its folder."""
    from huggingface_hub import ModelCard

    if Path(source).is_file():  # which the hub would be asked for
        return Stated()
    try:
        card = ModelFiles(source, revision).find("README.md")
        if card is None or card.stat().st_size > MAX_CARD:
            return Stated()
        data = ModelCard.load(card, ignore_metadata_errors=True).data
        return Stated(
            license=_word(data.get("license")),
            license_name=_word(data.get("license_name")),
            license_link=_word(data.get("license_link")),
            language=_words("language", data.get("language")),
            datasets=_words("datasets", data.get("datasets")),
        )
    # A card is a courtesy: whatever is wrong with a teacher's, its student is not the worse for it.
    except (InputError, OSError, ValueError, AttributeError, TypeError, RecursionError, yaml.YAMLError):
        return Stated()


def hub_id(source: str) -> str | None:
    """The hub ID that a source is; None for a file or folder."""
    return source if HUB_ID.fullmatch(source) and not Path(source).exists() else None


def said_words(name: str, text: str | None) -> list[str]:
    """The words of an option, which are separated by commas.

    Raises:
        InputError: one is not what the option takes.
    """
    if text is None:
        return []
    words = [word.strip() for word in text.split(",") if word.strip()]
    pattern, kind = SAID[name]
    if not words or not all(map(pattern.fullmatch, words)):
        raise InputError(f"{name} is {shown(text)}: give {kind}{'' if name in ONE else ', several with commas'}")
    if name in ONE and len(words) > 1:
        raise InputError(f"{name} is {shown(text)}: give one")
    return words


ONE = ("license", "base_model")
"""Options that take one word."""


def put_facts(data: CardData, facts: dict[str, list[str]]) -> None:
    """Write what a user said into a card's metadata; it counts more than what stands there."""
    for name, words in facts.items():
        if words:
            data[name] = words[0] if name in ONE else words
    if facts.get("license"):
        data["license_name"] = data["license_link"] = None
    if facts.get("base_model") and data.get("base_model_relation") is None:
        data["base_model_relation"] = "finetune"


def _word(value: Any) -> str | None:
    """A short text; None for anything else."""
    return value if isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() else None


def _words(name: str, value: Any) -> tuple[str, ...]:
    """The words of a list that the hub would take."""
    listed = value if isinstance(value, list) else [value]
    return tuple(word for word in listed[:100] if isinstance(word, str) and SAID[name][0].fullmatch(word))
