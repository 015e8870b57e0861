"""Symbols and their numbers for CTC."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

BLANK, END, UNKNOWN = 0, 1, 2
"""Numbers of the blank, of the end of a sentence, which every target has as its last symbol, and of what is unknown."""

UNKNOWN_SYMBOL = "<unk>"
"""What an unknown symbol counts as where texts are compared, in the reference as in the hypothesis, as in s3prl."""

CHARACTERS = (*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "'", " ")
"""Of English transcripts."""


class Vocabulary:
    """Symbols after the three numbers that are not symbols.

    Args:
        symbols: in the order of their numbers.
    """

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = tuple(symbols)
        self._number_of = {symbol: number for number, symbol in enumerate(self.symbols, start=UNKNOWN + 1)}

    def __len__(self) -> int:
        return len(self.symbols) + UNKNOWN + 1

    def encode(self, symbols: Sequence[str]) -> list[int]:
        """Numbers of the symbols, and the end."""
        return [*(self._number_of.get(symbol, UNKNOWN) for symbol in symbols), END]

    def spelled(self, symbols: Sequence[str]) -> list[str]:
        """The symbols, with `UNKNOWN_SYMBOL` for each that has no number of its own."""
        return [symbol if symbol in self._number_of else UNKNOWN_SYMBOL for symbol in symbols]

    def decode(self, best: Sequence[int]) -> list[str]:
        """The symbols of the best number of every frame: repetitions and blanks are left out."""
        kept = (number for number, _ in groupby(best) if number not in (BLANK, END))
        return [UNKNOWN_SYMBOL if number == UNKNOWN else self.symbols[number - UNKNOWN - 1] for number in kept]
