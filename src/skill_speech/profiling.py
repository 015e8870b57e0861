"""What an encoder costs: parameters, multiply-accumulates, real-time factor, memory."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from .encoder import Encoder


@dataclass(frozen=True)
class Profile:
    """The costs of one encoder.

    Attributes:
        model: where it came from.
        parameters: by component.
        macs: multiply-accumulates per second of audio, by component.
        seconds: length of the utterance for which speed, memory and the quadratic part of the MACs hold.
        real_time_factor: seconds of computing per second of audio, one utterance at a time, float32; median of some.
        threads: CPU threads used for that.
        memory: bytes of resident memory at the peak of loading and encoding, beyond what torch itself takes; None where
            it was not measured in a process of its own.
    """

    model: str
    parameters: dict[str, int]
    macs: dict[str, float]
    seconds: float
    real_time_factor: float
    threads: int
    memory: int | None = None

    @property
    def total_parameters(self) -> int:
        """All of them."""
        return sum(self.parameters.values())

    @property
    def total_macs(self) -> float:
        """All of them, per second of audio."""
        return sum(self.macs.values())


def profile(
    model: str, compare: str | None = None, *, seconds: float = 10.0, threads: int | None = None
) -> list[Profile]:
    """Measure a model, and another one beside it, each in a process of its own.

    Args:
        model: hub id, folder or file, as `load_encoder` takes it.
        compare: another model, its teacher say.
        seconds: length of the utterance that is encoded.
        threads: CPU threads; by default as many as torch takes.

    Returns:
        One profile per model, the first model first.

    Raises:
        InputError: a model that cannot be loaded; an utterance shorter than a frame.
    """
    if not 0.025 <= seconds <= 600:
        raise InputError(f"seconds is {seconds:g}; it must lie between 0.025 (one frame) and 600")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; it must be at least 1")
    return [_in_own_process(source, seconds, threads) for source in (model, compare) if source is not None]


def measure(encoder: Encoder, model: str, seconds: float = 10.0, repeats: int = 5) -> Profile:
    """Profile of an encoder that is in memory, without its memory.

    Args:
        encoder: on a CPU, in evaluation mode.
        model: what to call it.
        seconds: length of the utterance.
        repeats: how many times it is encoded; the median counts.
    """
    import torch

    from .pruning import Widths, macs_by_component, parameters_by_component

    widths = Widths.of(encoder.config)
    waveform_BT = torch.randn(1, round(seconds * encoder.config.sampling_rate))
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            started = time.perf_counter()
            encoder(waveform_BT)
            times.append(time.perf_counter() - started)
    return Profile(
        model=model,
        parameters=parameters_by_component(encoder.config, widths),
        macs=macs_by_component(encoder.config, widths, seconds),
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


def _in_own_process(source: str, seconds: float, threads: int | None) -> Profile:
    command = [sys.executable, "-m", "skill_speech.profiling", source, str(seconds), str(threads or 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise InputError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError(f"profiling {source} failed:\n{done.stderr}")
    return Profile(**json.loads(done.stdout.splitlines()[-1]))


def _main(source: str, seconds: float, threads: int) -> None:
    import torch

    from .checkpoints import load_encoder

    if threads:
        torch.set_num_threads(threads)
    torch.nn.functional.linear(torch.randn(8, 8), torch.randn(8, 8))  # lets torch set itself up
    before = peak_memory()
    encoder = load_encoder(source)
    values = asdict(measure(encoder, source, seconds))
    values["memory"] = peak_memory() - before
    print(json.dumps(values))


def short_name(source: str) -> str:
    """The last part of a path, or a hub id as it is."""
    return Path(source).name if Path(source).exists() else source


if __name__ == "__main__":
    try:
        _main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
