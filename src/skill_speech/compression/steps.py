"""The five steps of a run: each reads its input from the run's folder and writes its output there, whole or not at all.

What says that a step is done is written last; a step that is done is not done again.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from safetensors.torch import save
from torch import Tensor

from ..checkpoints import load_encoder, read_checkpoint, read_direction_norm, save_direction_norm
from ..checkpoints.weights import fill, read_weights
from ..data import Position, TrainingBatches, audio_loader, evaluation_batches, tallied
from ..distillation import Distillation, DistillationLoss, Stage1Config, needs_clusters
from ..distillation.memory import available_to_each, fit_batch
from ..distillation.module import Config
from ..distillation.parallel import Precision
from ..distillation.quantization import attach_quantization, remove_quantization
from ..distillation.stage import Stage
from ..distillation.units import UnitLoss, find_units
from ..distillation.weight_norm import attach_weight_norm, remove_weight_norm
from ..encoder import Encoder, EncoderConfig
from ..environment import environment
from ..errors import InputError
from ..files import atomic_write
from ..heads import Head, SpeechModel
from ..profiling import measure, peak_memory
from ..pruning import (
    CONTROLS,
    Control,
    Importance,
    MissedBudgetError,
    Widths,
    config_after_surgery,
    find_gates,
    fix_gates,
    gap_to,
    magnitude,
    prune,
    sensitivity,
    shrink_like,
)
from ..quantities import human
from ..reporting.model_card import write_model_card
from ..run import ranks
from ..run.folder import RunFolder
from ..run.progress import Meter
from ..run.signals import StopSignals
from ..similarity import (
    LayerAnalysis,
    LayerClusters,
    LayerScales,
    cluster_layers,
    compare_layers,
    estimate_cka,
    load_analysis,
    save_analysis,
)
from .plan import PROJECTIONS, AnalysisPlan, Plan, trainable_copy

logger = logging.getLogger(__name__)

OnStep = Callable[[Stage], None]

# Batches of calibration audio that the importance of units is measured on, and seconds in each.
IMPORTANCE_BATCHES, IMPORTANCE_SECONDS = 64, 4.0
# How far log alpha can move during the published ramp: 0.02, warmed up over 15,000 updates, for 5,000 of them.
PUBLISHED_TRAVEL = 16.7
SECONDS_BETWEEN_REPORTS = 2.0
SIMILARITY_SECONDS = 60.0
"""Of audio on which student and teacher are compared at the end."""


@dataclass(frozen=True)
class Step(ABC):
    """One of the five.

    Args:
        plan: of the run.
        run: its folder.
        stop: who is told to stop.
        on_step: called after every update of a stage.
    """

    plan: Plan
    run: RunFolder
    stop: StopSignals
    on_step: OnStep | None = None

    name = ""
    """Of the step, and of its folder."""

    def wanted(self) -> bool:
        """Whether this run has such a step."""
        return True

    def is_done(self) -> bool:
        """Whether it has written all it has to.

        Raises:
            InputError: what it has written last is damaged.
        """
        mark = f"{self.name}/result.json"
        return self.run.has(mark) and bool(self.run.read(mark, "surgery" if self.name == "surgery" else "stage"))

    @abstractmethod
    def carry_out(self) -> None:
        """Do it; every rank takes part.

        Raises:
            InputError: the data or the loss turns out bad.
        """


class Analysis(Step):
    """RUN/analysis: how similar the teacher's layers are, and their groups."""

    name = "analysis"

    def wanted(self) -> bool:
        """Whether something is distilled by groups or by the layers' scales."""
        return self.plan.analysis is not None

    def is_done(self) -> bool:
        """Whether the groups are there; `Plan.of` has seen that they are of these settings."""
        return self.run.has("analysis/clusters.json")

    def carry_out(self) -> None:
        """Compare and group."""
        assert self.plan.analysis is not None
        analyze_layers(self.plan.analysis, self.run)


