"""Training heads from the cache of hidden states against encoding at every step, as s3prl does, in one run.

python -m benchmarks.evaluation [--quick] --json FILE

The teacher has the shape of HuBERT Base (12 layers, 94.7 M parameters) and random weights, the utterances are noise:
neither changes how long anything takes. Both ways do the same updates on the same batches, with the protocol's batch
sizes and heads, and have the same losses. The time of the cached way has the one pass in it that encodes everything.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch

from benchmarks.common import Report, parse, parser
from skill_speech.encoder import Encoder, hubert_config
from skill_speech.evaluation.cache import StateCache
from skill_speech.evaluation.corpora import TaskData
from skill_speech.evaluation.corpora.utterances import Utterance, make_cuts
from skill_speech.evaluation.protocol import PROTOCOL, TrainingConfig
from skill_speech.evaluation.run import hidden_states
from skill_speech.evaluation.tasks import make_task
from skill_speech.evaluation.training import train
from skill_speech.evaluation.upstream import Upstream, open_upstream

GOAL = 5.0
"""Times as fast, for a teacher of 12 layers."""

EPOCHS = 20
"""Passes over the training data; the protocol has more in every task (112 in pr), and the
advantage of the cache grows with them."""

RATE = 16_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    options = parse(parser("evaluation", __doc__), arguments)
    report = Report("training a head on a frozen 12-layer teacher: encoding at every step (peer) and a cache", options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        Encoder(hubert_config()).save_pretrained(folder / "teacher")
        teacher = open_upstream(str(folder / "teacher"), torch.device("cpu"))
        seconds, batches, epochs = (1.0, 1, 2) if options.quick else (8.0, 2, EPOCHS)
        compare(report, "pr", "phonemes by CTC", teacher, folder, seconds, batches, epochs)
        compare(report, "ks", "keywords", teacher, folder, 1.0, batches, epochs)
    report.write(options.json)
    return 0


def compare(
    report: Report,
    task_name: str,
    what: str,
    teacher: Upstream,
    folder: Path,
    seconds: float,
    batches: int,
    epochs: int,
) -> None:
    """One task trained in both ways on `batches` batches of utterances, `epochs` times over."""
    config = PROTOCOL[task_name]
    assert isinstance(config, TrainingConfig)
    count = config.batch_size * batches
    steps = max(1, epochs * batches // config.accumulate)
    if task_name == "pr":
        # A window starts at every utterance: an epoch is as many batches as utterances, so count the updates.
        steps = max(1, epochs * count // (config.batch_size * config.accumulate))
    config = replace(config, steps=steps, eval_every=steps)
    task = make_task(noise(task_name, folder / task_name, count, seconds), config, teacher.hop)
    teacher.encode([torch.zeros(RATE)])  # lets torch set itself up

    started = time.perf_counter()
    states = hidden_states(teacher, task, StateCache(folder / "cache", teacher.fingerprint, 1e12))
    for split in ("train", "dev"):
        states[split].fill(f"{task_name} {split}")
    encoded = time.perf_counter()
    (cached,) = train(task, states, seed=0, name=f"{task_name}, cache")
    ended = time.perf_counter()
    (bare,) = train(task, hidden_states(teacher, task, None), seed=0, name=f"{task_name}, encoding")
    uncached = time.perf_counter() - ended
    report.add(
        f"{task_name}: {what}",
        uncached,
        ended - started,
        GOAL,
        updates=steps,
        hours_of_speech=count * seconds / 3600,
        seconds_cache_encoding=encoded - started,
        ratio_of_an_update=uncached / (ended - encoded),
        largest_difference_of_losses=float(np.abs(np.subtract(cached.losses, bare.losses)).max()),
    )


def noise(task: str, folder: Path, count: int, seconds: float) -> TaskData:
    """So many utterances to train on, an eighth as many for dev, of noise with labels that mean nothing."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    labels = [f"label{number}" for number in range(12)]

    def utterance(name: str, number: int) -> Utterance:
        path = folder / f"{name}.wav"
        # Lengths differ as those of sentences do, between two thirds and all of it.
        samples = round(seconds * RATE * (1 if task == "ks" else generator.uniform(2 / 3, 1)))
        soundfile.write(path, 0.1 * generator.standard_normal(samples), RATE)
        said = [labels[place] for place in generator.integers(0, 12, round(8 * seconds))]
        return Utterance(name, path, custom={"label": labels[number % 12], "phonemes": said})

    splits = {
        split: make_cuts([utterance(f"{split}-{number}", number) for number in range(size)])
        for split, size in (("train", count), ("dev", count // 8))
    }
    return TaskData(task, splits, labels)


if __name__ == "__main__":
    sys.exit(main())
