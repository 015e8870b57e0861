"""What a run is going to do: everything that can be wrong is found here, before anything is written."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lhotse import CutSet
from torch import Tensor

from ..checkpoints import Checkpoint, read_checkpoint, resolve_revision, warn_of_assumptions
from ..checkpoints.tokenizers import Tokenizer
from ..checkpoints.weights import read_weights
from ..data import (
    LABEL_FIELDS,
    AudioTally,
    LabelField,
    audio_loader,
    check_same_data,
    evaluation_batches,
    find_labels,
    open_cuts,
    split_cuts,
)
from ..distillation import (
    METHODS,
    DistillationLoss,
    Method,
    OutputLoss,
    Stage1Config,
    Stage2Config,
    StudentInput,
    check_layers,
    groups_layers,
    layer_numbers,
    make_targets,
    needs_clusters,
)
from ..distillation.outputs import Encode
from ..distillation.pace import fit, measure_pace
from ..distillation.parallel import Precision
from ..encoder import Encoder, EncoderConfig
from ..errors import InputError
from ..files import require_space
from ..hardware import multiplies_bfloat16
from ..heads import Head
from ..limits import refuse_other_rates
from ..pruning import REFERENCE_SECONDS, Budget, ControlName, Times, Widths, attach_gates, check_rounding
from ..run import ranks
from ..run.folder import RunFolder
from ..run.patience import BUSY, seconds_waited
from ..similarity import load_analysis, load_scales
from ..timing import measure_times, read_times
from .config import AnalysisConfig, CompressionConfig, PrunedUnits, plain

logger = logging.getLogger(__name__)

STAGE1, STAGE2 = Stage1Config(), Stage2Config()
# Updates of stage 1 from which learned gates are the default. A gate takes some hundred to change sides: at 60 they end
# in the loss of a one-shot cut (docs/results-choices.md); longer stages are not compared yet (`python -m lab.control`).
LEARNED_FROM = 1_000
FOLLOW_FROM_MINUTES = (
    "control",
    *(f"stage1.{one.name}" for one in fields(Stage1Config)),
    *(f"stage2.{one.name}" for one in fields(Stage2Config)),
)
"""Settings that are known only when updates have been timed, where the length of a run is given in minutes."""
TIMES = "times.json"
PROJECTIONS = "projections.safetensors"
"""What stages learn besides the student: projections, and its head."""
NOISE_SECONDS = 1_800.0
"""Of a user's noise that is held in memory, 115 MB."""
SOURCES = {"analysis": "analysis/clusters.json", "stage1": "stage1/result.json", "surgery": "surgery/result.json"}
"""The steps that another run can start from, and what says that they are done."""


@dataclass(frozen=True)
class AnalysisPlan:
    """What the analysis of a teacher works with.

    Attributes:
        encoder: the teacher.
        cuts: audio, of which a sample is taken.
        settings: what comes of it depends on them, besides the data, of which any sample does.
        clusters, config, seed: of those settings.
        workers: processes that read audio.
        audio: what was wrong with the audio's files.
    """

    encoder: Encoder
    cuts: CutSet
    settings: dict[str, Any]
    clusters: int | Literal["auto"]
    config: AnalysisConfig
    seed: int
    workers: int
    audio: AudioTally