def analyze_layers(plan: AnalysisPlan, run: RunFolder) -> LayerClusters:
    """Compare a teacher's layers and group them: writes RUN/analysis; every rank takes its share of the audio."""
    config, tally, scales = plan.config, plan.audio.beside(), LayerScales()
    run.write_settings(plan.settings, "analysis")
    batches = evaluation_batches(
        plan.cuts, batch_seconds=config.batch_seconds, limit_seconds=config.calibration_seconds, seed=plan.seed
    )
    own = ranks.share(batches)
    with Meter("analysis", len(own)) as meter:
        similarity = estimate_cka(
            plan.encoder,
            tallied(audio_loader(own, workers=plan.workers), tally),
            estimator=config.estimator,
            batch_frames=config.batch_frames,
            precision=config.precision,
            include_features=config.include_features,
            seed=plan.seed,
            scales=scales,
            progress=meter.advance,
        )
    cka_LL, halves_HLL = similarity.of(config.cka)
    other_LL = similarity.normalized_LL if config.cka == "raw" else similarity.raw_LL
    groups = cluster_layers(
        cka_LL,
        plan.clusters,
        linkage=config.linkage,
        contiguous=config.contiguous,
        first_layer=0 if config.include_features else 1,
        halves=list(halves_HLL.numpy()),
        other_view=other_LL,
    )
    logger.info("%s; %s", groups.reason, groups.borders)
    spreads_L, audio = scales.compute(), tally.of_all_ranks().state_dict()
    run.save("analysis/audio.json", audio)
    found = LayerAnalysis(cka_LL.numpy(), groups, config.cka, None if other_LL is None else other_LL.numpy())
    names = run.on_first(lambda: save_analysis(run / "analysis", found, spreads_L))
    logger.info("written to %s: %s", run / "analysis", ", ".join(names))
    return groups


class Stage1(Step):
    """RUN/stage1: a student that has learned, and whose gates say what is to be removed."""

    name = "stage1"

    def wanted(self) -> bool:
        """Whether the run has not started after surgery."""
        return self.run.has("stage1") or not self.run.has("surgery/result.json")

    def carry_out(self) -> None:
        """Prune and distill."""
        plan, config = self.plan, self.plan.config
        assert config.control != "auto"
        student, distance = plan.gated(), plan.distance(self.run)
        stage, kind = config.stage1, CONTROLS[config.control]
        control = kind(plan.budget, int(stage.sparsity_steps), stage.steps, stage.gate_learning_rate)
        control.prepare(student, self._importance(student, distance) if control.needs_importance else None)
        train(self, stage, student, distance, plan.direction_norm_K, control)

    def _importance(self, gated: Encoder, distance: DistillationLoss) -> Importance:
        """The importance of every unit: RUN/stage1/importance.safetensors, measured if it is not there yet."""
        path = self.run / "stage1/importance.safetensors"

        def keep() -> Importance:
            if not path.exists():
                self.run.report("importance")
                found = self._measure_importance(gated, distance)
                with atomic_write(path) as temporary:
                    temporary.write_bytes(save({name: value.cpu().contiguous() for name, value in found.items()}))
            return read_weights(path)

        return self.run.on_first(keep)

    def _measure_importance(self, gated: Encoder, distance: DistillationLoss) -> Importance:
        plan, config = self.plan, self.plan.config
        if config.importance == "magnitude":
            return magnitude(gated)
        # A run of a few updates does not spend more on this than on learning.
        count = min(IMPORTANCE_BATCHES, max(8, config.stage1.steps))
        batches = TrainingBatches(
            plan.cuts,
            batch_seconds=IMPORTANCE_SECONDS,
            min_seconds=min(config.min_seconds, IMPORTANCE_SECONDS / 2),
            seed=2 * config.seed,
        )
        device = next(plan.teacher.parameters()).device
        loader = islice(audio_loader(batches), count)
        waveforms = (batch.waveforms_BT.to(device) for batch in loader if batch.ids)
        return sensitivity(plan.teacher, gated, distance.targets_of, waveforms, config.seed)


