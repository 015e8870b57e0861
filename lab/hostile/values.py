"""What somebody would say in a place where only one kind of value makes sense; and what a case is."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

CANARY = "CANARY"
GOOD = "GOOD"
"""Stands in a command line for the folder of what is good."""


@dataclass(frozen=True)
class Case:
    """Files beside each other, and a command line that is run where they are.

    Attributes:
        kind: a key of KINDS.
        arguments: of the command line.
        files: contents by name; None removes one of those that are copied.
        copies: folders of what is good that are copied before the files are written.
        stoppable: what is asked for may take as long as it likes, as long as it ends when it is told to.
    """

    kind: str
    arguments: tuple[str, ...]
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    copies: tuple[str, ...] = ()
    stoppable: bool = False


CODE = f"__import__('pathlib').Path({CANARY!r}).write_text('ran')"
NUMBERS: list[Any] = [
    *(0, 1, -1, 2, 3, 7, 64, 1000, 2**15, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**20, -(10**20), 10**400),
    *(0.0, -0.0, 0.5, 1.5, -1.5, 1e-30, 1e-320, 1e30, 1e300, 1e308, -1e308),
    *(float("nan"), float("inf"), float("-inf")),
]
TEXTS = [
    *("", " ", "x", "0", "-1", "true", "null", "a" * 100_000, "\0", "\ud800", "\udfff x", "\x1b[2J\x1b]0;owned\x07"),
    *("\n", "a\nb", "\r", "\u202e", "\u2028", "é" * 300, "[bold]", "[/]", "{}", "%s%n", "$(touch CANARY)", "${a.b}"),
    *("..", "/", ".", "/etc/passwd", "../outside", "con", "/dev/zero", "/dev/stdin", "-", "http://127.0.0.1:9/x"),
    *("file:///etc/passwd", "~", "hf://a/b", "beside.Beside", "os.system", CODE),
]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None] * 1000, {"a": 1}, {"": {}}, list(range(20_000))]


def value(rng: random.Random) -> Any:
    """Anything that JSON can say."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(NUMBERS)
    if kind < 0.75:
        return rng.choice(TEXTS)
    if kind < 0.95:
        return copy.deepcopy(rng.choice(OTHERS))
    deep: Any = rng.choice(NUMBERS)
    for _ in range(rng.choice((3, 30, 60))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def like(old: Any, rng: random.Random) -> Any:
    """A value of the same type, where types alone are no reason to refuse it."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int):
        return rng.choice([0, 1, -1, old - 1, old + 1, 2 * old, -old, old * 1000, 2**31, 2**62, 10**20])
    if isinstance(old, float):
        return rng.choice([0.0, -old, old * 2, old / 2, old * 1e9, 1e300, 1e-300, float("nan"), float("inf")])
    if isinstance(old, str):
        return rng.choice([*TEXTS, old * 2, old.upper(), old + "\x1b[0m", old[:-1]])
    if isinstance(old, list):
        return rng.choice([[], old[:-1], old + old, old[::-1], old * 3000 if len(old) < 10 else old * 20])
    if isinstance(old, dict):
        return rng.choice([{}, {key: old[key] for key in list(old)[1:]}, old | {"more": value(rng)}])
    return value(rng)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with every key in it."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inside in list(pairs):
        yield tree, key
        yield from places(inside)


def bent(tree: Any, rng: random.Random) -> Any:
    """A copy with one to three of its values replaced, removed or under another name."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        found = list(places(tree))
        if not found or rng.random() < 0.02:
            return value(rng)
        container, key = rng.choice(found)
        way = rng.random()
        if way < 0.5:
            container[key] = like(container[key], rng)
        elif way < 0.9:
            container[key] = value(rng)
        elif way < 0.96 or isinstance(container, list):
            del container[key]
        else:
            container[rng.choice(TEXTS)] = container.pop(key)
    return tree


def as_json(tree: Any, rng: random.Random) -> bytes:
    """The tree as JSON; now and then with what JSON readers differ about."""
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.8).encode("utf-8", "surrogatepass")
    if isinstance(tree, dict) and tree and rng.random() < 0.05:  # a key twice
        key = json.dumps(rng.choice(list(tree))).encode()
        text = text[:-1] + b", " + key + b": " + json.dumps(value(rng)).encode() + b"}"
    if rng.random() < 0.03:
        text = rng.choice(
            [b"\xef\xbb\xbf" + text, text.decode("utf-8", "replace").encode("utf-16"), b"[" * 90_000, text + text, b""]
        )
    return text