@dataclass(frozen=True)
class Plan:
    """What a run works with; it can be made again from the same settings.

    Attributes:
        config: the settings, with what "auto" stands for.
        teacher: as its files have it.
        direction_norm_K: of the teacher's positional convolution, where it was trained under weight normalization.
        budget: what the student may cost.
        times: what the teacher's components take, for a budget of time.
        cuts, validation: audio to learn from, and held out.
        head: what was fine-tuned on the teacher, and is going to be on the student.
        files: what else belongs to the teacher, by name: tokenizer, vocabulary, feature extractor.
        encode: from the transcript or labels of an utterance to outputs of the head, where labels weigh something.
        labels: where the data has them.
        audio: what was wrong with the audio's files.
        data_note: what the data is, to be compared with when the run resumes.
        student_input: what is done to the student's speech.
        analysis: how layers are grouped; None where nothing needs it.
        scales_layers: the layers are brought to one scale.
    """

    config: CompressionConfig
    teacher: Encoder
    direction_norm_K: Tensor | None
    budget: Budget
    times: Times | None
    cuts: CutSet
    validation: CutSet | None
    head: Head | None
    files: Mapping[str, bytes]
    encode: Encode | None
    labels: LabelField | None
    audio: AudioTally
    data_note: dict[str, Any]
    student_input: StudentInput
    analysis: AnalysisPlan | None
    scales_layers: bool

    @classmethod
    def of(cls, config: CompressionConfig, run: RunFolder, times: Times | None = None) -> Plan:
        """Make the plan of settled settings; reads, checks and measures, and writes nothing.

        Args:
            config: as `settle` leaves it.
            run: the folder, in which much may be done already.
            times: what the teacher's components take, if that has been measured a moment ago.

        Raises:
            InputError: bad teacher, data, budget or settings, or a folder in which other data was used.
        """
        checkpoint = read_teacher(config.teacher, config.revision, config.target_lang)
        warn_of_assumptions(config.teacher, checkpoint.assumed)
        teacher = checkpoint.encoder
        set_normalization(teacher, config.input_normalization)
        if times is None:
            times = table_of_times(config, teacher, run)
        head = checkpoint.head if config.head.keep else None
        if head is not None:
            logger.info("the student keeps the teacher's head: %s, %d outputs", head.config.kind, head.config.outputs)
            if head.config.kind == "ctc" and "vocab.json" not in checkpoint.files:
                logger.warning(
                    "warning: %s: no vocab.json there, so the student will write no text: stop, save the processor or "
                    "tokenizer into that folder, and begin again; or copy its files to the student's folder later",
                    config.teacher,
                )
        elif checkpoint.head is not None:
            logger.info("the teacher's head (%s) is left out: head.keep is false", checkpoint.head.config.kind)
        budget = make_budget(config, teacher.config, times, head)
        gated = make_gated(teacher, config.stage1, config.pruned_units)
        budget.check(gated)
        check_rounding(gated, budget, config.round_to)
        assert config.targets is not None
        check_layers(layer_numbers(config.keep_layers), teacher.config.num_layers)
        grouped = needs_clusters(config.targets)
        scaled = config.scale_layers
        if scaled is None:
            scaled = groups_layers(config.targets) and teacher.config.pre_norm
        if grouped or scaled:
            check_clusters(config.clusters, teacher.config, config.analysis)
        if not grouped:
            make_targets(config.targets, teacher.config.num_layers, count=_count(config))  # refuses what cannot be
        config.units.layer_of(teacher.config.num_layers)
        audio = AudioTally(config.max_bad)
        cuts, validation = _open_data(config, audio)
        if not any(cut.duration >= config.min_seconds for cut in cuts):
            raise InputError(
                f"no audio of at least {config.min_seconds:g} s to learn from: give more data or lower min_seconds"
            )
        parts = {"data": cuts, "validation_data": validation}
        encode, field = None, None
        if config.head.labels:
            encode, fields = encoder_of_labels(config.teacher, head, checkpoint.files)
            field = find_labels(
                cuts, fields, lambda said: bool(encode(said)), "set head.labels to 0, or give a manifest that has them"
            )
        noise = None
        if config.noise is not None:
            parts["noise"] = noise = open_cuts(config.noise, absolute_paths=config.absolute_paths)
        note = run.on_first(lambda: check_same_data(run / "data.json", parts, config.accept_changed_data))
        if config.start_from is not None:
            _check_source(Path(config.start_from), head)
        analysis = None
        if grouped or scaled:
            settings = analysis_settings(
                config.teacher,
                config.revision,
                config.clusters,
                config.input_normalization,
                config.analysis,
                config.seed,
                config.target_lang,
            )
            analysis = AnalysisPlan(
                teacher, cuts, settings, config.clusters, config.analysis, config.seed, config.workers, audio
            )
            # What a run has begun with is its own, also where it was copied from one with other settings.
            if run.has("analysis/clusters.json") and not run.has("config.yaml"):
                run.refuse_others_in("analysis", settings)
        plan = cls(
            config=config,
            teacher=teacher,
            direction_norm_K=checkpoint.direction_norm_K,
            budget=budget,
            times=times,
            cuts=cuts,
            validation=validation,
            head=head,
            files=checkpoint.files if head is not None else {},
            encode=encode,
            labels=field,
            audio=audio,
            data_note=note,
            student_input=make_input(config, noise, teacher.config.sampling_rate),
            analysis=analysis,
            scales_layers=scaled,
        )
        plan._check_disk(run)
        return plan

    def gated(self) -> Encoder:
        """A copy of the teacher with gates, as stage 1 begins with."""
        torch.manual_seed(self.config.seed)  # gates begin a little different from one another
        return make_gated(self.teacher, self.config.stage1, self.config.pruned_units)

    def distance(self, run: RunFolder) -> DistillationLoss:
        """The distance between student and teacher, by the run's analysis where there is one."""
        config, groups, scales = self.config, None, None
        if self.analysis is not None:
            groups = run.on_first(lambda: load_analysis(run / "analysis").clusters)
        if self.scales_layers:
            scales = run.on_first(lambda: load_scales(run / "analysis").tolist())
        assert config.targets is not None
        assert config.distance is not None
        targets = make_targets(
            config.targets,
            self.teacher.config.num_layers,
            groups,
            count=_count(config),
            share_projections=config.share_projections,
            keep=layer_numbers(config.keep_layers),
        )
        outputs = None if self.head is None else OutputLoss(self.head, config.head, self.encode)
        width = self.teacher.config.hidden_size
        return DistillationLoss(targets, width, config.loss, scales, outputs, config.distance)

    def _check_disk(self, run: RunFolder) -> None:
        """See that what a run keeps fits onto the disk: checkpoints (12 bytes per parameter), four sets of weights.

        Raises:
            InputError: it does not.
        """
        config, whole = self.config, self.budget.teacher_parameters
        left = whole if self.budget.parameters is None else self.budget.parameters
        needed = 4.0 * (whole + 3 * left)
        for parameters, steps in ((whole, config.stage1.steps), (left, config.stage2.steps)):
            milestones = steps // config.milestone_every if config.milestone_every else 0
            # One is being written while the others are there; no stage has more of them than updates.
            needed += 12 * parameters * min(steps, config.keep_checkpoints + 1 + milestones)

        def look() -> None:
            there = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
            require_space(run.path, max(0, round(needed) - there), "a run of this size")

        run.on_first(look)