class Surgery(Step):
    """RUN/surgery: the student without what the gates have closed."""

    name = "surgery"

    def carry_out(self) -> None:
        """Cut.

        Raises:
            InputError: the gates are far from the budget, and nothing else is to be done about it.
        """
        distance = self.plan.distance(self.run)
        self.run.on_first(lambda: self._cut(distance))

    def _cut(self, distance: DistillationLoss) -> None:
        run, budget, config = self.run, self.plan.budget, self.plan.config
        gated = self.plan.gated()
        load_student(gated, distance, run / "stage1/student")
        by_gates, after = Widths.rounded(gated), config_after_surgery(gated)
        sizes = {limit.what: float(limit.count(after, by_gates)) for limit in budget.limits}
        gap = gap_to(gated, budget)
        try:
            fix_gates(gated, budget, config.round_to, config.missed_budget)
        except MissedBudgetError as error:
            raise InputError(f"{error}{_enough_updates(config.control, config.stage1)}") from None
        if gap:
            done = "kept" if config.missed_budget == "keep" else "the rest is pruned"
            logger.warning("the gates are open for %s: %s", gap, done)
        pruned = prune(gated)
        save_student(pruned, distance, run / "surgery", read_direction_norm(run / "stage1/student", pruned.config))
        before, now = int(budget.teacher_parameters), pruned.num_parameters() + int(budget.head_parameters)
        logger.info(
            "surgery: %s of %s parameters remain (the gates were at %s)",
            *(
                human(now),
                human(before),
                ", ".join(f"{human(n)} {what}" for what, n in sizes.items()),
            ),
        )
        result = {"parameters": now, "teacher_parameters": before, "before_surgery": sizes}
        run.save("surgery/result.json", result)


class Stage2(Step):
    """RUN/stage2: the small student, distilled further."""

    name = "stage2"

    def carry_out(self) -> None:
        """Distill."""
        plan, config, distance = self.plan, self.plan.config, self.plan.distance(self.run)
        checkpoint = read_checkpoint(self.run / "surgery")
        student = trainable_copy(checkpoint.encoder, plan.teacher.config, config.stage2)
        load_student(student, distance, self.run / "surgery")
        distance.units = self._units()
        if config.quantization is not None:
            attach_quantization(student, config.quantization)
        train(self, config.stage2, student, distance, checkpoint.direction_norm_K)

    def _units(self) -> UnitLoss | None:
        """What the student guesses, where it does: RUN/stage2/units.safetensors, found if it is not there yet."""
        plan, config, path = self.plan, self.plan.config, self.run / "stage2/units.safetensors"
        count, layer = config.units.count, config.units.layer_of(plan.teacher.config.num_layers)
        if not count:
            return None

        def keep() -> Tensor:
            if not path.exists():
                self.run.report("units")
                batches = evaluation_batches(
                    plan.cuts,
                    batch_seconds=config.analysis.batch_seconds,
                    limit_seconds=config.units.seconds,
                    seed=config.seed,
                )
                heard = audio_loader(batches, workers=config.workers)
                made_KD = find_units(plan.teacher, heard, layer, count, config.seed)
                with atomic_write(path) as temporary:
                    temporary.write_bytes(save({"centroids": made_KD.contiguous()}))
            return read_weights(path)["centroids"]

        centroids_KD = self.run.on_first(keep)
        torch.manual_seed(config.seed)  # of the guess, which begins at random
        return UnitLoss(centroids_KD, layer, config.units.weight)


def train(
    step: Step,
    stage: Config,
    student: Encoder,
    distance: DistillationLoss,
    direction_norm_K: Tensor | None,
    control: Control | None = None,
) -> None:
    """One stage from its start or its last checkpoint to its end: writes RUN/NAME."""
    plan, run, name, config = step.plan, step.run, step.name, step.plan.config
    assert config.precision != "auto"
    attach_weight_norm(student, direction_norm_K)
    module = Distillation(plan.teacher, student, distance, stage, control, plan.student_input)
    module.config = stage = fitting(module, stage, config.precision, name, run)
    seed = 2 * config.seed + (name == "stage2")
    held_out = None
    if plan.validation is not None:
        held_out = evaluation_batches(plan.validation, batch_seconds=stage.batch_seconds)
    last_report = -math.inf

    def report(training: Stage) -> None:
        nonlocal last_report
        if time.monotonic() > last_report + SECONDS_BETWEEN_REPORTS or training.state.step == stage.steps:
            run.report(name, training.state.step, stage.steps)
            last_report = time.monotonic()
        if step.on_step is not None:
            step.on_step(training)

    logger.info("%s: %d updates of %g s of audio", name, stage.steps, stage.batch_seconds * stage.accumulate)
    outcome = Stage(
        module,
        partial(
            training_batches,
            plan.cuts,
            batch_seconds=stage.batch_seconds,
            min_seconds=config.min_seconds,
            seed=seed,
            whole=plan.labels is not None,
        ),
        held_out,
        partial(audio_loader, workers=config.workers, labels=plan.labels),
        run / name,
        name=name,
        precision=config.precision,
        strategy=config.strategy,
        seed=seed,
        checkpoint_every=config.checkpoint_every,
        checkpoint_minutes=config.checkpoint_minutes,
        keep_checkpoints=config.keep_checkpoints,
        milestone_every=config.milestone_every,
        validate_every=config.validate_every,
        round_to=config.round_to,
        audio=plan.audio,
        stop=step.stop,
        on_step=report,
    ).run()
    for gate in find_gates(module.student):
        gate.module.forget_gradients()
    remove_quantization(module.student)
    direction_norm_K = remove_weight_norm(module.student)
    run.on_first(lambda: save_student(module.student, module.loss, run / name / "student", direction_norm_K))
    run.save(f"{name}/result.json", outcome | {"peak_memory": peak_memory()})


