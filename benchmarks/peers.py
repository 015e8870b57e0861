"""Other people's runtimes, each as a function of one utterance (1, T); those that are not installed are left out."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2ForCTC

Run = Callable[[Tensor], Any]
PACKAGES = ("transformers", "onnxruntime", "openvino", "ctranslate2")


def versions() -> dict[str, str]:
    """Of those that are installed here."""
    return {name: version(name) for name in PACKAGES if find_spec(name) is not None}


def by_onnxruntime(path: Path, cores: int) -> Run:
    """An ONNX model in onnxruntime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = cores
    session = onnxruntime.InferenceSession(path, settings)
    names = [one.name for one in session.get_inputs()]
    return lambda waveforms_BT: session.run(None, _inputs(waveforms_BT, names))


def by_openvino(path: Path, cores: int, precision: str) -> Run:
    """The same in OpenVINO, which reads ONNX; `precision` is of its products: "f32" or "bf16"."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": cores, "INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
    model = openvino.Core().compile_model(path, "CPU", settings)
    names, request = [one.any_name for one in model.inputs], model.create_infer_request()
    return lambda waveforms_BT: request.infer(_inputs(waveforms_BT, names))


def by_ctranslate2(folder: Path, cores: int, compute_type: str) -> Run:
    """A folder that `convert` wrote, in CTranslate2; `compute_type` is "float32" or "int8"."""
    import ctranslate2

    model = ctranslate2.models.Wav2Vec2(str(folder), device="cpu", compute_type=compute_type, intra_threads=cores)

    def run(waveforms_BT: Tensor) -> Any:
        return model.encode(ctranslate2.StorageView.from_array(waveforms_BT[:, None].numpy()), to_cpu=True)

    return run


def convert(model: Wav2Vec2ForCTC, folder: Path) -> None:
    """A wav2vec 2.0 with layer norms, without its head, for CTranslate2."""
    from ctranslate2.converters import TransformersConverter

    source = folder.with_name(f"{folder.name}-source")
    model.config.return_hidden = True
    model.save_pretrained(source)
    (source / "vocab.json").write_text('{"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5}')
    Wav2Vec2CTCTokenizer(str(source / "vocab.json")).save_pretrained(source)
    TransformersConverter(str(source)).convert(str(folder))


def _inputs(waveforms_BT: Tensor, names: list[str]) -> dict[str, Any]:
    values = {"waveforms": waveforms_BT.numpy(), "lengths": np.array([waveforms_BT.shape[1]])}
    return {name: values[name] for name in names}


def same(one: Any, other: Tensor, tolerance: float) -> bool:
    """Whether a peer's array (1, T, D) is that tensor but for rounding: it computes what we compare it with."""
    difference = torch.from_numpy(np.asarray(one, dtype=np.float32)).reshape(other.shape) - other
    return bool(difference.norm() < tolerance * other.norm())
