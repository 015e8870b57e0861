"""What a manifest says of its utterances, in the terms of a head's outputs: texts, labels, numbers, speakers.

Labels are looked for in one field of the supervisions, the same for all of a manifest: custom["label"], or else the
first of speaker, language, gender and text that has one of the model's labels.

Legend of the suffixes: N utterances, T frames, V outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from lhotse import SupervisionSegment
from lhotse.cut import Cut
from numpy.typing import NDArray

from ...data import LabelField, label_field, listed, transcript_of, value_of
from ...errors import InputError
from ...heads import HeadConfig

NO_LABEL = -1
"""In place of an output's number: in these frames nothing is said."""


def texts(cuts: Sequence[Cut]) -> dict[str, str]:
    """Id → what is said, of the cuts of which that is known; of several supervisions one after another."""
    found = ((cut.id, transcript_of(cut)) for cut in cuts)
    return {name: text for name, text in found if text is not None}


def speakers(cuts: Sequence[Cut], data: str) -> dict[str, str]:
    """Id → who speaks, of the cuts of which that is known.

    Raises:
        InputError: several do.
    """
    found = {}
    for cut in cuts:
        several = sorted({str(part.speaker) for part in cut.supervisions if part.speaker})
        if len(several) > 1:
            raise InputError(
                f"{data}: {cut.id} has {len(several)} speakers; an embedding describes one: split it by speaker"
            )
        if several:
            found[cut.id] = several[0]
    return found


class Labels:
    """The labels of some cuts as the numbers of a head's outputs.

    Args:
        cuts: with supervisions.
        head: whose outputs they are.
        data: where they are from, for messages.
        model: whose head it is, for messages.

    Raises:
        InputError: no cut has a label, or one has a label that the model does not have.
    """

    def __init__(self, cuts: Sequence[Cut], head: HeadConfig, data: str, model: str) -> None:
        self.head, self.data, self.model = head, data, model
        self.names = head.labels or tuple(map(str, range(head.outputs)))
        self.numbers = {name: number for number, name in enumerate(self.names)}
        self.field = self._field(cuts)
        self._refuse_unknown(cuts)

    def one_of(self, cut: Cut) -> int | None:
        """The one label of a cut; None if it has none.

        Raises:
            InputError: it has several.
        """
        found = {self.number(value) for part in cut.supervisions for value in self._values(part)}
        if len(found) > 1:
            names = ", ".join(sorted(self.names[number] for number in found))
            raise InputError(f"{self.data}: {cut.id} has several labels ({names}); the model gives one")
        return found.pop() if found else None

    def several_of(self, cut: Cut) -> NDArray[np.bool_] | None:
        """Which labels hold for a cut (V,); None if nothing is said of any."""
        said = [part for part in cut.supervisions if value_of(part, self.field) is not None]
        if not said:
            return None
        found_V = np.zeros(len(self.names), dtype=np.bool_)
        found_V[[self.number(value) for part in said for value in self._values(part)]] = True
        return found_V

    def in_time(self, cut: Cut, frames: int, seconds_per_frame: float) -> NDArray[np.int64]:
        """The label of each frame (T,), NO_LABEL where none is said.

        Raises:
            InputError: there are two at a time.
        """
        found_T = np.full(frames, NO_LABEL)
        for part, first, last in _frames(cut, seconds_per_frame):
            for value in self._values(part):
                number = self.number(value)
                if np.any((found_T[first:last] != NO_LABEL) & (found_T[first:last] != number)):
                    raise InputError(
                        f"{self.data}: {cut.id} has two labels at {part.start:g} s; the model gives one at a time"
                    )
                found_T[first:last] = number
        return found_T

    def several_in_time(self, cut: Cut, frames: int, seconds_per_frame: float) -> NDArray[np.bool_]:
        """Which labels hold in each frame (T, V)."""
        found_TV = np.zeros((frames, len(self.names)), dtype=np.bool_)
        for part, first, last in _frames(cut, seconds_per_frame):
            found_TV[first:last, [self.number(value) for value in self._values(part)]] = True
        return found_TV

    def is_labeled(self, cut: Cut) -> bool:
        """Whether anything is said of it."""
        return any(value_of(part, self.field) is not None for part in cut.supervisions)

    def find(self, value: Any) -> int | None:
        """The output that a label stands for: that of this name, or of this number; None for others."""
        return self.numbers[str(value)] if str(value) in self.numbers else self.head.number_of(value)

    def number(self, value: Any) -> int:
        """The output that a label of the model stands for."""
        found = self.find(value)
        assert found is not None  # unknown ones have been refused
        return found

    def shown(self, numbers: Sequence[int]) -> str:
        """Outputs by their names, as they stand in a table."""
        return ", ".join(self.names[number] for number in numbers)

    def _field(self, cuts: Sequence[Cut]) -> LabelField:
        field = label_field(cuts, lambda value: self.find(value) is not None)
        if field is None:
            raise InputError(
                f"{self.data}: none of its {len(cuts)} cuts has a label of {self.model} ({_some(self.names)}): give "
                'their supervisions custom["label"], or a speaker, language, gender or text that is one'
            )
        return field

    def _refuse_unknown(self, cuts: Sequence[Cut]) -> None:
        said = dict.fromkeys(str(value) for cut in cuts for part in cut.supervisions for value in self._unknown(part))
        if said:
            raise InputError(
                f"{self.data}: {len(said)} of its labels ({self.field}) are none of {self.model}: "
                f"{_some(list(said))}; it has {_some(self.names)}: correct their names, or leave these cuts out"
            )

    def _values(self, part: SupervisionSegment) -> list[Any]:
        return listed(value_of(part, self.field))

    def _unknown(self, part: SupervisionSegment) -> list[Any]:
        return [value for value in self._values(part) if self.find(value) is None]


def numbers(cuts: Sequence[Cut], head: HeadConfig, data: str) -> dict[str, list[float]]:
    """Id → the numbers to be predicted: custom["label"] is one, a list of them, or the outputs' names with one each.

    Raises:
        InputError: something else is there, or nothing in any cut.
    """
    found = {}
    for cut in cuts:
        for part in cut.supervisions:
            value = value_of(part, "label")
            if value is not None:
                found[cut.id] = _as_numbers(value, head, f"{data}: {cut.id}")
    if not found:
        raise InputError(
            f'{data}: none of its {len(cuts)} cuts has a number to predict: give their supervisions custom["label"]'
        )
    return found


def _as_numbers(value: Any, head: HeadConfig, where: str) -> list[float]:
    if isinstance(value, Mapping) and set(value) == set(head.labels):
        value = [value[name] for name in head.labels]
    listed = value if isinstance(value, list) else [value]
    fits = [type(one) in (int, float) and abs(one) <= 1e18 for one in listed]
    if len(listed) != head.outputs or not all(fits):
        wanted = "a number" if head.outputs == 1 else f"{head.outputs} numbers"
        raise InputError(f"{where}: custom.label is {value!r:.60}; the model predicts {wanted}")
    return [float(one) for one in listed]


def _frames(cut: Cut, seconds_per_frame: float) -> Iterator[tuple[SupervisionSegment, int, int]]:
    """Supervisions, each with its first frame and the one after its last."""
    for part in cut.supervisions:
        yield part, max(0, round(part.start / seconds_per_frame)), max(0, round(part.end / seconds_per_frame))


def _some(names: Sequence[str]) -> str:
    """The first three."""
    return ", ".join(repr(name[:60]) for name in names[:3]) + (", …" if len(names) > 3 else "")
