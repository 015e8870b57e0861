"""int8 with scales fixed by calibration audio ("static") against scales of every frame ("dynamic").

python -m benchmarks.static_int8 [--quick] --json FILE

Is it worth offering? Speed: the 23.6 M student of benchmarks.inference in onnxruntime and OpenVINO, one thread, an
utterance at a time; the peer is the export as it is (dynamic). Error: hubert-mini's last hidden state against float32,
relative, all frames together, on speakers that calibration has not heard; scales by the largest value and by the
99.99th percentile. Both round the same maps; static forms are made by onnxruntime's `quantize_static`, as QDQ.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from benchmarks import peers
from benchmarks.common import Report, interleaved, parse, parser
from benchmarks.inference import student_config
from lab.corpus import Utterance, read_corpus
from lab.speech import make_speech
from skill_speech import Encoder, load_encoder
from skill_speech.exporting.onnx_model import write_onnx
from skill_speech.heads import SpeechModel

TEACHER = Path(__file__).parents[1] / "lab" / "teachers" / "hubert-mini"
SCALES = {"largest value": CalibrationMethod.MinMax, "99.99th percentile": CalibrationMethod.Percentile}
FIRST = ("largest value",)
LAST = "last_hidden_state"
LENGTH = 32_000
"""Samples of an utterance for calibration."""


class Audio(CalibrationDataReader):
    """Utterances as the inputs of an exported model."""

    def __init__(self, waveforms: Sequence[np.ndarray]) -> None:
        self._given: Iterator[dict[str, np.ndarray]] = iter([inputs(waveform_T) for waveform_T in waveforms])

    def get_next(self) -> Any:
        """The next one, or None."""
        return next(self._given, None)


def inputs(waveform_T: np.ndarray) -> dict[str, np.ndarray]:
    """What an exported model takes."""
    return {"waveforms": waveform_T[None].astype(np.float32), "lengths": np.array([len(waveform_T)])}


def write_static(path: Path, written: Path, waveforms: Sequence[np.ndarray], scales: str) -> None:
    """Round the maps of the transformer, as the dynamic export does."""
    model = onnx.load(path)
    weights = {initializer.name for initializer in model.graph.initializer}
    # In the order of the graph: the first one is the feature projection's, which the dynamic form leaves alone.
    _, *maps = [node.name for node in model.graph.node if node.op_type == "MatMul" and set(node.input) & weights]
    settings = {"CalibPercentile": 99.99, "MatMulConstBOnly": True}
    quantize_static(
        path,
        written,
        Audio(waveforms),
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=maps,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=SCALES[scales],
        extra_options=settings,
    )


def last_hidden_states(path: Path, waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """Of all utterances, one after the other (N, D)."""
    session = onnxruntime.InferenceSession(path)
    return np.concatenate([session.run([LAST], inputs(waveform_T))[0][0] for waveform_T in waveforms])


def errors(folder: Path, hours: float, scales: Sequence[str]) -> dict[str, float]:
    """Relative errors of the last hidden state of the bundled teacher."""
    corpus = read_corpus(make_speech(folder / "speech", hours=hours, speakers=20, jobs=1))
    speakers = sorted({utterance.speaker for utterance in corpus})

    def of(chosen: Sequence[str]) -> list[np.ndarray]:
        heard: list[Utterance] = [utterance for utterance in corpus if utterance.speaker in chosen]
        return [utterance.waveform().numpy() for utterance in heard]

    # Of one length: onnxruntime's histograms want that.
    calibration = [waveform_T[:LENGTH] for waveform_T in of(speakers[::2]) if len(waveform_T) >= LENGTH]
    test = of(speakers[1::2])
    paths = write_forms(load_encoder(TEACHER), folder / "teacher", calibration, scales)
    plain = last_hidden_states(paths.pop("float32"), test)
    return {
        name: float(np.linalg.norm(last_hidden_states(path, test) - plain) / np.linalg.norm(plain))
        for name, path in paths.items()
    }


def write_forms(
    encoder: Encoder, folder: Path, calibration: Sequence[np.ndarray], scales: Sequence[str]
) -> dict[str, Path]:
    """The float32, dynamic and static models of an encoder."""
    folder.mkdir()
    paths = {name: folder / f"{name.replace(' ', '-')}.onnx" for name in ("float32", "dynamic", *scales)}
    write_onnx(SpeechModel(encoder), paths["float32"], "last")
    write_onnx(SpeechModel(encoder), paths["dynamic"], "last", "int8")
    for name in scales:
        write_static(paths["float32"], paths[name], calibration, name)
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    options = parse(parser("static_int8", __doc__), arguments)
    report = Report("int8 with fixed scales against scales of every frame, a 23.6 M student, one thread", options)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        report.figures["errors"] = errors(folder, *((0.02, FIRST) if options.quick else (0.3, tuple(SCALES))))
        report.figures["peers"] = peers.versions()
        waveforms = [np.random.default_rng(number).standard_normal(LENGTH) for number in range(4)]
        paths = write_forms(Encoder(student_config()).eval(), folder / "student", waveforms, FIRST)
        static = paths[FIRST[0]]
        forms = {"float32": paths["float32"], "dynamic": paths["dynamic"], "static": static}
        makers = {"onnxruntime": lambda path: peers.by_onnxruntime(path, 1)}
        if "openvino" in peers.versions():
            makers["openvino"] = lambda path: peers.by_openvino(path, 1, "f32")
        for runtime, make in makers.items():
            runs = {form: make(path) for form, path in forms.items()}
            for seconds in [1.0] if options.quick else [0.5, 1.0, 5.0, 15.0]:
                waveforms_BT = torch.randn(1, round(16_000 * seconds))
                functions = {form: (lambda run=run, audio=waveforms_BT: run(audio)) for form, run in runs.items()}
                times = interleaved(functions, 2 if options.quick else 10)
                report.add(
                    f"{runtime}, {seconds:g} s: static against dynamic",
                    times["dynamic"].minimum,
                    times["static"].minimum,
                    static_over_float32=times["float32"].minimum / times["static"].minimum,
                    dynamic_over_float32=times["float32"].minimum / times["dynamic"].minimum,
                )
    report.write(options.json)
    print({name: f"{100 * error:.2f} %" for name, error in report.figures["errors"].items()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
