"""What a cut's supervisions say: its transcript, or its labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal

from lhotse import CutSet, SupervisionSegment
from lhotse.cut import Cut

from ..errors import InputError

logger = logging.getLogger("skill_speech.data")

LabelField = Literal["transcript", "label", "speaker", "language", "gender", "text"]
"""Where a cut's labels are: all texts of its supervisions as one, custom["label"], or a field of that name."""
LABEL_FIELDS: tuple[LabelField, ...] = ("label", "speaker", "language", "gender", "text")
"""Labels are looked for in one of them, the same for all of a manifest."""
LOOKED_AT = 1_000
"""Cuts among which one has to have what is looked for."""


def transcript_of(cut: Cut) -> str | None:
    """What is said in a cut, of several supervisions one after another; None where that is not known."""
    parts = [part.text for part in sorted(cut.supervisions, key=lambda part: part.start) if part.text is not None]
    return " ".join(parts) if parts else None


def value_of(part: SupervisionSegment, field: str) -> Any:
    """What a supervision has in one of `LABEL_FIELDS`; None for nothing."""
    value = (part.custom or {}).get("label") if field == "label" else getattr(part, field)
    return None if value == "" else value


def listed(value: Any) -> list[Any]:
    """One label, several, or none, as a list."""
    return [] if value is None else value if isinstance(value, list) else [value]


def labels_of(cut: Cut, field: LabelField) -> tuple[Any, ...] | None:
    """The labels of a cut, none of them twice, or its transcript as one; None where nothing is said of them."""
    if field == "transcript":
        text = transcript_of(cut)
        return None if text is None else (text,)
    values = [value for part in cut.supervisions if (value := value_of(part, field)) is not None]
    found: list[Any] = []
    for value in values:
        found += [one for one in listed(value) if one not in found]
    return tuple(found) if values else None


def label_field(cuts: Sequence[Cut], known: Callable[[Any], bool]) -> LabelField | None:
    """Where cuts have labels: in custom["label"] if there is one, or else in the first field with one that is known."""
    for field in LABEL_FIELDS:
        values = [value for cut in cuts for value in labels_of(cut, field) or ()]
        if values and (field == "label" or any(map(known, values))):
            return field
    return None


def find_labels(
    cuts: CutSet, fields: Sequence[LabelField], known: Callable[[tuple[Any, ...]], bool], purpose: str
) -> LabelField:
    """The first of some fields in which the first cuts have labels, or transcripts, that are known; says how many have.

    Raises:
        InputError: none has; `purpose` says what to do.
    """
    first = list(islice(cuts, LOOKED_AT))
    for field in fields:
        labeled = sum(1 for cut in first if (said := labels_of(cut, field)) and known(said))
        if labeled:
            where = "a transcript" if field == "transcript" else f"a label ({field})"
            logger.info("%d of the first %d cuts have %s that the head knows", labeled, len(first), where)
            return field
    what = "text" if "transcript" in fields else "label"
    raise InputError(
        f"no supervision with a {what} that the head knows in the first {len(first):,} cuts of the data: {purpose}"
    )
