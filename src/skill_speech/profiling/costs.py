"""What a model costs, as numbers, and the function that has them measured.

No torch here, not even for type checkers: the command line imports this file, evaluates its types, and leaves measuring
to other processes.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InputError
from ..files import write_json
from ..limits import check_options
from ..run.folder import RUNTIMES, run_of

logger = logging.getLogger(__name__)

HEAD = "head"
"""What was fine-tuned on top of an encoder, as a component."""
REST = "norms and the rest"
"""What a forward pass does between its components."""


@dataclass(frozen=True)
class Timing:
    """How long an encoder as `optimize` makes it takes for one utterance.

    Attributes:
        precision: "float32" or "bf16".
        seconds: by component, of the fastest pass, and what is left of it as `REST`.
        matrix_rate: FLOP/s that a plain matrix product of that type reaches on this machine with as many threads; a
            multiply-accumulate is two.
    """

    precision: str
    seconds: dict[str, float]
    matrix_rate: float

    @property
    def total_seconds(self) -> float:
        """Of the whole pass."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class RuntimeCost:
    """What an encoder costs in one runtime, one utterance at a time.

    Attributes:
        name: runtime and precision.
        version: of the runtime's package.
        real_time_factor: seconds of computing per second of audio; median of some.
        memory: bytes of resident memory at the peak of loading and encoding, beyond what the imports take.
        difference: of the last hidden state from that of the encoder in float32, relative to its norm; on noise.
    """

    name: str
    version: str
    real_time_factor: float
    memory: int
    difference: float


@dataclass(frozen=True)
class Profile:
    """The costs of one model.

    Attributes:
        model: where it came from.
        parameters: by component, `HEAD` where there is one.
        macs: multiply-accumulates per second of audio, by component.
        seconds: length of the utterance for which speed, memory and the quadratic part of the MACs hold.
        real_time_factor: seconds of computing per second of audio, one utterance at a time, float32, the model as it
            is loaded; median of some.
        threads: CPU threads used for that.
        memory: bytes of resident memory at the peak of loading and encoding, beyond what torch itself takes; None where
            it was not measured in a process of its own.
        timings: of the optimized encoder without a head, by component; none where they were not asked for.
        runtimes: of the encoder without a head in each runtime that is installed; none where they were not asked for.
    """

    model: str
    parameters: dict[str, int]
    macs: dict[str, float]
    seconds: float
    real_time_factor: float
    threads: int
    memory: int | None = None
    timings: tuple[Timing, ...] = ()
    runtimes: tuple[RuntimeCost, ...] = ()

    def share_of_peak(self, timing: Timing, component: str | None = None) -> float | None:
        """Operations a second as a share of the machine's matrix rate; of a component, or of the whole pass.

        They count as in `macs`: a way around some of them, as the positional convolution's, can give more than 1. None
        for a component without any.
        """
        macs = self.total_macs if component is None else self.macs.get(component)
        seconds = timing.total_seconds if component is None else timing.seconds[component]
        return None if macs is None else 2 * macs * self.seconds / seconds / timing.matrix_rate

    @property
    def total_parameters(self) -> int:
        """All of them."""
        return sum(self.parameters.values())

    @property
    def total_macs(self) -> float:
        """All of them, per second of audio."""
        return sum(self.macs.values())


def profile(
    model: str,
    compare: str | None = None,
    *,
    seconds: float = 10.0,
    threads: int | None = None,
    times: str | None = None,
    runtimes: bool = False,
) -> list[Profile]:
    """Measure a model, and another one beside it, each in a process of its own.

    Args:
        model: Model to profile: hub ID, folder or file.
        compare: Another model to profile for comparison, such as the teacher.
        seconds: Length in seconds of the utterance to encode.
        threads: Number of CPU threads; by default, PyTorch's choice.
        times: JSON file for a table of component times at several widths, for `compress --times` to target the speed of
            this machine.
        runtimes: Measure the model's encoder in every runtime that is installed, too: as loaded, by `optimize`, by
            onnxruntime and OpenVINO. Of RUN/model, RUN/runtimes.json keeps them for the report and the model card.

    Returns:
        One profile per model, the first model first.

    Raises:
        InputError: a model that cannot be loaded; an utterance shorter than a frame.
    """
    check_options(profile, dict(locals()))
    first = _in_own_process(model, seconds, threads, times)
    if runtimes:
        first = replace(first, runtimes=_measure_runtimes(model, seconds, threads))
    return [first] if compare is None else [first, _in_own_process(compare, seconds, threads)]


def _in_own_process(source: str, seconds: float, threads: int | None, times: str | None = None) -> Profile:
    values = _asked("skill_speech.profiling", source, str(seconds), str(threads or 0), times or "")
    return Profile(**(values | {"timings": tuple(Timing(**timing) for timing in values["timings"])}))


def _measure_runtimes(source: str, seconds: float, threads: int | None) -> tuple[RuntimeCost, ...]:
    with TemporaryDirectory() as folder:
        program = ("skill_speech.exporting.runtimes", source, str(seconds), str(threads or 0), folder)
        found = _asked(*program)
        costs = tuple(RuntimeCost(**_asked(*program, name)) for name in found["names"])
    run = run_of(source)
    if run is not None:
        values = {"seconds": seconds, "machine": found["machine"], "runtimes": [vars(cost) for cost in costs]}
        write_json(run / RUNTIMES, values)
        logger.info("%s: skill-speech report %s shows it", run / RUNTIMES, run)
    return costs


def _asked(program: str, *arguments: str) -> dict[str, Any]:
    """What a program of this package prints as JSON.

    Raises:
        InputError: what the program said of a user's mistake.
    """
    command = [sys.executable, "-m", program, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # warnings go to the terminal
    lines = done.stdout.splitlines()
    if done.returncode not in (0, 2) or not lines:
        raise RuntimeError(f"{' '.join((program, *arguments))} failed with status {done.returncode}")
    values: dict[str, Any] = json.loads(lines[-1])
    if done.returncode:
        raise InputError(values["error"])
    return values


def short_name(source: str) -> str:
    """The last part of a path, or a hub ID as it is."""
    return Path(source).name if Path(source).exists() else source
