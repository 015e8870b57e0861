"""A 23.6 M student at work against its Transformers teacher and against Transformers-style modules of its own shape.

python -m benchmarks.inference [--quick] --json FILE [--seconds 1 5 15 30] [--cores 1 2]

WavLM Base and a student of a quarter of its parameters, with random weights, one utterance at a time. The student runs
as `optimize` makes it, in float32, bfloat16 and with 8-bit linear maps, as `load_encoder` gives it, and in onnxruntime
(float32 and int8). The student in Transformers-style modules is the one of the training benchmark, in eager mode. Peak
memory is resident memory of a process of its own, from the checkpoint to the encoded utterance, beyond what its imports
take.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from transformers import WavLMConfig, WavLMModel

from benchmarks.common import Report, interleaved, matrix_rate, parse, parser
from benchmarks.dphubert import published_student
from skill_speech import export, load_encoder, optimize
from skill_speech.encoder import Encoder, EncoderConfig, LayerConfig, wavlm_config
from skill_speech.hardware import multiplies_bfloat16
from skill_speech.kernels import Precision, attach_kernels
from skill_speech.profiling import peak_memory
from skill_speech.pruning import Widths, count_macs

FLOAT32, BEST, SAME_SHAPE, MEMORY = 5.0, 20.0, 1.5, 4.0
"""Goals, as ratios of the peer's cost to ours."""

CHANNELS = (203, 219, 238, 247, 251, 249, 262)
UNITS = (543, 611, 602, 587, 571, 577, 566, 553, 549, 568, 585, 597)
HEADS = ((0, 4, 8), (1, 5), (2, 3, 7, 11), (0, 6, 10), (1, 2, 9), (3, 8), (0, 4, 5, 7), (2, 6, 9), (1, 10, 11))
HALF = multiplies_bfloat16(torch.device("cpu"))
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16", "int8") if HALF else ("float32", "int8-float32")
"""int8 has a rest in bfloat16."""
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    made = parser("inference", __doc__)
    made.add_argument("--seconds", type=float, nargs="+", help="lengths of the utterance (default: 1 5 15 30)")
    made.add_argument("--cores", type=int, nargs="+", help="numbers of threads (default: 1 2)")
    options: Any = parse(made, arguments)
    lengths = options.seconds or ([1.0, 5.0] if options.quick else [1.0, 5.0, 15.0, 30.0])
    report = Report("a 23.6 M student of WavLM Base, inference", options)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        teacher, student = WavLMModel(WavLMConfig()).eval(), Encoder(student_config()).eval()
        teacher.save_pretrained(folder / "teacher")
        student.save_pretrained(folder / "student")
        report.figures["parameters"] = {"teacher": teacher.num_parameters(), "student": student.num_parameters()}
        types = (torch.float32, torch.bfloat16)
        report.figures["matrix_rate_flops"] = {str(dtype): matrix_rate(dtype, options.threads) for dtype in types}
        for form in (None, "int8"):
            export(str(folder / "student"), str(folder / f"onnx-{form}"), format="onnx", quantize=form)
        for cores in options.cores or ([1] if options.quick else [1, 2]):
            with threads(cores):
                runs = make_runs(teacher, student, folder, cores)
                for seconds in lengths:
                    compare(report, runs, seconds, cores, 3 if options.quick else 7)
                if not options.quick:
                    compare_rounded(report, cores)
        for seconds in lengths:
            compare_memory(report, folder, seconds, options.threads)
    report.write(options.json)
    return 0


def student_config() -> EncoderConfig:
    """A student as pruning leaves it: 23.6 M parameters, every width another."""
    config = wavlm_config()
    convs = tuple(replace(conv, channels=channels) for conv, channels in zip(config.convs, CHANNELS, strict=True))
    layers = tuple(LayerConfig(HEADS[number % len(HEADS)], units) for number, units in enumerate(UNITS))
    return config.replace(convs=convs, layers=layers, feature_scale=True)


def rounded(config: EncoderConfig, multiple: int) -> EncoderConfig:
    """The same student with its channels and units rounded to the nearest multiples."""

    def nearest(width: int) -> int:
        return multiple * round(width / multiple)

    return config.replace(
        convs=tuple(replace(conv, channels=nearest(conv.channels)) for conv in config.convs),
        layers=tuple(LayerConfig(layer.heads, nearest(layer.units)) for layer in config.layers),
    )


def make_runs(teacher: WavLMModel, student: Encoder, folder: Path, cores: int) -> dict[str, Callable[[Tensor], Any]]:
    """Every way of running teacher and student, by name."""
    runs: dict[str, Callable[[Tensor], Any]] = {
        "teacher": teacher,
        "Transformers-style": published_student(student.config, gated=False).eval(),
        "encoder": attach_kernels(student),
    }
    runs |= {precision: optimize(copy.deepcopy(student), precision) for precision in PRECISIONS}
    for form in (None, "int8"):
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = cores
        session = onnxruntime.InferenceSession(folder / f"onnx-{form}" / "model.onnx", settings)
        runs[f"onnxruntime {form or 'float32'}"] = _by_onnx(session)
    return runs


