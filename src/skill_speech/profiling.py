"""What a model costs: parameters, multiply-accumulates, real-time factor, memory."""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from .errors import InputError
from .limits import check_options
from .run.progress import log_to_terminal
from .timing import clock

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .encoder import Encoder
    from .heads import Head
    from .kernels import OptimizedEncoder


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
    """

    model: str
    parameters: dict[str, int]
    macs: dict[str, float]
    seconds: float
    real_time_factor: float
    threads: int
    memory: int | None = None
    timings: tuple[Timing, ...] = ()

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
) -> list[Profile]:
    """Measure a model, and another one beside it, each in a process of its own.

    Args:
        model: Model to profile: hub ID, folder or file.
        compare: Another model to profile for comparison, such as the teacher.
        seconds: Length in seconds of the utterance to encode.
        threads: Number of CPU threads; by default, PyTorch's choice.
        times: JSON file for a table of component times at several widths, for `compress --times` to target the speed of
            this machine.

    Returns:
        One profile per model, the first model first.

    Raises:
        InputError: a model that cannot be loaded; an utterance shorter than a frame.
    """
    check_options(profile, dict(locals()))
    first = _in_own_process(model, seconds, threads, times)
    return [first] if compare is None else [first, _in_own_process(compare, seconds, threads)]


def time_components(encoder: OptimizedEncoder, waveform_BT: torch.Tensor, repeats: int = 5) -> Timing:
    """Time one utterance by component, in the fastest of some passes."""
    import torch

    from .hardware import matrix_rate

    spent: dict[str, float] = {}
    handles = []
    for name, modules in _components(encoder).items():
        for module in modules:
            handles += clock(module, name, spent)
    best: dict[str, float] | None = None
    try:
        for number in range(repeats + 1):
            spent.clear()
            started = time.perf_counter()
            encoder(waveform_BT)
            total = time.perf_counter() - started
            seconds = dict(spent) | {REST: total - sum(spent.values())}
            if number and (best is None or total < sum(best.values())):  # the first one warms up
                best = seconds
    finally:
        for handle in handles:
            handle.remove()
    assert best is not None
    dtype = torch.float32 if encoder.precision == "float32" else torch.bfloat16
    return Timing(encoder.precision, best, matrix_rate(dtype, torch.get_num_threads()))


def _components(optimized: OptimizedEncoder) -> dict[str, list[nn.Module]]:
    encoder = optimized.encoder
    biases = [] if encoder.position_bias is None else [encoder.position_bias]
    return {
        "front end": [optimized.front_end, encoder.projection],
        "positional convolution": [encoder.positional_conv],
        "attention": [*biases, *(layer.get_submodule("attention") for layer in encoder.layers)],
        "feed-forward": [layer.get_submodule("feed_forward") for layer in encoder.layers],
    }


def measure(encoder: Encoder, model: str, seconds: float = 10.0, repeats: int = 5, head: Head | None = None) -> Profile:
    """Profile of a model that is in memory, without its memory.

    Args:
        encoder: on a CPU, in evaluation mode.
        model: what to call it.
        seconds: length of the utterance.
        repeats: how many times it is encoded; the median counts.
        head: that stands on the encoder.

    Raises:
        InputError: an utterance shorter than a frame.
    """
    import torch

    from .pruning import Widths, macs_by_component, parameters_by_component

    widths = Widths.of(encoder.config)
    rate, shortest = encoder.config.sampling_rate, encoder.config.receptive_field
    if round(seconds * rate) < shortest:
        raise InputError(f"{model}: needs {shortest / rate:g} s for one frame, but gets {seconds:g} s")
    waveform_BT = torch.randn(1, round(seconds * rate))
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            started = time.perf_counter()
            output = encoder(waveform_BT)
            if head is not None:
                head(output)
            times.append(time.perf_counter() - started)
    parameters = parameters_by_component(encoder.config, widths)
    macs = macs_by_component(encoder.config, widths, seconds)
    if head is not None:
        parameters[HEAD] = sum(weight.numel() for weight in head.parameters())
        macs[HEAD] = head.macs(encoder.config.num_frames(waveform_BT.shape[1])) / seconds
    return Profile(
        model=model,
        parameters=parameters,
        macs=macs,
        seconds=seconds,
        real_time_factor=median(times[1:]) / seconds,  # the first one warms up
        threads=torch.get_num_threads(),
    )


def peak_memory() -> int:
    """Bytes of resident memory that this process has had at its peak."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss starts at what the parent had; this is the process's own
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _in_own_process(source: str, seconds: float, threads: int | None, times: str | None = None) -> Profile:
    command = [sys.executable, "-m", "skill_speech.profiling", source, str(seconds), str(threads or 0), times or ""]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # warnings go to the terminal
    lines = done.stdout.splitlines()
    if done.returncode not in (0, 2) or not lines:
        raise RuntimeError(f"profiling {source} failed with status {done.returncode}")
    values = json.loads(lines[-1])
    if done.returncode:
        raise InputError(values["error"])
    return Profile(**(values | {"timings": tuple(Timing(**timing) for timing in values["timings"])}))


def _main(source: str, seconds: float, threads: int, times: str) -> None:
    import torch

    from .checkpoints import load_model
    from .hardware import multiplies_bfloat16
    from .kernels import Precision, optimize

    if threads:
        torch.set_num_threads(threads)
    torch.nn.functional.linear(torch.randn(8, 8), torch.randn(8, 8))  # lets torch set itself up
    before = peak_memory()
    loaded = load_model(source)
    encoder = loaded.encoder
    values = asdict(measure(encoder, source, seconds, head=loaded.head))
    values["memory"] = peak_memory() - before
    waveform_BT = torch.randn(1, round(seconds * encoder.config.sampling_rate))
    precisions: list[Precision] = ["float32"]
    if multiplies_bfloat16(torch.device("cpu")):
        precisions.append("bf16")
    values["timings"] = [
        asdict(time_components(optimize(copy.deepcopy(encoder), precision), waveform_BT)) for precision in precisions
    ]
    if times:
        from .timing import measure_times, write_times

        table = measure_times(encoder, seconds)
        try:
            write_times(Path(times), table)
        except OSError as error:
            raise InputError(f"{times}: cannot be written ({error.strerror})") from None
    print(json.dumps(values))


def short_name(source: str) -> str:
    """The last part of a path, or a hub id as it is."""
    return Path(source).name if Path(source).exists() else source


if __name__ == "__main__":
    log_to_terminal()
    try:
        _main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    except InputError as error:
        print(json.dumps({"error": str(error)}))
        sys.exit(2)
