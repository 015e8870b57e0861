"""The runtimes that are installed here, each measured in a process of its own: what `profile --runtimes` starts.

    python -m skill_speech.exporting.runtimes MODEL SECONDS THREADS FOLDER [NAME]

Without a name: writes into FOLDER what the others read, and prints which runtimes there are. With one: measures it.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import load_encoder
from ..environment import processor
from ..errors import InputError
from ..hardware import multiplies_bfloat16
from ..heads import SpeechModel
from ..kernels import optimize
from ..profiling import RuntimeCost, peak_memory

REPEATS = 5
TENSORS = "wanted.pt"


def prepare(source: str, seconds: float, folder: Path) -> list[str]:
    """Write an utterance, what the encoder makes of it, and ONNX models of the encoder; the names of the runtimes."""
    encoder = load_encoder(source)
    waveforms_BT = torch.randn(1, round(seconds * encoder.config.sampling_rate))
    with torch.inference_mode():
        torch.save((waveforms_BT, encoder(waveforms_BT).last_hidden_state_BTD), folder / TENSORS)
    half = multiplies_bfloat16(torch.device("cpu"))
    names = [
        "encoder",
        "optimize float32",
        *(["optimize bf16", "optimize int8"] if half else ["optimize int8-float32"]),
    ]
    if all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        from .onnx_model import write_onnx

        write_onnx(SpeechModel(encoder), folder / "float32.onnx", "all")
        write_onnx(SpeechModel(encoder), folder / "int8.onnx", "all", "int8")
        names += ["onnxruntime float32", "onnxruntime int8"]
        if find_spec("openvino"):
            names.append("openvino float32")
    return names


def measure_runtime(name: str, source: str, folder: Path) -> RuntimeCost:
    """One of them: speed, memory beyond its imports, and how far it is from the encoder."""
    waveforms_BT, wanted_BTD = torch.load(folder / TENSORS)
    runtime, _, precision = name.partition(" ")
    module = __import__(runtime) if runtime in ("onnxruntime", "openvino") else torch
    torch.nn.functional.linear(torch.randn(8, 8), torch.randn(8, 8))  # lets torch set itself up
    before = peak_memory()
    run = _RUNS[runtime](source, folder / f"{precision}.onnx", precision)
    times = []
    with torch.inference_mode():
        made_BTD = run(waveforms_BT)
        memory = peak_memory() - before
        for _ in range(REPEATS):
            started = time.perf_counter()
            made_BTD = run(waveforms_BT)
            times.append(time.perf_counter() - started)
    seconds = waveforms_BT.shape[1] / load_encoder(source).config.sampling_rate
    return RuntimeCost(
        name=name,
        version=re.split(r"[-+]", str(module.__version__))[0],
        real_time_factor=median(times) / seconds,
        memory=memory,
        difference=float((made_BTD - wanted_BTD).norm() / wanted_BTD.norm()),
    )


def _plain(source: str, path: Path, precision: str) -> Callable[[Tensor], Tensor]:
    encoder = load_encoder(source)
    return lambda waveforms_BT: encoder(waveforms_BT).last_hidden_state_BTD


def _optimized(source: str, path: Path, precision: Any) -> Callable[[Tensor], Tensor]:
    dtype = torch.float32 if precision.endswith("float32") else torch.bfloat16
    encoder = optimize(load_encoder(source, dtype=dtype), precision)
    return lambda waveforms_BT: encoder(waveforms_BT).last_hidden_state_BTD


def _by_onnxruntime(source: str, path: Path, precision: str) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    names = ["last_hidden_state", *(one.name for one in session.get_outputs() if one.name != "last_hidden_state")]
    return lambda waveforms_BT: torch.from_numpy(session.run(names, _inputs(waveforms_BT))[0])


def _by_openvino(source: str, path: Path, precision: str) -> Callable[[Tensor], Tensor]:
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", settings)
    return lambda waveforms_BT: torch.from_numpy(model(_inputs(waveforms_BT))["last_hidden_state"].copy())


_RUNS: dict[str, Callable[[str, Path, str], Callable[[Tensor], Tensor]]] = {
    "encoder": _plain,
    "optimize": _optimized,
    "onnxruntime": _by_onnxruntime,
    "openvino": _by_openvino,
}


def _inputs(waveforms_BT: Tensor) -> dict[str, Any]:
    return {"waveforms": waveforms_BT.numpy(), "lengths": torch.tensor([waveforms_BT.shape[1]]).numpy()}


def _main(source: str, seconds: str, threads: str, folder: str, name: str = "") -> None:
    if int(threads):
        torch.set_num_threads(int(threads))
    if not name:
        machine = {"processor": processor(), "threads": torch.get_num_threads()}
        print(json.dumps({"names": prepare(source, float(seconds), Path(folder)), "machine": machine}))
        return
    print(json.dumps(vars(measure_runtime(name, source, Path(folder)))))


if __name__ == "__main__":
    try:
        _main(*sys.argv[1:])
    except InputError as error:
        print(json.dumps({"error": str(error)}))
        sys.exit(2)
