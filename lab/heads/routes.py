"""A cell: a teacher, a task, a route and a seed; all routes remove as much and hear as much.

    whole      the fine-tuned model is compressed with its head, whose outputs are distilled beside the layers
    longer     the same in twice the updates, to see what more of them give; it is not compared with the others
    heavy      "whole" with a weight of 1 for the outputs, where it is less otherwise
    new-head   its encoder is compressed alone, and learns the task again under a new head from what is labeled
    old-head   its encoder is compressed alone, and the old head is put on it as it is

An update of any kind hears `Budget.batch_seconds` of audio. The updates in which the new head learns are taken from
stage 2; stage 1 and surgery of both headless routes are the same and made once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lab.heads.data import labels_of, manifest, read_cuts
from lab.heads.finetuning import FinetuningConfig, finetune, with_new_head
from lab.heads.scoring import count_errors
from skill_speech import distillation, load_encoder, load_model
from skill_speech.compression import AnalysisConfig, CompressionResult, StageConfig, analyze, compress
from skill_speech.environment import environment
from skill_speech.heads import SpeechModel

ROUTES = ("whole", "new-head", "old-head", "longer", "heavy")


@dataclass(frozen=True)
class Budget:
    """What every route may spend.

    Attributes:
        sparsity: share of the parameters to remove.
        stage1, stage2: updates.
        labeled: updates in which a new head learns, instead of as many of stage 2.
        batch_seconds: of audio in an update.
        learning_rate: of both stages.
        outputs, temperature: weight and temperature of the distilled outputs, for "whole".
        finetuning_rate: learning rate of a new head and the student below it.
        calibration_seconds, validation_seconds: of audio.
    """

    sparsity: float = 0.75
    stage1: int = 400
    stage2: int = 600
    labeled: int = 300
    batch_seconds: float = 12.0
    learning_rate: float = 1e-3
    outputs: float = 1.0
    temperature: float = 1.0
    finetuning_rate: float = 5e-4
    calibration_seconds: float = 300.0
    validation_seconds: float = 60.0

    def first(self) -> StageConfig:
        """Stage 1."""
        ramp, warmup = max(1, round(0.1 * self.stage1)), max(1, round(0.3 * self.stage1))
        return self._stage(self.stage1, warmup, sparsity_steps=ramp)

    def second(self, updates: int) -> StageConfig:
        """Stage 2, so long."""
        return self._stage(updates, max(1, round(0.1 * updates)))

    def _stage(self, updates: int, warmup: int, **more: int) -> StageConfig:
        return StageConfig(
            steps=updates,
            warmup_steps=warmup,
            batch_seconds=self.batch_seconds,
            learning_rate=self.learning_rate,
            student_dropout=False,
            **more,
        )


BUDGETS = {
    "ctc": Budget(),
    "keywords": Budget(stage1=200, stage2=300, labeled=150, batch_seconds=6.0, outputs=0.1),
    "emotions": Budget(stage1=200, stage2=300, labeled=150, batch_seconds=6.0, outputs=0.1),
}
"""Of each task; a class is learned sooner than a spelling, and its clips are short."""


@dataclass(frozen=True)
class Cell:
    """One of the grid."""

    teacher: str
    task: str
    route: str
    seed: int

    @property
    def name(self) -> str:
        """As a file's name."""
        return f"{self.teacher}-{self.task}-{self.route}-seed{self.seed}"


def cells(teachers: Sequence[str], tasks: Sequence[str], routes: Sequence[str], seeds: Sequence[int]) -> Iterator[Cell]:
    """All of them, seed by seed, so that whatever is done can be compared."""
    for seed in seeds:
        for task in tasks:
            for teacher in teachers:
                yield from (Cell(teacher, task, route, seed) for route in routes)


def with_old_head(student: Path, teacher: Path) -> SpeechModel:
    """A headless student with its teacher's head: hidden size and depth are the teacher's, so it fits."""
    tuned = load_model(teacher)
    return SpeechModel(load_encoder(student), tuned.head, tuned.files).eval()


def run_cell(cell: Cell, teacher: Path, data: Path, output: Path, budget: Budget | None = None) -> dict[str, Any]:
    """Carry out a cell, or go on with it, and say what came of it.

    Args:
        cell: of the grid.
        teacher: the fine-tuned model's folder.
        data: what `make_data` wrote.
        output: folder for runs.
        budget: what it may spend; None: its task's, of `BUDGETS`.
    """
    budget = budget or BUDGETS[cell.task]
    started = time.monotonic()
    losses: list[float] = []
    if cell.route == "longer":
        budget = replace(budget, stage1=2 * budget.stage1, stage2=2 * budget.stage2)
    if cell.route == "heavy":
        budget = replace(budget, outputs=1.0)
    if cell.route in ("whole", "longer", "heavy"):
        result = _compress(cell, teacher, data, output, budget, stage2=budget.stage2, keep_head=True)
        model = load_model(result.folder / "model")
    else:
        result = _compress(cell, teacher, data, output, budget, stage2=budget.stage2, keep_head=False)
        model = with_old_head(result.folder / "model", teacher)
    if cell.route == "new-head":
        shorter = {"stage2": budget.stage2 - budget.labeled, "start_from": str(result.folder / "surgery")}
        run = output / cell.name
        result = _compress(cell, teacher, data, output, budget, keep_head=False, run=run, **shorter)
        labels = labels_of(data, cell.task)
        model = with_new_head(load_encoder(run / "model"), cell.task, labels, cell.seed)
        settings = FinetuningConfig(budget.labeled, budget.batch_seconds, budget.finetuning_rate, cell.seed)
        losses = finetune(model, read_cuts(data, cell.task, "labeled"), settings, run / "finetuning")
    scored = count_errors(model, read_cuts(data, cell.task, "test"))
    return {
        "kind": "student",
        **asdict(cell),
        "budget": asdict(budget),
        "losses": losses,
        "loss": result.loss,
        "parameters": model.num_parameters(),
        "rate": scored.rate,
        "minutes": round((time.monotonic() - started) / 60, 1),
        **asdict(scored),
        "environment": environment(),
    }


def _compress(
    cell: Cell,
    teacher: Path,
    data: Path,
    output: Path,
    budget: Budget,
    *,
    stage2: int,
    keep_head: bool,
    run: Path | None = None,
    **settings: Any,
) -> CompressionResult:
    """Compress as a cell says, with so many updates in stage 2."""
    heard, analysis = (
        str(manifest(data, cell.task, "train")),
        AnalysisConfig(calibration_seconds=budget.calibration_seconds),
    )
    if run is None:
        run = output / (cell.name if keep_head else f"{cell.teacher}-{cell.task}-headless-seed{cell.seed}")
    analyzed = output / f"{cell.teacher}-{cell.task}-analysis"
    analyze(str(teacher), heard, str(analyzed), analysis=analysis, absolute_paths=True)
    result = compress(
        str(teacher),
        heard,
        str(run),
        **{"start_from": str(analyzed / "analysis")} | settings,
        head=distillation.HeadTraining(keep=keep_head, outputs=budget.outputs, temperature=budget.temperature),
        sparsity=budget.sparsity,
        analysis=analysis,
        stage1=budget.first(),
        stage2=budget.second(stage2),
        validation_seconds=budget.validation_seconds,
        validate_every=0,
        missed_budget="cut",
        precision="auto",
        seed=cell.seed,
        absolute_paths=True,
    )
    for stage in ("stage1", "stage2"):  # what is kept for going on is not needed any more
        shutil.rmtree(run / stage / "checkpoints", ignore_errors=True)
    return result
