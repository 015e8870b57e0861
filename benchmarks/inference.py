"""A 23.6 M student at work against its Transformers teacher, its own shape in Transformers-style modules, and runtimes.

python -m benchmarks.inference [--quick] --json FILE [--seconds 0.5 1 5 15 30] [--cores 1 2]

WavLM Base and a student of a quarter of its parameters, with random weights, one utterance at a time. The student runs
as `optimize` makes it, in float32, bfloat16 and with 8-bit linear maps, as `load_encoder` gives it, and, all of them in
turn, in onnxruntime and OpenVINO, from the same ONNX files. The student in Transformers-style modules is the one of the
training benchmark, in eager mode. Every way of running has a process of its own, and they take turns. CTranslate2 has
wav2vec 2.0 with layer norms alone, at full width: such an encoder of Base size runs there, in Transformers with sdpa,
in the runtimes and as `optimize` makes it. Runtimes that are not installed are left out (pip install openvino
ctranslate2). Peak memory is resident memory of a process of its own, from the checkpoint to the encoded utterance,
beyond what its imports take.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

from benchmarks import peers
from benchmarks.common import Options, Report, Timing, interleaved, matrix_rate, parse, parser
from benchmarks.dphubert import published_student
from skill_speech import load_encoder, optimize
from skill_speech.encoder import Encoder, EncoderConfig, LayerConfig, wavlm_config
from skill_speech.exporting.onnx_model import write_onnx
from skill_speech.hardware import multiplies_bfloat16
from skill_speech.heads import SpeechModel
from skill_speech.kernels import Precision
from skill_speech.kernels.rounding import Rounding
from skill_speech.profiling import peak_memory
from skill_speech.pruning import Widths, count_macs

FLOAT32, BEST, SAME_SHAPE, MEMORY = 5.0, 20.0, 1.5, 4.0
RUNTIME, RUNTIME_AT_1_S = 1.0, 1.1
"""Goals, as ratios of the peer's cost to ours."""

REST = 0.25
"""Seconds before a turn: threads of some runtimes spin for a fifth of a second after their work."""

CHANNELS = (203, 219, 238, 247, 251, 249, 262)
UNITS = (543, 611, 602, 587, 571, 577, 566, 553, 549, 568, 585, 597)
HEADS = ((0, 4, 8), (1, 5), (2, 3, 7, 11), (0, 6, 10), (1, 2, 9), (3, 8), (0, 4, 5, 7), (2, 6, 9), (1, 10, 11))
HALF = multiplies_bfloat16(torch.device("cpu"))
PRECISIONS: tuple[Precision, ...] = ("float32", "bf16", "int8") if HALF else ("float32", "int8-float32")
"""int8 has a rest in bfloat16."""
ROUNDINGS: tuple[Rounding | None, ...] = (None, "int8")
STUDENT, FULL_WIDTH = "student", "wav2vec2"
"""Models, and the names of their files."""
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    made = parser("inference", __doc__)
    made.add_argument("--seconds", type=float, nargs="+", help="lengths of the utterance (default: 0.5 1 5 15 30)")
    made.add_argument("--cores", type=int, nargs="+", help="numbers of threads (default: 1 2)")
    options: Any = parse(made, arguments)
    lengths = options.seconds or ([1.0] if options.quick else [0.5, 1.0, 5.0, 15.0, 30.0])
    report = Report("a 23.6 M student of WavLM Base, inference", options)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        teacher, student = WavLMModel(WavLMConfig()).eval(), Encoder(student_config()).eval()
        teacher.save_pretrained(folder / "teacher")
        student.save_pretrained(folder / "student")
        report.figures["peers"] = peers.versions()
        report.figures["parameters"] = {"teacher": teacher.num_parameters(), "student": student.num_parameters()}
        types = (torch.float32, torch.bfloat16)
        report.figures["matrix_rate_flops"] = {str(dtype): matrix_rate(dtype, options.threads) for dtype in types}
        for form in ROUNDINGS[: 1 if options.quick else None]:
            write_onnx(SpeechModel(student), folder / f"student-{form or 'float32'}.onnx", "all", form)
        if not options.quick:
            make_full_width(folder)
        for cores in options.cores or ([1] if options.quick else [1, 2]):
            with Ways(STUDENT, folder, cores, names_of(STUDENT)[: 7 if options.quick else None]) as ways:
                for seconds in lengths:
                    compare(report, ways, seconds, repeats(options, seconds))
            if not options.quick:
                with Ways(FULL_WIDTH, folder, cores, names_of(FULL_WIDTH)) as ways:
                    for seconds in lengths:
                        compare_full_width(report, ways, seconds, repeats(options, seconds))
                with threads(cores):
                    compare_rounded(report, cores)
        for seconds in lengths:
            compare_memory(report, folder, seconds, options.threads)
    report.write(options.json)
    return 0


def repeats(options: Options, seconds: float) -> int:
    """Rounds of two passes: fewer of long utterances, which take minutes and vary less."""
    return 2 if options.quick or seconds > 5 else 5


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


def make_full_width(folder: Path) -> None:
    """A wav2vec 2.0 of Base size with layer norms, which CTranslate2 has too, and its files."""
    config = Wav2Vec2Config(do_stable_layer_norm=True, feat_extract_norm="layer", conv_bias=True, vocab_size=6)
    model = Wav2Vec2ForCTC(config).eval()
    model.wav2vec2.save_pretrained(folder / FULL_WIDTH)
    Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(folder / FULL_WIDTH)  # outside, as for the others
    encoder = load_encoder(folder / FULL_WIDTH)
    for form in ROUNDINGS:
        write_onnx(SpeechModel(encoder), folder / f"{FULL_WIDTH}-{form or 'float32'}.onnx", "last", form)
    if "ctranslate2" in peers.versions():
        peers.convert(model, folder / "ctranslate2")
        waveforms_BT = torch.randn(1, 16_000)
        theirs = peers.by_ctranslate2(folder / "ctranslate2", 1, "float32")(waveforms_BT)
        assert peers.same(theirs, model.wav2vec2(waveforms_BT).last_hidden_state, 1e-3), "it is the same network"


