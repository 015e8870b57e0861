"""One cell of the study: compress, evaluate, and write down what came of it."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lab.corpora import make_corpora
from lab.corpora.noisy import make_noisy
from lab.speech import make_speech
from lab.study.fidelity import fidelity
from lab.study.grid import Cell, Study
from skill_speech.cli import main as skill_speech
from skill_speech.environment import environment
from skill_speech.evaluation.published import COLUMNS
from skill_speech.files import write_json

CURVE_POINTS = 60
"""Points of the losses that a record keeps."""

UNSEEN = "LibriSpeech/test-clean"
"""Of the corpora: speech that no student has heard."""

IN_NOISE = "evaluation-in-noise"
"""Of a cell's folder: the scores of its model where the test splits are in noise."""

CURVES = ("train/distillation", "train/sparsity_expected", "train/sparsity_target", "validation/distillation")


def make_data(study: Study, output: Path, jobs: int) -> None:
    """Speak what the study says is to be spoken; what is there is not made again.

    Raises:
        SystemExit: OUTPUT holds the data of another study, or a corpus is not where the study says.
    """
    speech = study.speech if isinstance(study.speech, list) else [{"path": study.speech}]
    for folder in (*(part["path"] for part in speech), study.corpora):
        if isinstance(folder, str) and "://" not in folder and not Path(folder).exists():
            raise SystemExit(f"{study.path}: {folder}: not there; say in that file where yours lies")
    wanted = {name: value for name in ("speech", "corpora") if isinstance(value := getattr(study, name), dict)}
    done = output / "data" / "done.yaml"
    if done.exists():
        if yaml.safe_load(done.read_text(encoding="utf-8")) != wanted:
            raise SystemExit(f"{output}: holds the data of another study: give another --output")
        _add_noise(study, output)
        return
    if isinstance(study.speech, dict):
        make_speech(output / "data" / "speech", jobs=jobs, subsets=("train-clean-100",), **study.speech)
    if isinstance(study.corpora, dict):
        make_corpora(study.corpora_in(output), jobs=jobs, tasks=study.tasks.split(","), **study.corpora)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(yaml.safe_dump(wanted), encoding="utf-8")
    _add_noise(study, output)


def _add_noise(study: Study, output: Path) -> None:
    if study.noise:
        clean, noisy = study.corpora_in(output), study.noisy_in(output)
        make_noisy(clean, noisy, study.tasks.split(","), snr_db=study.noise["snr_db"])


def record_path(output: Path, cell: Cell) -> Path:
    """Where a cell's record lies."""
    return output / "records" / f"{cell.id}.json"


def run_cell(study: Study, cell: Cell, output: Path) -> dict[str, Any]:
    """Run a cell, or go on with it, and write its record.

    Raises:
        SystemExit: a command failed; it has said why.
    """
    folder = output / "cells" / cell.id
    source = {"fbank": "fbank", "teacher": study.teachers.get(cell.teacher, "")}.get(
        cell.kind, str(folder / "run/model")
    )
    evaluation = _evaluation(cell, output)
    settings: dict[str, Any] = {}
    if cell.kind == "student":
        settings = study.settings(cell)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "compress.yaml"
        heard = {"data": study.speech_in(output)}  # kept out of the record, in which it is the study's
        config.write_text(yaml.safe_dump(settings | heard, sort_keys=False), encoding="utf-8")
        _run("compress", "--config", config, "--output", folder / "run")
        _borrow_baselines(study, cell, output)
    tested = {evaluation: study.corpora_in(output)}
    if study.is_scored_in_noise(cell):
        tested[folder / IN_NOISE] = study.noisy_in(output)
    for scores, corpora in tested.items():
        _run(
            *("evaluate", f"{cell.kind}={source}", "--tasks", cell.tasks, "--data", corpora),
            *(("--config", study.heads) if study.heads else ()),
            *("--output", scores, "--seed", cell.seed),
        )
        shutil.rmtree(scores / "hidden_states", ignore_errors=True)
    if cell.kind == "student":
        _run("report", folder / "run")  # again, with the scores
    record = _record(study, cell, output, settings)
    write_json(record_path(output, cell), record)
    for stage in ("stage1", "stage2"):  # what is kept for going on is not needed any more
        shutil.rmtree(folder / "run" / stage / "checkpoints", ignore_errors=True)
    return record


