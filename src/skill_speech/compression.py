"""The recipe: analyse, prune and distil (stage 1), cut (surgery), distil again (stage 2).

Every step reads its input from the run's folder and writes its output there, whole or not at all; what exists is not
made again, so that the same command goes on where a run stopped. Of several processes (`ranks`) all take every step
together; the first one looks at files and writes them.
"""

from __future__ import annotations

import logging
import shutil
import time
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from lhotse import CutSet
from safetensors.torch import save

from . import ranks
from .checkpoints import load_encoder, resolve_revision
from .checkpoints.native import read_json
from .checkpoints.weights import fill, read_weights
from .data import AudioTally, Part, TrainingBatches, audio_loader, evaluation_batches, open_cuts, split_cuts, tallied
from .distillation import (
    Distillation,
    DistillationLoss,
    LossConfig,
    Method,
    StageConfig,
    groups_layers,
    make_targets,
    needs_clusters,
)
from .distillation.memory import available_to_each, fit_batch
from .distillation.parallel import Strategy
from .distillation.training import Precision, batches_per_rank, run_stage
from .encoder import Encoder, EncoderConfig
from .environment import environment
from .errors import InputError
from .files import atomic_folder, atomic_write, remove_leftovers, require_space, write_json
from .profiling import Profile, measure, peak_memory
from .progress import Meter
from .pruning import Budget, Lagrangian, attach_gates, check_rounding, fix_gates, human, prune, shrink_like
from .reporting.model_card import write_model_card
from .run_folder import RunFolder, pinned_revision, refuse_changes, write_settings
from .run_lock import RunLock
from .similarity import (
    LayerClusters,
    LayerScales,
    cluster_layers,
    estimate_cka,
    load_analysis,
    load_scales,
    save_analysis,
)
from .stopping import StopSignals

logger = logging.getLogger(__name__)

PrunedUnits = Literal["channels", "heads", "units"]
ALL_UNITS: tuple[PrunedUnits, ...] = ("channels", "heads", "units")
STAGE1 = StageConfig()
STAGE2 = StageConfig(steps=25_000, learning_rate=1e-4, warmup_steps=5_000)
# The file that a finished stage writes last, of the stages that another run can start behind.
MARKS = {"analysis": "clusters.json", "stage1": "result.json", "surgery": "result.json"}


@dataclass(frozen=True)
class AnalysisConfig:
    """How the teacher's layers are compared and grouped.

    Attributes:
        linkage: of the agglomerative clustering on 1 - CKA.
        contiguous: only neighbouring layers may share a cluster.
        include_features: h_0 takes part.
        estimator: "minibatch" is the unbiased one in constant memory, "exact" works in feature space.
        calibration_seconds: audio that the similarity is estimated on.
        batch_seconds: audio per forward pass.
        batch_frames: frames per minibatch of the estimator.
        precision: of the minibatch estimator's Gram matrices; "auto" is bf16 where the device has instructions for it.
    """

    linkage: Literal["average", "complete", "single"] = "average"
    contiguous: bool = False
    include_features: bool = True
    estimator: Literal["minibatch", "exact"] = "minibatch"
    calibration_seconds: float = 600.0
    batch_seconds: float = 60.0
    batch_frames: int = 1024
    precision: Literal["auto", "bf16", "float32"] = "auto"


@dataclass(frozen=True)
class CompressionResult:
    """What came of a run.

    Attributes:
        folder: of the run; the student is in its `model`.
        teacher, student: their costs.
        loss_after_surgery, loss: distillation loss on the validation set before and after stage 2; None without one.
        already_done: nothing was left to do in this call.
    """

    folder: Path
    teacher: Profile
    student: Profile
    loss_after_surgery: float | None
    loss: float | None
    already_done: bool