def training_batches(cuts: CutSet, start: Position, rank: int, world_size: int, **settings: Any) -> TrainingBatches:
    """A rank's, from a position on."""
    return TrainingBatches(cuts, start=start, rank=rank, world_size=world_size, **settings)


def fitting(module: Distillation, stage: Config, precision: Precision, name: str, run: RunFolder) -> Config:
    """The stage with batches that fit into memory: as they were when it began, wherever it resumes."""
    path = f"{name}/batch.json"
    if run.has(path):
        values = run.read(path, "batch")
        return replace(stage, batch_seconds=values["batch_seconds"], accumulate=values["accumulate"])
    available = available_to_each()
    fits = run.on_first(lambda: fit_batch(module, stage, precision, name, available))
    run.save(path, {"batch_seconds": fits.batch_seconds, "accumulate": fits.accumulate})
    return fits


def _enough_updates(control: str, stage: Stage1Config) -> str:
    """How long stage 1 would have to be for the published control to let the gates travel as far as published."""
    if control != "lagrangian":
        return ""
    ramp, warmup = stage.sparsity_steps, stage.warmup_steps
    ramped = min(ramp, warmup)
    travel = stage.gate_learning_rate * (ramped**2 / (2 * max(1, warmup)) + ramp - ramped)
    if travel >= PUBLISHED_TRAVEL:
        return ""
    enough = math.ceil(stage.steps * PUBLISHED_TRAVEL / max(travel, 1e-9))
    return (
        f" (log alpha of the gates moved by {travel:.1f} during the ramp; with the published schedule it moves by "
        f"{PUBLISHED_TRAVEL}, which takes {enough:,} updates at this gate_learning_rate)"
    )