def settle(config: CompressionConfig, run: RunFolder) -> tuple[CompressionConfig, Times | None]:
    """The settings with what "auto" stands for, as the run's config.yaml has it or, of a new run, as is best here.

    A run keeps precision, the teacher's commit and the lengths of its stages, wherever it resumes.

    Returns:
        the settings; and what the teacher's components take, if that had to be measured.

    Raises:
        InputError: bad settings, or a teacher that is not there.
    """
    config.check_together(ranks.count())  # first of all: with `minutes` the rest takes a while
    config = replace(config, teacher=config.settings["teacher"])
    budgets = (config.sparsity, config.params, config.macs, config.speedup, config.latency)
    if all(budget is None for budget in budgets):
        config = replace(config, sparsity=0.75)
    objective = METHODS[config.method]
    config = replace(
        config,
        keep_layers=list(layer_numbers(config.keep_layers)) or None,
        targets=config.targets or objective.targets,
        distance=config.distance or objective.distance,
        input=config.input or objective.input,
        units=replace(config.units, count=objective.units if config.units.count is None else config.units.count),
    )
    if config.precision == "auto":
        stated = run.stated("precision")
        config = replace(config, precision=stated if stated in get_args(Precision) else run.on_first(fast_precision))
    config = replace(config, revision=commit_of(config.teacher, config.revision, run))
    config, times = replace(config, stage1=config.stage1.in_updates(), stage2=config.stage2.in_updates()), None
    if config.minutes is not None:
        # Before anything is timed; what follows from the minutes is not known yet.
        run.refuse_others(config.settings, [*config.may_change(), *FOLLOW_FROM_MINUTES])
        _refuse_missing(config)
        config, times = _within_minutes(config, run)
    if config.control == "auto":
        config = replace(config, control=best_control(config.method, config.stage1))
    return config, times