def analyze(
    teacher: str,
    data: list[Part] | str,
    output: str,
    *,
    clusters: int | Literal["auto"] = 4,
    analysis: AnalysisConfig = AnalysisConfig(),
    devices: int = 1,
    nodes: int = 1,
    revision: str | None = None,
    seed: int = 0,
    workers: int = 0,
    max_bad: float | str = "1%",
    absolute_paths: bool = False,
) -> LayerClusters:
    """Measure how similar a teacher's layers are and group them; writes OUTPUT/analysis.

    Args:
        teacher: hub id, folder or file.
        data: a manifest, shards, anything `prepare` takes, or a list of parts that are mixed.
        output: the run's folder.
        clusters: number of clusters K, or "auto".
        analysis: the other settings.
        devices: processes on this machine that share the audio.
        nodes: machines, all with so many; torchrun or srun starts the command on each of them.
        revision: of the teacher on the hub: branch, tag or commit; the commit is written down and used from then on.
        seed: of the calibration sample.
        workers: processes that read audio, per device.
        max_bad: the share of files or cuts that may be unusable, such as 1% or 0.01.
        absolute_paths: a manifest that `prepare` did not write may name files outside of its corpus.

    Raises:
        InputError: bad teacher, data or number of clusters.
    """
    arguments = dict(locals())
    if ranks.to_be_started(devices, nodes):
        return ranks.start(analyze, arguments | {"devices": 1}, devices)
    ranks.join()
    revision = ranks.on_first(lambda: _commit(_plain(teacher), revision, Path(output) / "analysis/config.yaml"))
    settings = _analysis_settings(teacher, revision, clusters, analysis, seed)
    encoder = load_encoder(teacher, revision=revision)
    _check_clusters(clusters, encoder.config, analysis)
    cuts, folder = open_cuts(data, absolute_paths=absolute_paths, max_bad=max_bad), Path(output)
    with RunLock(folder), StopSignals():
        return _analyze(
            encoder, cuts, folder / "analysis", settings, clusters, analysis, seed, workers, AudioTally(max_bad)
        )


def _commit(teacher: str, revision: str | None, settings: Path) -> str | None:
    """The commit of a teacher on the hub: the one in the settings of the run that goes on, unless one is asked for."""
    return (pinned_revision(settings, teacher) if revision is None else None) or resolve_revision(teacher, revision)


def _analysis_settings(
    teacher: str, revision: str | None, clusters: int | Literal["auto"], config: AnalysisConfig, seed: int
) -> dict[str, Any]:
    """What an analysis depends on besides the data, of which any sample does."""
    values = {"teacher": teacher, "revision": revision, "clusters": clusters, "analysis": config, "seed": seed}
    return {name: _plain(value) for name, value in values.items()}


def _check_clusters(clusters: int | Literal["auto"], teacher: EncoderConfig, config: AnalysisConfig) -> None:
    count = teacher.num_layers + int(config.include_features)
    if isinstance(clusters, int) and not 1 <= clusters <= count:
        raise InputError(f"clusters is {clusters}; this teacher has {count} layers to group: choose 1 to {count}")


def _analyze(
    encoder: Encoder,
    cuts: CutSet,
    folder: Path,
    settings: dict[str, Any],
    clusters: int | Literal["auto"],
    config: AnalysisConfig,
    seed: int,
    workers: int,
    tally: AudioTally,
) -> LayerClusters:
    """The analysis in a folder: taken from there if it was made with these settings, made otherwise, by all ranks."""
    if ranks.on_first((folder / "clusters.json").exists):
        ranks.on_first(lambda: refuse_changes(folder / "config.yaml", settings))
        logger.info("%s is finished: taken as it is", folder)
        return ranks.on_first(lambda: load_analysis(folder)[1])
    ranks.on_first(lambda: write_settings(folder / "config.yaml", settings))
    batches = evaluation_batches(
        cuts, batch_seconds=config.batch_seconds, limit_seconds=config.calibration_seconds, seed=seed
    )
    scales = LayerScales()
    own = ranks.share(batches)
    with Meter("analysis", len(own)) as meter:
        cka_LL = estimate_cka(
            encoder,
            tallied(audio_loader(own, workers=workers), tally),
            estimator=config.estimator,
            batch_frames=config.batch_frames,
            precision=config.precision,
            include_features=config.include_features,
            seed=seed,
            scales=scales,
            progress=meter.advance,
        )
    groups = cluster_layers(
        cka_LL,
        clusters,
        linkage=config.linkage,
        contiguous=config.contiguous,
        first_layer=0 if config.include_features else 1,
    )
    logger.info("%s", groups.reason)
    spreads_L, audio = scales.compute(), tally.of_all_ranks().state_dict()

    def keep() -> None:
        write_json(folder / "audio.json", audio)
        save_analysis(folder, cka_LL, groups, spreads_L)

    ranks.on_first(keep)
    logger.info("written: %s/similarity.svg, dendrogram.svg, clusters.json, cka.npy, linkage.npy", folder)
    return groups


