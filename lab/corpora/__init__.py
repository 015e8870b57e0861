"""Synthetic corpora in the official layouts of SUPERB's ten tasks.

    python -m lab.corpora --size small --seed 0 --output data/superb --jobs 2

They exist so that the very code that reads the real corpora is run where those are not at hand. The folder is what
`skill-speech evaluate --data` takes. Every file is a function of the size and the seed, to the byte, whatever the
number of processes. Each corpus carries a mark, SYNTHETIC.json, with which evaluation titles its tables.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lab.corpora import (
    fluent_speech_commands,
    iemocap,
    librimix,
    librispeech,
    quesst,
    snips,
    speech_commands,
    voxceleb,
)
from lab.corpora.work import Workers
from lab.speech import ENGINES
from skill_speech.files import write_json

MARK = "SYNTHETIC.json"
VERSION = 2
"""Of the generator: goes up when the same size and seed give other files."""

SIZES = ("tiny", "small", "full")
CORPORA = {
    ("pr", "asr"): librispeech,
    ("ks",): speech_commands,
    ("qbe",): quesst,
    ("sid", "asv"): voxceleb,
    ("sd",): librimix,
    ("er",): iemocap,
    ("ic",): fluent_speech_commands,
    ("sf",): snips,
}
TASKS = tuple(task for tasks in CORPORA for task in tasks)

README = """\
Synthetic corpora (size {size}, seed {seed}), written by `python -m lab.corpora`.

Nobody spoke here: the voices are {engine}'s, the noises are numbers, the labels are what the generator was told to
say. The folders and lists are in the layouts of the real corpora whose names they bear, so that the code that reads
those is run. A result on them is no result on the real corpora and must never stand beside one.
"""


def make_corpora(
    output: str | Path,
    *,
    size: str = "small",
    seed: int = 0,
    tasks: Sequence[str] = TASKS,
    jobs: int = 2,
    engine: str = "espeak",
) -> Path:
    """Write the corpora of some tasks; those that are already there are left as they are.

    Args:
        output: the folder to write into; empty, or one that this function wrote with the same size and seed.
        size: "tiny" (seconds to write, for tests), "small" (minutes of audio per task) or "full" (hours in all).
        seed: of everything.
        tasks: SUPERB's names; pr and asr share a corpus, and so do sid and asv.
        jobs: processes.
        engine: who speaks; of `lab.speech.ENGINES`.
    """
    root = Path(output)
    unknown = sorted(set(tasks) - set(TASKS))
    if unknown or size not in SIZES:
        raise SystemExit(f"choose tasks from {', '.join(TASKS)} and a size from {', '.join(SIZES)}")
    mark = _open_folder(root, size, seed, engine)
    with Workers(jobs) as workers:
        for names, corpus in CORPORA.items():
            if set(names) & set(tasks) and not set(names) <= set(mark["tasks"]):
                before = workers.seconds
                for folder in corpus.make(root, size, seed, workers, engine):
                    write_json(folder / MARK, {**mark, "tasks": list(names)})
                mark["tasks"] += names
                write_json(root / MARK, mark)
                print(f"{', '.join(names)}: {(workers.seconds - before) / 60:.1f} minutes of audio", flush=True)
    return root


def _open_folder(root: Path, size: str, seed: int, engine: str) -> dict:
    """The folder's mark, written before anything else, so that nothing here ever looks real."""
    wanted = {
        "title": f"synthetic speech ({ENGINES[engine].ENGINE}), size {size}, seed {seed}",
        "size": size,
        "seed": seed,
        "version": VERSION,
    }
    path = root / MARK
    if path.exists():
        mark = json.loads(path.read_text(encoding="utf-8"))
        if {name: mark.get(name) for name in wanted} != wanted:
            raise SystemExit(f"{root}: holds other synthetic corpora ({mark.get('title')}): give another folder")
        return mark
    if root.exists() and any(root.iterdir()):
        raise SystemExit(f"{root}: not empty, and not written by lab.corpora: give another folder")
    mark = {**wanted, "tasks": []}
    write_json(path, mark)
    (root / "README.txt").write_text(
        README.format(size=size, seed=seed, engine=ENGINES[engine].ENGINE), encoding="utf-8"
    )
    return mark
