"""A model's own head on a manifest with text or labels, with its teacher's beside it."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lhotse.cut import Cut

from ...checkpoints.native import is_native
from ...data import open_cuts
from ...data.audio import local_files
from ...data.streams import all_cuts
from ...environment import environment
from ...errors import InputError, visible
from ...files import atomic_write, remove_leftovers, write_json
from ...run import ranks
from ...run.folder import RunFolder, differences, run_of
from ...run.hold import held
from ...run.records import read_record
from ..corpora import synthetic_mark
from ..metrics.bootstrap import RESAMPLES, Estimate, estimate, point, resampled
from ..metrics.packages import require_package
from ..results import RESULT, free_for_results
from ..upstream import open_device, split_name
from .inference import Subject, give_scorers, open_subject, remove_scratch, run_models
from .table import FILE, HeadTable, head_table

logger = logging.getLogger(__name__)

TABLE = "own_head.tsv"
"""What was said of every utterance (of embeddings, every trial)."""

REVISION = 1
"""Of what makes the scores: results of another one are not continued."""


@dataclass(frozen=True)
class HeadEvaluation:
    """What came of it.

    Attributes:
        folder: with own_head.json and own_head.tsv.
        table: of the measures.
        result: contents of own_head.json.
    """

    folder: Path
    table: HeadTable
    result: dict[str, Any]

    @property
    def files(self) -> tuple[Path, ...]:
        """What a reader may want to see."""
        return self.folder / FILE, self.folder / TABLE


def evaluate_own_head(
    model: str,
    data: str,
    output: str | None = None,
    *,
    teacher: str = "auto",
    target_lang: str | None = None,
    max_bad: float | str = "1%",
    absolute_paths: bool = False,
    device: str | None = None,
    seed: int = 0,
) -> HeadEvaluation:
    """Score the head that a fine-tuned model has; with the same settings, what is done is not done again.

    CTC: word and character error rates. Classifiers of utterances or frames: accuracy and F1. Regression: mean absolute
    error and concordance. Speaker embeddings: the equal error rate. Each with a 95 % bootstrap interval, and so is the
    difference from the teacher's, on the same resamples.

    Args:
        model: [NAME=]SOURCE, where SOURCE is anything that `load_model` accepts.
        data: Manifest with text or labels, or any other data with them that `open_cuts` accepts.
        output: Folder for the results; RUN/evaluation by default for the model RUN/model.
        teacher: Teacher to compare with: [NAME=]SOURCE, "auto" for the one named in RUN/config.yaml of the model
            RUN/model, or "none".
        target_lang: Language code for a model or teacher with adapters for many languages (MMS).
        max_bad: Maximum share of unusable audio, such as 1% or 0.01.
        absolute_paths: Allow a manifest or table to name files outside its own folder.
        device: Device to compute on; by default, an accelerator if there is one.
        seed: Random seed for the bootstrap resamples, and for the trials if they are sampled.

    Raises:
        InputError: no head, nothing in the data to score it by, or what the model cannot say; results of other settings
            in the output folder, or another evaluation that is running there; the disk is full.
        Stopped: by SIGTERM or SIGUSR1; the same call resumes.
    """
    name, source = split_name(model)
    folder = _folder(source, output)
    ranks.on_first(partial(_refuse_other_folder, folder))
    where = Path(data).name if "://" not in data else data
    cuts = _read_cuts(data, max_bad, absolute_paths)
    subjects = _open(name, source, teacher, target_lang, device)
    if any(subject.model.head.config.kind == "ctc" for subject in subjects):  # type: ignore[union-attr]
        require_package("jiwer", "own_head of a CTC model")
    give_scorers(subjects, cuts, where)
    wanted = {
        "model": subjects[0].fingerprint,
        "teacher": subjects[1].fingerprint if len(subjects) > 1 else None,
        "data": _fingerprint(cuts),
        "seed": seed,
        "revision": REVISION,
    }
    with held(folder) as stop:
        ranks.on_first(partial(_begin, folder))
        done = ranks.on_first(partial(_done, folder, wanted))
        if done is not None:
            logger.info("%s: already done", name)
            return HeadEvaluation(folder, head_table(done), done)
        started, clock = time.strftime("%Y-%m-%dT%H:%M:%S%z"), time.perf_counter()
        digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:8]
        scratch = folder / f".own_head-{digest}-"
        said, audio = run_models(subjects, cuts, scratch, max_bad, stop)

        def write() -> dict[str, Any]:
            _write_rows(folder / TABLE, subjects, said, seed)
            result = {
                "kind": RESULT,
                "data": where,
                "synthetic": _synthetic(data),
                "settings": wanted,
                "started": started,
                **_scores(subjects, said, seed),
                "hours": round(sum(cut.duration for cut in cuts if cut.id in said[0]) / 3600, 4),
                "audio": audio.state_dict(),
                "device": str(open_device(device)),
                "environment": environment(),
                "seconds": time.perf_counter() - clock,
            }
            write_json(folder / FILE, result)
            return result

        result = ranks.on_first(write)
        remove_scratch(scratch)
    return HeadEvaluation(folder, head_table(result), result)


def _folder(source: str, output: str | None) -> Path:
    if output is not None:
        return Path(output)
    run = run_of(source)
    if run is None:
        raise InputError(f"{source}: not the model of a run: give --output")
    return run / "evaluation"


def _open(name: str, source: str, teacher: str, target_lang: str | None, device: str | None) -> list[Subject]:
    """The model and, if there is one, its teacher."""
    where = open_device(device)
    own = None if is_native(Path(source)) else target_lang
    subjects = [open_subject(name, source, where, target_lang=own)]
    run, revision = run_of(source), None
    if teacher == "auto" and run is None:
        teacher = "none"
    if teacher == "auto":
        assert run is not None
        stated = RunFolder(run).stated
        teacher, revision = stated("teacher") or "none", stated("revision")
        target_lang = target_lang or stated("target_lang")
    if teacher == "none":
        return subjects
    name, teacher_source = split_name(teacher)
    try:
        subjects.append(open_subject(name, teacher_source, where, revision=revision, target_lang=target_lang))
    except InputError as error:
        raise InputError(f"the teacher cannot be evaluated: {error}; give --teacher SOURCE, or none") from None
    return subjects


def _read_cuts(data: str, max_bad: float | str, absolute_paths: bool) -> list[Cut]:
    cuts = all_cuts(open_cuts(data, max_bad=max_bad, absolute_paths=absolute_paths, labels=True))
    if not cuts:
        raise InputError(f"{data}: the manifest is empty")
    seen: set[str] = set()
    for cut in cuts:
        if cut.id in seen:
            raise InputError(f"{data}: two cuts are called {cut.id}: give each a name of its own")
        seen.add(cut.id)
    return cuts


def _fingerprint(cuts: Sequence[Cut]) -> str:
    """Of all that is known of the cuts, but where their files lie; audio is not looked at."""
    digest = hashlib.sha256()
    for cut in cuts:
        said = [
            (part.start, part.duration, part.text, part.speaker, part.language, part.gender, part.custom)
            for part in cut.supervisions
        ]
        files = [Path(path).name for path in local_files(cut)]
        part = [cut.id, cut.start, cut.duration, getattr(cut, "channel", None), files, said]
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def _refuse_other_folder(folder: Path) -> None:
    if folder.exists() and not free_for_results(folder):
        raise InputError(f"{folder}: not empty and not an evaluation: choose another --output")


def _begin(folder: Path) -> None:
    _refuse_other_folder(folder)  # another one may have begun there while this one waited
    remove_leftovers(folder)


def _done(folder: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The result, if it is there already.

    Raises:
        InputError: it was made with other settings.
    """
    path = folder / FILE
    if not path.exists():
        return None
    result = read_record(path, "own-head")
    changed = differences(result["settings"], wanted)
    if changed:
        raise InputError(
            f"{path}: made with different settings: {'; '.join(changed)}. Give the same settings, or choose another "
            "--output"
        )
    return result if (folder / TABLE).exists() else None


