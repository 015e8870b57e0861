"""What it changes that evaluation encodes every utterance alone: in s3prl a group norm sees padding.

    python -m lab.corpora --size small --seed 0 --output data/superb --tasks ks er ic
    python -m lab.padding --data data/superb --output lab/results/padding.json

A head learns from utterances that were encoded alone, and then predicts the test utterances from the states of both
kinds: encoded alone, and in batches of s3prl's test sizes, in the corpus' order. With `--train_in_batches TASK` a
second head learns from padded batches, encoded anew at every update, as in s3prl.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from skill_speech.checkpoints import load_encoder
from skill_speech.evaluation.corpora import find_corpora, read_task
from skill_speech.evaluation.protocol import TrainingConfig, task_config
from skill_speech.evaluation.run import hidden_states
from skill_speech.evaluation.states import HiddenStates, read_waveform
from skill_speech.evaluation.tasks import Task, make_task
from skill_speech.evaluation.training import _features, choose, train
from skill_speech.evaluation.upstream import EncoderUpstream
from skill_speech.files import write_json
from skill_speech.kernels import optimize

BATCHES = {"ks": 32, "er": 4, "ic": 32}
"""Test utterances that s3prl encodes together (downstream/*/config.yaml); of the other tasks it is one."""


class PaddedUpstream(EncoderUpstream):
    """The encoder whose group norm sees the padding."""

    def __init__(self, model: str) -> None:
        super().__init__("padded", model, torch.device("cpu"))
        self.encoder = optimize(load_encoder(model), "float32")


class PaddedStates(HiddenStates):
    """Hidden states of utterances that were encoded in the batch in which they are asked for."""

    def get(self, indices: Sequence[int]) -> list[Tensor]:
        """As `HiddenStates.get`."""
        waveforms = [read_waveform(self.cuts[index], self.audio) for index in indices]
        return [self._reduce(states_LTD).cpu() for states_LTD in self.upstream.encode(waveforms)]


@torch.no_grad()
def predictions(task: Task, model: Any, states: HiddenStates, size: int) -> list[Any]:
    """What the head makes of the test utterances, so many at a time in their order."""
    model.eval()
    made: list[Any] = []
    for start in range(0, len(states), size):
        indices = list(range(start, min(start + size, len(states))))
        (batch,) = _features([model], states, "test", indices, [None] * len(indices))
        made += task.predict(model.head, batch)
    return made


def compare(
    name: str, folder: Path, model: str, settings: dict[str, Any], seed: int, in_batches: bool
) -> dict[str, Any]:
    """Accuracy of both kinds of states, and how many predictions differ."""
    config = task_config(name, settings=settings)
    assert isinstance(config, TrainingConfig)
    task = make_task(read_task(name, folder)[0], config, 320)
    upstream = EncoderUpstream("alone", model, torch.device("cpu"))
    alone = {split: Held(states) for split, states in hidden_states(upstream, task, None).items()}
    padded = {
        split: PaddedStates(PaddedUpstream(model), cuts, config.audio, task.reduction, None)
        for split, cuts in task.cuts.items()
    }
    result: dict[str, Any] = {"test": len(task.cuts["test"]), "batch": BATCHES[name], "steps": config.steps}
    kinds: dict[str, Any] = {"alone": alone} | ({"batches": padded} if in_batches else {})
    for kind, states in kinds.items():
        head = choose(task, train(task, states, seed=seed, name=f"{name} {kind}")).model
        one = predictions(task, head, alone["test"], 1)
        other = predictions(task, head, padded["test"], BATCHES[name])
        result[f"head of {kind}"] = {
            "accuracy alone": task.score("test", one)["accuracy"],
            "accuracy in batches": task.score("test", other)["accuracy"],
            "changed": sum(left != right for left, right in zip(one, other, strict=True)),
        }
    return result


class Held(HiddenStates):
    """Hidden states in memory."""

    def __init__(self, states: HiddenStates) -> None:
        super().__init__(states.upstream, states.cuts, states.audio, states.reduction, None)
        self.kept = dict(enumerate(states.get(range(len(states)))))

    def get(self, indices: Sequence[int]) -> list[Tensor]:
        """As `HiddenStates.get`."""
        return [self.kept[index] for index in indices]


def main() -> None:
    """Compare, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lab/teachers/hubert-mini")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train_in_batches", default="", help="task whose head also learns from padded batches")
    parser.add_argument("--steps", type=int, default=300, help="updates of the heads compared so")
    options = parser.parse_args()
    heads = yaml.safe_load(Path("lab/evaluation.yaml").read_text(encoding="utf-8"))["settings"]
    folders = find_corpora(options.data)
    tasks: dict[str, Any] = {
        name: [compare(name, folders[name], options.model, heads[name], seed, False) for seed in range(options.seeds)]
        for name in BATCHES
    }
    if options.train_in_batches:
        name = options.train_in_batches
        few = heads[name] | {"steps": options.steps, "eval_every": options.steps, "learning_rates": [0.01]}
        tasks[f"{name}, trained in batches too"] = [compare(name, folders[name], options.model, few, 0, True)]
    write_json(
        options.output,
        {
            "command": "python -m lab.padding",
            "model": options.model,
            "corpora": "lab.corpora --size small --seed 0",
            "tasks": tasks,
            "torch": torch.__version__,
            "platform": platform.platform(),
        },
    )


if __name__ == "__main__":
    main()