class Finish(Step):
    """RUN/model, the outcome and the report."""

    name = "finish"

    def is_done(self) -> bool:
        """Whether the run is finished."""
        return self.run.is_finished()

    def carry_out(self) -> None:
        """Write the student as others load it, and what came of the run."""
        self.run.on_first(self._write)

    def _write(self) -> None:
        # The report knows of evaluation, which takes long to import and which nothing else here needs.
        from ..reporting import report
        from ..reporting.evidence import read_evidence
        from ..reporting.verdict import warnings

        run, teacher, budget = self.run, self.plan.teacher, self.plan.budget
        settings = self.plan.config.settings
        student = load_encoder(run / "stage2/student")
        kept = {name: value for name, value in asdict(teacher.config).items() if name.endswith("_dropout")}
        final = Encoder.of(student.config.replace(**kept), student.state_dict()).eval()
        head = self._head()
        SpeechModel(final, head, self.plan.files).save_pretrained(run / "model")
        # A run that started after stage 1 has none.
        done = [name for name in ("stage1", "stage2") if run.has(f"{name}/result.json")]
        stages = {name: run.read(f"{name}/result.json", "stage") for name in done}
        audio = {"prepare": self.plan.audio.state_dict()} if self.plan.audio.read else {}
        if run.has("analysis/audio.json"):
            audio["analysis"] = run.read("analysis/audio.json", "audio")
        audio |= {name: stage.pop("audio") for name, stage in stages.items() if "audio" in stage}
        run.save("bad_audio.json", audio)
        _say_bad_audio(run / "bad_audio.json", audio)
        grouped = needs_clusters(self.plan.config.targets or "")
        outcome = {
            "teacher": asdict(measure(teacher, str(settings["teacher"]), head=self.plan.head)),
            "student": asdict(measure(final, str(run / "model"), head=head)),
            "head": None if head is None else {"kind": head.config.kind, "outputs": head.config.outputs},
            "loss_after_surgery": stages["stage2"]["validation_at_start"].get("distillation"),
            "loss": stages["stage2"]["validation"].get("distillation"),
            "outputs_after_surgery": stages["stage2"]["validation_at_start"].get("outputs"),
            "outputs": stages["stage2"]["validation"].get("outputs"),
            "clusters": [list(group) for group in load_analysis(run / "analysis").clusters.groups] if grouped else None,
            "similarity": self._similarity(final),
            "stages": stages,
            "audio": audio,
            "widths": {"teacher": _widths(teacher.config), "student": _widths(final.config)},
            "environment": environment(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        if budget.times is not None:
            outcome["times"] = {
                "budget": budget.milliseconds,
                "teacher": budget.teacher_milliseconds,
                "student": budget.times.count(final.config, Widths.of(final.config)),
                "utterance": budget.times.utterance,
                "machine": budget.times.machine,
            }
        run.save("result.json", outcome)
        found = warnings(read_evidence(run.path))
        write_model_card(run / "model" / "README.md", settings, outcome, final.config, found)
        report([str(run.path)])
        for sentence in found:
            logger.warning("warning: %s", sentence)
        run.report("finished", finished=True)

    def _similarity(self, student: Encoder) -> list[float] | None:
        """CKA between each layer of student and teacher, on held-out speech where there is some; None if undefined."""
        plan, config = self.plan, self.plan.config
        batches = evaluation_batches(
            plan.cuts if plan.validation is None else plan.validation,
            batch_seconds=config.analysis.batch_seconds,
            limit_seconds=SIMILARITY_SECONDS,
            seed=config.seed,
        )
        own = copy.deepcopy(student).to(next(plan.teacher.parameters()).device)
        try:
            return list(map(float, compare_layers(plan.teacher, own, audio_loader(batches, workers=config.workers))))
        except InputError as error:
            logger.warning("how similar student and teacher are is not known: %s", error)
            return None

    def _head(self) -> Head | None:
        """The head as stage 2 has left it."""
        distance = self.plan.distance(self.run)
        if distance.outputs is None:
            return None
        folder = self.run / "stage2/student"
        fill(distance, read_weights(folder / PROJECTIONS), str(folder))
        return distance.outputs.head.eval()


def _say_bad_audio(path: Path, audio: dict[str, dict[str, Any]]) -> None:
    """One line for each part of the run in which something was wrong with its audio."""
    for part, found in audio.items():
        left, kept = (
            {name: kind["cuts"] for name, kind in found["kinds"].items() if bool(kind["left_out"]) == unusable}
            for unusable in (True, False)
        )
        said = [
            f"{words} ({', '.join(f'{count} {name}' for name, count in kinds.items())})"
            for words, kinds in (
                (f"{found['left_out']} of {found['read']} cuts left out", left),
                (f"{sum(kept.values())} of {found['read']} cuts kept with a warning", kept),
            )
            if kinds
        ]
        if said:
            logger.warning("%s: %s: %s", part, "; ".join(said), path)


def _widths(config: EncoderConfig) -> dict[str, Any]:
    """What there is of every layer; heads by their numbers."""
    return {
        "channels": [conv.channels for conv in config.convs],
        "heads": [list(layer.heads) for layer in config.layers],
        "units": [layer.units for layer in config.layers],
    }


def save_student(encoder: Encoder, distance: DistillationLoss, folder: Path, direction_norm_K: Tensor | None) -> None:
    """Write a student between two steps, and the projections and the head that belong to it."""
    encoder.save_pretrained(folder)
    save_direction_norm(folder, direction_norm_K)
    with atomic_write(folder / PROJECTIONS) as temporary:
        # What guesses units has done its work when stage 2 ends.
        kept = {name: tensor for name, tensor in distance.state_dict().items() if not name.startswith("units.")}
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in kept.items()}))


def load_student(encoder: Encoder, distance: DistillationLoss, folder: Path) -> None:
    """Read what `save_student` wrote into an encoder with all its units, and a distance."""
    weights = read_weights(folder / "model.safetensors")
    shrink_like(encoder, weights)
    fill(encoder, weights, str(folder))
    fill(distance, read_weights(folder / PROJECTIONS), str(folder))
