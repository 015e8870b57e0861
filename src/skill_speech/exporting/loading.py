"""How each format is loaded, for the card in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

from ..heads import HeadConfig
from ..kernels.rounding import Rounding
from .measuring import Measurement

LIBRARIES = {"transformers": "transformers", "onnx": "onnx", "s3prl": "s3prl"}
"""Formats that are a library's own, by the name that the hub has for it."""

FOLDER = "path/to/this/folder"

TRANSFORMERS = """With transformers and torch alone:

```python
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained("$source")
model = AutoModel.from_pretrained("$source", trust_remote_code=True)
inputs = extractor(waveforms, sampling_rate=16_000, padding=True, return_tensors="pt")  # 16 kHz, of any lengths
states = model(**inputs, output_hidden_states=True).hidden_states
```

Where skill_speech is installed, without remote code; AutoModel and AutoModelForAudioClassification do the same:

```python
import skill_speech
from transformers import AutoModelForCTC

skill_speech.register()
model = AutoModelForCTC.from_pretrained("$source", vocab_size=32)
```

The encoder by itself:

```python
from skill_speech import load_encoder

encoder = load_encoder("$source")
states = encoder(waveforms_BT, lengths_B).hidden_states
```"""

ONNX = """With onnxruntime alone:

```python
import onnxruntime

session = onnxruntime.InferenceSession("$source/model.onnx")
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, {"waveforms": waveforms, "lengths": lengths})))
```

$inputs

On the command line, `python encode.py speech.wav` writes `speech.npz`$prints"""

BROWSER = """. In a browser: `npm install` in this folder, then
`python3 serve.py`, then http://localhost:8000."""
PRINTS = {"ctc": " and prints the text", "sequence": " and prints the label"}

TORCH_EXPORT = """With torch alone:

```python
import torch

program = torch.export.load("$source/model.pt2").module()
outputs = program(waveforms, lengths)
```

$inputs

For another device: `torch.export.passes.move_to_device_pass(torch.export.load(…), "cuda")`."""

RECOGNITION = """With transformers and torch alone:

```python
from transformers import pipeline

recognize = pipeline("automatic-speech-recognition", model="$source", trust_remote_code=True)
text = recognize(waveforms[0])["text"]  # 16 kHz
words = recognize(waveforms[0], return_timestamps="word", chunk_length_s=20)["chunks"]
```"""

CLASSIFICATION = """With transformers and torch alone:

```python
from transformers import pipeline

classify = pipeline("audio-classification", model="$source", trust_remote_code=True)
labels = classify(waveforms[0], top_k=3)  # 16 kHz
```"""

LOGITS = """With transformers and torch alone:

```python
from transformers import AutoFeatureExtractor, $auto

extractor = AutoFeatureExtractor.from_pretrained("$source")
model = $auto.from_pretrained("$source", trust_remote_code=True)
inputs = extractor(waveforms, sampling_rate=16_000, padding=True, return_tensors="pt")  # 16 kHz, of any lengths
output = model(**inputs).$output
```"""

OURS = """With skill_speech, in batches of any lengths:

```python
from skill_speech import load_model

model = load_model("$source")
output = model(waveforms_BT, lengths_B).logits
```"""

WITH_HEAD = {
    "ctc": RECOGNITION,
    "sequence": CLASSIFICATION,
    "frame": Template(LOGITS).safe_substitute(auto="AutoModelForAudioFrameClassification", output="logits"),
    "x-vector": Template(LOGITS).safe_substitute(auto="AutoModelForAudioXVector", output="embeddings"),
}
"""Transformers' way to a model, by the kind of its head."""

DECODED = {
    "ctc": "`logits` (batch, frames, $outputs), whose tokens are numbered in vocab.json",
    "sequence": "`logits` (batch, $outputs), whose labels are in head.json",
    "frame": "`logits` (batch, frames, $outputs), whose labels are in head.json",
    "x-vector": "`embeddings` (batch, $embedding) and `logits`, of which verification takes the first",
}
"""What comes out of a traced model, by the kind of its head."""

TRACED = """`waveforms` (batch, samples) are float32 of 16 kHz, padded with zeros at the end; `lengths` (batch,) int64
are the true samples of each. Out come $outputs."""

HIDDEN = {
    "all": "`last_hidden_state` (batch, frames, $width) and `hidden_state_0` … `hidden_state_L` in Transformers' order",
    "last": "`last_hidden_state` (batch, frames, $width)",
}
FRAMES = "`frames`, how many are valid of each"

