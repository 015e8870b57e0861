"""What tells whether data is still the same: the number of its cuts, and a hash of what is known of them."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lhotse import CutSet, SupervisionSegment
from lhotse.cut import Cut

from ..errors import InputError
from .audio import local_files
from .fields import COUNT, Table, Text

logger = logging.getLogger("skill_speech.data")

KEPT = Table({"cuts": COUNT, "hash": Text()})


@dataclass(frozen=True)
class Fingerprint:
    """Of some data; equal for equal cuts in the same order.

    Attributes:
        cuts: how many there are.
        hash: SHA-256 of their ids, files as named, starts, durations, texts, speakers and labels, without
            their audio.
    """

    cuts: int
    hash: str


def fingerprint(cuts: CutSet) -> Fingerprint:
    """The fingerprint of data that `open_cuts` opened, or of any cuts.

    A manifest is read once, without making cuts of its lines; of shards only the index is looked at. What a part was
    held out of by `split_cuts` has the fingerprint of the whole, since the held-out part has one of its own.
    """
    own = getattr(cuts.data, "fingerprint", None)
    if own is not None:
        return Fingerprint(*own())
    digest, count = hashlib.sha256(), 0
    for cut in cuts:
        digest.update(json.dumps(_of_cut(cut)).encode())
        count += 1
    return Fingerprint(count, digest.hexdigest())


def _of_cut(cut: Cut) -> list[Any]:
    said = [_of_supervision(part) for part in cut.supervisions]
    return [cut.id, cut.start, cut.duration, getattr(cut, "channel", 0), *local_files(cut), said]


def _of_supervision(part: SupervisionSegment) -> list[Any]:
    """What a head may learn from."""
    label = (part.custom or {}).get("label")
    return [part.text, part.speaker] if label is None else [part.text, part.speaker, label]


def check_same_data(path: Path, data: Mapping[str, CutSet | None], accept: bool) -> dict[str, dict[str, Any]]:
    """Compare data with what a run noted of it when it began.

    Args:
        path: the note, if there is one yet.
        data: by the name of the setting.
        accept: changed data is meant.

    Returns:
        The note to write.

    Raises:
        InputError: the data has changed, or the note cannot be read.
    """
    now = {name: fingerprint(cuts if cuts is not None else CutSet([])) for name, cuts in data.items()}
    if path.exists():
        before = _read(path)
        changed = [
            f"{name} (had {before[name].cuts:,} cuts, now {now[name].cuts:,})"
            for name in now
            if name in before and before[name] != now[name]
        ]
        if changed and not accept:
            raise InputError(
                f"{path.parent}: the data has changed since the run began: {'; '.join(changed)}. Restore it, choose "
                "another --output, or set accept_changed_data to true to resume with the new data"
            )
        if changed:
            logger.warning("%s: resuming with changed data: %s", path.parent, "; ".join(changed))
    return {name: asdict(found) for name, found in now.items()}


def _read(path: Path) -> dict[str, Fingerprint]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        for name, value in values.items():
            KEPT.check(value, (None, name))
        return {name: Fingerprint(value["cuts"], value["hash"]) for name, value in values.items()}
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it to resume without comparing the data") from None
