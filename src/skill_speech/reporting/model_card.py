"""The README of a student: what it is, how it was made, how to load it, what it is not."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..encoder import EncoderConfig
from ..errors import InputError
from ..files import atomic_write
from ..heads import SpeechModel
from ..profiling import Profile
from ..quantities import duration, human
from .card_facts import Stated, hub_id, stated_by
from .stages import asked_for, heard, told_times

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

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
SCORES, LOADING, LICENSE = "Scores", "How to load it", "License"
"""Sections that are written again when there is more to say."""

NO_SCORES = """Not measured when this card was written. `skill-speech evaluate` measures SUPERB's tasks; `skill-speech
report` and `skill-speech export` then put them here."""


def write_model_card(
    path: Path, settings: dict[str, Any], outcome: dict[str, Any], student: EncoderConfig, warnings: Sequence[str] = ()
) -> None:
    """Write a Markdown card with the metadata block that the hub reads.

    Args:
        path: of the file.
        settings: the run's config.yaml.
        outcome: the run's result.json.
        student: what was left.
        warnings: what went wrong in the run or should not be relied on.
    """
    source = str(settings["teacher"])
    teacher, stated = _name(source), stated_by(source, settings["revision"])
    size = human(Profile(**outcome["student"]).total_parameters)
    head = outcome.get("head")
    kind = None if head is None else head["kind"]
    what = "speech encoder" if head is None else f"speech model (head: {head['kind']}, {head['outputs']} outputs)"
    card = _card(
        harmless(path.parent.parent.name),
        f"A {what} of {size} parameters, compressed from `{teacher}` by skill-speech.",
        source=source,
        stated=stated,
        relation="finetune",  # of what the hub knows, the one for trained weights
        tags=["knowledge-distillation", "pruning"],
        kind=kind,
    )
    set_section(card, "Intended uses", intended_uses(kind))
    set_section(card, "Limits", _limits(student, stated, warnings))
    set_section(card, "Size and speed", _costs(outcome))
    set_section(card, "How it was made", f"{_making(settings, outcome)}\n\n{_architecture(student)}")
    set_section(card, SCORES, NO_SCORES)
    set_section(card, LOADING, _loading(kind))
    set_section(card, LICENSE, f"{_license(teacher, stated)} Its terms apply to this student, too.")
    set_section(card, "Citation", f"```bibtex\n{CITATION}\n```")
    write_card(card, path)


def pipeline_tag(kind: str | None) -> str:
    """What the hub calls the task of a model with a head of this kind, or without one."""
    if kind is None or kind == "x-vector":
        return "feature-extraction"
    return "automatic-speech-recognition" if kind == "ctc" else "audio-classification"


def plain_card(model: SpeechModel, source: str) -> ModelCard:
    """The card of a model that came without one: what can be said of it by itself."""
    name = harmless(Path(source).resolve().name if Path(source).exists() else source)
    encoder, size = model.encoder, human(model.num_parameters())
    kind, stated = None if model.head is None else model.head.config.kind, stated_by(source, None)
    what = "The speech encoder of " if model.head is None else f"The speech model (head: {kind}) "
    card = _card(
        name.rpartition("/")[2],
        f"{what}`{name}` (family {encoder.config.family}, {size} parameters), written by skill-speech.",
        source=source,
        stated=stated,
        relation=None,  # the hub has no word for the same weights in another form
        tags=[],
        kind=kind,
    )
    card.data["datasets"] = list(stated.datasets) or None
    set_section(card, "Intended uses", intended_uses(kind))
    set_section(card, "Size", _architecture(encoder.config))
    set_section(card, SCORES, NO_SCORES)
    set_section(card, LOADING, _loading(kind))
    set_section(card, LICENSE, f"{_license(name, stated)} Its terms apply here, too.")
    return card


def _card(
    title: str, summary: str, *, source: str, stated: Stated, relation: str | None, tags: list[str], kind: str | None
) -> ModelCard:
    """Metadata, a title and a sentence."""
    from huggingface_hub import ModelCard, ModelCardData

    base = hub_id(source)
    data = ModelCardData(
        **stated.license_metadata(source),
        language=list(stated.language) or None,
        base_model=base,
        base_model_relation=relation if base else None,
        library_name="skill-speech",
        pipeline_tag=pipeline_tag(kind),
        tags=["speech", "audio", *tags, "skill-speech"],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {title}\n\n{summary}\n")


def read_card(path: Path) -> ModelCard:
    """A card from a file.

    Raises:
        InputError: it is not text, or its metadata cannot be read.
    """
    from huggingface_hub import ModelCard

    # Without metadata a card is a card; huggingface_hub warns of it.
    log = logging.getLogger("huggingface_hub.repocard")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return ModelCard.load(path, ignore_metadata_errors=True)
    except (OSError, ValueError, AttributeError, TypeError, yaml.YAMLError) as error:
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{path}: its metadata cannot be read ({reason[0] if reason else error!r}); repair or remove the file"
        ) from None
    finally:
        log.setLevel(level)


def write_card(card: ModelCard, path: Path) -> None:
    """Write a card, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(str(card), encoding="utf-8", errors="backslashreplace")


def set_section(card: ModelCard, title: str, text: str, after: str | None = None) -> None:
    """Give a card's section `title` (of level two) this text.

    A card that has no such section gets it after the section `after`, or at its end.
    """
    parts = _sections(card.text)
    mine = (title, f"## {title}\n\n{text}")
    names = [name for name, _ in parts]
    if title in names:
        parts[names.index(title)] = mine
        parts = [part for part in parts if part[0] != title or part is mine]
    else:
        parts.insert(names.index(after) + 1 if after is not None and after in names else len(parts), mine)
    blocks = [block.strip("\n") for _, block in parts]
    card.text = "\n" + "\n\n".join(filter(None, blocks)) + "\n"


def _sections(text: str) -> list[tuple[str | None, str]]:
    """The sections of a card, each with its title; what is in front of the first one has none."""
    parts: list[tuple[str | None, list[str]]] = [(None, [])]
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        if line.startswith("## ") and not fenced:
            parts.append((line.removeprefix("## ").strip(), []))
        parts[-1][1].append(line)
    return [(title, "\n".join(lines)) for title, lines in parts]


def _costs(outcome: dict[str, Any]) -> str:
    teacher, student = Profile(**outcome["teacher"]), Profile(**outcome["student"])
    rows = [
        ("parameters", human(teacher.total_parameters), human(student.total_parameters)),
        ("MACs per second of audio", human(teacher.total_macs), human(student.total_macs)),
        ("real-time factor", f"{teacher.real_time_factor:.4f}", f"{student.real_time_factor:.4f}"),
    ]
    table = "\n".join(f"| {what} | {one} | {other} |" for what, one, other in rows)
    return f"""| | teacher | student |
|---|---|---|
{table}

Speed: one utterance of {student.seconds:g} s, float32, CPU threads: {student.threads}. {_loss(outcome)}"""


def _loss(outcome: dict[str, Any]) -> str:
    """What stage 2 did to the loss, whose own value depends on the targets."""
    after, before = outcome["loss"], outcome.get("loss_after_surgery")
    if after is None:
        return "The distillation loss was not measured: no speech was held out."
    told = f"{after:.4f}" if before is None else f"{after - before:+.4f} since surgery, to {after:.4f}"
    return (
        f"Distillation loss on held-out speech: {told}; it measures how close the layers are, not how well a task is "
        "solved."
    )


def _training_costs(outcome: dict[str, Any]) -> str:
    """Time and machine, as far as they were recorded."""
    seconds = sum(result.get("seconds", 0.0) for result in outcome["stages"].values())
    made_on = outcome.get("environment")
    if not seconds or not made_on:
        return ""
    machine = made_on["accelerator"] or made_on.get("processor") or made_on["platform"]
    return f"\n- training took {duration(seconds)} on {harmless(str(machine))}"


def _rounding(quantization: str) -> str:
    return (
        f"\n- stage 2 was quantization-aware ({quantization}): the weights are rounded, and `skill-speech export "
        f"--format onnx --quantize {quantization}` loses little of what it learned"
    )


