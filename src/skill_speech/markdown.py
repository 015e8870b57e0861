"""Names in Markdown."""

from __future__ import annotations

SPECIAL = frozenset("\\`*[]<>|")


def escaped(text: str) -> str:
    """A name as words of one line: nothing in it is markup, a link, a cell's border or HTML. Not for code spans."""
    return "".join(f"\\{letter}" if letter in SPECIAL else letter if letter.isprintable() else " " for letter in text)