def compress(
    teacher: str,
    data: list[Part] | str,
    output: str,
    *,
    method: Method = "skill",
    clusters: int | Literal["auto"] = 4,
    sparsity: float | None = None,
    params: str | None = None,
    macs: str | None = None,
    analysis: AnalysisConfig = AnalysisConfig(),
    stage1: StageConfig = STAGE1,
    stage2: StageConfig = STAGE2,
    loss: LossConfig = LossConfig(),
    share_projections: bool = False,
    scale_layers: bool | None = None,
    pruned_units: tuple[PrunedUnits, ...] = ALL_UNITS,
    round_to: int = 1,
    validation_data: str | None = None,
    validation_seconds: float = 300.0,
    validate_every: int = 1_000,
    checkpoint_every: int = 500,
    keep_checkpoints: int = 2,
    milestone_every: int = 0,
    precision: Precision = "bf16",
    devices: int = 1,
    nodes: int = 1,
    strategy: Strategy = "ddp",
    revision: str | None = None,
    start_from: str | None = None,
    seed: int = 0,
    workers: int = 0,
    max_bad: float | str = "1%",
    absolute_paths: bool = False,
) -> CompressionResult:
    """Make a small encoder of a large one; the same call goes on where it stopped.

    Args:
        teacher: hub id, folder or file.
        data: unlabelled speech: a manifest, shards, anything `prepare` takes, or a list of parts (path and weight) that
            are mixed.
        output: the run's folder; the student will be in its `model`.
        method: "skill", or one of the methods it is compared with.
        clusters: number of layer clusters K, or "auto".
        sparsity: share of the teacher's parameters to remove (0.75 if no budget is given).
        params: parameters to keep: 23.6M, or a share such as 0.25.
        macs: multiply-accumulates per second of audio to keep: 1.2G, or a share such as 0.35.
        analysis: how layers are compared and grouped.
        stage1: joint pruning and distillation.
        stage2: distillation of the pruned student.
        loss: weights of the distance between student and teacher.
        share_projections: one projection for all targets without layer 0 instead of one per target.
        scale_layers: bring the layers to one scale before averaging them; by default for pre-norm teachers, whose
            later layers would drown the others, and the methods that group layers.
        pruned_units: what may be removed.
        round_to: numbers of channels and feed-forward units become multiples of it: 8, 16 or 32 for hardware that wants
            such widths.
        validation_data: speech to log the loss on; by default a part of `data` is held out.
        validation_seconds: how much is held out.
        validate_every: updates between validations.
        checkpoint_every: updates between checkpoints.
        keep_checkpoints: how many of the newest are kept, at least 2.
        milestone_every: checkpoints at multiples of this are kept for good; 0 for none.
        precision: "bf16" or "float32".
        devices: accelerators to train on in this machine, or processes where there are none; they share the batches of
            an update.
        nodes: machines, all with so many devices; torchrun or srun starts the command on each of them.
        strategy: "ddp" keeps the student on every device, "fsdp" shards it and the optimiser's state.
        revision: of the teacher on the hub: branch, tag or commit; the commit is written down and used from then on.
        start_from: a finished stage of another run, RUN/analysis, RUN/stage1 or RUN/surgery: it and what it needed are
            copied, and the run starts behind it.
        seed: of everything random.
        workers: processes that read audio.
        max_bad: the share of files or cuts that may be unusable, such as 1% or 0.01.
        absolute_paths: a manifest that `prepare` did not write may name files outside of its corpus.

    Raises:
        InputError: bad teacher, data, budget or settings, an output folder of another run or in which one is going on.
        Stopped: by SIGTERM or SIGUSR1; the same call goes on.
    """
    arguments = dict(locals())
    settings = {name: _plain(value) for name, value in arguments.items()}
    if ranks.to_be_started(devices, nodes):
        _check_stages(stage1, stage2, devices)
        return ranks.start(compress, arguments | {"devices": 1}, devices)
    ranks.join()
    if sparsity is None and params is None and macs is None:
        settings["sparsity"] = sparsity = 0.75
    commit = ranks.on_first(lambda: _commit(settings["teacher"], revision, Path(output) / "config.yaml"))
    settings["revision"] = revision = commit
    run = ranks.on_first(lambda: RunFolder(output, settings))
    if ranks.on_first(run.status).get("finished"):
        logger.info("%s is finished: nothing to do", run.path)
        return ranks.on_first(lambda: _read_result(run, already_done=True))
    _check_stages(stage1, stage2, ranks.count())
    _check_checkpoints(checkpoint_every, keep_checkpoints, milestone_every)
    model = load_encoder(teacher, revision=revision)
    torch.manual_seed(seed)
    gated = attach_gates(_copy(model, model.config, stage1.student_dropout), pruned_units)
    budget = Budget.of(model.config, sparsity=sparsity, parameters=params, macs=macs)
    budget.check(gated)
    check_rounding(gated, budget, round_to)
    scaled = groups_layers(method) and model.config.pre_norm if scale_layers is None else scale_layers
    if needs_clusters(method) or scaled:
        _check_clusters(clusters, model.config, analysis)
    count = clusters if isinstance(clusters, int) else None
    if not needs_clusters(method):
        make_targets(method, model.config.num_layers, count=count)  # refuses what cannot be
    prepared = AudioTally(max_bad)
    cuts, validation = _open_data(data, validation_data, validation_seconds, seed, absolute_paths, prepared)
    if start_from is not None:
        _check_source(Path(start_from))
    # Everything that can be wrong with the settings has been looked at: from here on the folder is this run's.
    with RunLock(run.path), StopSignals() as stop:
        ranks.on_first(lambda: _begin(run, start_from))
        steps = stage1.steps, stage2.steps
        ranks.on_first(lambda: _check_disk(run, budget, steps, keep_checkpoints, milestone_every))
        groups = None
        if needs_clusters(method) or scaled:
            if not ranks.on_first((run / "analysis/clusters.json").exists):
                run.report("analysis")
            wanted = _analysis_settings(teacher, revision, clusters, analysis, seed)
            tally = AudioTally(max_bad)
            groups = _analyze(model, cuts, run / "analysis", wanted, clusters, analysis, seed, workers, tally)
        targets = make_targets(
            method, model.config.num_layers, groups, count=count, share_projections=share_projections
        )
        scales = ranks.on_first(lambda: load_scales(run / "analysis").tolist()) if scaled else None
        distance = DistillationLoss(targets, model.config.hidden_size, loss, scales)
        carried_out = {
            "precision": precision,
            "strategy": strategy,
            "checkpoint_every": checkpoint_every,
            "keep_checkpoints": keep_checkpoints,
            "milestone_every": milestone_every,
            "validate_every": validate_every,
            "round_to": round_to,
            "max_bad": max_bad,
            "stop": stop,
        }
        stages = _Stages(run, model, distance, cuts, validation, seed, workers, carried_out)
        if not stages.done("surgery"):
            if not stages.done("stage1"):
                gated = stages.train("stage1", gated, stage1, Lagrangian(budget, stage1.sparsity_steps))
            ranks.on_first(lambda: _operate(run, gated, distance, budget, round_to))
        if not stages.done("stage2"):
            pruned = _copy(load_encoder(run / "surgery"), model.config, stage2.student_dropout)
            _load(pruned, distance, run / "surgery")
            stages.train("stage2", pruned, stage2, None)
        return ranks.on_first(lambda: _finish(run, settings, model, prepared))


