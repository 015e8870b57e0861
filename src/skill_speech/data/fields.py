"""What a manifest may say: one table of fields, their types and bounds, for every line and index that comes in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Hz; what says anything else is damaged."""

LONGEST_SECONDS = 1e6
"""Eleven days and a half: longer than any recording, short enough to be counted in windows."""

SLACK_SECONDS = 0.1
"""By which lengths that belong together may differ: programs round them, and decoders do not agree on MP3."""


MEMBER = "shard_member"
"""Custom field of a cut from shards: (path or address of a tar file, first byte of the audio in it, byte after it).

In the shards themselves it is without the path."""


BAD = "bad_audio"
"""Custom field of a cut whose audio was found unusable when its header was read: (message, kind)."""


class FieldError(ValueError):
    """A field with a value that it cannot have; its message is a phrase: "duration is -1; it must be …"."""


Place = tuple[Any, str | int] | None
"""Where a value is: (place of what holds it, name or number in it). Put into words only if something is wrong there."""


class Spec(Protocol):
    """What a value must be."""

    def check(self, value: Any, place: Place = None) -> None:
        """Raises FieldError."""


@dataclass(frozen=True)
class Number:
    """A finite number in [low, high]; `above`: in (low, high]; `whole`: without a fraction."""

    low: float
    high: float
    whole: bool = False
    above: bool = False

    def check(self, value: Any, place: Place = None) -> None:
        """Raises FieldError."""
        good = type(value) in (int, float) and self.low <= value <= self.high
        if not good or (self.whole and value != int(value)) or (self.above and value == self.low):
            kind = "a whole number" if self.whole else "a number"
            bounds = f"above {self.low:g} and at most" if self.above else f"from {self.low:g} to"
            raise _wrong(value, place, f"{kind} {bounds} {self.high:g}")


@dataclass(frozen=True)
class Text:
    """Text of `least` to `most` characters, without halves of characters (surrogates) and without NUL."""

    most: int = 4_096
    least: int = 1

    def check(self, value: Any, place: Place = None) -> None:
        """Raises FieldError."""
        if not (isinstance(value, str) and self.least <= len(value) <= self.most and "\0" not in value):
            raise _wrong(value, place, f"text of {self.least} to {self.most:,} characters")
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _wrong(value, place, "valid Unicode") from None


@dataclass(frozen=True)
class Bool:
    """true or false."""

    def check(self, value: Any, place: Place = None) -> None:
        """Raises FieldError."""
        if not isinstance(value, bool):
            raise _wrong(value, place, "true or false")


@dataclass(frozen=True)
class Maybe:
    """Nothing (null, or no such field), or what `spec` says."""

    spec: Spec

    def check(self, value: Any, place: Place = None) -> None:
        """Raises FieldError."""
        if value is not None:
            self.spec.check(value, place)


@dataclass(frozen=True)
class OneOrMore:
    """What `spec` says, or a list of it."""

    spec: Spec
    most: int

    def check(self, value: Any, place: Place = None) -> None:
        """Raises FieldError."""
        (List(self.spec, self.most, least=1) if isinstance(value, list) else self.spec).check(value, place)


@dataclass(frozen=True)
class List:
    """A list of `least` to `most` times what `spec` says."""

    spec: Spec
    most: int
    least: int = 0

    def check(self, value: Any, place: Place = None) -> None:
        """Raises FieldError."""
        if not (isinstance(value, list) and self.least <= len(value) <= self.most):
            raise _wrong(value, place, f"a list of {self.least} to {self.most:,}")
        for number, item in enumerate(value):
            self.spec.check(item, (place, number))


@dataclass(frozen=True)
class Named:
    """Any names, for each what `spec` says."""

    spec: Spec

    def check(self, value: Any, place: Place = None) -> None:
        """Raises FieldError."""
        if not isinstance(value, dict):
            raise _wrong(value, place, "fields with names")
        for key, item in value.items():
            Text(10_000).check(key, (place, "(name)"))
            self.spec.check(item, (place, key))


