"""A held-out part of unlabeled data."""

from __future__ import annotations

import logging
import random
from collections import defaultdict
from functools import partial

from lhotse import CutSet
from lhotse.cut import Cut, MixedCut

from ..errors import InputError
from .streams import first_cuts, transformed

logger = logging.getLogger("skill_speech.data")

LARGEST_SHARE = 0.05
"""Of the data, for validation."""


def split_cuts(cuts: CutSet, *, validation_seconds: float, seed: int) -> tuple[CutSet, CutSet]:
    """Splits into training and validation cuts that share no recording, nor a speaker where that is possible.

    Validation gets whole groups in random order as long as they fit into `validation_seconds` and 5 % of the data.
    Groups are speakers if every recording has exactly one and they fill at least half of that; recordings otherwise.
    When not even one recording fits, the validation set is empty, and the log says so.

    Of more than 20,000 cuts only so many are looked at, the first ones of shards in random order: the validation set
    comes from among these, and what else there is of its speakers is left out of training.

    Returns:
        (training cuts, read again each time; validation cuts, in memory); a function of the cuts and the seed alone.

    Raises InputError for a negative number of seconds.
    """
    if not validation_seconds >= 0:
        raise InputError(f"validation_seconds is {validation_seconds:g}; it must be 0 or more")
    speaker_of: dict[str, set[str | None]] = defaultdict(set)
    seconds: dict[str, float] = defaultdict(float)
    looked_at = first_cuts(cuts, f"{seed}/split")
    for cut in looked_at:
        seconds[recording_of(cut)] += cut.duration
        speaker_of[recording_of(cut)] |= {supervision.speaker for supervision in cut.supervisions} or {None}
    budget = min(validation_seconds, LARGEST_SHARE * sum(seconds.values()))

    chosen: set[str] = set()
    speakers: set[str] = set()
    if all(len(spoken) == 1 and None not in spoken for spoken in speaker_of.values()):
        group_of = {recording: str(*spoken) for recording, spoken in speaker_of.items()}
        chosen = _fill(group_of, seconds, budget, seed)
        speakers = {group_of[recording] for recording in chosen}
    if sum(seconds[recording] for recording in chosen) < budget / 2:
        chosen = _fill({recording: recording for recording in seconds}, seconds, budget, seed)
        speakers = set()
    if not chosen and validation_seconds > 0:
        logger.warning("no recording fits into %.1f s for validation: the validation set is empty", budget)
    held_out = [cut for cut in looked_at if recording_of(cut) in chosen]
    rest = partial(_without, recordings=frozenset(chosen), speakers=frozenset(speakers))
    return transformed(cuts, rest), CutSet(held_out)


def recording_of(cut: Cut) -> str:
    """The id of the cut's (first) recording."""
    return cut.first_non_padding_cut.recording_id if isinstance(cut, MixedCut) else cut.recording_id


def _fill(group_of: dict[str, str], seconds: dict[str, float], budget: float, seed: int) -> set[str]:
    """Recordings of whole groups, in random order, as long as they fit."""
    members: dict[str, list[str]] = defaultdict(list)
    for recording, group in group_of.items():
        members[group].append(recording)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    chosen: set[str] = set()
    for group in order:
        size = sum(seconds[recording] for recording in members[group])
        if size <= budget:
            chosen.update(members[group])
            budget -= size
    return chosen


def _without(cut: Cut, *, recordings: frozenset[str], speakers: frozenset[str]) -> Cut | None:
    held_out = recording_of(cut) in recordings or any(said.speaker in speakers for said in cut.supervisions)
    return None if held_out else cut