@dataclass(frozen=True)
class _Stages:
    """The stages of a run: what they work with, and how `run_stage` is to carry them out."""

    run: RunFolder
    teacher: Encoder
    distance: DistillationLoss
    cuts: CutSet
    validation: CutSet | None
    seed: int
    workers: int
    carried_out: dict[str, Any]

    def done(self, name: str) -> bool:
        """Whether a stage, or surgery, has written all it had to."""
        return ranks.on_first((self.run / name / "result.json").exists)

    def train(self, name: str, student: Encoder, stage: StageConfig, lagrangian: Lagrangian | None) -> Encoder:
        """One stage from its start or its last checkpoint to its end; its student, which is in RUN/NAME/student too."""
        folder, last_report = self.run / name, 0.0

        def report(step: int) -> None:
            nonlocal last_report
            if time.monotonic() > last_report + 2 or step == stage.steps:
                self.run.report(name, step, stage.steps)
                last_report = time.monotonic()

        stage_seed = 2 * self.seed + (name == "stage2")
        module = Distillation(self.teacher, student, self.distance, stage, lagrangian, stage_seed)
        module.stage = stage = _fitting(module, stage, self.carried_out["precision"], name, folder / "batch.json")
        held_out = None
        if self.validation is not None:
            held_out = evaluation_batches(self.validation, batch_seconds=stage.batch_seconds)
        logger.info("%s: %d steps of %g s of audio", name, stage.steps, stage.batch_seconds * stage.accumulate)
        outcome = run_stage(
            module,
            lambda start, rank, world_size: TrainingBatches(
                self.cuts,
                batch_seconds=stage.batch_seconds,
                seed=stage_seed,
                start=start,
                rank=rank,
                world_size=world_size,
            ),
            held_out,
            partial(audio_loader, workers=self.workers),
            folder,
            name=name,
            on_step=report,
            **self.carried_out,
        )

        def keep() -> None:
            _save(module.student, module.loss, folder / "student")
            write_json(folder / "result.json", outcome | {"peak_memory": peak_memory()})

        ranks.on_first(keep)
        return module.student


