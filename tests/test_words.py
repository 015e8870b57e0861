"""What the project says of itself is in American English and in the field's words: docs/style.md."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from skill_speech.help_pages import COMMANDS, settings

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**/*.md", "recipes/*.yaml", "examples/*")
CODE = ("src/skill_speech/**/*.py", "src/skill_speech/help.json")
ALLOWED = {
    "docs/style.md": "quotes what it advises against",
}

ODD = {
    r"behind": "after, following, past",
    r"anew": "again, restart",
    r"lest": "so that … not",
    r"this very|the very \w+ that": "this, the same",
    r"(told|tell|tells) (them )?apart": "distinguished",
    r"for good": "permanently",
    r"(goes|going|went|gone|go) on": "continues, resumes",
    r"taken as (it is|they are)": "unchanged, raw, reused",
    r"of everything random": "random seed",
    r"(make|makes|making) room": "free some space",
    r"(is|was) given up": "freed, dropped",
    r"of ours": "a skill-speech …",
    r"cannot be had": "cannot be found, cannot be downloaded",
    r"without a word": "without an error",
    r"(make|makes) no sense": "impossible, malformed",
    r"(?<!there\s)is no (tensor|list|dictionary|class|storage|name|JSON object)": "is not a …",
    r"is of no use": "unusable",
    r"wants for|for want of": "because there is no …",
    r"not a run of|as nothing has|of no kind that": "say what it is",
    r"used, but": "kept, with a warning",
    r"a step with its mark": "a step that is done",
}
"""What no text says, and what to write instead."""

BRITISH = (
    r"\w*(?:normal|initial|quant|optim|minim|maxim|parametr|recogn|material|serial|summar|general|token|organ)"
    r"is(?:e|es|ed|er|ers|ing|ation|ations)",
    r"\w*colour\w*",
    r"\w*behaviour\w*",
    r"\w*neighbour\w*",
    r"\w*licence\w*",
    r"\w*labell(?:ed|ing)\w*",
    r"analys(?:ed|ing)",
    r"(?<!\.)distils?(?!\()",
    r"centre[ds]?",
    r"travell(?:ed|ing)",
    r"(?<!ASSUMED\[.)utilis\w+",
    r"programmes?",
    r"grey",
    r"synthesis(?:e|er|ers|ed)",
)


def texts() -> Iterator[tuple[str, str]]:
    """Every text that is held to these words, with its path; generated blocks come from records and are left out."""
    for pattern in (*PAGES, *CODE):
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            if not any(name.startswith(allowed) for allowed in ALLOWED):
                text = path.read_text(encoding="utf-8")
                yield name, re.sub(r"<!-- (?!end)[\w: -]+ -->.*?<!-- end -->", "", text, flags=re.DOTALL)


def found(pattern: str) -> list[str]:
    """Where it is said, as path: words."""
    spaced = pattern.replace(" ", r"\s+")
    return [f"{name}: {hit[0]}" for name, text in texts() for hit in re.finditer(rf"\b(?:{spaced})\b", text)]


@pytest.mark.parametrize("odd", ODD)
def test_nothing_is_said_oddly(odd: str) -> None:
    assert not found(odd), f"write instead: {ODD[odd]}"


def test_the_spelling_is_american() -> None:
    assert not [line for pattern in BRITISH for line in found(pattern)]


def test_what_is_allowed_exists() -> None:
    assert all((ROOT / name).exists() for name in ALLOWED)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_line_can_be_read_alone(command: str) -> None:
    for one in settings()[command]:
        words = one["help"]
        assert re.match(r'[A-Z0-9"]', words), f"{one['name']}: begins like the rest of a sentence: {words}"
        assert words.endswith("."), f"{one['name']}: {words}"
        default = one.get("default")
        assert not default or f"default: {default}" not in words.lower(), f"{one['name']}: the page says its default"
