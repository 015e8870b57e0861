"""The recipe: analyse, prune and distill (stage 1), cut (surgery), distill again (stage 2), finish."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from ..data import AudioTally, Part, open_cuts
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
        teacher: Teacher model: hub ID, folder or file.
        data: Speech data in any form that `prepare` accepts (docs/data.md), a list of such data, or a list of parts
            (path, weight, column) mixed by weight.
        output: Folder of the run.
        clusters: Number of layer clusters K, or "auto" to choose a stable one.
        input_normalization: Normalize waveforms to zero mean and unit variance; by default, as the teacher's files
            specify.
        analysis: Analysis settings.
        devices: Number of processes on this machine that share the audio.
        nodes: Number of machines, each with that many processes; torchrun or srun starts the command on each of them.
        revision: Revision of the teacher on the hub: branch, tag or commit. The commit it resolves to is recorded and
            used from then on.
        target_lang: Language code for a teacher with adapters for many languages (MMS).
        seed: Random seed for the calibration sample.
        workers: Number of data loading processes per device.
        max_bad: Maximum share of unusable files or cuts, such as 1% or 0.01.
        absolute_paths: Allow a manifest or table to name files outside its own folder.

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
    audio = AudioTally(max_bad)
    cuts = open_cuts(data, absolute_paths=absolute_paths, max_bad=max_bad)
    plan = AnalysisPlan(encoder, cuts, settings, clusters, analysis, seed, workers, audio)
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
    """Make a small encoder of a large one; the same call resumes it.

    Args:
        teacher: Teacher model: hub ID, folder or file.
        data: Unlabeled speech in any form that `prepare` accepts (docs/data.md), a list of such data, or a list of
            parts (path, weight, column) mixed by weight.
        output: Folder of the run; the student is written to its `model` folder.
        method: Compression method: "skill" or one of the methods it is compared with. A method is a preset for
            `targets`, `distance` and `input`.
        targets: Which teacher layers to match, by the name of the method that defines them; by default, the method's
            own.
        distance: Distance between student and teacher: "l1-cosine" (frame by frame), "temporal" (between the frames of
            an utterance) or "both"; by default, the method's own.
        input: Training input of the student: "clean", "masked", "noisy" or "masked-noisy" speech; by default, the
            method's own.
        clusters: Number of layer clusters K, or "auto" to choose a stable one.
        keep_layers: Layers that will be read by number later, such as 9,12 for voice conversion. Each becomes an
            additional target of its own, without a projection.
        input_normalization: Normalize waveforms to zero mean and unit variance, in teacher and student; by default, as
            the teacher's files specify.
        sparsity: Share of the teacher's parameters to remove (0.75 if no budget is given).
        params: Number of parameters to keep, such as 23.6M, or a share, such as 0.25.
        macs: Multiply-accumulates per second of audio to keep, such as 1.2G, or a share, such as 0.35.
        speedup: Target speedup over the teacher, on this machine or on the one that `times` was measured on.
        latency: Target processing time per second of audio, such as 12ms/s, on the same machine as for `speedup`.
        times: Table of component times that `profile --times` wrote on another machine; by default, they are measured
            once on this one.
        analysis: Settings for comparing and grouping layers.
        stage1: Settings of stage 1, joint pruning and distillation.
        stage2: Settings of stage 2, distillation of the pruned student.
        minutes: Target duration of the whole run on this machine, in minutes. A few updates are timed, and the lengths
            of both stages are scaled in proportion: of `stage1.steps` and `stage2.steps` only the ratio counts.
        loss: Weights of the distance between student and teacher layers.
        augmentation: Masking of the student's input and noise added to it.
        noise: Noise recordings, in any form that `data` accepts; by default, synthetic noise.
        units: Teacher units for the student to predict in stage 2.
        head: Whether to keep the head of a fine-tuned teacher, and how to distill its outputs.
        target_lang: Language code for a teacher with adapters for many languages (MMS).
        share_projections: Share one projection among all targets except layer 0, instead of one per target.
        scale_layers: Scale layers to the same magnitude before averaging them; by default, for methods that group
            layers and for pre-norm teachers, whose later layers would dominate.
        pruned_units: Units that may be removed.
        control: How stage 1 meets the budget: "exact" has the target size from the first update, in runs of any length;
            "lagrangian" is the published control, which needs the published number of updates; "one-shot" removes the
            least important units at once. "auto" selects "lagrangian" for the method dphubert at the published length,
            "one-shot" below 1,000 updates, and "exact" otherwise.
        importance: Initial ranking of units: by their effect on the distilled states, or by the magnitude of their
            weights. Not used by the lagrangian control.
        missed_budget: What to do if stage 1 ends far from the budget: "refuse" to prune, "keep" the size of the gates,
            or "cut" to the budget anyway.
        round_to: Round the numbers of channels and feed-forward units to multiples of N, such as 8, 16 or 32, for
            hardware that prefers such widths.
        quantization: Rounding in stage 2: "int8" rounds weights and inputs of the transformer's linear maps, "int4"
            weights only, as `export` and `optimize` do. The student keeps the rounded weights.
        min_seconds: Minimum length in seconds of a training utterance; use 0.5 for one-second keywords.
        validation_data: Speech to compute the validation loss on; by default, a held-out part of `data`.
        validation_seconds: Seconds of audio to hold out for validation.
        validate_every: Validate every N updates; 0 validates only at the start and end of a stage.
        checkpoint_every: Write a checkpoint every N updates.
        checkpoint_minutes: Write a checkpoint at least every X minutes, even if updates are slow; 0 for no time limit.
        keep_checkpoints: Number of recent checkpoints to keep, at least 2.
        milestone_every: Keep checkpoints at multiples of N updates permanently; 0 keeps none.
        precision: Training precision: "bf16", "float32", or "auto" for bf16 where the device has instructions for it.
        devices: Number of accelerators on this machine to train on, or of processes if there are none; they share the
            batches of an update.
        nodes: Number of machines, each with that many devices; torchrun or srun starts the command on each of them.
        strategy: Distributed strategy: "ddp" replicates the student on every device, "fsdp" shards it and the optimizer
            state.
        revision: Revision of the teacher on the hub: branch, tag or commit. The commit it resolves to is recorded and
            used from then on.
        start_from: Finished stage of another run to start after: RUN/analysis, RUN/stage1 or RUN/surgery. It is copied,
            along with the stages that it needed.
        seed: Random seed for data sampling and order, augmentation, gates, dropout and initialization.
        workers: Number of data loading processes.
        max_bad: Maximum share of unusable files or cuts, such as 1% or 0.01.
        absolute_paths: Allow a manifest or table to name files outside its own folder.
        accept_changed_data: Resume although the data has changed since the run began.
        on_step: Function to call with the `Stage` after every update of both stages, on every rank; Python only.

    Raises:
        InputError: bad teacher, data, budget or settings, an output folder of another run or in which one is running.
        Stopped: by SIGTERM or SIGUSR1; the same call resumes.
        KeyboardInterrupt: by SIGINT (Ctrl-C), after a checkpoint; the same call resumes.
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
        logger.info("%s is already finished: nothing to do", run.path)
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