def _begin(run: RunFolder, start_from: str | None) -> None:
    """Make the folder this run's, and bring what is taken over from another run there."""
    run.start()
    remove_leftovers(run.path)
    if start_from is not None:
        _take_over(Path(start_from), run.path)


def _check_disk(run: RunFolder, budget: Budget, steps: tuple[int, int], keep: int, milestone_every: int) -> None:
    """See that what a run keeps fits onto the disk: checkpoints (12 bytes per parameter) and four sets of weights.

    Raises:
        InputError: it does not.
    """
    whole = budget.teacher_parameters
    left = whole if budget.parameters is None else budget.parameters
    needed = 4.0 * (whole + 3 * left)
    for parameters, count in ((whole, steps[0]), (left, steps[1])):
        milestones = count // milestone_every if milestone_every else 0
        needed += 12 * parameters * (keep + 1 + milestones)  # one is being written while the others are there
    there = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    require_space(run.path, max(0, round(needed) - there), "a run of this size")


def _fitting(module: Distillation, stage: StageConfig, precision: Precision, name: str, path: Path) -> StageConfig:
    """The stage with batches that fit into memory: as they were when it began, wherever it goes on."""
    if ranks.on_first(path.exists):
        values = ranks.on_first(lambda: read_json(path))
        return replace(stage, batch_seconds=values["batch_seconds"], accumulate=values["accumulate"])
    available = available_to_each()
    fitting = ranks.on_first(lambda: fit_batch(module, stage, precision, name, available))
    batch = {"batch_seconds": fitting.batch_seconds, "accumulate": fitting.accumulate}
    ranks.on_first(lambda: write_json(path, batch))
    return fitting


def _open_data(
    data: list[Part] | str,
    validation_data: str | None,
    validation_seconds: float,
    seed: int,
    absolute_paths: bool,
    found: AudioTally,
) -> tuple[CutSet, CutSet | None]:
    """Training cuts, and validation cuts if there are any."""
    cuts = open_cuts(data, absolute_paths=absolute_paths, max_bad=found.max_bad, found=found)
    if validation_data is not None:
        return cuts, open_cuts(validation_data, absolute_paths=absolute_paths, max_bad=found.max_bad)
    if validation_seconds <= 0:
        return cuts, None
    cuts, held_out = split_cuts(cuts, validation_seconds=validation_seconds, seed=seed)
    return cuts, held_out if any(True for _ in held_out) else None


