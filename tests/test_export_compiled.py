"""The lines of docs/export.md by which OpenVINO and AOTInductor take exported files, carried out."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skill_speech import export
from skill_speech.encoder import Encoder
from tests.exported_models import pruned_encoder

PAGE = Path(__file__).parents[1] / "docs" / "export.md"


def code_of(section: str) -> str:
    """The first block of Python under a heading."""
    _, _, text = PAGE.read_text(encoding="utf-8").partition(f"\n## {section}\n")
    found = re.search(r"```python\n(.*?)```", text.partition("\n## ")[0], re.DOTALL)
    assert found, section
    return found[1]


def carried_out(section: str, folder: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(folder)
    exec(code_of(section).replace("DIR/", f"{folder}/"), values)
    return values["outputs"]


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    waveforms_BT = torch.randn(2, 12_345, generator=torch.Generator().manual_seed(0))
    waveforms_BT[1, 8_000:] = 0
    return waveforms_BT, torch.tensor([12_345, 8_000])


def exported(format: Any, folder: Path) -> Encoder:
    encoder = pruned_encoder("wavlm", input_normalization=True)
    encoder.save_pretrained(folder / "model")
    export(str(folder / "model"), str(folder / "out"), format=format)
    return encoder


def refuse_differences(made: dict[str, np.ndarray], encoder: Encoder) -> None:
    """All hidden states over the valid frames, to 1e-4."""
    with torch.inference_mode():
        wanted = encoder(*batch())
    valid_BT = (torch.arange(wanted.features_BTD.shape[1]) < wanted.lengths_B[:, None]).numpy()
    states = {f"hidden_state_{number}": state for number, state in enumerate(wanted.hidden_states)}
    for name, state in (states | {"last_hidden_state": wanted.last_hidden_state_BTD}).items():
        np.testing.assert_allclose(made[name][valid_BT], state.numpy()[valid_BT], atol=1e-4 * float(state.abs().max()))


def test_openvino_reads_the_onnx_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="pip install openvino")
    encoder = exported("onnx", tmp_path)
    waveforms_BT, lengths_B = batch()
    values = {"waveforms": waveforms_BT.numpy(), "lengths": lengths_B.numpy()}
    outputs = carried_out("OpenVINO", tmp_path / "out", values, monkeypatch)
    names = [f"hidden_state_{number}" for number in range(encoder.config.num_layers + 1)]
    refuse_differences({name: outputs[name] for name in ("last_hidden_state", *names)}, encoder)


@pytest.mark.slow
def test_aotinductor_compiles_the_exported_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler here")
    encoder = exported("torch-export", tmp_path)
    waveforms_BT, lengths_B = batch()
    values = {"waveforms": waveforms_BT, "lengths": lengths_B}
    outputs = carried_out("AOTInductor", tmp_path / "out", values, monkeypatch)
    refuse_differences({name: tensor.numpy() for name, tensor in outputs.items()}, encoder)
