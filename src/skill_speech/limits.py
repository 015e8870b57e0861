"""What options and settings may be: one table for every command and every configuration.

Types that the command line has checked are checked again, because a library call and the settings in a file come here
without it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import InputError


@dataclass(frozen=True)
class Number:
    """A number, or one of a few words.

    Attributes:
        low, high: bounds.
        whole: no fractions.
        above, below: the lower, the upper bound itself is excluded.
        words: that may stand instead; None for leaving it out.
        several: a list of such numbers, one at least.
        odd: whole and odd.
        finite: otherwise NaN and the infinities are numbers too.
        note: what a reader should know of a value, in parentheses.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False
    below: bool = False
    words: tuple[str | None, ...] = ()
    several: bool = False
    odd: bool = False
    finite: bool = True
    note: str = ""

    def allows(self, value: Any) -> bool:
        """Whether a value is one of these."""
        if value is None or isinstance(value, str):
            return value in self.words
        if self.several:
            return isinstance(value, list | tuple) and len(value) > 0 and all(map(self._holds, value))
        return self._holds(value)

    def _holds(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Integral if self.whole else Real):
            return False
        assert isinstance(value, int | float)
        if not self.finite and isinstance(value, float) and not math.isfinite(value):
            return True
        # Comparisons with NaN are false.
        least = self.low < value if self.above else self.low <= value
        most = value < self.high if self.below else value <= self.high
        return least and most and not (self.odd and value % 2 == 0)

    def __str__(self) -> str:
        low, high = (f"{bound:,.0f}" if self.whole else f"{bound:g}" for bound in (self.low, self.high))
        kind = f"{'odd ' * self.odd}{'whole ' * self.whole}number"
        kind = f"{kind}s" if self.several else f"an {kind}" if self.odd else f"a {kind}"
        if self.above and self.below:
            said = f"{kind} between {low} and {high}"
        else:
            said = f"{kind} above {low}, at most {high}" if self.above else f"{kind} from {low} to {high}"
        said += "".join(f", or {word}" for word in self.words if word)
        return said + (f" ({self.note})" if self.note else "")


def _whole(low: int, high: int = 10**9, **more: Any) -> Number:
    return Number(low, high, whole=True, **more)


SAMPLE_RATE = 16_000
"""Hz; what nearly every encoder of this family was trained on, and the only rate that `data` makes of any file."""
MOST_SECONDS = 1e9
SEED = _whole(0, 2**32 - 1)
WORKERS = _whole(0, 256)
PROCESSES = _whole(1, 65_536)
RATE = Number(0, 10, above=True)
SHARE = Number(0, 1)
WEIGHT = Number(0, 1e6)
DECIBELS = Number(-50, 100)
WIDTH = _whole(1, 65_536)
UPDATES = _whole(1)
LENGTH = Number(0, 1e9, note="updates, or below 1 a share of the stage")
BATCH_SECONDS = Number(4, 86_400, note="seconds; utterances have up to half as many")

