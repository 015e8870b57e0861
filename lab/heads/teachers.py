"""The fine-tuned teachers: a bundled mini with a head, its folder and its record."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab.heads.data import labels_of, read_cuts
from lab.heads.finetuning import FinetuningConfig, finetune, with_new_head
from lab.heads.scoring import count_errors
from skill_speech import load_encoder, load_model
from skill_speech.environment import environment
from skill_speech.files import write_json

MINIS = Path(__file__).parents[1] / "teachers"
NAMES = ("hubert-mini", "wavlm-mini")
UPDATES = {"ctc": 3_000, "keywords": 500, "emotions": 500}
"""A few passes over what there is to hear."""


def make_teacher(teacher: str, task: str, data: Path, folder: Path, config: FinetuningConfig) -> dict[str, Any]:
    """Fine-tune a bundled teacher for a task, save it, and say what it gets wrong.

    Args:
        teacher: one of NAMES.
        task: one of TASKS.
        data: what `make_data` wrote.
        folder: gets the model, which Transformers' tokenizers and feature extractors read, and the log.
        config: how.
    """
    started = time.monotonic()
    model = with_new_head(load_encoder(MINIS / teacher), task, labels_of(data, task), config.seed)
    losses = finetune(model, read_cuts(data, task, "train"), config, folder)
    model.save_pretrained(folder)
    seconds = time.monotonic() - started
    scored = count_errors(load_model(folder), read_cuts(data, task, "test"))
    return {
        "kind": "teacher",
        "teacher": teacher,
        "task": task,
        "settings": asdict(config),
        "losses": losses,
        "rate": scored.rate,
        "parameters": model.num_parameters(),
        "minutes": round(seconds / 60, 1),
        **asdict(scored),
        "environment": environment(),
    }


def ensure_teacher(teacher: str, task: str, data: Path, output: Path, results: Path) -> Path:
    """OUTPUT/teachers/TEACHER-TASK, made if it is not there, and its record."""
    config = FinetuningConfig(updates=UPDATES[task])
    folder, record = output / "teachers" / f"{teacher}-{task}", results / f"teacher-{teacher}-{task}.json"
    if not (record.exists() and (folder / "head.safetensors").exists()):
        write_json(record, make_teacher(teacher, task, data, folder, config))
        (folder / "finetuning.checkpoint.pt").unlink(missing_ok=True)
    return folder
