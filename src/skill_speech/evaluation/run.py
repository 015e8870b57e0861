"""One task of one model: hidden states, heads, scores."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_json
from ..run import ranks
from ..run.progress import Meter
from ..run.records import read_record
from ..run.signals import StopSignals
from .cache import StateCache
from .corpora import TaskData
from .metrics.bootstrap import RESAMPLES, Estimate, Scored, estimate, mean_of, point, resampled
from .protocol import QueryConfig, TaskConfig, TrainingConfig
from .states import HiddenStates
from .tasks import TRAINED_TASKS, Task, make_task, search
from .training import Trial, choose, predict, train
from .upstream import Upstream

logger = logging.getLogger(__name__)

CURVE_POINTS = 100
"""Points of the training loss that a result keeps."""


def run_task(
    upstream: Upstream,
    folds: Sequence[TaskData],
    config: TaskConfig,
    *,
    cache: StateCache | None,
    scratch: Path,
    seed: int,
    stop: StopSignals | None = None,
) -> dict[str, Any]:
    """Train and score a task; over the folds of a cross-validation, measures and layer weights are averaged.

    Args:
        upstream: what is evaluated.
        folds: the task's data, mostly one.
        config: how.
        cache: of hidden states, or None to encode whenever they are needed.
        scratch: prefix of the files that let an interrupted run resume.
        seed: random seed.
        stop: who is told to stop; then a head in training is written down first.

    Returns:
        "metrics" on the test split with "items" and "intervals", "dev", "layer_weights", "seconds" and what else is
        worth keeping, ready for JSON.
    """
    started = time.perf_counter()
    outcomes = {}
    for data in folds:
        done = scratch.with_name(f"{scratch.name}{data.fold}.json")
        if ranks.on_first(done.exists):
            outcomes[data.fold] = ranks.on_first(partial(read_record, done, "fold"))
            continue
        outcomes[data.fold] = _run_fold(
            upstream, data, config, cache, scratch.with_name(f"{scratch.name}{data.fold}.ckpt"), seed, stop
        )
        if len(folds) > 1:
            ranks.on_first(partial(write_json, done, outcomes[data.fold]))
    ranks.on_first(partial(_remove, scratch))
    if len(outcomes) == 1:
        return next(iter(outcomes.values()))
    return _average(outcomes) | {"seconds": time.perf_counter() - started, "folds": outcomes}


def _remove(scratch: Path) -> None:
    for path in scratch.parent.glob(f"{scratch.name}*"):
        path.unlink()


def fingerprint_of(folds: Sequence[TaskData]) -> str:
    """Of everything that a task learns from and is scored on, but the audio: ids, lengths, labels, trials."""
    digest = hashlib.sha256()
    for data in folds:
        for split, cuts in data.splits.items():
            for cut in cuts:
                said = [(part.start, part.duration, part.text, part.speaker, part.custom) for part in cut.supervisions]
                digest.update(json.dumps([split, cut.id, cut.duration, said], sort_keys=True).encode())
        extra = {name: value for name, value in data.extra.items() if name != "lexicon"}
        digest.update(json.dumps([data.labels, extra], sort_keys=True, default=_plain).encode())
    return digest.hexdigest()[:16]


def _run_fold(
    upstream: Upstream,
    data: TaskData,
    config: TaskConfig,
    cache: StateCache | None,
    checkpoint: Path,
    seed: int,
    stop: StopSignals | None,
) -> dict[str, Any]:
    name = f"{data.task} {data.fold}".strip()
    if isinstance(config, QueryConfig):
        return _search(upstream, data, config, cache, name)
    return _train(upstream, data, config, cache, checkpoint, seed, stop, name)


def _search(
    upstream: Upstream, data: TaskData, config: QueryConfig, cache: StateCache | None, name: str
) -> dict[str, Any]:
    started = time.perf_counter()
    states = {
        split: HiddenStates(upstream, list(cuts), config.audio, "frames", cache) for split, cuts in data.splits.items()
    }
    _fill(states, ("documents", "queries_dev"), name)
    encoded = time.perf_counter()
    with Meter(f"{name} search", upstream.num_states + 1) as meter:
        found = search(data, config, states, meter.advance)
    weights = [float(number == found["layer"]) for number in range(upstream.num_states)]
    return {
        "metrics": {"mtwv": found["mtwv"]},
        "items": {part: len(data.splits[split]) for part, split in (("queries", "queries_test"), ("documents",) * 2)},
        "dev": {"mtwv": found["dev"][found["layer"]][found["distance"]]},
        "layer": found["layer"],
        "distance": found["distance"],
        "dev_by_layer": {str(layer): values for layer, values in found["dev"].items()},
        "layer_weights": weights,
        "seconds": time.perf_counter() - started,
        "seconds_encoding": encoded - started,
    }


def _train(
    upstream: Upstream,
    data: TaskData,
    config: TrainingConfig,
    cache: StateCache | None,
    checkpoint: Path,
    seed: int,
    stop: StopSignals | None,
    name: str,
) -> dict[str, Any]:
    started = time.perf_counter()
    task = make_task(data, config, upstream.hop)
    states = hidden_states(upstream, task, cache)
    # The test split is read once: it is encoded when it is its turn.
    _fill(states, ("train", task.chosen_on[0]), name)
    encoded = time.perf_counter()
    trials = train(task, states, seed=seed, checkpoint=checkpoint, stop=stop, name=name)
    best = choose(task, trials)
    with Meter(f"{name} test", len(task.cuts["test"])) as meter:
        (predictions,) = predict(task, [best.model], states["test"], "test", meter.advance)
    metrics = task.score("test", predictions)
    return {
        "metrics": metrics,
        "items": task.items(),
        **_intervals(task.scored(predictions, metrics), task.units, seed),
        "dev" if task.chosen_on[0] == "dev" else "chosen_on_test": best.scores[best.best_step],
        "learning_rate": best.learning_rate,
        "best_step": best.best_step,
        "learning_rates": {f"{trial.learning_rate:g}": _summary(task, trial) for trial in trials},
        "loss": _curve(best.losses),
        "layer_weights": best.model.layer_weights().tolist(),
        "seconds": time.perf_counter() - started,
        "seconds_encoding": encoded - started,
    }


def hidden_states(upstream: Upstream, task: Task, cache: StateCache | None) -> dict[str, HiddenStates]:
    """The hidden states of every split of a task."""
    return {
        split: HiddenStates(upstream, cuts, task.config.audio, task.reduction, cache)
        for split, cuts in task.cuts.items()
    }


def _fill(states: Mapping[str, HiddenStates], splits: Sequence[str], name: str) -> None:
    """Encode some splits into the cache."""
    for split in splits:
        states[split].fill(f"{name} {split}", beside=[states[other] for other in splits])


def measures_of(task: str) -> tuple[str, ...]:
    """What SUPERB reports of a task."""
    return ("mtwv",) if task == "qbe" else TRAINED_TASKS[task].headline


def _ends(found: Estimate) -> dict[str, float]:
    return {"low": found.low, "high": found.high}


def _summary(task: Task, trial: Trial) -> dict[str, Any]:
    _, measure = task.chosen_on
    return {
        "best_step": trial.best_step,
        measure: trial.best_score,
        "by_step": {str(step): scores[measure] for step, scores in trial.scores.items()},
    }


def _curve(losses: Sequence[float]) -> list[tuple[int, float]]:
    """Mean losses of at most CURVE_POINTS stretches of the training, each with its last step."""
    parts = np.array_split(np.asarray(losses), min(CURVE_POINTS, len(losses)))
    ends = np.cumsum([len(part) for part in parts])
    return [(int(end), float(part.mean())) for end, part in zip(ends, parts, strict=True)]


def _average(outcomes: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    several = list(outcomes.values())
    averaged: dict[str, Any] = {
        side: {name: float(np.mean([one[side][name] for one in several])) for name in several[0][side]}
        for side in ("metrics", "dev")
    }
    averaged["layer_weights"] = np.mean([one["layer_weights"] for one in several], axis=0).tolist()
    if not all("items" in one for one in several):  # a fold that an earlier version finished
        return averaged
    averaged["items"] = {name: sum(one["items"][name] for one in several) for name in several[0]["items"]}
    averaged["intervals"] = {}
    for name in several[0]["intervals"]:
        if all(name in one["intervals"] for one in several):
            parts = [Estimate(one["metrics"][name], **one["intervals"][name]) for one in several]
            averaged["intervals"][name] = _ends(mean_of(parts))
    return averaged | {"bootstrap": several[0]["bootstrap"]}


def _intervals(scored: Scored, units: str, seed: int) -> dict[str, Any]:
    """95 % intervals of the measures, and what they are of."""
    (samples,) = resampled([scored], seed)
    found = {name: estimate(value, samples[name]) for name, value in point(scored).items()}
    return {
        "intervals": {name: _ends(one) for name, one in found.items() if math.isfinite(one.low)},
        "bootstrap": {"resamples": RESAMPLES, "of": units, "seed": seed},
    }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else asdict(value)
