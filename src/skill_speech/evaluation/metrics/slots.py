"""Slot filling (Lai et al. 2021, arXiv 2010.13105): which slots were heard, and what was in them.

A sentence is a text in which the words of a slot stand between its marks: `PLAY B-artist MILES DAVIS E-artist NOW`.

Legend of the suffixes: N sentences.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .edits import character_edits, character_error_rate

_SLOT = re.compile(r"B-(\S+) (.+?) E-\1")
_OPENING, _CLOSING = re.compile(r"B-\S+ "), re.compile(r" E-\S+")
_FARTHEST = 100.0
"""A value with as many times its reference's letters in errors is not compared with, as in SUPERB's scorer."""


def slot_type_f1(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """F1 of the set of slot types in each sentence, averaged over sentences; 100 where neither has a slot."""
    scores = list(map(_type_f1, references, hypotheses))
    return 100 * sum(scores) / len(scores)


def slot_value_cer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Character error rate of the values of all slots in the references together.

    A value is compared with the nearest one, by CER, that the hypothesis has in a slot of this type, and with nothing
    where it has none. A slot too many in a hypothesis costs nothing. Marks of other slots within a hypothesis' value
    are left out, those within a reference's value stay.
    """
    _, wanted, heard = _values(references, hypotheses)
    return character_error_rate(wanted, heard) if wanted else 0.0


def slot_parts(references: Sequence[str], hypotheses: Sequence[str]) -> NDArray[np.float64]:
    """Of each sentence what both measures are made of (N, 3): its F1, and errors and characters of its values."""
    parts_N3 = np.zeros((len(references), 3))
    parts_N3[:, 0] = list(map(_type_f1, references, hypotheses))
    numbers, wanted, heard = _values(references, hypotheses)
    if wanted:
        np.add.at(parts_N3[:, 1:], numbers, character_edits(wanted, heard))
    return parts_N3


def _type_f1(reference: str, hypothesis: str) -> float:
    """F1 of the set of slot types in a sentence."""
    wanted, heard = _slots(reference).keys(), _slots(hypothesis).keys()
    # 2PR / (P + R) with P = common / heard and R = common / wanted.
    return 2 * len(wanted & heard) / (len(wanted) + len(heard)) if wanted or heard else 1.0


def _values(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[list[int], list[str], list[str]]:
    """Every value of a slot in the references: the number of its sentence, it, and what it is compared with."""
    numbers, wanted, heard = [], [], []
    for number, (reference, hypothesis) in enumerate(zip(references, hypotheses, strict=True)):
        candidates = _slots(hypothesis)
        for slot, values in _slots(reference).items():
            for value in values:
                numbers.append(number)
                wanted.append(value)
                heard.append(_nearest(value, [_without_marks(other) for other in candidates.get(slot, [])]))
    return numbers, wanted, heard


def _nearest(value: str, candidates: Sequence[str]) -> str:
    """The first of the candidates with the smallest CER, or nothing."""
    rates = [character_error_rate([value], [candidate]) for candidate in candidates]
    return candidates[rates.index(min(rates))] if rates and min(rates) < 100 * _FARTHEST else ""


def _slots(sentence: str) -> dict[str, list[str]]:
    """Slot type → its values, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for slot, value in _SLOT.findall(re.sub(" +", " ", sentence)):
        found[slot].append(value)
    return dict(found)


def _without_marks(value: str) -> str:
    """First all opening marks go and then all closing ones, which matters where two touch.

    SUPERB's scorer does so: of `NEW E-artistB-city YORK` the first pass leaves `NEW E-artistYORK`, the second `NEW`.
    """
    return _CLOSING.sub("", _OPENING.sub("", value))
