"""The public function: any encoders on SUPERB's tasks, with s3prl's protocol; or a model's own head."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from ..environment import environment
from ..errors import InputError
from ..figures.output import save_figure
from ..figures.plots import layer_weight_map
from ..files import atomic_write, remove_leftovers, write_json
from ..limits import check_options
from ..run import ranks
from ..run.folder import differences
from ..run.hold import held
from ..run.records import read_record
from .cache import StateCache
from .corpora import TASKS, TaskData, find_corpora, missing_reason, read_task, synthetic_mark
from .metrics.packages import require_package
from .own_head import HeadEvaluation, evaluate_own_head
from .protocol import REVISIONS, TaskConfig, changes_of, known_tasks, task_config
from .results import MARK, RESULT, Table, free_for_results, make_table, read_results, write_table
from .run import fingerprint_of, measures_of, run_task
from .upstream import Upstream, open_device, open_upstream, split_name

logger = logging.getLogger(__name__)

CACHE_FOLDER = "hidden_states"

NEEDED = {"pr": "jiwer", "asr": "jiwer", "sf": "jiwer", "sd": "pyannote.metrics"}
"""Packages that only the metrics of some tasks need."""


OF_CORPORA = ("tasks", "compare", "learning_rates", "steps", "settings", "cache", "cache_gb")
OF_OWN_HEAD = ("teacher", "target_lang", "max_bad", "absolute_paths")
"""Options of `evaluate` that go with SUPERB's tasks, or with a model's own head, and not with the other."""


@dataclass(frozen=True)
class Evaluation:
    """What came of an evaluation.

    Attributes:
        folder: with MODEL/TASK.json, MODEL/layer_weights.svg and .png, table.md and table.json.
        table: of everything in it.
        results: model → task → contents of its JSON.
    """

    folder: Path
    table: Table
    results: dict[str, dict[str, dict[str, Any]]]

    @property
    def files(self) -> tuple[Path, ...]:
        """What a reader may want to see."""
        return (self.folder / "table.md",)


def evaluate(
    models: Sequence[str],
    data: str,
    output: str | None = None,
    *,
    own_head: bool = False,
    teacher: str = "auto",
    target_lang: str | None = None,
    max_bad: float | str = "1%",
    absolute_paths: bool = False,
    tasks: str = "all",
    compare: Literal["published"] | None = None,
    learning_rates: list[float] | None = None,
    steps: int | None = None,
    settings: dict[str, dict[str, Any]] | None = None,
    cache: bool = True,
    cache_gb: float = 100.0,
    device: str | None = None,
    seed: int = 0,
) -> Evaluation | HeadEvaluation:
    """Train and score heads on the frozen hidden states of some encoders; finished tasks are skipped.

    With `own_head`, score the head that a fine-tuned model has instead, on any data with text or labels, beside its
    teacher's (`evaluate_own_head`).

    Started by torchrun or srun in several processes, these share the encoding of what goes to the cache, and the
    scoring; heads are small, and each process trains the same ones.

    Args:
        models: One or more [NAME=]SOURCE, where SOURCE is anything that `load_encoder` accepts, or "fbank" for log-mel
            filterbanks; with own_head exactly one, which `load_model` accepts.
        data: Folder with the corpora; each task finds its corpus by its layout. With own_head, data with text or labels
            in any form that `prepare` accepts (docs/data.md).
        output: Folder for the results; with own_head, RUN/evaluation by default for the model RUN/model.
        own_head: Score the model's own head instead of training new ones.
        teacher: With own_head: teacher to compare with, a SOURCE, "auto" for the one named in RUN/config.yaml of the
            model RUN/model, or "none".
        target_lang: With own_head: language code for a model or teacher with adapters for many languages (MMS).
        max_bad: With own_head: maximum share of unusable audio, such as 1% or 0.01.
        absolute_paths: With own_head: allow the manifest to name files outside its own folder.
        tasks: "all", or a comma-separated list of pr, asr, ks, qbe, sid, asv, sd, er, ic, sf. "all" skips tasks without
            a corpus and lists them.
        compare: "published" adds published results to the table.
        learning_rates: Learning rates to try; the best one on the dev split is used. By default, the protocol's.
        steps: Number of updates per head, with ten dev evaluations; by default, the protocol's.
        settings: Overrides of the protocol by task and field, such as {"asr": {"hidden_size": 256}}.
        cache: Cache hidden states on disk, in OUTPUT/hidden_states, instead of encoding at every step.
        cache_gb: Maximum size of the cache in gigabytes; utterances that do not fit are encoded at every step.
        device: Device to compute on; by default, an accelerator if there is one.
        seed: Random seed for training the heads; with own_head, for bootstrap resamples and sampled trials.

    Raises:
        InputError: bad models, data or settings; results of other settings in the output folder, or another evaluation
            that is running there; published rows requested for synthetic data; the disk is full.
        Stopped: by SIGTERM or SIGUSR1; the same call resumes.
    """
    options = dict(locals())
    check_options(evaluate, options)
    _refuse_other_kind(options, OF_CORPORA if own_head else OF_OWN_HEAD, own_head)
    ranks.join()
    if own_head:
        names = list(_sources(models).values())
        if len(names) > 1:
            raise InputError(f"own_head takes one model, and {len(names)} are given: pass its teacher as teacher")
        shared = {name: options[name] for name in ("device", "seed", *OF_OWN_HEAD)}
        return evaluate_own_head(names[0], data, output, **shared)
    if output is None:
        raise InputError("no folder for the results: give --output")
    asked, sources = known_tasks(tasks), _sources(models)
    _refuse_unknown(settings or {})
    folds = _read_tasks(Path(data), asked, strict=tasks.strip().lower() != "all")
    _require_packages(list(folds))
    synthetic = synthetic_mark(data) or next((part[0].synthetic for part in folds.values() if part[0].synthetic), "")
    if compare and synthetic:
        raise InputError(f"{data}: synthetic ({synthetic}): published results are not comparable: leave --compare out")
    configs = {
        task: task_config(
            task,
            steps=steps,
            learning_rates=tuple(learning_rates) if learning_rates else None,
            settings=(settings or {}).get(task),
        )
        for task in folds
    }
    folder = Path(output)
    ranks.on_first(lambda: _refuse_other_folder(folder, synthetic))
    prints = {task: fingerprint_of(part) for task, part in folds.items()}

    def plan(upstream: Upstream) -> dict[str, dict[str, Any]]:
        """The tasks that are still to be done, each with what makes its result the same result."""
        wanted = {task: _settings(upstream, task, config, prints[task], seed) for task, config in configs.items()}
        return ranks.on_first(
            lambda: {task: one for task, one in wanted.items() if not _is_done(folder, upstream.name, task, one)}
        )

    with held(folder) as stop:
        ranks.on_first(lambda: _begin(folder, synthetic))
        # What is wrong with the last model should be said before hours are spent on the first one.
        for model in sources.values():
            plan(open_upstream(model, torch.device("cpu")))
        for name, model in sources.items():
            upstream = open_upstream(model, open_device(device))
            states = StateCache(folder / CACHE_FOLDER, upstream.fingerprint, cache_gb * 1e9) if cache else None
            todo = plan(upstream)
            logger.info("%s: %s", name, ", ".join(todo) or "already done")
            for task, wanted in todo.items():
                started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
                scratch = folder / name / f".{task}-{_digest(wanted)}-"
                outcome = run_task(
                    upstream, folds[task], configs[task], cache=states, scratch=scratch, seed=seed, stop=stop
                )
                header = _header(upstream, task, folds[task], configs[task], synthetic)
                result = header | {"settings": wanted, "started": started} | outcome
                ranks.on_first(partial(write_json, folder / name / f"{task}.json", result))
        return ranks.on_first(lambda: _finish(folder, list(sources), compare))


def _refuse_other_kind(options: Mapping[str, Any], others: Sequence[str], own_head: bool) -> None:
    """See that no option is given that this evaluation would not look at."""
    defaults = inspect.signature(evaluate).parameters
    given = [name for name in others if options[name] != defaults[name].default]
    if given:
        goes = "SUPERB's tasks, not with own_head" if own_head else "own_head only"
        raise InputError(f"{', '.join(given)}: goes with {goes}; leave it out")


def _sources(models: Sequence[str]) -> dict[str, str]:
    """Name → what the user gave."""
    if isinstance(models, str):
        models = [models]
    if not models:
        raise InputError("no model to evaluate: give one or more, or fbank")
    sources: dict[str, str] = {}
    for model in models:
        name, _ = split_name(model)
        if name == CACHE_FOLDER:
            raise InputError(f"{model}: {name} is reserved for hidden states: choose another name, as in one={model}")
        if name in sources:
            raise InputError(f"{sources[name]} and {model} would both be called {name}: give names, as in one={model}")
        sources[name] = model
    return sources


def _refuse_unknown(settings: Mapping[str, Any]) -> None:
    # Settings of a task that is not asked for are no mistake: one file serves any choice of tasks.
    unknown = sorted(set(settings) - set(TASKS))
    if unknown:
        raise InputError(f"settings for {', '.join(unknown)}, which is not among the tasks: {', '.join(TASKS)}")


def _read_tasks(data: Path, asked: Sequence[str], strict: bool) -> dict[str, list[TaskData]]:
    found = find_corpora(data)
    missing = [missing_reason(data, task) for task in asked if task not in found]
    if missing and (strict or len(missing) == len(asked)):
        raise InputError(missing[0] if strict else f"{data}: contains no corpus of any task: {missing[0]}")
    for reason in missing:
        logger.warning("left out, %s", reason)
    return {task: read_task(task, found[task]) for task in asked if task in found}


def _require_packages(tasks: Sequence[str]) -> None:
    for task in tasks:
        if task in NEEDED:
            require_package(NEEDED[task], task)


def _refuse_other_folder(folder: Path, synthetic: str) -> None:
    """See that the output folder is of results on the same kind of corpora, or new."""
    mark = folder / MARK
    if mark.exists():
        changed = differences(read_record(mark, "evaluation"), _mark(synthetic))
        if changed:
            raise InputError(f"{folder}: holds results of other data: {'; '.join(changed)}. Choose another --output")
    elif folder.exists() and not free_for_results(folder):
        raise InputError(f"{folder}: not empty and not an evaluation: choose another --output")


def _begin(folder: Path, synthetic: str) -> None:
    """Make the folder an evaluation's, without what a killed one was writing."""
    _refuse_other_folder(folder, synthetic)  # another one may have begun there while this one waited
    remove_leftovers(folder)
    write_json(folder / MARK, _mark(synthetic))


