"""The README of a student: what it is and how to load it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..files import atomic_write
from ..profiling import Profile
from ..pruning import human


def write_model_card(path: Path, settings: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Write a Markdown card with the hub's metadata block.

    Args:
        path: of the file.
        settings: the run's config.yaml.
        outcome: the run's result.json.
    """
    teacher, student = Profile(**outcome["teacher"]), Profile(**outcome["student"])
    rows = [
        ("parameters", human(teacher.total_parameters), human(student.total_parameters)),
        ("MACs per second of audio", human(teacher.total_macs), human(student.total_macs)),
        ("real-time factor", f"{teacher.real_time_factor:.4f}", f"{student.real_time_factor:.4f}"),
    ]
    table = "\n".join(f"| {what} | {one} | {other} |" for what, one, other in rows)
    loss = "not measured" if outcome["loss"] is None else f"{outcome['loss']:.4f}"
    text = f"""---
tags: [speech, audio, feature-extraction, knowledge-distillation, pruning, skill-speech]
base_model: {_name(settings["teacher"])}
---

# {path.parent.parent.name}

A speech encoder compressed with skill-speech from `{_name(settings["teacher"])}`
(method {settings["method"]}, seed {settings["seed"]}).

| | teacher | student |
|---|---|---|
{table}

Speed: one utterance of {student.seconds:g} s, float32, {student.threads} CPU threads.
Distillation loss on held-out speech: {loss}. It says how near the layers are, not how well a task is solved.

```python
from skill_speech import load_encoder

encoder = load_encoder("path/to/this/folder")
out = encoder(waveforms_BT)  # 16 kHz mono
out.hidden_states            # one tensor more than layers, in Transformers' order
```

The licence of the teacher applies to this model too.
"""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _name(source: str) -> str:
    """A hub id, or a folder's name without the path of somebody's machine."""
    return Path(source).name if Path(source).is_absolute() else source