def _operate(run: RunFolder, gated: Encoder, distance: DistillationLoss, budget: Budget, round_to: int) -> None:
    """Surgery: from RUN/stage1/student to RUN/surgery."""
    run.report("surgery")
    _load(gated, distance, run / "stage1/student")
    fix_gates(gated, budget, round_to)
    pruned = prune(gated)
    _save(pruned, distance, run / "surgery")
    before = int(budget.teacher_parameters)
    logger.info("surgery: %s of %s parameters are left", human(pruned.num_parameters()), human(before))
    write_json(run / "surgery/result.json", {"parameters": pruned.num_parameters(), "teacher_parameters": before})


def _finish(run: RunFolder, settings: dict[str, Any], teacher: Encoder, prepared: AudioTally) -> CompressionResult:
    """Write RUN/model, the outcome and the report."""
    # The report knows of evaluation, which takes long to import and which nothing else here needs.
    from .reporting import report

    run.report("finish")
    student = load_encoder(run / "stage2/student")
    kept = {name: value for name, value in asdict(teacher.config).items() if name.endswith("_dropout")}
    final = Encoder(student.config.replace(**kept))
    final.load_state_dict(student.state_dict())
    final.eval().save_pretrained(run / "model")
    # A run that started behind stage 1 has none.
    done = [name for name in ("stage1", "stage2") if (run / name / "result.json").exists()]
    stages = {name: read_json(run / name / "result.json") for name in done}
    clustered = needs_clusters(settings["method"])
    audio = {"prepare": prepared.state_dict()} if prepared.read else {}
    if (run / "analysis/audio.json").exists():
        audio["analysis"] = read_json(run / "analysis/audio.json")
    audio |= {name: stage.pop("audio") for name, stage in stages.items() if "audio" in stage}
    write_json(run / "bad_audio.json", audio)
    _say_bad_audio(run / "bad_audio.json", audio)
    outcome = {
        "teacher": asdict(measure(teacher, str(settings["teacher"]))),
        "student": asdict(measure(final, str(run / "model"))),
        "loss_after_surgery": stages["stage2"]["validation_at_start"].get("distillation"),
        "loss": stages["stage2"]["validation"].get("distillation"),
        "clusters": [list(group) for group in load_analysis(run / "analysis")[1].groups] if clustered else None,
        "stages": stages,
        "audio": audio,
        "widths": {"teacher": _widths(teacher.config), "student": _widths(final.config)},
        "environment": environment(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    write_json(run / "result.json", outcome)
    write_model_card(run / "model" / "README.md", settings, outcome, final.config)
    report([str(run.path)])
    run.report("finished", finished=True)
    return _read_result(run, already_done=False)


def _say_bad_audio(path: Path, audio: dict[str, dict[str, Any]]) -> None:
    """One line for each part of the run in which something was wrong with its audio."""
    for part, found in audio.items():
        if found["kinds"]:
            kinds = ", ".join(f"{kind['cuts']} {name}" for name, kind in found["kinds"].items())
            logger.warning("%s: %d of %d cuts left out (%s): %s", part, found["left_out"], found["read"], kinds, path)


def _widths(config: EncoderConfig) -> dict[str, Any]:
    """What there is of every layer; heads by their numbers."""
    return {
        "channels": [conv.channels for conv in config.convs],
        "heads": [list(layer.heads) for layer in config.layers],
        "units": [layer.units for layer in config.layers],
    }


def _read_result(run: RunFolder, already_done: bool) -> CompressionResult:
    values = read_json(run / "result.json")
    return CompressionResult(
        folder=run.path,
        teacher=Profile(**values["teacher"]),
        student=Profile(**values["student"]),
        loss_after_surgery=values["loss_after_surgery"],
        loss=values["loss"],
        already_done=already_done,
    )


def _copy(encoder: Encoder, dropout: EncoderConfig, keep_dropout: bool) -> Encoder:
    """A copy to be trained, with the dropout of `dropout` or none; no layer is ever skipped: layers are matched."""
    config = encoder.config.without_dropout()
    if keep_dropout:
        config = config.replace(
            hidden_dropout=dropout.hidden_dropout,
            attention_dropout=dropout.attention_dropout,
            activation_dropout=dropout.activation_dropout,
            feature_dropout=dropout.feature_dropout,
        )
    copy = Encoder(config)
    copy.load_state_dict(encoder.state_dict())
    return copy


def _save(encoder: Encoder, distance: DistillationLoss, folder: Path) -> None:
    encoder.save_pretrained(folder)
    with atomic_write(folder / "projections.safetensors") as temporary:
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in distance.state_dict().items()}))


