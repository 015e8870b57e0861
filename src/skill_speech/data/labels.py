"""What a cut's supervisions say: its transcript, or its label."""

from __future__ import annotations

from itertools import islice
from typing import Literal

from lhotse import CutSet
from lhotse.cut import Cut

from ..errors import InputError

LabelKind = Literal["text", "label"]
LOOKED_AT = 1_000
"""Cuts among which one has to have what is looked for."""


def label_of(cut: Cut, kind: LabelKind) -> str | None:
    """The transcript of a cut (its supervisions' texts in the order of time), or its label; None if there is none.

    A label is the first supervision's `custom["label"]`, or else its speaker, or else its text.
    """
    supervisions = sorted(cut.supervisions, key=lambda one: one.start)
    if kind == "text":
        texts = [one.text.strip() for one in supervisions if one.text and one.text.strip()]
        return " ".join(texts) or None
    for one in supervisions:
        for value in ((one.custom or {}).get("label"), one.speaker, one.text):
            if value is not None and str(value).strip():
                return str(value).strip()
    return None


def require_labels(cuts: CutSet, kind: LabelKind, purpose: str) -> None:
    """See that there are transcripts or labels among the first cuts.

    Raises:
        InputError: there are none.
    """
    if not any(label_of(cut, kind) for cut in islice(cuts, LOOKED_AT)):
        what = "text" if kind == "text" else "label (custom.label, speaker or text)"
        raise InputError(f"no supervision with a {what} in the first {LOOKED_AT:,} cuts of the data: {purpose}")