LIMITS: dict[str, dict[str, Number]] = {
    "prepare": {"jobs": _whole(1, 256)},
    "Part": {"weight": Number(0, 1e9, above=True)},
    "analyze": {
        "clusters": _whole(1, 10_000, words=("auto",)),
        "devices": PROCESSES,
        "nodes": PROCESSES,
        "seed": SEED,
        "workers": WORKERS,
    },
    "AnalysisConfig": {
        "calibration_seconds": Number(0, MOST_SECONDS, above=True),
        "batch_seconds": Number(0.025, 86_400),
        "batch_frames": _whole(8, 65_536),
    },
    "compress": {
        "clusters": _whole(1, 10_000, words=("auto",)),
        "sparsity": Number(0, 1, above=True, below=True, words=(None,), note="0.75 keeps a quarter"),
        "speedup": Number(1, 1e6, above=True, words=(None,), note="4 takes a quarter of the time"),
        "round_to": _whole(1, 4_096, note="8, 16 or 32 suit most hardware"),
        "min_seconds": Number(0.025, 7.8, note="a longer utterance is divided at 15.6 s"),
        "validation_seconds": Number(0, MOST_SECONDS, note="0 for no validation"),
        "validate_every": _whole(0, note="0 for none between a stage's start and its end"),
        "checkpoint_every": UPDATES,
        "minutes": Number(0, 1e6, above=True, words=(None,)),
        "checkpoint_minutes": Number(0, 1e6, note="0 for no limit of time"),
        "keep_checkpoints": _whole(2, note="one to fall back to"),
        "milestone_every": _whole(0, note="0 for none"),
        "devices": PROCESSES,
        "nodes": PROCESSES,
        "seed": SEED,
        "workers": WORKERS,
    },
    "Stage2Config": {
        "steps": UPDATES,
        "learning_rate": RATE,
        "warmup_steps": LENGTH,
        "batch_seconds": BATCH_SECONDS,
        "accumulate": _whole(1, 10**6),
        "weight_decay": Number(0, 10),
        "clip_norm": Number(0, 1e9, note="0 does not clip"),
        "activation_dropout": Number(0, 0.99, words=(None,)),
    },
    "Stage1Config": {
        "gate_learning_rate": RATE,
        "sparsity_steps": LENGTH,
        "shrink_every": _whole(0, note="0 for never"),
        "shrink_below": Number(0, 0.5),
    },
    "LossConfig": {"l1": WEIGHT, "l2": WEIGHT, "cosine": WEIGHT, "temporal": WEIGHT},
    "InputConfig": {
        "mask_share": Number(0, 0.95),
        "mask_frames": _whole(1, 1_000),
        "noisy_share": SHARE,
        "snr_low": DECIBELS,
        "snr_high": DECIBELS,
        "speakers_share": SHARE,
        "reverberation_share": SHARE,
        "reverberation_high": Number(0.1, 5),
    },
    "UnitsConfig": {
        "count": _whole(0, 10_000, words=(None,), note="0 for none"),
        "layer": _whole(0, 1_000, words=(None,)),
        "weight": WEIGHT,
        "seconds": Number(0, MOST_SECONDS, above=True),
    },
    "HeadTraining": {
        "outputs": dataclasses.replace(WEIGHT, words=(None,)),
        "temperature": Number(0.01, 1_000),
        "labels": WEIGHT,
        "learning_rate": dataclasses.replace(RATE, words=(None,)),
    },
    "profile": {
        "seconds": Number(0.025, 600, note="one frame to ten minutes"),
        "threads": _whole(1, 4_096, words=(None,)),
    },
    "evaluate": {
        "learning_rates": Number(0, 10, above=True, several=True, words=(None,)),
        "steps": _whole(1, words=(None,)),
        "cache_gb": Number(0, 1e9),
        "seed": SEED,
    },
    "AudioConfig": {"gain_db": Number(-200, 200)},
    "SpecAugmentConfig": {
        "time_warp": _whole(0, 10_000),
        "time_masks": _whole(0, 1_000),
        "time_width": _whole(0, 10_000),
        "feature_masks": _whole(0, 1_000),
        "feature_width": _whole(0, 10_000),
    },
    "TrainingConfig": {
        "steps": UPDATES,
        "learning_rates": Number(0, 10, above=True, several=True),
        "batch_size": _whole(1, 10**6),
        "eval_every": UPDATES,
        "accumulate": _whole(1, 10**6),
        "clip": Number(0, 1e9, above=True),
    },
    "RecognitionConfig": {
        "projection_size": WIDTH,
        "hidden_size": WIDTH,
        "layers": _whole(0, 100),
        "dropout": Number(0, 0.99),
        "long_seconds": Number(0, MOST_SECONDS),
    },
    "ClassificationConfig": {"projection_size": WIDTH, "crop_seconds": Number(0, MOST_SECONDS, note="0 for all")},
    "VerificationConfig": {
        "projection_size": WIDTH,
        "pooled_size": WIDTH,
        "scale": Number(0, 1e6, above=True),
        "margin": Number(0, 10),
        "min_seconds": Number(0, MOST_SECONDS),
        "crop_seconds": Number(0.2, MOST_SECONDS),
    },
    "DiarizationConfig": {
        "hidden_size": WIDTH,
        "layers": _whole(1, 100),
        "chunk_frames": _whole(1),
        "thresholds": Number(0, 1, several=True),
        "medians": _whole(1, 10_001, odd=True, several=True),
    },
    "QueryConfig": {"min_frames": _whole(1)},
}
"""Command or configuration → field → what it may be. Fields of a configuration's parents hold for it too."""


def refuse_other_rates(rate: int, source: str) -> None:
    """See that an encoder's waveforms have the sampling rate, in Hz, of audio as it is read.

    Raises:
        InputError: they have another.
    """
    if rate != SAMPLE_RATE:
        raise InputError(
            f"{source}: takes waveforms of {rate:,} Hz, and only {SAMPLE_RATE:,} Hz is supported here; such an encoder "
            "can be loaded, imported and profiled"
        )


LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that file systems take."""


def check_options(command: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """See that the arguments of a command are what they may be, configurations among them.

    Raises:
        InputError: one is not; names it.
    """
    _check_fields(options, LIMITS.get(command.__name__, {}), get_type_hints(command), "")


def check_config(config: Any, where: str) -> None:
    """See that the fields of a configuration, a dataclass, are what they may be; `where` stands before their names.

    Raises:
        InputError: one is not; names it.
    """
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    _check_fields(values, limits_of(type(config)), get_type_hints(type(config)), f"{where}.")


NESTED = {
    "analysis": LIMITS["AnalysisConfig"],
    "stage1": LIMITS["Stage2Config"] | LIMITS["Stage1Config"],
    "stage2": LIMITS["Stage2Config"],
    "loss": LIMITS["LossConfig"],
    "augmentation": LIMITS["InputConfig"],
    "units": LIMITS["UnitsConfig"],
    "head": LIMITS["HeadTraining"],
}
"""Option of `compress` with fields of its own → what they may be."""


def check_settings(values: Mapping[str, Any], path: Path) -> None:
    """See that the numbers in a run's config.yaml, as far as they are there, are what they may be.

    Raises:
        InputError: one is not; names the file and the setting.
    """
    for name, part in values.items():
        if name in NESTED and not isinstance(part, dict):
            raise InputError(f"{path}: damaged ({name} is {shown(part)})")
        limits, prefix, fields = LIMITS["compress"], "", {name: part}
        if name in NESTED:
            limits, prefix, fields = NESTED[name], f"{name}.", part
        for field, value in fields.items():
            if field in limits and not limits[field].allows(value):
                raise InputError(f"{path}: damaged ({prefix}{field} is {shown(value)}, not {limits[field]})")


def limits_of(config: type) -> dict[str, Number]:
    """The numbers of a configuration, those of its parents included."""
    limits: dict[str, Number] = {}
    for kind in reversed(config.__mro__):
        limits |= LIMITS.get(kind.__name__, {})
    return limits


def _check_fields(
    values: Mapping[str, Any], limits: Mapping[str, Number], hints: Mapping[str, Any], where: str
) -> None:
    for name, value in values.items():
        if name in limits:
            if not limits[name].allows(value):
                raise InputError(f"{where}{name} is {shown(value)}; it must be {limits[name]}")
        elif dataclasses.is_dataclass(value):
            check_config(value, f"{where}{name}")
        elif isinstance(value, list | tuple) and value and all(map(dataclasses.is_dataclass, value)):
            for number, part in enumerate(value):
                check_config(part, f"{where}{name}[{number}]")
        elif (kinds := _kinds(hints.get(name))) and not isinstance(value, kinds):
            raise InputError(f"{where}{name} is {shown(value)}; give its fields by their names")
        elif (choices := _choices(hints.get(name))) is not None and not _is_among(value, hints[name]):
            raise InputError(f"{where}{name} is {shown(value)}; it can be {', '.join(choices)}")
        elif not all(map(_can_be_named, value if isinstance(value, list | tuple) else [value])):
            raise InputError(f"{where}{name} is {shown(value)}, which is not a valid file name")


def _can_be_named(value: Any) -> bool:
    """Whether a text, where it is one, is within what systems take as a path; addresses may be longer."""
    if not isinstance(value, str | Path) or "://" in str(value):
        return True
    name = str(value).encode("utf-8", "replace")
    return b"\0" not in name and len(name) <= LONGEST_PATH and max(map(len, name.split(b"/"))) <= LONGEST_NAME


def _choices(hint: Any) -> list[str] | None:
    """The words that a type consists of; None for a type of which there is more."""
    if hint is bool:
        return ["true", "false"]
    if hint is NoneType:
        return []
    if get_origin(hint) is Literal:
        return [str(word) for word in get_args(hint)]
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType, tuple) else ()
    found = [_choices(part) for part in parts if part is not Ellipsis]
    if not found or any(words is None for words in found):
        return None
    return [word for words in found for word in words or ()]


def _kinds(hint: Any) -> tuple[type, ...]:
    """What a field for a configuration takes: its class, and perhaps that of None; nothing for other fields."""
    kinds = tuple(kind for kind in (hint, *get_args(hint)) if isinstance(kind, type))
    return kinds if any(map(dataclasses.is_dataclass, kinds)) else ()


def _is_among(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return any(value is word or (isinstance(value, str) and value == word) for word in get_args(hint))
    if get_origin(hint) is tuple:
        return (
            isinstance(value, list | tuple)
            and len(value) > 0
            and all(_is_among(part, get_args(hint)[0]) for part in value)
        )
    if get_origin(hint) in (Union, UnionType):
        return any(_is_among(value, part) for part in get_args(hint))
    return isinstance(value, hint)


def shown(value: Any) -> str:
    """A value as it may stand in a message: one line, and not all of a long one."""
    if isinstance(value, int) and abs(value) >= 10**50:
        return "a number of more than 50 digits"
    text = f"{value:g}" if isinstance(value, float) else ascii(value) if isinstance(value, str) else repr(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}…"