def _synthetic(data: str) -> str:
    path = Path(data)
    return "" if "://" in data else synthetic_mark(path if path.is_dir() else path.parent)


def _scores(subjects: Sequence[Subject], said: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """What own_head.json has of the measures."""
    scorer, ids = subjects[0].scorer, list(said[0])
    scored = [subject.scorer.scored(one, seed) for subject, one in zip(subjects, said, strict=True)]
    values, samples = [point(one) for one in scored], resampled(scored, seed)
    models = [
        {
            "name": subject.name,
            "source": Path(subject.source).name if Path(subject.source).is_absolute() else subject.source,
            "parameters": subject.parameters,
            "metrics": {measure: estimate(value, drawn[measure])._asdict() for measure, value in measured.items()},
            "by_label": subject.scorer.by_label(one),
        }
        for subject, one, measured, drawn in zip(subjects, said, values, samples, strict=True)
    ]
    difference: dict[str, Estimate] | None = None
    if len(subjects) > 1:
        difference = {
            measure: estimate(values[0][measure] - values[1][measure], samples[0][measure] - samples[1][measure])
            for measure in values[0]
        }
    left = len(scorer.cuts) - len(scorer.references)
    if left:
        logger.warning("%s: %d of %d cuts have no %s: left out", scorer.data, left, len(scorer.cuts), scorer.missing)
    return {
        "head": scorer.head.kind,
        "problem": scorer.head.problem,
        "model": models[0],
        "teacher": models[1] if len(models) > 1 else None,
        "difference": None if difference is None else {name: one._asdict() for name, one in difference.items()},
        "items": {"utterances": len(ids), **scorer.items(ids, seed)},
        "without_reference": left,
        "notes": scorer.notes(ids),
        "bootstrap": {"resamples": RESAMPLES, "of": scorer.units, "seed": seed},
    }


def _write_rows(path: Path, subjects: Sequence[Subject], said: Sequence[Mapping[str, Any]], seed: int) -> None:
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        teacher = (subjects[1].scorer, said[1]) if len(subjects) > 1 else None
        for row in subjects[0].scorer.rows(said[0], teacher, seed):
            file.write("\t".join(map(visible, row)) + "\n")
