"""Measuring what a model costs in this process."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from ..errors import InputError
from .costs import HEAD, REST, Profile, Timing

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..encoder import Encoder
    from ..heads import Head
    from ..kernels import OptimizedEncoder


def time_components(encoder: OptimizedEncoder, waveform_BT: torch.Tensor, repeats: int = 5) -> Timing:
    """Time one utterance by component, in the fastest of some passes."""
    import torch

    from ..hardware import matrix_rate
    from ..timing import clock

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

    from ..pruning import Widths, macs_by_component, parameters_by_component

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