def _mark(synthetic: str) -> dict[str, Any]:
    return {"kind": RESULT, "synthetic": synthetic}


def _settings(upstream: Upstream, task: str, config: TaskConfig, data: str, seed: int) -> dict[str, Any]:
    """What makes a result the same result, as JSON gives it back."""
    values = {"model": upstream.fingerprint, "data": data, "seed": seed, "revision": REVISIONS.get(task, 1)}
    values |= dataclasses.asdict(config)
    return dict(json.loads(json.dumps(values)))


def _is_done(folder: Path, name: str, task: str, wanted: dict[str, Any]) -> bool:
    """Whether a result is there already.

    Raises InputError, naming what differs, if it is there with other settings, or another model's: rows of one table
    are made alike.
    """
    for path in sorted(folder.glob(f"*/{task}.json")):
        own = path.parent.name == name
        before = {"revision": 1} | read_record(path, "result").get("settings", {})
        changed = differences(before, wanted, free=() if own else ("model",))
        if changed:
            raise InputError(
                f"{path}: made with different settings: {'; '.join(changed)}. Give the same settings, or choose "
                "another --output"
            )
    return (folder / name / f"{task}.json").exists()


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]


def _header(
    upstream: Upstream, task: str, folds: Sequence[TaskData], config: TaskConfig, synthetic: str
) -> dict[str, Any]:
    source = Path(upstream.source)
    return {
        "kind": RESULT,
        "task": task,
        "model": upstream.name,
        "source": source.name if source.is_absolute() else upstream.source,
        "parameters": upstream.parameters,
        "synthetic": synthetic,
        "measures": list(measures_of(task)),
        "not_the_protocol": {key: _listed(value) for key, value in changes_of(task, config).items()},
        "utterances": {split: len(cuts) for split, cuts in folds[0].splits.items()},
        "hours": {split: round(sum(cut.duration for cut in cuts) / 3600, 4) for split, cuts in folds[0].splits.items()},
        "device": str(upstream.device),
        "environment": environment(),
    }


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _finish(folder: Path, names: Sequence[str], compare: str | None) -> Evaluation:
    found = read_results(folder)
    # In the order in which they were named, followed by what was there before.
    results = {name: found[name] for name in (*names, *(name for name in found if name not in names))}
    table = make_table(results, compare)
    write_table(folder, table)
    for name, tasks in results.items():
        states = len(next(iter(tasks.values()))["layer_weights"])
        if states > 1:
            weights = {task: tasks[task]["layer_weights"] for task in known_tasks("all") if task in tasks}
            title = f"Hidden states that each task reads: {name}"
            figure = layer_weight_map(name, weights, title, table.title)
            for suffix in ("svg", "png"):
                with atomic_write(folder / name / f"layer_weights.{suffix}") as temporary:
                    save_figure(figure, temporary)
    return Evaluation(folder, table, results)