def _making(settings: dict[str, Any], outcome: dict[str, Any]) -> str:
    timed = f"\n- {told_times(outcome)}" if told_times(outcome) else ""
    # A run that started from another's stage 1 has none.
    stages = "; ".join(f"{name} {heard(result)}" for name, result in outcome["stages"].items())
    clusters = ""
    if outcome.get("clusters"):
        groups = "; ".join(", ".join(f"h_{layer}" for layer in group) for group in outcome["clusters"])
        clusters = f"\n- layer clusters: {groups}"
    kept = ", ".join(f"h_{layer}" for layer in settings.get("keep_layers") or ())
    clusters += f"\n- matched individually, without a projection: {kept}" if kept else ""
    rounded = _rounding(settings["quantization"]) if settings.get("quantization") else ""
    names = _shown(settings)
    told = yaml.safe_dump({name: value for name, value in names.items() if name != "output"}, sort_keys=False)
    return f"""- method `{settings["method"]}`, budget: {asked_for(settings)}, seed {settings["seed"]}{timed}{clusters}
- {stages}; precision {settings["precision"]}{rounded}{_training_costs(outcome)}
- data: {_data(settings["data"])}

<details><summary>All settings</summary>

```yaml
{told.strip()}
```

</details>"""


def _shown(value: Any) -> Any:
    """Settings without the paths of somebody's machine."""
    if isinstance(value, dict):
        return {name: _shown(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(part) for part in value]
    return _name(value) if isinstance(value, str) else value


def _data(data: str | list[dict[str, Any]] | list[str]) -> str:
    if isinstance(data, str):
        return f"`{_name(data)}`"
    return ", ".join(
        f"`{_name(str(part['path']))}` (weight {part['weight']:g})" if isinstance(part, dict) else _data(str(part))
        for part in data
    )


def _architecture(student: EncoderConfig) -> str:
    heads = " ".join(str(len(layer.heads)) for layer in student.layers)
    units = " ".join(str(layer.units) for layer in student.layers)
    channels = " ".join(str(conv.channels) for conv in student.convs)
    return f"""Convolution channels {channels}; attention heads per layer {heads} (of {student.num_heads});
feed-forward units per layer {units}. The transformer's width is {student.hidden_size}."""


def _loading(kind: str | None) -> str:
    if kind is None:
        code = """from skill_speech import load_encoder

encoder = load_encoder("path/to/this/folder")
out = encoder(waveforms_BT, lengths_B)  # 16 kHz mono, lengths optional
out.hidden_states  # one tensor more than layers, in Transformers' order"""
        theirs = """from transformers import AutoModel

model = AutoModel.from_pretrained("exported", trust_remote_code=True)"""
    else:
        code = """from skill_speech import load_model

model = load_model("path/to/this/folder")
model(waveforms_BT, lengths_B).logits  # 16 kHz mono, lengths optional
model.encoder, model.head, model.files  # the encoder as of load_encoder, the head, the tokenizer's files"""
        theirs = f"""from transformers import pipeline

model = pipeline("{pipeline_tag(kind)}", model="exported", trust_remote_code=True)
model(samples)  # an array at 16 kHz; the name of a file works where ffmpeg is installed"""
        if kind in ("frame", "x-vector"):
            name = {"frame": "AutoModelForAudioFrameClassification", "x-vector": "AutoModelForAudioXVector"}[kind]
            theirs = f"""from transformers import {name}

model = {name}.from_pretrained("exported", trust_remote_code=True)"""
    return f"""```python
{code}
```

With Transformers alone, after `skill-speech export path/to/this/folder --format transformers --output exported`:

```python
{theirs}
```

With ONNX Runtime, without torch: `skill-speech export path/to/this/folder --format onnx --output exported`."""


USES = {
    None: """Features for other models: heads trained on its hidden states, frozen or together with it, for recognition,
speaker, emotion or intent tasks; in place of its teacher where memory, time or energy is short. By itself it makes no
text and no labels.""",
    "ctc": """Speech recognition in the teacher's languages, where memory, time or energy is short, and further
fine-tuning.""",
    "x-vector": """Comparing voices (verification), where memory, time or energy is short, and further fine-tuning. The
threshold is the user's to choose, on data of their own.""",
}
LABELS = """The labels that its teacher was fine-tuned for, where memory, time or energy is short, and further
fine-tuning."""
NOT_FOR = """Not for decisions about people that nobody checks (who somebody is, feels or may do): nothing here was
measured for that."""


def intended_uses(kind: str | None) -> str:
    """What a model with a head of this kind, or without one, is for."""
    return f"{USES.get(kind, LABELS)} {NOT_FOR}"


def _limits(student: EncoderConfig, stated: Stated, warnings: Sequence[str]) -> str:
    normalized = ", normalized per utterance by the encoder itself" if student.input_normalization else ""
    languages = f" ({', '.join(stated.language)} by the teacher's card)" if stated.language else ""
    first = "".join(f"- **{sentence}**\n" for sentence in warnings)
    return f"""{first}- It has the teacher's languages{languages}, domain and biases, and lower accuracy; measure it
  on your task before you rely on it (`skill-speech evaluate`).
- {student.sampling_rate} Hz mono input{normalized}."""


def _license(teacher: str, stated: Stated) -> str:
    if stated.license is None:
        return (
            f"The card of `{teacher}` states no license in its metadata, so that this one says `other`: find it out "
            "before you publish."
        )
    named = f" ({harmless(stated.license_name)})" if stated.license_name else ""
    return f"The card of `{teacher}` states the license `{harmless(stated.license)}`{named}."


def _name(source: str) -> str:
    """A hub ID or another word, or a folder's name without the path of somebody's machine."""
    return harmless(Path(source).name if os.path.isabs(source) else source)


def harmless(text: str) -> str:
    """A name that cannot break out of Markdown or of a code span."""
    return "".join(letter if letter.isprintable() and letter not in "`<>|[]*\\" else "_" for letter in text)
