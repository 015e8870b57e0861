"""The recipe: analyse, prune and distil (stage 1), cut (surgery), distil again (stage 2), finish."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ..data import Part, open_cuts
from ..distillation import (
    Distance,
    HeadTraining,
    Input,
    InputConfig,
    LossConfig,
    Method,
    Stage1Config,
    Stage2Config,
    Targets,
    UnitsConfig,
)
from ..distillation.parallel import Precision, Strategy
from ..files import atomic_folder, remove_leftovers
from ..kernels.rounding import Rounding
from ..limits import check_options
from ..profiling import Profile
from ..pruning import ControlName, ImportanceName, MissedBudget
from ..run import ranks
from ..run.folder import RunFolder
from ..run.hold import held
from ..similarity import LayerClusters, load_analysis
from ..timing import write_times
from .config import ALL_UNITS, AnalysisConfig, CompressionConfig, PrunedUnits, Quantity, plain
from .plan import (
    SOURCES,
    STAGE1,
    STAGE2,
    TIMES,
    AnalysisPlan,
    Plan,
    analysis_settings,
    check_clusters,
    commit_of,
    read_teacher,
    set_normalization,
    settle,
)
from .steps import Analysis, Finish, OnStep, Stage1, Stage2, Step, Surgery, analyze_layers

logger = logging.getLogger(__name__)

STEPS: tuple[type[Step], ...] = (Analysis, Stage1, Surgery, Stage2, Finish)


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

    @classmethod
    def of(cls, run: RunFolder, already_done: bool) -> CompressionResult:
        """Of a finished run."""
        values = run.read("result.json", "outcome")
        return cls(
            folder=run.path,
            teacher=Profile(**values["teacher"]),
            student=Profile(**values["student"]),
            loss_after_surgery=values["loss_after_surgery"],
            loss=values["loss"],
            already_done=already_done,
        )


def analyze(
    teacher: str,
    data: list[Part] | list[str] | str,
    output: str,
    *,
    clusters: int | Literal["auto"] = 4,
    input_normalization: bool | None = None,
    analysis: AnalysisConfig = AnalysisConfig(),
    devices: int = 1,
    nodes: int = 1,
    revision: str | None = None,
    target_lang: str | None = None,
    seed: int = 0,
    workers: int = 0,
    max_bad: float | str = "1%",
    absolute_paths: bool = False,
) -> LayerClusters:
    """Measure how similar a teacher's layers are and group them; writes OUTPUT/analysis.

    Args:
        teacher: hub id, folder or file.
        data: whatever `prepare` takes (docs/data.md), a list of it, or a list of parts that are mixed by weights.
        output: the run's folder.
        clusters: number of clusters K, or "auto".
        input_normalization: bring waveforms to mean 0 and variance 1 first; by default as the teacher's files say.
        analysis: the other settings.
        devices: processes on this machine that share the audio.
        nodes: machines, all with so many; torchrun or srun starts the command on each of them.
        revision: of the teacher on the hub: branch, tag or commit; the commit is written down and used from then on.
        target_lang: the language of a teacher that has adapters for many (MMS), by its code.
        seed: of the calibration sample.
        workers: processes that read audio, per device.
        max_bad: the share of files or cuts that may be unusable, such as 1% or 0.01.
        absolute_paths: a manifest or tsv may name files outside of its own folder.

    Raises:
        InputError: bad teacher, data or number of clusters.
    """
    arguments = dict(locals())
    check_options(analyze, arguments)
    if ranks.to_be_started(devices, nodes):
        return ranks.start(analyze, arguments | {"devices": 1}, devices)
    ranks.join()
    run = RunFolder(output)
    commit = commit_of(plain(teacher), revision, run, "analysis/config.yaml")
    settings = analysis_settings(teacher, commit, clusters, input_normalization, analysis, seed, target_lang)
    encoder = read_teacher(teacher, commit, target_lang).encoder
    set_normalization(encoder, input_normalization)
    check_clusters(clusters, encoder.config, analysis)
    cuts = open_cuts(data, absolute_paths=absolute_paths, max_bad=max_bad)
    plan = AnalysisPlan(encoder, cuts, settings, clusters, analysis, seed, workers, max_bad)
    with held(run.path):
        if not run.has("analysis/clusters.json"):
            return analyze_layers(plan, run)
        run.refuse_others_in("analysis", settings)
        logger.info("%s is already done", run / "analysis")
        return run.on_first(lambda: load_analysis(run / "analysis").clusters)


def compress(
    teacher: str,
    data: list[Part] | list[str] | str,
    output: str,
    *,
    method: Method = "skill",
    targets: Targets | None = None,
    distance: Distance | None = None,
    input: Input | None = None,
    clusters: int | Literal["auto"] = 4,
    keep_layers: list[int] | int | str | None = None,
    input_normalization: bool | None = None,
    sparsity: float | None = None,
    params: Quantity | None = None,
    macs: Quantity | None = None,
    speedup: float | None = None,
    latency: Quantity | None = None,
    times: str | None = None,
    analysis: AnalysisConfig = AnalysisConfig(),
    stage1: Stage1Config = STAGE1,
    stage2: Stage2Config = STAGE2,
    minutes: float | None = None,
    loss: LossConfig = LossConfig(),
    augmentation: InputConfig = InputConfig(),
    noise: str | None = None,
    units: UnitsConfig = UnitsConfig(),
    head: HeadTraining = HeadTraining(),
    target_lang: str | None = None,
    share_projections: bool = False,
    scale_layers: bool | None = None,
    pruned_units: tuple[PrunedUnits, ...] = ALL_UNITS,
    control: ControlName | Literal["auto"] = "auto",
    importance: ImportanceName = "sensitivity",
    missed_budget: MissedBudget = "refuse",
    round_to: int = 1,
    quantization: Rounding | None = None,
    min_seconds: float = 2.0,
    validation_data: str | None = None,
    validation_seconds: float = 300.0,
    validate_every: int = 1_000,
    checkpoint_every: int = 500,
    checkpoint_minutes: float = 10.0,
    keep_checkpoints: int = 2,
    milestone_every: int = 0,
    precision: Precision | Literal["auto"] = "auto",
    devices: int = 1,
    nodes: int = 1,
    strategy: Strategy = "ddp",
    revision: str | None = None,
    start_from: str | None = None,
    seed: int = 0,
    workers: int = 0,
    max_bad: float | str = "1%",
    absolute_paths: bool = False,
    accept_changed_data: bool = False,
    on_step: OnStep | None = None,
) -> CompressionResult:
    """Make a small encoder of a large one; the same call resumes where it stopped.

    Args:
        teacher: hub id, folder or file.
        data: unlabelled speech: whatever `prepare` takes (docs/data.md), a list of it, or a list of parts (path,
            weight, column) that are mixed by their weights.
        output: the run's folder; the student will be in its `model`.
        method: "skill", or one of the methods it is compared with: a name for the next three.
        targets: which layers are matched, by the name of the method that has them; by default as the method has it.
        distance: "l1-cosine" frame by frame, "temporal" between the frames of an utterance, or "both"; by default as
            the method has it.
        input: what the student hears in training: "clean", "masked", "noisy" or "masked-noisy" speech; by default as
            the method has it.
        clusters: number of layer clusters K, or "auto".
        keep_layers: layers that are read by number later, such as 9,12 for voice conversion: each is a target of its
            own beside the others, without a projection.
        input_normalization: bring waveforms to mean 0 and variance 1 first, in teacher and student; by default as the
            teacher's files say.
        sparsity: share of the teacher's parameters to remove (0.75 if no budget is given).
        params: parameters to keep: 23.6M, or a share such as 0.25.
        macs: multiply-accumulates per second of audio to keep: 1.2G, or a share such as 0.35.
        speedup: how many times as fast as the teacher the student has to be, on this machine or the one of `times`.
        latency: milliseconds that it may take there for a second of audio, such as 12ms/s.
        times: a table of what the teacher's components take on another machine, written there by `profile`; by default
            it is measured here, once.
        analysis: how layers are compared and grouped.
        stage1: joint pruning and distillation.
        stage2: distillation of the pruned student.
        minutes: how long the whole run may take on this machine: some updates are timed, and the lengths of both stages
            follow, in the proportions that they have otherwise.
        loss: weights of the distance between the layers of student and teacher.
        augmentation: how the student's input is masked, and how noisy it is.
        noise: recordings of noise, anything that `data` may be; by default noise is made.
        units: what of the teacher's units the student predicts in stage 2.
        head: what becomes of the head of a fine-tuned teacher, and how its outputs are distilled.
        target_lang: the language of a teacher that has adapters for many (MMS), by its code.
        share_projections: one projection for all targets without layer 0 instead of one per target.
        scale_layers: bring the layers to one scale before averaging them; by default for pre-norm teachers, whose
            later layers would drown the others, and the methods that group layers.
        pruned_units: what may be removed.
        control: what brings the student to its budget in stage 1. "exact" has that size from the first update on, in
            runs of any length; "lagrangian" is the published control, which needs the published number of updates;
            "one-shot" removes the least important units at once. "auto" is "lagrangian" for the method dphubert at the
            published length, "one-shot" below 1,000 updates, and "exact" otherwise.
        importance: how units are compared at the start: by how much they move the states that are distilled, or by the
            magnitude of their weights. Not used by the lagrangian control.
        missed_budget: what to do when stage 1 ends far from the budget: "refuse" to cut, "keep" the size that the gates
            have, or "cut" down to the budget all the same.
        round_to: numbers of channels and feed-forward units become multiples of it: 8, 16 or 32 for hardware that wants
            such widths.
        quantization: numbers that the transformer's linear maps are computed with in stage 2: "int8" rounds weights and
            inputs, "int4" weights alone, as the exports and `optimize` do. The student's weights are the rounded ones.
        min_seconds: shortest utterance that is learned from; of keywords of a second, give 0.5.
        validation_data: speech to log the loss on; by default a part of `data` is held out.
        validation_seconds: how much is held out.
        validate_every: updates between validations; 0 for none between a stage's start and its end.
        checkpoint_every: updates between checkpoints.
        checkpoint_minutes: minutes between checkpoints, at most, where updates are slow; 0 for no such limit.
        keep_checkpoints: how many of the newest are kept, at least 2.
        milestone_every: checkpoints at multiples of this are kept permanently; 0 for none.
        precision: "bf16", "float32", or "auto": bf16 where the device has instructions for it.
        devices: accelerators to train on in this machine, or processes where there are none; they share the batches of
            an update.
        nodes: machines, all with so many devices; torchrun or srun starts the command on each of them.
        strategy: "ddp" keeps the student on every device, "fsdp" shards it and the optimiser's state.
        revision: of the teacher on the hub: branch, tag or commit; the commit is written down and used from then on.
        start_from: a finished stage of another run, RUN/analysis, RUN/stage1 or RUN/surgery: it and what it needed are
            copied, and the run starts after it.
        seed: of everything random.
        workers: processes that read audio.
        max_bad: the share of files or cuts that may be unusable, such as 1% or 0.01.
        absolute_paths: a manifest or tsv may name files outside of its own folder.
        accept_changed_data: resume although the data is not what it was when the run began.
        on_step: called with the `Stage` after every update of both stages, by every rank; for programs.

    Raises:
        InputError: bad teacher, data, budget or settings, an output folder of another run or in which one is running.
        Stopped: by SIGTERM or SIGUSR1; the same call resumes.
    """
    arguments = dict(locals())
    check_options(compress, arguments)
    del arguments["on_step"]
    # A program may give stage 2 a Stage1Config: the settings that stage 2 does not have are left out.
    arguments["stage2"] = Stage2Config(**{one.name: getattr(stage2, one.name) for one in fields(Stage2Config)})
    config = CompressionConfig(**arguments)
    if ranks.to_be_started(devices, nodes):
        config.check_together(devices)
        return ranks.start(compress, arguments | {"devices": 1, "on_step": on_step}, devices)
    ranks.join()
    return carry_out(config, on_step)


def carry_out(config: CompressionConfig, on_step: OnStep | None = None) -> CompressionResult:
    """Compress as the settings say, in this process and perhaps others beside it."""
    run = RunFolder(config.output)
    config, times = settle(config, run)
    run.refuse_others(config.settings, config.may_change())
    if run.is_finished():
        logger.info("%s is finished: nothing to do", run.path)
        return CompressionResult.of(run, already_done=True)
    plan = Plan.of(config, run, times)
    # Everything that can be wrong with the settings has been looked at: from here on the folder is this run's.
    with held(run.path) as stop:
        begin(plan, run)
        for kind in STEPS:
            step = kind(plan, run, stop, on_step)
            if step.wanted() and not step.is_done():
                run.report(step.name)
                step.carry_out()
    return CompressionResult.of(run, already_done=False)


def begin(plan: Plan, run: RunFolder) -> None:
    """Make the folder this run's, note its data and times, and copy the steps that it starts from."""
    config = plan.config
    run.write_settings(config.settings)
    run.on_first(lambda: remove_leftovers(run.path))
    run.save("data.json", plan.data_note)
    if plan.times is not None and not run.has(TIMES):
        times = plan.times
        run.on_first(lambda: write_times(run / TIMES, times))
    if config.start_from is not None:
        source = Path(config.start_from)
        run.on_first(lambda: _copy_steps(source, run.path))


def _copy_steps(source: Path, target: Path) -> None:
    """Copy a finished step of another run and the analysis it was made with, but for what is there already."""
    for name in dict.fromkeys(("analysis", source.name)):
        if (source.parent / name).is_dir() and not (target / SOURCES[name]).exists():
            shutil.rmtree(target / name, ignore_errors=True)
            with atomic_folder(target / name) as temporary:
                shutil.copytree(source.parent / name, temporary, dirs_exist_ok=True)
