"""Inputs that are wrong by their structure, each a function of its seed: made by somebody who knows the formats.

A case is files and a command line that reads them. Most take something good and bend it: a value of another type or
size where only one kind of value makes sense, two things that point at one, a length that lies, a name that does harm.
Where code could be named, it is code that leaves a file called CANARY.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from .archives import archives, legacy, pickles
from .commands import option_values, runs, settings
from .folders import indexes, native_config, processors, safetensors, transformers_config
from .good import make_good
from .manifests import manifests, shards
from .values import CANARY, GOOD, Case

__all__ = ["CANARY", "GOOD", "KINDS", "Case", "kind_of", "make_case", "make_good"]

KINDS: dict[str, tuple[Callable[[Path, random.Random], Case], int]] = {
    "pickle": (pickles, 5),
    "zip": (archives, 3),
    "legacy": (legacy, 2),
    "safetensors": (safetensors, 4),
    "config": (native_config, 4),
    "config of Transformers": (transformers_config, 4),
    "processor": (processors, 3),
    "index": (indexes, 2),
    "manifest": (manifests, 6),
    "shards": (shards, 2),
    "option": (option_values, 7),
    "settings": (settings, 3),
    "run": (runs, 5),
}
"""By kind, what makes a case of it, and how many of fifty."""

STEP = 7  # of the kinds, so that one does not come many times in a row


def make_case(good: Path, seed: int, number: int) -> Case:
    """The case of that number, which with the seed is all that decides what is in it."""
    return KINDS[kind_of(number)][0](good, random.Random(f"{seed} {number}"))


def kind_of(number: int) -> str:
    """Which kind a case is of."""
    kinds = [kind for kind, (_, share) in KINDS.items() for _ in range(share)]
    return kinds[number * STEP % len(kinds)]