@dataclass(frozen=True)
class Table:
    """Fields by name; others may be there too, and are left to whoever knows them.

    Attributes:
        rule: what is wrong with fields that are all right by themselves, or None.
    """

    fields: dict[str, Spec]
    rule: Callable[[Mapping[str, Any]], str | None] | None = None

    def check(self, value: Any, place: Place = None) -> None:
        """Raises FieldError."""
        if not isinstance(value, dict):
            raise _wrong(value, place, "fields with names")
        for key, spec in self.fields.items():
            spec.check(value.get(key), (place, key))
        if self.rule is not None and (fault := self.rule(value)) is not None:
            raise FieldError(f"{_words(place)}: {fault}" if place else fault)


@dataclass(frozen=True)
class ByKind:
    """The table that a field of the value names."""

    field: str
    tables: Mapping[str, Spec]

    def check(self, value: Any, place: Place = None) -> None:
        """Raises FieldError."""
        kind = value.get(self.field) if isinstance(value, dict) else value
        if not (isinstance(kind, str) and kind in self.tables):
            raise _wrong(kind, (place, self.field), f"one of {', '.join(self.tables)}")
        self.tables[kind].check(value, place)


def _wrong(value: Any, place: Place, wanted: str) -> FieldError:
    shown = {list: "a list", dict: "fields with names", type(None): "missing"}.get(type(value))
    if shown is None:
        # Not the whole of it, and nothing that a terminal obeys.
        shown = repr(value[:40]) + ("…" if len(value) > 40 else "") if isinstance(value, str) else repr(value)[:40]
    return FieldError(f"{_words(place) or 'the whole'} is {shown}; it must be {wanted}")


def _words(place: Place) -> str:
    """As in recording.sources[0].type."""
    if place is None:
        return ""
    holder, name = _words(place[0]), place[1]
    if isinstance(name, int):
        return f"{holder}[{name}]"
    name = name if name.isidentifier() else repr(name[:40])
    return f"{holder}.{name}" if holder else name


def _length_rule(recording: Mapping[str, Any]) -> str | None:
    seconds = recording["num_samples"] / recording["sampling_rate"]
    if abs(recording["duration"] - seconds) <= SLACK_SECONDS:
        return None
    return f"duration is {recording['duration']:g} s, but num_samples make {seconds:g} s"


def _place_rule(cut: Mapping[str, Any]) -> str | None:
    end, recording = cut["start"] + cut["duration"], cut.get("recording")
    if recording is None or end <= recording["duration"] + SLACK_SECONDS:
        return None
    return f"the cut ends at {end:g} s, its recording at {recording['duration']:g} s"


RATE = Number(LOWEST_RATE, HIGHEST_RATE, whole=True)
SAMPLES = Number(1, LONGEST_SECONDS * HIGHEST_RATE, whole=True)
SECONDS = Number(0, LONGEST_SECONDS)
LENGTH = Number(0, LONGEST_SECONDS, above=True)
PLACE = Number(-LONGEST_SECONDS, LONGEST_SECONDS)
CHANNEL = Number(0, 10_000, whole=True)
CHANNELS = List(CHANNEL, 10_000, least=1)
FACTOR = Number(0.1, 10)
COUNT = Number(0, 1e15, whole=True)
AMOUNT = Number(0, 1e15)

TRANSFORM = ByKind(
    "name",
    {
        "Resample": Table({"kwargs": Table({"source_sampling_rate": RATE, "target_sampling_rate": RATE})}),
        "Speed": Table({"kwargs": Table({"factor": FACTOR})}),
        "Tempo": Table({"kwargs": Table({"factor": FACTOR})}),
        "Volume": Table({"kwargs": Table({"factor": Number(0, 1_000)})}),
    },
)
"""What may be done to audio. An impulse response would be a recording of its own, from anywhere."""

