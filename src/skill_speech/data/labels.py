"""What a cut's supervisions say: its transcript, or its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Literal

from lhotse import CutSet, SupervisionSegment
from lhotse.cut import Cut

from ..errors import InputError

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


def labels_of(cut: Cut, field: LabelField) -> tuple[Any, ...]:
    """The labels of a cut, none of them twice; its transcript as one."""
    if field == "transcript":
        text = transcript_of(cut)
        return () if text is None else (text,)
    found: list[Any] = []
    for part in cut.supervisions:
        found += [value for value in listed(value_of(part, field)) if value not in found]
    return tuple(found)


def label_field(cuts: Sequence[Cut], known: Callable[[Any], bool]) -> LabelField | None:
    """Where cuts have labels: in custom["label"] if there is one, or else in the first field with one that is known."""
    for field in LABEL_FIELDS:
        values = [value for cut in cuts for value in labels_of(cut, field)]
        if values and (field == "label" or any(map(known, values))):
            return field
    return None


def find_labels(cuts: CutSet, known: Callable[[Any], bool] | None, purpose: str) -> LabelField:
    """Where the first cuts have transcripts, or labels of which some are known.

    Raises:
        InputError: nowhere; `purpose` says what to do.
    """
    first = list(islice(cuts, LOOKED_AT))
    if known is None:
        field: LabelField | None = "transcript" if any(labels_of(cut, "transcript") for cut in first) else None
    else:
        field = label_field(first, known)
    if field is None:
        what = "text" if known is None else "label that the model has"
        raise InputError(f"no supervision with a {what} in the first {len(first):,} cuts of the data: {purpose}")
    return field
