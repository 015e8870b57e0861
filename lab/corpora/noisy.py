"""Corpora whose test splits are in noise: a head that has learned on clean speech is scored there.

    python -m lab.corpora.noisy --clean data/superb --output data/superb-noisy --tasks pr,ks,sid --snr_db 5

Everything but the test splits' audio is a link to the clean corpus, so that a head learns the same in both.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from lab.corpora import MARK
from lab.corpora.channel import Audio, Channel
from skill_speech.data.audio import audio_path
from skill_speech.evaluation.corpora import find_corpora, read_task
from skill_speech.files import atomic_folder


def in_noise(audio_T: Audio, snr_db: float, sample_rate: int, name: str) -> Audio:
    """The audio with noise of a random color, from white to brown, scaled to fit into full scale where it is too loud.

    Args:
        audio_T: one channel.
        snr_db: power of the audio over that of the noise, both over the whole of it.
        sample_rate: in Hz.
        name: what color and noise are functions of.
    """
    chosen = random.Random(name)
    color, rng = chosen.uniform(0, 2), np.random.default_rng(chosen.getrandbits(64))
    mixed_T = Channel(snr_db=snr_db, color=color).apply(audio_T, sample_rate, rng)
    return (mixed_T / max(1.0, float(np.abs(mixed_T).max()))).astype(np.float32)


def make_noisy(clean: Path, output: Path, tasks: Sequence[str], *, snr_db: float) -> Path:
    """Write OUTPUT, the corpora in CLEAN with the test splits of some tasks in noise; a finished one is left as it is.

    Args:
        clean: the folder of the corpora, as `evaluate --data` takes it.
        output: a new folder.
        tasks: SUPERB's names; those with one split for testing.
        snr_db: signal-to-noise ratio.
    """
    if output.exists():
        return output
    clean, found, heard = clean.absolute(), find_corpora(clean), set()
    for task in tasks:
        [data] = read_task(task, found[task])
        heard |= {Path(audio_path(cut)).absolute() for cut in data.splits["test"]}
    with atomic_folder(output) as temporary:
        for path in sorted(clean.rglob("*")):
            target = temporary / path.relative_to(clean)
            if path.is_dir():
                target.mkdir(parents=True)
            elif path.name == MARK:
                mark = json.loads(path.read_text(encoding="utf-8"))
                title = f"{mark['title']}, test in noise of {snr_db:g} dB"
                target.write_text(json.dumps(mark | {"title": title}), encoding="utf-8")
            elif path in heard:
                audio_T, sample_rate = soundfile.read(path, dtype="float32")
                noisy_T = in_noise(audio_T, snr_db, sample_rate, str(path.relative_to(clean)))
                soundfile.write(target, noisy_T, sample_rate)
            else:
                target.symlink_to(path)
    return output


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Put the test splits of corpora in noise.")
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tasks", default="pr,ks,sid")
    parser.add_argument("--snr_db", type=float, default=5.0)
    given = parser.parse_args()
    make_noisy(given.clean, given.output, given.tasks.split(","), snr_db=given.snr_db)


if __name__ == "__main__":
    main()
