"""SUPERB's protocol in numbers: s3prl's configuration of every task; docs/superb-protocol.md has the sources."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from ..errors import InputError
from ..limits import check_config
from .corpora import TASKS


@dataclass(frozen=True)
class AudioConfig:
    """What is done to the waveform before the encoder sees it.

    Attributes:
        gain_db: of the whole waveform.
        trim_silence: silence is taken out (`silence.trim_silence`).
    """

    gain_db: float = 0.0
    trim_silence: bool = False


@dataclass(frozen=True)
class SpecAugmentConfig:
    """Warping and masking of the features that a head is trained on (Park et al. 2019, arXiv 1904.08779).

    Attributes:
        time_warp: the warped frame moves by less than so many frames.
        time_masks, time_width: number of masks over time and their width in frames, drawn below it.
        feature_masks, feature_width: the same over feature dimensions.
    """

    time_warp: int = 5
    time_masks: int = 2
    time_width: int = 40
    feature_masks: int = 4
    feature_width: int = 50


@dataclass(frozen=True)
class TrainingConfig:
    """How a head is trained on frozen features.

    Attributes:
        steps: updates.
        learning_rates: each is tried; the best one on the split that chooses is scored.
        batch_size: utterances per batch.
        accumulate: batches per update.
        clip: largest norm of the gradient.
        optimizer: with torch's defaults but for the learning rate.
        eval_every: updates between the looks at the split that chooses the checkpoint.
        audio: what is done to the waveform.
    """

    steps: int
    learning_rates: tuple[float, ...]
    batch_size: int
    eval_every: int
    accumulate: int = 1
    clip: float = 1.0
    optimizer: Literal["adam", "adamw"] = "adam"
    audio: AudioConfig = AudioConfig()


@dataclass(frozen=True)
class RecognitionConfig(TrainingConfig):
    """A head for CTC (Graves et al. 2006): pr, asr, sf.

    Attributes:
        projection_size: width of the linear layer in front of the head.
        hidden_size, layers, dropout: of the bidirectional LSTM; without layers the head is one linear layer.
        bucket: "windows" draws neighbors in the order of the transcripts' lengths, "buckets" cuts the order of the
            audio's lengths into batches.
        long_seconds: a batch whose longest utterance is longer has half the size ("windows" only).
        spec_augment: warping and masking of the features, or none.
    """

    projection_size: int = 1024
    hidden_size: int = 1024
    layers: int = 2
    dropout: float = 0.2
    bucket: Literal["windows", "buckets"] = "windows"
    long_seconds: float = 18.75
    spec_augment: SpecAugmentConfig | None = None


@dataclass(frozen=True)
class ClassificationConfig(TrainingConfig):
    """Linear layer, mean over time, linear layer, cross-entropy: ks, sid, er, ic.

    Attributes:
        projection_size: width between the two linear layers.
        balanced: utterances are drawn with replacement so that every class comes equally often.
        crop_seconds: longest part of an utterance that is trained on; 0 for all of it.
    """

    projection_size: int = 256
    balanced: bool = False
    crop_seconds: float = 0.0


@dataclass(frozen=True)
class VerificationConfig(TrainingConfig):
    """X-vectors (Snyder et al. 2018) and additive-margin softmax (Wang et al. 2018, arXiv 1801.05599): asv.

    Attributes:
        projection_size: width of the linear layer, of the x-vector's frame layers and of the embedding.
        pooled_size: width of the last frame layer, whose mean and standard deviation are pooled.
        scale, margin: of the additive-margin softmax.
        min_seconds: shorter utterances are not trained on.
        crop_seconds: longest part of an utterance that is trained on.
    """

    projection_size: int = 512
    pooled_size: int = 1500
    scale: float = 30.0
    margin: float = 0.4
    min_seconds: float = 2.0
    crop_seconds: float = 8.0


@dataclass(frozen=True)
class DiarizationConfig(TrainingConfig):
    """One LSTM layer and a permutation-invariant loss (Fujita et al. 2019, arXiv 1909.05952): sd.

    Attributes:
        hidden_size, layers: of the LSTM.
        chunk_frames: frames that are trained on and labeled at a time.
        thresholds, medians: of the probabilities, and of the median filter in frames; the best pair is reported.
    """

    hidden_size: int = 512
    layers: int = 1
    chunk_frames: int = 2000
    thresholds: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7)
    medians: tuple[int, ...] = (1, 11)


@dataclass(frozen=True)
class QueryConfig:
    """Subsequence dynamic time warping, nothing is trained: qbe.

    Attributes:
        distances: between frames; the best pair of layer and distance on the development queries is scored.
        min_frames: a shorter query finds nothing.
        audio: what is done to the waveform.
    """

    distances: tuple[Literal["cosine_exp", "cosine", "euclidean"], ...] = ("cosine_exp", "cosine", "euclidean")
    min_frames: int = 5
    audio: AudioConfig = AudioConfig(gain_db=-3.0)


TaskConfig = RecognitionConfig | ClassificationConfig | VerificationConfig | DiarizationConfig | QueryConfig
Config = TypeVar("Config")

PROTOCOL: dict[str, TaskConfig] = {
    "pr": RecognitionConfig(
        steps=100_000,
        learning_rates=(1e-2,),
        batch_size=16,
        eval_every=1_000,
        accumulate=2,
        projection_size=256,
        layers=0,
    ),
    "asr": RecognitionConfig(
        steps=200_000,
        learning_rates=(1e-4,),
        # The configuration says 32, which s3prl halves whenever an utterance is longer than 2,000 samples: always.
        batch_size=16,
        eval_every=2_000,
        bucket="buckets",
        spec_augment=SpecAugmentConfig(),
    ),
    "ks": ClassificationConfig(
        steps=200_000,
        learning_rates=(1e-4,),
        batch_size=32,
        eval_every=5_000,
        balanced=True,
        audio=AudioConfig(gain_db=-3.0),
    ),
    "qbe": QueryConfig(),
    "sid": ClassificationConfig(
        steps=200_000, learning_rates=(1e-4,), batch_size=8, eval_every=5_000, accumulate=4, crop_seconds=8.0
    ),
    "asv": VerificationConfig(
        steps=200_000,
        learning_rates=(1e-4,),
        batch_size=10,
        eval_every=20_000,
        accumulate=5,
        clip=1_000.0,
        optimizer="adamw",
        audio=AudioConfig(gain_db=-3.0, trim_silence=True),
    ),
    "sd": DiarizationConfig(steps=30_000, learning_rates=(1e-4,), batch_size=8, eval_every=500, accumulate=4),
    "er": ClassificationConfig(steps=30_000, learning_rates=(1e-4,), batch_size=4, eval_every=1_000, accumulate=8),
    "ic": ClassificationConfig(steps=200_000, learning_rates=(1e-4,), batch_size=32, eval_every=5_000),
    "sf": RecognitionConfig(
        steps=200_000,
        learning_rates=(1e-4,),
        batch_size=32,
        eval_every=2_000,
        spec_augment=SpecAugmentConfig(),
    ),
}

REVISIONS = {"pr": 2, "asr": 2, "sid": 2, "sf": 2}
"""Of the code that trains and scores each task, 1 where none is given; one more when the same settings score otherwise.