def _load(encoder: Encoder, distance: DistillationLoss, folder: Path) -> None:
    weights = read_weights(folder / "model.safetensors")
    shrink_like(encoder, weights)
    fill(encoder, weights, str(folder))
    fill(distance, read_weights(folder / "projections.safetensors"), str(folder))


def _check_stages(stage1: StageConfig, stage2: StageConfig, processes: int) -> None:
    """See that the settings of the stages make sense, for so many processes."""
    for name, stage in (("stage1", stage1), ("stage2", stage2)):
        for key in ("steps", "learning_rate", "batch_seconds", "accumulate", "gate_learning_rate"):
            if not getattr(stage, key) > 0:
                raise InputError(f"{name}.{key} is {getattr(stage, key):g}; it must be positive")
        batches_per_rank(stage, processes, name)
        if stage.shrink_every < 0:
            raise InputError(f"{name}.shrink_every is {stage.shrink_every}; give a number of updates, or 0 for never")
        if not 0 <= stage.shrink_below <= 0.5:
            raise InputError(f"{name}.shrink_below is {stage.shrink_below:g}; it must lie between 0 and 0.5")
        ramps = ("warmup_steps", "sparsity_steps") if name == "stage1" else ("warmup_steps",)
        for key in ramps:
            if not 0 <= getattr(stage, key) <= stage.steps:
                raise InputError(
                    f"{name}.{key} is {getattr(stage, key)}; it must lie between 0 and {name}.steps, {stage.steps}: "
                    f"give {'all of them' if name == 'stage1' else 'both'}, as the recipes do"
                )


def _check_checkpoints(every: int, keep: int, milestone_every: int) -> None:
    """See that there is always a checkpoint behind the newest: that one may get damaged, or hold a run gone wrong."""
    if every < 1:
        raise InputError(f"checkpoint_every is {every}; it must be positive")
    if keep < 2:
        raise InputError(f"keep_checkpoints is {keep}; it must be at least 2, one to fall back to")
    if milestone_every < 0 or milestone_every % every:
        raise InputError(
            f"milestone_every is {milestone_every}; it must be 0 or a multiple of checkpoint_every, {every}"
        )


def _check_source(source: Path) -> None:
    """See that a run can start behind the stage in that folder."""
    if source.name not in MARKS or not (source / MARKS[source.name]).exists():
        raise InputError(f"{source}: not a finished stage; give RUN/analysis, RUN/stage1 or RUN/surgery of another run")


def _take_over(source: Path, target: Path) -> None:
    """Copy a finished stage of another run, and the analysis that it was made with, unless they are there already."""
    for name in dict.fromkeys(("analysis", source.name)):
        if (source.parent / name).is_dir() and not (target / name / MARKS[name]).exists():
            shutil.rmtree(target / name, ignore_errors=True)
            with atomic_folder(target / name) as temporary:
                shutil.copytree(source.parent / name, temporary, dirs_exist_ok=True)


def _plain(value: Any) -> Any:
    """Types that YAML writes as a person would; paths in full, so that the run can be repeated from anywhere."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(item) for name, item in asdict(value).items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, str | Path) and Path(value).exists():
        return str(Path(value).resolve())
    return value
