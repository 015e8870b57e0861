"""The settings of a run: what was asked for, and how it is written down."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from ..data import Part
from ..distillation import (
    METHODS,
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
    layer_numbers,
)
from ..distillation.parallel import Precision, Strategy
from ..errors import InputError
from ..kernels.rounding import Rounding
from ..pruning import ControlName, ImportanceName, MissedBudget

PrunedUnits = Literal["channels", "heads", "units"]
ALL_UNITS: tuple[PrunedUnits, ...] = ("channels", "heads", "units")
Quantity = str | int | float
"""23.6M on the command line, 0.25 in a recipe."""


@dataclass(frozen=True)
class AnalysisConfig:
    """How the teacher's layers are compared and grouped.

    Attributes:
        linkage: Linkage of the agglomerative clustering on 1 - CKA.
        contiguous: Allow only neighboring layers to share a cluster.
        include_features: Include h_0, the output of the feature projection.
        cka: Frames to compare when clustering: "raw", as in the paper, or "normalized" to zero mean and unit variance,
            so that a few very large frames do not dominate. Both similarities are measured.
        estimator: CKA estimator: "minibatch" (unbiased, constant memory) or "exact" (computed in feature space).
        calibration_seconds: Seconds of audio to estimate the similarity on.
        batch_seconds: Seconds of audio per forward pass.
        batch_frames: Frames per minibatch of the minibatch estimator.
        precision: Precision of the minibatch estimator's Gram matrices; "auto" selects bf16 where the device has
            instructions for it.
    """

    linkage: Literal["average", "complete", "single"] = "average"
    contiguous: bool = False
    include_features: bool = True
    cka: Literal["raw", "normalized"] = "raw"
    estimator: Literal["minibatch", "exact"] = "minibatch"
    calibration_seconds: float = 600.0
    batch_seconds: float = 60.0
    batch_frames: int = 1024
    precision: Literal["auto", "bf16", "float32"] = "auto"


MAY_CHANGE = "may change"
"""Marks a setting that changes how a run is carried out but not what comes of it: a resumed run may have another."""


@dataclass(frozen=True)
class CompressionConfig:
    """The arguments of `compress`, where they are described and have their defaults."""

    teacher: str
    data: list[Part] | list[str] | str
    output: Annotated[str, MAY_CHANGE]
    method: Method
    targets: Targets | None
    distance: Distance | None
    input: Input | None
    clusters: int | Literal["auto"]
    keep_layers: list[int] | int | str | None
    input_normalization: bool | None
    sparsity: float | None
    params: Quantity | None
    macs: Quantity | None
    speedup: float | None
    latency: Quantity | None
    times: str | None
    analysis: AnalysisConfig
    stage1: Stage1Config
    stage2: Stage2Config
    minutes: float | None
    loss: LossConfig
    augmentation: InputConfig
    noise: str | None
    units: UnitsConfig
    head: HeadTraining
    target_lang: str | None
    share_projections: bool
    scale_layers: bool | None
    pruned_units: tuple[PrunedUnits, ...]
    control: ControlName | Literal["auto"]
    importance: ImportanceName
    missed_budget: Annotated[MissedBudget, MAY_CHANGE]
    round_to: int
    quantization: Rounding | None
    min_seconds: float
    validation_data: str | None
    validation_seconds: float
    validate_every: int
    checkpoint_every: Annotated[int, MAY_CHANGE]
    checkpoint_minutes: Annotated[float, MAY_CHANGE]
    keep_checkpoints: Annotated[int, MAY_CHANGE]
    milestone_every: Annotated[int, MAY_CHANGE]
    precision: Precision | Literal["auto"]
    devices: Annotated[int, MAY_CHANGE]
    nodes: Annotated[int, MAY_CHANGE]
    strategy: Annotated[Strategy, MAY_CHANGE]
    revision: str | None
    start_from: Annotated[str | None, MAY_CHANGE]
    seed: int
    workers: Annotated[int, MAY_CHANGE]
    max_bad: Annotated[float | str, MAY_CHANGE]
    absolute_paths: Annotated[bool, MAY_CHANGE]
    accept_changed_data: Annotated[bool, MAY_CHANGE]

    @classmethod
    def may_change(cls) -> list[str]:
        """The settings that may differ when a run resumes."""
        hints = get_type_hints(cls, include_extras=True)
        return [name for name, hint in hints.items() if MAY_CHANGE in getattr(hint, "__metadata__", ())]

    @property
    def settings(self) -> dict[str, Any]:
        """As config.yaml has them."""
        values = {one.name: plain(getattr(self, one.name)) for one in fields(self)}
        # As text, however they were given: 0.35 in a recipe is --macs 0.35.
        return values | {name: str(values[name]) for name in ("params", "macs", "latency") if values[name] is not None}

    @property
    def is_timed(self) -> bool:
        """Whether the budget is one of time, among others."""
        return self.speedup is not None or self.latency is not None

    def check_together(self, processes: int) -> None:
        """See that settings which are right one by one go together, for so many processes.

        Raises:
            InputError: they do not.
        """
        from ..distillation.stage import batches_per_rank

        for name, stage in (("stage1", self.stage1), ("stage2", self.stage2)):
            batches_per_rank(stage, processes, name)
            if 2 * self.min_seconds > stage.batch_seconds:
                raise InputError(
                    f"min_seconds is {self.min_seconds:g}; it must be at most half of {name}.batch_seconds, "
                    f"{stage.batch_seconds:g}"
                )
            if stage.activation_dropout and not stage.student_dropout:
                raise InputError(
                    f"{name}.activation_dropout is {stage.activation_dropout:g}, and student_dropout is false"
                )
            for key in stage.lengths():
                if getattr(stage, key) > stage.steps:
                    raise InputError(
                        f"{name}.{key} is {getattr(stage, key)}; it must lie between 0 and {name}.steps, "
                        f"{stage.steps}: give {'all of them' if name == 'stage1' else 'both'}, as the recipes do"
                    )
        if self.augmentation.snr_low > self.augmentation.snr_high:
            raise InputError(
                f"augmentation.snr_low is {self.augmentation.snr_low:g}; it must be at most augmentation.snr_high, "
                f"{self.augmentation.snr_high:g}"
            )
        layer_numbers(self.keep_layers)
        objective = METHODS[self.method]
        if self.noise is not None and "noisy" not in (self.input or objective.input):
            raise InputError("noise needs a noisy input: set input to noisy or masked-noisy")
        used = self.loss.of(self.distance or objective.distance).weights()
        if not any(used.values()):
            *names, last = (f"loss.{name}" for name in used)
            raise InputError(f"{', '.join(names)} and {last} are all 0, so there is nothing to learn: set at least one")
        if self.milestone_every % self.checkpoint_every:
            raise InputError(
                f"milestone_every is {self.milestone_every}; it must be 0 or a multiple of checkpoint_every, "
                f"{self.checkpoint_every}"
            )
        if self.times is not None and not self.is_timed:
            raise InputError("times needs a time budget: give speedup or latency")


def plain(value: Any) -> Any:
    """Types that YAML writes as a person would; paths in full, so that the run can be repeated from anywhere."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(item) for name, item in asdict(value).items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, str | Path) and Path(value).exists():
        return str(Path(value).resolve())
    return value
