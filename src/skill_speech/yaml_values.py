"""YAML as data: what a text says is large only if the text is, whatever it names once and repeats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

LONGEST = 1 << 16
"""Characters; a run's settings take a few thousand."""

REPEATED_FREELY = 10_000
"""Characters and values that a text's aliases may add to its own."""


def read_yaml(path: Path) -> Any:
    """What a file says.

    Raises:
        OSError, ValueError: it cannot be read, or is no text.
        yaml.YAMLError: it is no YAML, or says more than its text holds.
    """
    text = path.read_text(encoding="utf-8")
    refuse_repetition(text)
    return yaml.safe_load(text)


def refuse_repetition(text: str) -> None:
    """See that a text's aliases do not make more of it than it holds, as those do that name each other line by line.

    Raises:
        yaml.YAMLError: they do, or it contains itself, is nested too deeply, too long, or is no YAML.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"longer than {LONGEST:,} characters, which no settings need")
    try:
        size = _size(yaml.compose(text, Loader=yaml.SafeLoader), {})
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    if size > REPEATED_FREELY + 2 * len(text):
        raise yaml.YAMLError("its aliases expand to more than it holds, or it contains itself")


def _size(node: Any, sizes: dict[int, float]) -> float:
    """Characters and values that a node stands for; infinite for one that contains itself."""
    if not isinstance(node, yaml.CollectionNode):
        return 1 + len(node.value) if node else 0
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # as long as its parts are counted
        parts = node.value if isinstance(node, yaml.SequenceNode) else [part for pair in node.value for part in pair]
        sizes[id(node)] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[id(node)]
