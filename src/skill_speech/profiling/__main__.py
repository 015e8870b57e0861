"""One model, measured in a process of its own: what `profile` starts; prints JSON."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from ..checkpoints import load_model
from ..errors import InputError
from ..hardware import multiplies_bfloat16
from ..kernels import Precision, optimize
from ..run.progress import log_to_terminal
from .measuring import measure, peak_memory, time_components


def _main(source: str, seconds: float, threads: int, times: str) -> None:
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
        from ..timing import measure_times, write_times

        table = measure_times(encoder, seconds)
        try:
            write_times(Path(times), table)
        except OSError as error:
            raise InputError(f"{times}: cannot be written ({error.strerror})") from None
    print(json.dumps(values))


if __name__ == "__main__":
    log_to_terminal()
    try:
        _main(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    except InputError as error:
        print(json.dumps({"error": str(error)}))
        sys.exit(2)
