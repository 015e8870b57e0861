"""What the library raises for a user's mistake, and how text that may come from a file is shown."""

from __future__ import annotations

SHOWN = 2_000
"""Characters of one message; a name in it can have millions."""


class InputError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do about it.

    The command line prints the message alone and exits with status 2; everything else that is raised is a defect
    of the library and keeps its stack trace.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    r"""The text as one line of bounded length that a terminal can show, whatever names are in it.

    What is not printed but acted on, or cannot be encoded, is shown as its escape: "\x1b", "\n", "\u202e", "\ud800".
    A long text loses its middle: what is wrong stands at the beginning of a message, and what to do at its end.
    """
    if len(text) > SHOWN:
        text = f"{text[: SHOWN // 2]} … {text[-SHOWN // 2 :]}"
    return visible(text)


def visible(text: str) -> str:
    """The text, however long, with what is not printed but acted on, or cannot be encoded, as its escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)
