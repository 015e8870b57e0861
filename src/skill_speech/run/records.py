"""The JSON files of a run and of an evaluation, read back: what each holds, said once.

A file is checked when it is read, so that whoever uses its values finds them: what a crash, a full disk or an editor
made of a file is one line that names it. Losses may be NaN or infinite, for training can end so; other numbers may not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json
from ..limits import LIMITS, Number

COUNT = Number(0, 1e18, whole=True)
AMOUNT = Number(0, 1e18)
POSITIVE = Number(0, 1e18, above=True)
LOSS = Number(-1e18, 1e18, finite=False)


@dataclass(frozen=True)
class Each:
    """An object with any names, and values that are all of one kind."""

    of: Any


@dataclass(frozen=True)
class Either:
    """One of these kinds; None for null."""

    kinds: tuple[Any, ...]


@dataclass(frozen=True)
class Only:
    """An object with these names and no others."""

    fields: dict[str, Any]


@dataclass(frozen=True)
class Perhaps:
    """A value of an object that need not be there."""

    of: Any


TALLY = {
    "read": COUNT,
    "left_out": COUNT,
    "empty_in_a_row": Perhaps(COUNT),
    "kinds": Each({"left_out": bool, "cuts": COUNT, "files": Each(str)}),
    "converted": Each(COUNT),
}
RUNTIME = Only({"name": str, "version": str, "real_time_factor": POSITIVE, "memory": AMOUNT, "difference": AMOUNT})
COSTS = Only(
    {
        "model": str,
        "parameters": Each(COUNT),
        "macs": Each(AMOUNT),
        "seconds": POSITIVE,
        "real_time_factor": POSITIVE,
        "threads": COUNT,
        "memory": Perhaps(Either((COUNT, None))),
        "timings": Perhaps([{"precision": str, "seconds": Each(AMOUNT), "matrix_rate": POSITIVE}]),
        "runtimes": Perhaps([RUNTIME]),
    }
)
CURVE = Only({"widths": [COUNT], "seconds": [AMOUNT]})
MACHINE = {"processor": str, "threads": COUNT, "precision": str}
LOSSES = Each(LOSS)
ESTIMATES = Each({"value": LOSS, "low": LOSS, "high": LOSS})
HEAD = {"name": str, "parameters": COUNT, "metrics": ESTIMATES, "by_label": Each(LOSSES)}
METRICS = Each(Either((LOSS, LOSSES)))  # diarization keeps the error of every threshold and median
MEASURED = {"items": Perhaps(Each(COUNT)), "intervals": Perhaps(Each({"low": LOSS, "high": LOSS}))}
WIDTHS = {"channels": [COUNT], "heads": [[COUNT]], "units": [COUNT]}
STAGE = {
    "steps": COUNT,
    "seconds": AMOUNT,
    "audio_seconds": AMOUNT,
    "peak_memory": COUNT,
    # Runs of earlier versions do not have all of these.
    "skipped": Perhaps(COUNT),
    "returns": Perhaps(COUNT),
    "audio": Perhaps(TALLY),
    "validation_at_start": Perhaps(LOSSES),
    "validation": Perhaps(LOSSES),
}

RECORDS: dict[str, tuple[Any, str]] = {
    "status": (
        {"stage": str, "step": Either((COUNT, None)), "steps": Either((COUNT, None)), "finished": bool},
        "delete it and rerun the same command to resume from its stages",
    ),
    "batch": (
        {name: LIMITS["Stage2Config"][name] for name in ("batch_seconds", "accumulate")},
        "delete it and rerun the same command to fit the batches to the available memory",
    ),
    "times": (
        Only(
            {
                "utterance": POSITIVE,
                "fixed": AMOUNT,
                "convs": [Only({"inputs": [COUNT], "outputs": [COUNT], "seconds": [[AMOUNT]]})],
                "projection": CURVE,
                "attention": CURVE,
                "feed_forward": CURVE,
                "encoder": dict,
                "machine": MACHINE,
            }
        ),
        "write one with skill-speech profile TEACHER --times FILE",
    ),
    "runtimes": (
        {
            "seconds": POSITIVE,
            "machine": {"processor": str, "threads": COUNT},
            "runtimes": [RUNTIME],
        },
        "delete it, or write it again with skill-speech profile RUN/model --runtimes",
    ),
    "validation": (LOSSES, "delete it and rerun the same command to measure it again"),
    "stage": (
        STAGE | {"validation_at_start": LOSSES, "validation": LOSSES},
        "delete it and rerun the same command to resume the stage from its last checkpoint",
    ),
    "surgery": (
        {"parameters": COUNT, "teacher_parameters": COUNT},
        "delete it and rerun the same command to repeat the surgery",
    ),
    "audio": (TALLY, "delete its folder and rerun the same command to repeat the analysis"),
    "clusters": (
        {
            "clusters": [{"layers": [COUNT], "medoid": COUNT, "mean_cka": Number(-1e6, 1e6)}],
            "method": str,
            "contiguous": bool,
            "threshold": Number(-1e6, 1e6),
            "reason": str,
            "linkage": [[Number(-1e6, 1e6)]],
            "view": Perhaps(str),
            "borders": Perhaps({name: Either((Number(-1, 1), None)) for name in ("halves", "other_view")}),
        },
        "delete its folder and rerun the same command to repeat the analysis",
    ),
    "outcome": (
        {
            "teacher": COSTS,
            "student": COSTS,
            "loss_after_surgery": Either((LOSS, None)),
            "loss": Either((LOSS, None)),
            "outputs_after_surgery": Perhaps(Either((LOSS, None))),
            "outputs": Perhaps(Either((LOSS, None))),
            "head": Perhaps(Either(({"kind": str, "outputs": COUNT}, None))),
            "clusters": Perhaps(Either(([[COUNT]], None))),
            "similarity": Perhaps(Either(([Number(-1.01, 1.01)], None))),
            "stages": Each(STAGE),
            "audio": Perhaps(Each(TALLY)),
            "times": Perhaps(
                {
                    "budget": POSITIVE,
                    "teacher": POSITIVE,
                    "student": POSITIVE,
                    "utterance": POSITIVE,
                    "machine": MACHINE,
                }
            ),
            "widths": Perhaps({"teacher": WIDTHS, "student": WIDTHS}),
            "environment": Perhaps(
                {
                    "versions": Each(str),
                    "platform": str,
                    "processor": Perhaps(str),
                    "cpus": Either((COUNT, None)),
                    "threads": COUNT,
                    "accelerator": Either((str, None)),
                }
            ),
            "finished": Perhaps(str),
        },
        "delete it and rerun the same compress command",
    ),
    "evaluation": ({"kind": str, "synthetic": str}, "choose another --output"),
    "result": (
        {
            "kind": str,
            "task": str,
            "model": str,
            "parameters": COUNT,
            "synthetic": str,
            "not_the_protocol": dict,
            "settings": Perhaps(dict),
            "metrics": METRICS,
            "layer_weights": [LOSS],
            # Results of earlier versions do not have these.
            **MEASURED,
            "utterances": Perhaps(Each(COUNT)),
        },
        "delete it and run evaluate again",
    ),
    "own-head": (
        {
            "kind": str,
            "head": str,
            "data": str,
            "synthetic": str,
            "settings": dict,
            "model": HEAD,
            "teacher": Either((HEAD, None)),
            "difference": Either((ESTIMATES, None)),
            "items": Each(COUNT),
            "without_reference": COUNT,
            "hours": AMOUNT,
            "notes": [str],
            "bootstrap": {"resamples": COUNT, "of": str, "seed": COUNT},
            "audio": TALLY,
        },
        "delete it and run evaluate again",
    ),
    "own-head progress": (
        {"done": COUNT, "said": [dict], "audio": TALLY | {"empty_in_a_row": COUNT}},
        "delete it and rerun the same command",
    ),
    "fold": (
        {"metrics": METRICS, "dev": METRICS, "layer_weights": [LOSS], **MEASURED},
        "delete it and run evaluate again",
    ),
    "table": (
        {
            "title": str,
            "notes": [str],
            "rows": [
                {
                    "model": str,
                    "parameters": COUNT,
                    "scores": LOSSES,
                    "superb_s": Perhaps(Either((LOSS, None))),
                    "source": Perhaps(str),
                    **MEASURED,
                }
            ],
        },
        "run evaluate again",
    ),
}
"""Kind of file → what it holds, beside whatever else is there, and what to do about a damaged one."""


def read_record(path: Path, kind: str) -> dict[str, Any]:
    """The contents of a JSON file of one of the kinds of `RECORDS`.

    Raises:
        InputError: it cannot be read, or does not hold what it should; says what to do.
    """
    _, advice = RECORDS[kind]
    try:
        values = read_json(path)
    except InputError as error:
        raise InputError(f"{error}; {advice}") from None
    refuse_damage(path, values, kind)
    return values


def refuse_damage(path: Path, values: Any, kind: str) -> None:
    """See that values from a file are what it should hold.

    Raises:
        InputError: they are not.
    """
    contents, advice = RECORDS[kind]
    problem = _problem(values, contents)
    if problem is not None:
        where, wanted = problem
        raise InputError(f"{path}: damaged ({where.removeprefix('.') or 'it'} is not {wanted}); {advice}")


def _problem(value: Any, kind: Any) -> tuple[str, str] | None:
    """Where a value is not of a kind, as a path of names, and what should be there; None where all is well."""
    if isinstance(kind, Number):
        return None if kind.allows(value) else ("", str(kind))
    if isinstance(kind, Either):
        found = [problem for part in kind.kinds if (problem := _problem(value, part)) is not None]
        return found[0] if len(found) == len(kind.kinds) else None
    if isinstance(kind, Perhaps):
        return _problem(value, kind.of)
    if isinstance(kind, list):
        if not isinstance(value, list):
            return "", "a list"
        return _first(((f"[{number}]", part, kind[0]) for number, part in enumerate(value)))
    if isinstance(kind, Each | Only | Mapping):
        if not isinstance(value, dict):
            return "", "an object"
        if isinstance(kind, Only):
            unknown = sorted(set(value) - set(kind.fields))
            return (_key(unknown[0]), "known") if unknown else _problem(value, kind.fields)
        if isinstance(kind, Each):
            return _first(((_key(name), part, kind.of) for name, part in value.items()))
        missing = [name for name, part in kind.items() if name not in value and not isinstance(part, Perhaps)]
        if missing:
            return f".{missing[0]}", "there"
        return _first(((f".{name}", value[name], part) for name, part in kind.items() if name in value))
    fits = value is None if kind is None else isinstance(value, kind)
    return None if fits else ("", {str: "text", bool: "true or false", dict: "an object"}.get(kind, "null"))


def _key(name: str) -> str:
    """A name that a file gives, as it may stand in a message."""
    return f".{name}" if name.isidentifier() else f"[{name[:60]!a}]"


def _first(parts: Any) -> tuple[str, str] | None:
    for where, value, kind in parts:
        if (problem := _problem(value, kind)) is not None:
            return f"{where}{problem[0]}", problem[1]
    return None