TORCHAUDIO = """With DPHuBERT's code (DiariZen's has the same function, in `diarizen.models.module.wav2vec2.model`):

```python
import torch
from wav2vec2.model import wav2vec2_model

checkpoint = torch.load("$source/model.pth")
model = wav2vec2_model(**checkpoint["config"]).eval()
model.load_state_dict(checkpoint["state_dict"])
states, frames = model.extract_features(waveforms, lengths)
```

With skill_speech:

```python
from skill_speech import load_encoder

encoder = load_encoder("$source/model.pth")
states = encoder(waveforms_BT, lengths_B).hidden_states
```"""

TORCHAUDIO_CTC = """With DPHuBERT's code (DiariZen's has the same function, in `diarizen.models.module.wav2vec2.model`):

```python
import torch
from wav2vec2.model import wav2vec2_model

checkpoint = torch.load("$source/model.pth")
model = wav2vec2_model(**checkpoint["config"]).eval()
model.load_state_dict(checkpoint["state_dict"])
output, frames = model(waveforms, lengths)
```

With skill_speech:

```python
from skill_speech import load_model

model = load_model("$source/model.pth")
output = model(waveforms_BT, lengths_B).logits
```"""

S3PRL = """Copy this folder to `s3prl/upstream/skill_speech` and add the line
`from s3prl.upstream.skill_speech.hubconf import *` to `s3prl/hub.py`. Then
`run_downstream.py -u skill_speech_local -k $source/model.pt`, or:

```python
from s3prl.nn import S3PRLUpstream

upstream = S3PRLUpstream("skill_speech_local", path_or_url="$source/model.pt").eval()
states, frames = upstream(waveforms, lengths)
```"""

ROUNDED: dict[Rounding, str] = {
    "int8": "The transformer's linear maps have 8-bit weights and inputs here",
    "int4": "The transformer's linear maps have 4-bit weights here",
}

TEXTS = {
    "transformers": TRANSFORMERS,
    "onnx": ONNX,
    "torch-export": TORCH_EXPORT,
    "torchaudio": TORCHAUDIO,
    "s3prl": S3PRL,
}


def how_to_load(
    format: str,
    *,
    width: int,
    head: HeadConfig | None,
    hidden_states: str | None,
    quantize: Rounding | None,
    measurements: Sequence[Measurement],
    repository: str | None,
) -> str:
    """The text of a card's section.

    Args:
        format: of the folder.
        width: of hidden states.
        head: of the model; None for an encoder alone.
        hidden_states: "all" or "last", what comes out of a traced program beside a head's outputs; None for none.
        quantize: how the transformer's linear maps are rounded.
        measurements: of the model in torch and of the exported ones.
        repository: on the hub, if the folder goes there.
    """
    # Transformers downloads by itself.
    by_name = repository is not None and format == "transformers"
    prints = BROWSER if head is None else f"{PRINTS.get(head.kind, '')}."
    text = Template(_text(format, head)).substitute(
        source=repository if by_name else FOLDER,
        inputs=Template(TRACED).substitute(outputs=_outputs(width, head, hidden_states)),
        prints=prints,
    )
    if repository is not None and not by_name:
        text = f"`hf download {repository} --local-dir {FOLDER}` brings the files.\n\n{text}"
    if quantize is not None:
        text += f"\n\n{ROUNDED[quantize]}; what this card says of costs and scores was measured in float32."
        if measurements:
            text += _beside(*measurements[-2:])
    return text


def _beside(float32: Measurement, rounded: Measurement) -> str:
    """Size and error of a model that is rounded."""
    return (
        f" The file has {rounded.size / 1e6:.1f} MB instead of {float32.size / 1e6:.1f}; on noise no output differs "
        f"from float32 by more than {rounded.difference:.1%} of its largest value."
    )


def _text(format: str, head: HeadConfig | None) -> str:
    if head is None or format not in ("transformers", "torchaudio"):
        return TEXTS[format]
    if format == "transformers":
        return f"{WITH_HEAD[head.kind]}\n\n{OURS}"
    return TORCHAUDIO_CTC


def _outputs(width: int, head: HeadConfig | None, hidden_states: str | None) -> str:
    """What comes out of a traced program."""
    parts = [] if head is None else [DECODED[head.kind]]
    parts += [] if hidden_states is None else [HIDDEN[hidden_states]]
    if hidden_states is not None or (head is not None and head.kind in ("ctc", "frame")):
        parts.insert(1, FRAMES)
    numbers = {} if head is None else {"outputs": head.outputs, "embedding": head.embedding}
    return Template("; ".join(parts)).substitute(width=width, **numbers)
