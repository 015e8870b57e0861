"""What a model card says about loading its folder, done."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from skill_speech.encoder import Encoder
from skill_speech.heads import SpeechModel
from skill_speech.reporting.model_card import read_card
from tests.exported_models import BATCHES
from tests.torchaudio_reference import hidden_states


def section(card: ModelCard, title: str) -> str:
    """The text under a heading."""
    return re.split(r"^## ", card.text.partition(f"## {title}\n")[2], flags=re.MULTILINE)[0]


def assert_the_card_loads_it(
    folder: Path, format: str, model: Encoder | SpeechModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run every block of code as it stands, on a batch of unequal lengths: what comes out is what `model` makes."""
    waveforms, lengths = BATCHES[0]
    with torch.inference_mode():
        made: Any = model(waveforms, lengths)
    codes = re.findall(r"```python\n(.*?)```", section(read_card(folder / "README.md"), "How to load it"), re.DOTALL)
    assert codes
    stand_in(format, folder, monkeypatch)
    inputs: dict[str, Any] = {"waveforms": waveforms, "lengths": lengths}
    if format == "transformers":
        inputs["waveforms"] = [row[:length].numpy() for row, length in zip(waveforms, lengths, strict=True)]
    elif format == "onnx":
        inputs = {name: tensor.numpy() for name, tensor in inputs.items()}
    for code in codes:
        names = inputs | {"waveforms_BT": waveforms, "lengths_B": lengths}
        with torch.inference_mode():
            exec(code.replace("path/to/this/folder", str(folder)), names)
        if "AutoModelForCTC" in code:
            assert names["model"].config.vocab_size == 32
            continue
        if "pipeline" in code:
            assert isinstance(names.get("text", ""), str)
            assert names.get("words", names.get("labels"))
            continue
        if isinstance(model, Encoder):
            found = names["outputs"]["hidden_state_3"] if "outputs" in names else names["states"][-1]
            wanted = made.hidden_states[-1]
        else:
            found = names["outputs"]["logits"] if "outputs" in names else names["output"]
            wanted = made.embeddings_BD if "embeddings" in code else made.logits
        scale = max(1.0, float(wanted.abs().max()))
        assert float((torch.as_tensor(np.asarray(found)) - wanted).abs().max()) < 1e-4 * scale, code


def stand_in(format: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For DPHuBERT's code and for s3prl's wrapper, which the code in the cards imports."""
    if format == "torchaudio":

        class Model:
            def __init__(self, **config: Any) -> None:
                self.config = config

            def eval(self) -> Model:
                return self

            def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
                self.state = state

            def extract_features(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[Any, torch.Tensor]:
                return hidden_states(self.state, self.config, waveforms, lengths), lengths

        place, names = "wav2vec2.model", {"wav2vec2_model": Model}
    elif format == "s3prl":
        monkeypatch.syspath_prepend(folder.parent)
        (folder / "__init__.py").touch()

        class Upstream:
            def __init__(self, name: str, path_or_url: str) -> None:
                hubconf = __import__(f"{folder.name}.hubconf").hubconf
                self.upstream = getattr(hubconf, name)(ckpt=path_or_url, refresh=False)

            def eval(self) -> Upstream:
                self.upstream.eval()
                return self

            def __call__(self, waveforms: torch.Tensor, lengths: torch.Tensor) -> tuple[Any, torch.Tensor]:
                rows = [row[:length] for row, length in zip(waveforms, lengths, strict=True)]
                return self.upstream(rows)["hidden_states"], lengths

        place, names = "s3prl.nn", {"S3PRLUpstream": Upstream}
    else:
        return
    module = types.ModuleType(place)
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, place.partition(".")[0], types.ModuleType(place.partition(".")[0]))
    monkeypatch.setitem(sys.modules, place, module)