def read_teacher(source: str, revision: str | None, target_lang: str | None) -> Checkpoint:
    """The encoder and the head of a teacher that learns from audio as it is read.

    Raises:
        InputError: it cannot be loaded, or takes waveforms of another sampling rate.
    """
    checkpoint = read_checkpoint(source, revision=revision, target_lang=target_lang)
    refuse_other_rates(checkpoint.encoder.config.sampling_rate, source)
    return checkpoint


def commit_of(teacher: str, revision: str | None, run: RunFolder, settings: str = "config.yaml") -> str | None:
    """The commit of a teacher on the hub: the one that the run has begun with, unless one is asked for."""
    begun = None if revision is not None else run.stated("revision", {"teacher": teacher}, settings)
    return str(begun) if begun else run.on_first(lambda: resolve_revision(teacher, revision))


def _within_minutes(config: CompressionConfig, run: RunFolder) -> tuple[CompressionConfig, Times | None]:
    """The settings with stages as long as the run has begun with, or such that all fits into so many minutes."""
    stages, same = (config.stage1, config.stage2), {"minutes": config.minutes}
    begun = [run.stated(name, same) for name in ("stage1", "stage2")]
    steps = [values.get("steps") if isinstance(values, dict) else None for values in begun]
    if all(isinstance(number, int) and number > 0 for number in steps):
        stages = stages[0].in_updates(steps[0]), stages[1].in_updates(steps[1])
        return replace(config, stage1=stages[0], stage2=stages[1]), None
    assert config.minutes is not None
    assert config.precision != "auto"
    started = time.monotonic()
    checkpoint = read_teacher(config.teacher, config.revision, config.target_lang)
    teacher = checkpoint.encoder
    check_layers(layer_numbers(config.keep_layers), teacher.config.num_layers)
    times = table_of_times(config, teacher, run)
    head = checkpoint.head if config.head.keep else None
    budget = make_budget(config, teacher.config, times, head)
    gated = make_gated(teacher, config.stage1, config.pruned_units)
    budget.check(gated)
    assert config.targets is not None
    assert config.distance is not None
    assert config.input is not None
    # Clusters are not known yet: four layers alone take as long as the means of four groups.
    targets = make_targets(
        "dphubert" if needs_clusters(config.targets) else config.targets,
        teacher.config.num_layers,
        count=_count(config),
        keep=layer_numbers(config.keep_layers),
    )
    outputs = None if head is None else OutputLoss(head, config.head)
    loss = DistillationLoss(targets, teacher.config.hidden_size, config.loss, None, outputs, config.distance)
    heard = StudentInput(config.input, config.augmentation, (), teacher.config.sampling_rate)
    pace = measure_pace(teacher, gated, budget, stages, config.precision, loss, heard, config.quantization)
    groups_are_made = needs_clusters(config.targets or config.method) and not config.start_from
    fitting = fit(
        config.minutes,
        pace,
        stages,
        spent=run.on_first(lambda: time.monotonic() - started),  # the others' clocks are a little different
        encoded_seconds=config.analysis.calibration_seconds * groups_are_made + 4 * config.validation_seconds,
        encoded_in_each=config.validation_seconds / config.validate_every if config.validate_every else 0.0,
        with_stage1=Path(config.start_from or "").name not in ("stage1", "surgery"),
    )
    logger.info(
        "%g minutes: %d updates of %.2g s in stage 1 and %d of %.2g s in stage 2",
        *(config.minutes, fitting[0].steps, pace.stage1, fitting[1].steps, pace.stage2),
    )
    return replace(config, stage1=fitting[0], stage2=fitting[1]), times


def best_control(method: Method, stage: Stage1Config) -> ControlName:
    """The published control where published numbers are repeated, otherwise the one that ends in the better student."""
    if method == "dphubert" and stage.steps >= STAGE1.steps:
        return "lagrangian"
    return "one-shot" if stage.steps < LEARNED_FROM else "exact"