2: symbols that the vocabulary lacks (pr, asr, sf), slot borders and values (sf), parts of 8 s (sid), all as in s3prl.
"""

SCALED_EVALUATIONS = 10
"""How often a head is looked at when the caller sets the number of steps."""


def task_config(
    task: str,
    *,
    steps: int | None = None,
    learning_rates: tuple[float, ...] | None = None,
    settings: dict[str, Any] | None = None,
) -> TaskConfig:
    """The protocol of a task with what the caller changes of it.

    Args:
        task: one of TASKS.
        steps: updates; the head is then looked at ten times on the way unless `settings` says otherwise.
        learning_rates: to try.
        settings: fields of the task's configuration by name; they come last.

    Raises:
        InputError: an unknown field or a value out of range.
    """
    config = PROTOCOL[task]
    if isinstance(config, TrainingConfig):
        if steps is not None:
            config = dataclasses.replace(config, steps=steps, eval_every=max(1, steps // SCALED_EVALUATIONS))
        if learning_rates is not None:
            config = dataclasses.replace(config, learning_rates=learning_rates)
    config = _changed(config, {} if settings is None else settings, f"settings.{task}")
    check_config(config, f"settings.{task}")
    return config


def known_tasks(tasks: str) -> list[str]:
    """The tasks named in a comma-separated list, or all of them, in the order of TASKS.

    Raises:
        InputError: an unknown task.
    """
    asked = [word.strip().lower() for word in tasks.split(",") if word.strip()]
    if asked == ["all"]:
        return list(TASKS)
    unknown = [word for word in asked if word not in TASKS]
    if unknown or not asked:
        raise InputError(f"unknown task {', '.join(unknown) or repr(tasks)}; known: all, {', '.join(TASKS)}")
    return [task for task in TASKS if task in asked]


def changes_of(task: str, config: TaskConfig) -> dict[str, Any]:
    """What differs from the protocol: field → value."""
    mine, theirs = dataclasses.asdict(config), dataclasses.asdict(PROTOCOL[task])
    return {name: value for name, value in mine.items() if value != theirs[name]}


def _changed(config: Config, changes: Any, where: str) -> Config:
    """A copy of a dataclass with fields changed by name, nested ones by nested dictionaries."""
    if not isinstance(changes, dict):
        raise InputError(f"{where} is {changes!r}; give fields by their names, as in {{steps: 1000}}")
    hints = get_type_hints(type(config))
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in hints:
            raise InputError(f"{where}: unknown setting {name!r}; known: {', '.join(hints)}")
        before = getattr(config, name)
        nested = [kind for kind in (hints[name], *get_args(hints[name])) if dataclasses.is_dataclass(kind)]
        if nested and isinstance(value, dict):
            fresh: Any = nested[0]
            values[name] = _changed(fresh() if before is None else before, value, f"{where}.{name}")
        elif isinstance(before, tuple):
            values[name] = tuple(value) if isinstance(value, list | tuple) else (value,)
        else:
            values[name] = value
    return dataclasses.replace(config, **values)  # type: ignore[type-var]