def _evaluation(cell: Cell, output: Path) -> Path:
    """Where a cell's scores lie: a student's in its run, whose report and card show them."""
    folder = output / "cells" / cell.id
    return (folder / "run" if cell.kind == "student" else folder) / "evaluation"


def _borrow_baselines(study: Study, cell: Cell, output: Path) -> None:
    """Put the teacher's and the filterbanks' scores beside a student's, for its report.

    Rows of one table are made alike: only baselines of the student's seed, and only its tasks.
    """
    mine = _evaluation(cell, output)
    for baseline in study.cells():
        if baseline.teacher not in ("", cell.teacher) or baseline.seed != cell.seed or baseline.kind == "student":
            continue
        theirs = _evaluation(baseline, output)
        for name in ("evaluation.json", *(f"{baseline.kind}/{task}.json" for task in cell.tasks.split(","))):
            if (theirs / name).exists():
                (mine / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(theirs / name, mine / name)


def _run(*words: object) -> None:
    if status := skill_speech([str(word) for word in words]):
        raise SystemExit(status)


def _record(study: Study, cell: Cell, output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    folder = output / "cells" / cell.id
    tasks = _tasks_in(_evaluation(cell, output) / cell.kind)
    record: dict[str, Any] = {
        "id": cell.id,
        "kind": cell.kind,
        "teacher": cell.teacher,
        "method": cell.variant,
        "sparsity": cell.sparsity,
        "seed": cell.seed,
        "params": next(iter(tasks.values()))["parameters"],
        "metrics": _metrics(tasks),
        "layer_weights": {task: np.round(values["layer_weights"], 5).tolist() for task, values in tasks.items()},
        "seconds_evaluation": sum(values["seconds"] for values in tasks.values()),
        "study": {"speech": study.speech, "corpora": study.corpora, "heads": study.heads, "tasks": cell.tasks},
        "environment": environment(),
    }
    if study.is_scored_in_noise(cell):
        record["metrics_in_noise"] = _metrics(_tasks_in(folder / IN_NOISE / cell.kind))
    if cell.kind != "student":
        return record
    result = _read(folder / "run" / "result.json")
    unseen = study.corpora_in(output) / UNSEEN
    if unseen.exists():
        record["fidelity"] = fidelity(
            study.teachers[cell.teacher], str(folder / "run/model"), unseen, study.noise.get("snr_db")
        )
    return record | {
        "compress": settings,
        "macs": sum(result["student"]["macs"].values()),
        "loss_after_surgery": result["loss_after_surgery"],
        "loss": result["loss"],
        "clusters": result["clusters"],
        "widths": result["widths"]["student"],
        "teacher_widths": result["widths"]["teacher"],
        "seconds_compress": sum(stage["seconds"] for stage in result["stages"].values()),
        "curves": {stage: _curves(folder / "run" / stage / "metrics.csv") for stage in ("stage1", "stage2")},
    }


def _tasks_in(folder: Path) -> dict[str, Any]:
    return {path.stem: _read(path) for path in sorted(folder.glob("*.json"))}


def _metrics(tasks: dict[str, Any]) -> dict[str, float]:
    return {column.name: tasks[column.task]["metrics"][column.measure] for column in COLUMNS if column.task in tasks}


def _curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of what a stage logged, thinned to `CURVE_POINTS`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    curves = {}
    for name in CURVES:
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if points:
            chosen = np.unique(np.linspace(0, len(points) - 1, CURVE_POINTS).round().astype(int))
            curves[name] = [points[index] for index in chosen]
    return curves


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