RECORDING = Table(
    {
        "id": Text(),
        "sources": List(Table({"type": Text(20), "channels": CHANNELS, "source": Text(least=0)}), 1_000, least=1),
        "sampling_rate": RATE,
        "num_samples": SAMPLES,
        "duration": LENGTH,
        "channel_ids": Maybe(CHANNELS),
        "transforms": Maybe(List(TRANSFORM, 10)),
    },
    _length_rule,
)

SUPERVISION = Table(
    {
        "id": Text(),
        "recording_id": Text(),
        "start": PLACE,
        "duration": SECONDS,
        "channel": Maybe(OneOrMore(CHANNEL, 10_000)),
        "text": Maybe(Text(1_000_000, least=0)),
        "language": Maybe(Text(least=0)),
        "speaker": Maybe(Text(least=0)),
        "gender": Maybe(Text(least=0)),
        "custom": Maybe(Table({})),
        "alignment": Maybe(Table({})),
    }
)

CUT = Table(
    {
        "id": Text(),
        "start": SECONDS,
        "duration": LENGTH,
        "channel": OneOrMore(CHANNEL, 10_000),
        "supervisions": Maybe(List(SUPERVISION, 10_000)),
        "features": Maybe(Table({})),
        "recording": Maybe(RECORDING),
        "custom": Maybe(Table({})),
    },
    _place_rule,
)

PADDING = Table(
    {
        "id": Text(),
        "duration": LENGTH,
        "sampling_rate": RATE,
        "num_samples": Maybe(SAMPLES),
        "feat_value": PLACE,
        "num_frames": Maybe(SAMPLES),
        "num_features": Maybe(CHANNEL),
        "frame_shift": Maybe(SECONDS),
        "custom": Maybe(Table({})),
    }
)

MIXING = {
    "offset": Maybe(SECONDS),
    "snr": Maybe(Number(-1_000, 1_000)),
    "tag": Maybe(Text()),
    "is_snr_reference": Maybe(Bool()),
    "mute": Maybe(Bool()),
}
TRACK = ByKind(
    "type",
    {
        kind: Table({"cut": spec, **MIXING})
        for kind, spec in {"MonoCut": CUT, "MultiCut": CUT, "PaddingCut": PADDING}.items()
    },
)
MIXED = Table(
    {
        "id": Text(),
        "tracks": List(TRACK, 1_000, least=1),
        "snr_reference": Maybe(TRACK),
        "transforms": Maybe(List(TRANSFORM, 10)),
    }
)

SHARD_CUT = ByKind(
    "type",
    {
        "MonoCut": Table(
            CUT.fields | {"recording": RECORDING, "custom": Table({MEMBER: List(COUNT, 2, least=2)})},
            _place_rule,
        )
    },
)
"""A line of a shard's manifest."""

SHARD_INDEX = Table(
    {
        "shards": List(
            Table({"cuts": Text(255), "recording": Text(255), "number": COUNT, "seconds": AMOUNT}),
            10_000_000,
            least=1,
        )
    }
)
"""index.json of a folder of shards."""

BAD_AUDIO = Table(
    {
        "read": COUNT,
        "left_out": COUNT,
        "empty_in_a_row": COUNT,
        "kinds": Named(Table({"left_out": Bool(), "cuts": COUNT, "files": Named(Text(100_000, least=0))})),
        "converted": Named(COUNT),
    }
)
"""The list of unusable audio beside a manifest."""


def check_line(item: Any) -> None:
    """See that a line of a manifest has possible values, if it is a cut or a recording; others are for lhotse to name.

    Raises FieldError.
    """
    if isinstance(item, dict):
        kind = "Recording" if "sources" in item else item.get("type")
        table = {"Recording": RECORDING, "MonoCut": CUT, "Cut": CUT, "MultiCut": CUT, "MixedCut": MIXED}.get(str(kind))
        if table is not None:
            table.check(item)
