"""Run a student as fast as this machine can, and time it against its teacher.

    python examples/run_fast.py runs/mine/model --teacher microsoft/wavlm-base-plus
    python examples/run_fast.py runs/mine/model --teacher microsoft/wavlm-base-plus --onnx runs/mine/onnx

`--onnx` is a folder that `skill-speech export --format onnx` wrote; it needs onnxruntime.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from skill_speech import load_encoder, optimize

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("student", help="folder or hub ID")
parser.add_argument("--teacher", required=True, help="the model that it was made from")
parser.add_argument("--onnx", help="exported folder to time as well")
parser.add_argument("--seconds", type=float, default=10, help="length of the utterance (default: %(default)g)")
arguments = parser.parse_args()
samples = int(arguments.seconds * 16_000)
waveforms_BT = 0.1 * torch.randn(1, samples, generator=torch.Generator().manual_seed(0))


def milliseconds(run: Callable[[], object]) -> float:
    """The median of five runs, after one to warm up."""
    run()
    times = []
    for _ in range(5):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1_000 * float(np.median(times))


def runs() -> dict[str, Callable[[], object]]:
    """What is timed."""
    teacher, student = load_encoder(arguments.teacher).eval(), load_encoder(arguments.student).eval()
    # `optimize` takes the encoder over: load it again for each precision.
    fast = {name: optimize(load_encoder(arguments.student).eval(), name) for name in ("float32", "int8-float32")}
    made = {"teacher": lambda: teacher(waveforms_BT), "student": lambda: student(waveforms_BT)}
    made |= {f"student, {name}": lambda one=one: one(waveforms_BT) for name, one in fast.items()}
    if arguments.onnx:
        import onnxruntime

        session = onnxruntime.InferenceSession(f"{arguments.onnx}/model.onnx")
        feed = {"waveforms": waveforms_BT.numpy(), "lengths": np.array([samples])}
        made["student, ONNX Runtime"] = lambda: session.run(["last_hidden_state"], feed)
    return made


with torch.inference_mode():
    taken = {name: milliseconds(run) for name, run in runs().items()}
for name, value in taken.items():
    print(f"{name:<24} {value:8.1f} ms for {arguments.seconds:g} s of audio, {taken['teacher'] / value:.1f} × teacher")
