"""Sentences that a corpus has once only."""

from __future__ import annotations

import random
from collections.abc import Callable

from lab.sentences import random_sentence


class Sentences:
    """Random sentences, no two alike, so that no split of a corpus knows another's."""

    def __init__(self, key: str, make: Callable[[random.Random], str] = random_sentence) -> None:
        self._rng = random.Random(f"sentences/{key}")
        self._make = make
        self._taken: set[str] = set()

    def next(self, shortest: int = 1, longest: int = 100) -> str:
        """One that has not been given before, with so many words."""
        while True:
            sentence = self._make(self._rng)
            if sentence not in self._taken and shortest <= len(sentence.split()) <= longest:
                self._taken.add(sentence)
                return sentence