class Ways:
    """All ways of running a model, each in a process of its own; they take turns on the same utterances.

    In one process the threads of a runtime that has had its turn disturb those of the next one, whatever they wait for.

    Args:
        model: STUDENT or FULL_WIDTH.
        folder: with the files of both.
        cores: threads of each.
        names: of the ways.
    """

    def __init__(self, model: str, folder: Path, cores: int, names: Sequence[str]) -> None:
        # By its name in the package: the new process does not run this one's main module.
        from benchmarks.inference import become

        self.cores, context = cores, get_context("spawn")
        self._pools = {
            name: ProcessPoolExecutor(1, context, initializer=become, initargs=(model, name, str(folder), cores))
            for name in names
        }

    def __enter__(self) -> Ways:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools.values():
            pool.shutdown()

    def times(self, seconds: float, repeats: int) -> dict[str, Timing]:
        """Of a pass over an utterance so long; a turn is two passes, and the first round warms up."""
        from benchmarks.inference import turn

        found: dict[str, list[float]] = {name: [] for name in self._pools}
        for number in range(1 + repeats):
            for name, pool in self._pools.items():
                time.sleep(REST)
                passes = pool.submit(turn, seconds).result()
                found[name] += passes if number else []
        return {name: Timing(min(values), median(values)) for name, values in found.items()}


def names_of(model: str) -> list[str]:
    """Every way of running it that is installed here."""
    ours = ["teacher", "Transformers-style", "encoder"] if model == STUDENT else ["Transformers sdpa"]
    names = [*ours, *PRECISIONS, "onnxruntime float32", "onnxruntime int8"]
    if "openvino" in peers.versions():
        names += ["openvino float32", "openvino int8", *["openvino bf16"] * HALF]
    if "ctranslate2" in peers.versions() and model == FULL_WIDTH:
        names += ["ctranslate2 float32", "ctranslate2 int8"]
    return names


def make_run(model: str, name: str, folder: Path, cores: int) -> Callable[[Tensor], Any]:
    """One of them, as a function of an utterance (1, T)."""
    runtime, _, form = name.partition(" ")
    if name == "teacher":
        return WavLMModel.from_pretrained(folder / "teacher").eval()
    if name == "Transformers-style":
        return published_student(student_config(), gated=False).eval()
    if name == "Transformers sdpa":
        return Wav2Vec2Model.from_pretrained(folder / FULL_WIDTH, attn_implementation="sdpa").eval()
    if runtime == "onnxruntime":
        return peers.by_onnxruntime(folder / f"{model}-{form}.onnx", cores)
    if runtime == "openvino":
        written, products = ("float32", "bf16") if form == "bf16" else (form, "f32")
        return peers.by_openvino(folder / f"{model}-{written}.onnx", cores, products)
    if runtime == "ctranslate2":
        return peers.by_ctranslate2(folder / "ctranslate2", cores, form)
    encoder = load_encoder(folder / model)
    return encoder if name == "encoder" else optimize(encoder, cast(Precision, name))


_run: Callable[[Tensor], Any] | None = None
"""What this process runs, if it is one of `Ways`."""


def become(model: str, name: str, folder: str, cores: int) -> None:
    """Make this process one of `Ways`."""
    global _run
    torch.set_num_threads(cores)
    _run = make_run(model, name, Path(folder), cores)


@torch.inference_mode()
def turn(seconds: float) -> list[float]:
    """Seconds of two passes of what this process runs."""
    assert _run is not None
    waveforms_BT, passes = torch.randn(1, round(16_000 * seconds)), []
    for _ in range(2):
        started = time.perf_counter()
        _run(waveforms_BT)
        passes.append(time.perf_counter() - started)
    return passes


def compare_full_width(report: Report, ways: Ways, seconds: float, repeats: int) -> None:
    """The same for wav2vec 2.0 at full width."""
    setting = f"wav2vec 2.0 Base, layer norms: {_setting(seconds, ways.cores)}"
    against_runtimes(report, ways.times(seconds, repeats), setting, seconds)


def against_runtimes(report: Report, times: dict[str, Timing], setting: str, seconds: float) -> None:
    """Each precision against every runtime in that precision; the goal is set for the fastest of them."""
    goal = RUNTIME_AT_1_S if seconds == 1 else RUNTIME
    for precision in PRECISIONS:
        form = precision.partition("-")[0]
        rivals = [name for name in times if name.endswith(f" {form}") and name not in PRECISIONS]
        rivals += ["Transformers sdpa"] if form == "float32" and "Transformers sdpa" in times else []
        best = min(rivals, key=lambda name: times[name].minimum, default=None)
        for rival in rivals:
            report.add(
                f"{setting}: {precision} against {rival}",
                times[rival].minimum,
                times[precision].minimum,
                goal if rival == best else None,
            )


def _setting(seconds: float, cores: int) -> str:
    return f"{seconds:g} s, {cores} thread{'s' * (cores > 1)}"


def compare(report: Report, ways: Ways, seconds: float, repeats: int) -> None:
    """All ways on one utterance of so many seconds."""
    times, config, cores = ways.times(seconds, repeats), student_config(), ways.cores
    operations = 2 * float(count_macs(config, Widths.of(config), seconds)) * seconds
    setting = _setting(seconds, cores)
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
    against_runtimes(report, times, setting, seconds)


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