def fast_precision() -> Precision:
    """bf16 where the device has instructions for it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16" if multiplies_bfloat16(device) else "float32"


def make_budget(config: CompressionConfig, teacher: EncoderConfig, times: Times | None, head: Head | None) -> Budget:
    """What the settings allow the student to cost, its head included."""
    frames = teacher.num_frames(round(REFERENCE_SECONDS * teacher.sampling_rate))
    return Budget.of(
        teacher,
        sparsity=config.sparsity,
        parameters=config.params,
        macs=config.macs,
        speedup=config.speedup,
        latency=config.latency,
        times=times,
        head_parameters=0 if head is None else head.num_parameters(),
        head_macs=0 if head is None else head.macs(frames) / REFERENCE_SECONDS,
    )


def table_of_times(config: CompressionConfig, teacher: Encoder, run: RunFolder) -> Times | None:
    """What the teacher's components take: by the run's own table, the one it was given, that of the run it starts
    from, or a new one; None where no budget needs it.

    Raises:
        InputError: the table is damaged, not there, or of another teacher.
    """
    if not config.is_timed:
        return None

    def look() -> Times:
        paths = [run / TIMES]
        if config.start_from is not None:
            paths.append(Path(config.start_from).parent / TIMES)
        if config.times is not None:
            paths.insert(1, Path(config.times))
        for path in paths:
            if path.exists() or str(path) == config.times:
                return read_times(path, teacher.config)
        logger.info("measuring the speed of the teacher's components on this machine, at several widths")
        before, started = seconds_waited(), time.monotonic()
        table = measure_times(teacher)
        waited = None if before is None else max(0.0, (seconds_waited() or 0.0) - before)
        if waited is not None and waited > BUSY * (time.monotonic() - started):
            logger.warning(
                "other processes took the cores while the components were timed (%.0f s of waiting): the student is "
                "made for a slower machine than this one; stop the run and begin it again on a quiet machine, or give "
                "times, a table from one (skill-speech profile --times)",
                waited,
            )
        milliseconds = table.count(teacher.config, Widths.of(teacher.config))
        threads = table.machine["threads"]
        logger.info("the teacher takes %.1f ms for a second of audio (threads: %s)", milliseconds, threads)
        return table

    return run.on_first(look)


def make_input(config: CompressionConfig, noise: CutSet | None, rate: int) -> StudentInput:
    """What is done to the student's speech, which is sampled at `rate`.

    Raises:
        InputError: there is no noise that can be read.
    """
    assert config.input is not None
    recordings = [] if noise is None else read_noise(noise, str(config.noise), config.seed)
    return StudentInput(config.input, config.augmentation, recordings, rate)


def read_noise(cuts: CutSet, source: str, seed: int) -> list[Tensor]:
    """Recordings of noise (T,) at 16 kHz: half an hour of them at most, drawn by the seed, which stays in memory.

    Raises:
        InputError: there is none that can be read.
    """
    batches = evaluation_batches(cuts, batch_seconds=15.6, limit_seconds=NOISE_SECONDS, seed=seed)
    found = []
    for batch in audio_loader(batches):
        found += [row_T[:length] for row_T, length in zip(batch.waveforms_BT, batch.lengths_B.tolist(), strict=True)]
    found = [noise_T.clone() for noise_T in found if bool(noise_T.any())]
    if not found:
        raise InputError(f"{source}: no usable noise: all recordings are unreadable or silent")
    return found


def encoder_of_labels(
    teacher: str, head: Head | None, files: Mapping[str, bytes]
) -> tuple[Encode, Sequence[LabelField]]:
    """What brings transcripts or labels to a head's outputs, and where the data may have them.

    Raises:
        InputError: labels are of no use to this teacher.
    """
    if head is None:
        raise InputError(f"head.labels: {teacher} has no head to learn labels with, or head.keep is false")
    config = head.config
    if config.kind == "ctc":
        tokenizer = Tokenizer(files, config, teacher)
        return lambda said: tokenizer.encode(said[0]) or None, ("transcript",)
    if config.kind == "frame" or config.problem == "regression":
        raise InputError(f"head.labels: labels for {config.kind} heads of {config.problem} outputs cannot be given")

    def numbers(said: tuple[Any, ...]) -> list[int] | None:
        found = [number for one in said if (number := config.number_of(one)) is not None]
        return found if found or not said else None

    return numbers, LABEL_FIELDS


def make_gated(teacher: Encoder, stage: Stage1Config, units: tuple[PrunedUnits, ...]) -> Encoder:
    """A copy of a teacher with gates on what may be removed."""
    return attach_gates(trainable_copy(teacher, teacher.config, stage), units)


def trainable_copy(encoder: Encoder, dropout: EncoderConfig, stage: Stage2Config) -> Encoder:
    """A copy to be trained, with the dropout of `dropout` or none; no layer is ever skipped: layers are matched."""
    config = encoder.config.without_dropout()
    if stage.student_dropout:
        inside = stage.activation_dropout
        config = config.replace(
            hidden_dropout=dropout.hidden_dropout,
            attention_dropout=dropout.attention_dropout,
            activation_dropout=dropout.activation_dropout if inside is None else inside,
            feature_dropout=dropout.feature_dropout,
        )
    return Encoder.of(config, encoder.state_dict())


def set_normalization(encoder: Encoder, input_normalization: bool | None) -> None:
    """Have an encoder treat waveforms otherwise than its files say; None for as they say."""
    if input_normalization is not None:
        encoder.config = encoder.config.replace(input_normalization=input_normalization)


def analysis_settings(
    teacher: str,
    revision: str | None,
    clusters: int | Literal["auto"],
    input_normalization: bool | None,
    analysis: AnalysisConfig,
    seed: int,
    target_lang: str | None,
) -> dict[str, Any]:
    """What an analysis depends on besides the data, as analysis/config.yaml has it."""
    return {name: plain(value) for name, value in locals().items() if name != "target_lang" or value is not None}


def check_clusters(clusters: int | Literal["auto"], teacher: EncoderConfig, config: AnalysisConfig) -> None:
    """See that there are so many layers to group.

    Raises:
        InputError: there are not, or the estimator does not measure what "auto" goes by.
    """
    if clusters == "auto" and config.estimator == "exact":
        raise InputError(
            'clusters "auto" looks at halves of the audio, which the exact estimator does not measure: give a number '
            "of clusters, or take the minibatch estimator"
        )
    count = teacher.num_layers + int(config.include_features)
    if isinstance(clusters, int) and not 1 <= clusters <= count:
        raise InputError(f"clusters is {clusters}; this teacher has {count} layers to group: choose 1 to {count}")


def _count(config: CompressionConfig) -> int | None:
    return config.clusters if isinstance(config.clusters, int) else None


def _refuse_missing(config: CompressionConfig) -> None:
    """See that data given by plain paths is there, before anything that takes time."""
    given = [config.data] if isinstance(config.data, str) else config.data
    paths = [part if isinstance(part, str) else part.path for part in given]
    for path in paths:
        if not set(":*?[") & set(path) and not Path(path).exists():
            open_cuts(path)  # which says so


def _open_data(config: CompressionConfig, found: AudioTally) -> tuple[CutSet, CutSet | None]:
    """Training cuts, and validation cuts if there are any."""
    cuts = open_cuts(
        config.data,
        absolute_paths=config.absolute_paths,
        max_bad=found.max_bad,
        found=found,
        labels=config.head.labels > 0,
    )
    if config.validation_data is not None:
        return cuts, open_cuts(config.validation_data, absolute_paths=config.absolute_paths, max_bad=found.max_bad)
    if config.validation_seconds <= 0:
        return cuts, None
    cuts, held_out = split_cuts(cuts, validation_seconds=config.validation_seconds, seed=config.seed)
    return cuts, held_out if any(True for _ in held_out) else None


def _check_source(source: Path, head: Head | None) -> None:
    """See that a run whose student has such a head can start from the step in that folder."""
    if source.name not in SOURCES or not (source.parent / SOURCES[source.name]).exists():
        raise InputError(f"{source}: not a finished stage; give RUN/analysis, RUN/stage1 or RUN/surgery of another run")
    path = source / "student" / PROJECTIONS if source.name == "stage1" else source / PROJECTIONS
    if source.name == "analysis" or not path.is_file():
        return
    has = any(name.startswith("outputs.") for name in read_weights(path))
    if has != (head is not None):
        raise InputError(
            f"{source}: its student has {'a' if has else 'no'} head, and this run's has {'none' if has else 'one'}: "
            f"set head.keep to {'true, with the same teacher' if has else 'false'}"
        )
