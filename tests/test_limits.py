"""Numbers that no option can mean are refused by their name, in one line, before anything is done."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from skill_speech import InputError, analyze, compress, evaluate, export, prepare, profile, report
from skill_speech.cli import main
from skill_speech.compression import AnalysisConfig
from skill_speech.data import Part
from skill_speech.distillation import HeadTraining, InputConfig, LossConfig, Stage2Config, StageConfig, UnitsConfig
from skill_speech.evaluation.protocol import PROTOCOL, task_config
from skill_speech.limits import LIMITS, Number, limits_of

IMPOSSIBLE = [float("nan"), float("inf"), float("-inf"), -1, 1e30, 10**20 - 1, 10**400, "many", None, [], True]
COMMANDS = (prepare, analyze, compress, evaluate, profile, export, report)
NEEDED = {"teacher": "nowhere", "data": "nowhere", "output": "o", "models": ["nowhere"], "model": "nowhere"}
NEEDED |= {"source": "nowhere", "runs": ["nowhere"], "format": "onnx"}
CONFIGS = {
    "analysis": AnalysisConfig,
    "stage1": StageConfig,
    "stage2": Stage2Config,
    "loss": LossConfig,
    "head": HeadTraining,
    "augmentation": InputConfig,
    "units": UnitsConfig,
}


def is_number(hint: Any) -> bool:
    """Whether a type is of numbers, which bool is not; those that may also be text are parsed elsewhere."""
    kinds = [kind for part in (hint, *get_args(hint)) for kind in (part, *get_args(part))]
    return (int in kinds or float in kinds) and str not in kinds


def fields_of(config: type) -> list[str]:
    hints = get_type_hints(config)
    return [field.name for field in dataclasses.fields(config) if is_number(hints[field.name])]


def options() -> Iterator[tuple[str, Number, Callable[[Any], Any]]]:
    """Every number that a command takes: its name in messages, what it may be, and a call with a value of it."""
    for command in COMMANDS:
        parameters = inspect.signature(command).parameters
        needed = {name: value for name, value in NEEDED.items() if name in parameters}
        for name, hint in get_type_hints(command).items():
            if name in parameters and is_number(hint):
                limit = LIMITS[command.__name__][name]
                yield name, limit, lambda value, c=command, n=name, o=needed: c(**{**o, n: value})
            elif name in parameters and name in CONFIGS:
                for field in fields_of(CONFIGS[name]):
                    yield (
                        f"{name}.{field}",
                        limits_of(CONFIGS[name])[field],
                        lambda value, c=command, n=name, f=field, o=needed: c(**{**o, n: CONFIGS[n](**{f: value})}),
                    )
    yield "data[0].weight", LIMITS["Part"]["weight"], lambda value: compress("nowhere", [Part("a", value)], "o")
    for task, config in PROTOCOL.items():
        for field in fields_of(type(config)):
            yield (
                f"settings.{task}.{field}",
                limits_of(type(config))[field],
                lambda value, t=task, f=field: task_config(t, settings={f: value}),
            )
        for name in ("audio", "spec_augment"):
            if inner := getattr(config, name, None):
                for field in fields_of(type(inner)):
                    yield (
                        f"settings.{task}.{name}.{field}",
                        limits_of(type(inner))[field],
                        lambda value, t=task, n=name, f=field: task_config(t, settings={n: {f: value}}),
                    )


@pytest.mark.parametrize(("name", "limit", "call"), [pytest.param(*option, id=option[0]) for option in options()])
def test_a_number_that_cannot_be_meant_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, limit: Number, call: Callable[[Any], Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in IMPOSSIBLE:
        if limit.allows(value):
            continue
        with pytest.raises(InputError) as caught:
            call(value)
        message = str(caught.value)
        assert message.startswith(f"{name} is "), (value, message)
        assert "\n" not in message
        assert len(message) < 250
    assert [value for value in IMPOSSIBLE[:6] if limit.allows(value)] == (
        [-1] if "gain" in name or "snr" in name else []
    )
    assert not list(tmp_path.iterdir())


def test_the_table_has_no_field_that_nothing_has() -> None:
    known: dict[str, set[str]] = {command.__name__: set(inspect.signature(command).parameters) for command in COMMANDS}
    configs = {*CONFIGS.values(), Part, *map(type, PROTOCOL.values())}
    for config in [kind for one in configs for kind in one.__mro__ if dataclasses.is_dataclass(kind)]:
        known[config.__name__] = {field.name for field in dataclasses.fields(config)}
        for hint in get_type_hints(config).values():
            for kind in (hint, *get_args(hint)):
                if dataclasses.is_dataclass(kind):
                    known[kind.__name__] = {field.name for field in dataclasses.fields(kind)}  # type: ignore[union-attr]
    for owner, limits in LIMITS.items():
        assert set(limits) <= known[owner], owner


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compress("t", "d", "o", precision="half"), "precision is 'half'; it can be bf16, float32"),  # type: ignore[arg-type]
        (lambda: compress("t", "d", "o", pruned_units=("legs",)), r"pruned_units is \('legs',\); it can be channels"),  # type: ignore[arg-type]
        (lambda: compress("t", "d", "o", stage1=StageConfig(compile="no")), "stage1.compile is 'no'; it can be true"),  # type: ignore[arg-type]
        (lambda: compress("t", "d", "o", stage1=7), "stage1 is 7; give its fields by their names"),  # type: ignore[arg-type]
        (lambda: task_config("asr", settings={"optimizer": "sgd"}), "settings.asr.optimizer is 'sgd'; it can be adam"),
        (lambda: task_config("asr", settings={"audio": 3}), "settings.asr.audio is 3; give its fields"),
        (lambda: task_config("asr", settings=3), "settings.asr is 3; give fields by their names"),  # type: ignore[arg-type]
        (lambda: task_config("sd", settings={"medians": [1, 4]}), "settings.sd.medians is .* odd whole numbers"),
        (
            lambda: task_config("qbe", settings={"distances": []}),
            r"settings.qbe.distances is \(\); it can be cosine_exp",
        ),
    ],
)
def test_other_values_are_refused_by_name_too(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_settings_that_have_been_left_out_may_be_given_field_by_field() -> None:
    assert task_config("pr", settings={"spec_augment": {"time_warp": 7}}).spec_augment.time_warp == 7  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("compress --teacher t --data d --output o --workers -1", "workers is -1; it must be a whole number from 0"),
        ("compress --teacher t --data d --output o --validate_every -1", "(0 for none between a stage's start and"),
        ("compress --teacher t --data d --output o --seed 99999999999999999999", "seed is 99999999999999999999; it"),
        ("compress --teacher t --data d --output o --stage1.batch_seconds 1e-9", "stage1.batch_seconds is 1e-09; it"),
        ("compress --teacher t --data d --output o --stage2.weight_decay -5", "stage2.weight_decay is -5; it must be"),
        ("compress --teacher t --data d --output o --stage1.learning_rate .nan", "stage1.learning_rate is nan; it mus"),
        ("analyze --teacher t --data d --output o --analysis.batch_seconds 1e-9", "analysis.batch_seconds is 1e-09"),
        ("evaluate fbank --data d --output o --learning_rates [0.1,.inf]", "learning_rates is [0.1, inf]; it must be"),
        ("profile t --threads 0", "threads is 0; it must be a whole number from 1"),
        ("prepare d --jobs 0", "jobs is 0; it must be a whole number from 1"),
    ],
)
def test_the_command_line_says_so_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command.split()) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert not Path("o").exists()