def _by_onnx(session: onnxruntime.InferenceSession) -> Callable[[Tensor], Any]:
    names = [one.name for one in session.get_inputs()]

    def run(waveforms_BT: Tensor) -> Any:
        values = {"waveforms": waveforms_BT.numpy(), "lengths": np.array([waveforms_BT.shape[1]])}
        return session.run(None, {name: values[name] for name in names})

    return run


def compare(report: Report, runs: dict[str, Callable[[Tensor], Any]], seconds: float, cores: int, repeats: int) -> None:
    """All ways on one utterance of so many seconds."""
    waveforms_BT = torch.randn(1, round(16_000 * seconds))
    times = interleaved({name: _applied(run, waveforms_BT) for name, run in runs.items()}, repeats)
    config = student_config()
    operations = 2 * float(count_macs(config, Widths.of(config), seconds)) * seconds
    setting = f"{seconds:g} s, {cores} thread{'s' * (cores > 1)}"
    best = min(PRECISIONS, key=lambda name: times[name].minimum)

    def add(peer: str, ours: str, goal: float | None, **details: Any) -> None:
        mine = times[ours].minimum
        rate = matrix_rate(DTYPES.get(ours, torch.float32), cores)
        details |= {"real_time_factor": mine / seconds, "share_of_peak": operations / mine / rate}
        report.add(f"{setting}: {ours} against {peer}", times[peer].minimum, mine, goal, **details)

    for precision in PRECISIONS:
        add("teacher", precision, {"float32": FLOAT32, best: BEST}.get(precision))
    add("Transformers-style", "float32", SAME_SHAPE)
    add("encoder", "float32", None)
    for name in ("onnxruntime float32", "onnxruntime int8"):
        add("teacher", name, None)


def compare_rounded(report: Report, cores: int, seconds: float = 5.0) -> None:
    """Students with widths rounded to multiples against the one with its own widths."""
    waveforms_BT = torch.randn(1, round(16_000 * seconds))
    config = student_config()
    shapes = {"uneven": config} | {f"round_to {n}": rounded(config, n) for n in (8, 16, 32)}
    for precision in PRECISIONS:
        encoders = {name: optimize(Encoder(shape), precision) for name, shape in shapes.items()}
        times = interleaved({name: _applied(run, waveforms_BT) for name, run in encoders.items()}, 7)
        for name, encoder in encoders.items():
            if name != "uneven":
                uneven, even = times["uneven"].minimum, times[name].minimum
                title = f"{seconds:g} s, {cores} thread{'s' * (cores > 1)}, {precision}: {name} against uneven widths"
                report.add(title, uneven, even, None, parameters=encoder.num_parameters())


def compare_memory(report: Report, folder: Path, seconds: float, cores: int) -> None:
    """Peak memory of the teacher and of the student, each in a process of its own."""
    peaks = {form: _in_own_process(form, str(folder), seconds, cores) for form in ("teacher", *PRECISIONS)}
    for precision in PRECISIONS:
        goal = MEMORY if peaks[precision] == min(peaks.values()) else None
        name = f"{seconds:g} s: peak memory in {precision} against teacher"
        report.add(name, peaks["teacher"] / 2**20, peaks[precision] / 2**20, goal, unit="MiB")


def _in_own_process(form: str, folder: str, seconds: float, cores: int) -> int:
    # By its name in the package: the new process does not run this one's main module.
    from benchmarks.inference import peak

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(peak, form, folder, seconds, cores).result()


def peak(form: Any, folder: str, seconds: float, cores: int) -> int:
    """Bytes at the peak of loading and encoding, beyond what this process has taken before."""
    torch.set_num_threads(cores)
    torch.nn.functional.linear(torch.randn(8, 8), torch.randn(8, 8))  # lets torch set itself up
    before = peak_memory()
    with torch.inference_mode():
        if form == "teacher":
            teacher = WavLMModel.from_pretrained(f"{folder}/teacher").eval()
            model: Callable[[Tensor], Any] = partial(teacher, output_hidden_states=True)  # as the student gives them
        else:
            dtype = torch.float32 if form.endswith("float32") else torch.bfloat16
            model = optimize(load_encoder(f"{folder}/student", dtype=dtype), form)
        model(torch.randn(1, round(16_000 * seconds)))
    return peak_memory() - before


def _applied(run: Callable[[Tensor], Any], waveforms_BT: Tensor) -> Callable[[], Any]:
    return lambda: run(waveforms_BT)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    sys.exit(main())
