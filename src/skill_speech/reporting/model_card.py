"""The README of a student: what it is, how it was made, how to load it, what it is not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from yaml import YAMLError

from ..encoder import EncoderConfig
from ..files import atomic_write
from ..profiling import Profile
from ..pruning import human

CITATION = """@inproceedings{zampierin2024skill,
  title = {{SKILL}: Similarity-aware Knowledge distILLation for Speech Self-Supervised Learning},
  author = {Zampierin, Luca and Hacene, Ghouthi Boukli and Nguyen, Bac and Ravanelli, Mirco},
  year = {2024},
  note = {arXiv 2402.16830}
}
@inproceedings{peng2023dphubert,
  title = {{DPHuBERT}: Joint Distillation and Pruning of Self-Supervised Speech Models},
  author = {Peng, Yifan and Sudo, Yui and Muhammad, Shakeel and Watanabe, Shinji},
  booktitle = {Interspeech},
  year = {2023}
}"""
TAGS = ["speech", "audio", "knowledge-distillation", "pruning", "skill-speech"]


def write_model_card(path: Path, settings: dict[str, Any], outcome: dict[str, Any], student: EncoderConfig) -> None:
    """Write a Markdown card with the metadata block that the hub reads.

    Args:
        path: of the file.
        settings: the run's config.yaml.
        outcome: the run's result.json.
        student: what was left.
    """
    from huggingface_hub import ModelCardData

    teacher = _name(str(settings["teacher"]))
    licence = teacher_licence(str(settings["teacher"]), settings["revision"])
    data = ModelCardData(
        license=licence,
        base_model=teacher if "/" in teacher else None,
        pipeline_tag="feature-extraction",
        tags=TAGS,
    )
    size = human(Profile(**outcome["student"]).total_parameters)
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {_plain(path.parent.parent.name)}",
        f"A speech encoder of {size} parameters, compressed from `{teacher}` by skill-speech.",
        _costs(outcome),
        _making(settings, outcome),
        _architecture(student),
        _loading(),
        _limits(student),
        _licence(teacher, licence),
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]
    with atomic_write(path) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def teacher_licence(source: str, revision: str | None) -> str | None:
    """The licence that the teacher's own card states in its metadata; None where there is no card or it states none."""
    from huggingface_hub import ModelCard
    from transformers.utils import cached_file

    try:
        card = cached_file(source, "README.md", revision=revision, _raise_exceptions_for_missing_entries=False)
        licence = None if card is None else ModelCard.load(card, ignore_metadata_errors=True).data.license
    # A card is a courtesy: whatever is wrong with a teacher's, its student is not the worse for it.
    except (OSError, ValueError, AttributeError, YAMLError):
        return None
    return licence if isinstance(licence, str) else None


def _costs(outcome: dict[str, Any]) -> str:
    teacher, student = Profile(**outcome["teacher"]), Profile(**outcome["student"])
    rows = [
        ("parameters", human(teacher.total_parameters), human(student.total_parameters)),
        ("MACs per second of audio", human(teacher.total_macs), human(student.total_macs)),
        ("real-time factor", f"{teacher.real_time_factor:.4f}", f"{student.real_time_factor:.4f}"),
    ]
    table = "\n".join(f"| {what} | {one} | {other} |" for what, one, other in rows)
    loss = "not measured" if outcome["loss"] is None else f"{outcome['loss']:.4f}"
    return f"""| | teacher | student |
|---|---|---|
{table}

Speed: one utterance of {student.seconds:g} s, float32, {student.threads} CPU threads. Distillation loss on held-out
speech: {loss}; it says how near the layers are, not how well a task is solved."""


def _making(settings: dict[str, Any], outcome: dict[str, Any]) -> str:
    budget = ", ".join(
        f"{name} {settings[name]}" for name in ("sparsity", "params", "macs") if settings[name] is not None
    )
    stages = []
    for name in ("stage1", "stage2"):
        stage = settings[name]
        audio = stage["steps"] * stage["batch_seconds"] * stage["accumulate"] / 3600
        stages.append(f"{name} {stage['steps']} steps ({audio:.3g} h of audio heard)")
    clusters = ""
    if outcome.get("clusters"):
        groups = "; ".join(", ".join(f"h_{layer}" for layer in group) for group in outcome["clusters"])
        clusters = f"\n- layer clusters: {groups}"
    return f"""## How it was made

- method `{settings["method"]}`, budget: {budget}, seed {settings["seed"]}{clusters}
- {", ".join(stages)}, precision {settings["precision"]}
- data: {_data(settings["data"])}
- the run's config.yaml has every setting"""


def _data(data: str | list[dict[str, Any]]) -> str:
    if isinstance(data, str):
        return f"`{_plain(_name(data))}`"
    return ", ".join(f"`{_plain(_name(str(part['path'])))}` (weight {part['weight']:g})" for part in data)


def _architecture(student: EncoderConfig) -> str:
    heads = " ".join(str(len(layer.heads)) for layer in student.layers)
    units = " ".join(str(layer.units) for layer in student.layers)
    channels = " ".join(str(conv.channels) for conv in student.convs)
    return f"""What is left: convolution channels {channels};
attention heads per layer {heads} (of {student.num_heads}); feed-forward units per layer {units}.
The transformer's width is {student.hidden_size}, as the teacher's."""


def _loading() -> str:
    return """## How to load it

```python
from skill_speech import load_encoder

encoder = load_encoder("path/to/this/folder")
out = encoder(waveforms_BT, lengths_B)  # 16 kHz mono, lengths optional
out.hidden_states  # one tensor more than layers, in Transformers' order
```

With Transformers alone, after `skill-speech export path/to/this/folder --format transformers --output exported`:

```python
from transformers import AutoModel

model = AutoModel.from_pretrained("exported", trust_remote_code=True)
```

With ONNX Runtime, without torch: `skill-speech export path/to/this/folder --format onnx --output exported`."""


def _limits(student: EncoderConfig) -> str:
    normalized = ", normalised per utterance by the encoder itself" if student.input_normalization else ""
    return f"""## Limits

- It has the teacher's languages, domain and biases, and less of its accuracy; measure it on your task before you rely
  on it (`skill-speech evaluate`).
- {student.sampling_rate} Hz mono input{normalized}."""


def _licence(teacher: str, licence: str | None) -> str:
    stated = f"states the licence `{_plain(licence)}`" if licence else "states no licence in its card's metadata"
    return f"## Licence\n\nThe teacher `{teacher}` {stated}. Its terms apply to this student too."


def _name(source: str) -> str:
    """A hub id, or a folder's name without the path of somebody's machine."""
    return _plain(Path(source).name if os.path.isabs(source) else source)


def _plain(text: str) -> str:
    """A name that cannot break out of Markdown or of a code span."""
    return "".join(letter if letter.isprintable() and letter not in "`<>|[]*\\" else "_" for letter in text)
