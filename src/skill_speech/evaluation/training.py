"""Training heads on frozen features: one loop for all tasks, several learning rates in one pass over the data.

Everything random is a function of the seed and the step, so that a learning rate gives the same head whatever it is
trained beside, from the cache or without it, and however often the run was interrupted.

Legend of the tensor suffixes: B utterances, T frames, L hidden states, D features, K learning rates.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import atomic_write
from ..run import ranks
from ..run.progress import Meter
from ..run.signals import StopSignals
from .heads import Downstream, weighted_sums
from .states import HiddenStates
from .tasks.base import Batch, Task

logger = logging.getLogger(__name__)

EVALUATION_SECONDS = 120.0
"""Audio that a head is scored on at a time."""

SECONDS_BETWEEN_CHECKPOINTS = 600.0

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@dataclass
class Trial:
    """One learning rate: the model in training, and its best moment so far.

    Attributes:
        learning_rate: of it.
        model: as it is now.
        best: its weights at the best look.
        best_score: the measure that chooses, then; None before the first look.
        best_step: when that was.
        scores: step → all measures of the split that chooses, at every look.
        losses: of every update.
    """

    learning_rate: float
    model: Downstream
    optimizer: torch.optim.Optimizer
    best: dict[str, Tensor]
    best_score: float | None
    best_step: int
    scores: dict[int, dict[str, Any]]
    losses: list[float]


def train(
    task: Task,
    states: Mapping[str, HiddenStates],
    *,
    seed: int,
    checkpoint: Path | None = None,
    stop: StopSignals | None = None,
    name: str = "training",
) -> list[Trial]:
    """Train a head for every learning rate and keep each at its best.

    Args:
        task: what is learned.
        states: hidden states of every split.
        seed: of the heads, the batches and the crops.
        checkpoint: where the run is written at every look and every ten minutes, and resumed from; removed by
            the caller.
        stop: who is told to stop; then the checkpoint is written after the update at hand.
        name: of the progress bar.

    Raises:
        Stopped: by `stop`.
    """
    upstream, config, stop = states["train"].upstream, task.config, stop or StopSignals()

    def fresh() -> list[Trial]:
        rates = config.learning_rates
        return [_fresh(task, rate, upstream.num_states, upstream.width, upstream.device, seed) for rate in rates]

    trials, done = fresh(), 0
    if checkpoint is not None and ranks.on_first(checkpoint.exists):
        try:
            done = _resume(checkpoint, trials)
        # What a damaged archive is to torch, and then to the models, depends on where it is damaged.
        except Exception as error:
            logger.warning("%s: damaged (%s); training restarts", checkpoint, type(error).__name__)
            trials = fresh()
    batches, saved = _drawn(task, seed, done * config.accumulate), time.monotonic()
    with Meter(name, config.steps, done) as meter, stop.deferred():
        for step in range(done + 1, config.steps + 1):
            update(task, trials, states["train"], [next(batches) for _ in range(config.accumulate)], f"{seed}/{step}")
            meter.advance(note=_note(trials))
            looked = step % config.eval_every == 0 or step == config.steps
            if looked:
                look(task, trials, states[task.chosen_on[0]], step)
            told = ranks.told_to_stop(stop)
            if (
                checkpoint is not None
                and ranks.is_first()
                and (looked or told or time.monotonic() > saved + SECONDS_BETWEEN_CHECKPOINTS)
            ):
                _save(checkpoint, trials, step)
                saved = time.monotonic()
            if told:
                stop.raise_if_requested()
    return trials


def update(task: Task, trials: Sequence[Trial], states: HiddenStates, batches: Sequence[list[int]], seed: str) -> None:
    """One update of every model, from as many batches as the task accumulates."""
    totals = [0.0] * len(trials)
    for number, drawn in enumerate(batches):
        generator = random.Random(f"{seed}/{number}")
        features = _training_batches(task, trials, states, drawn, generator)
        losses = []
        noise = generator.getrandbits(63)
        for trial, batch in zip(trials, features, strict=True):
            torch.manual_seed(noise)  # of dropout and masks, the same for every learning rate
            losses.append(task.loss(trial.model.head, batch) / len(batches))
        # The models share nothing but the data: the gradient of the sum is each one's own.
        torch.stack(losses).sum().backward()
        totals = [total + float(loss.detach()) for total, loss in zip(totals, losses, strict=True)]
    for trial, total in zip(trials, totals, strict=True):
        trial.losses.append(total)
        norm = torch.nn.utils.clip_grad_norm_(trial.model.parameters(), task.config.clip)
        if math.isfinite(float(norm)):
            trial.optimizer.step()
        trial.optimizer.zero_grad()


def look(task: Task, trials: Sequence[Trial], states: HiddenStates, step: int) -> None:
    """Score every model on the split that chooses, and keep it where it is better than before."""
    split, measure = task.chosen_on
    models = [trial.model for trial in trials]
    for trial, predictions in zip(trials, predict(task, models, states, split), strict=True):
        trial.scores[step] = scores = task.score(split, predictions)
        new, best = float(scores[measure]), trial.best_score
        if best is None or (new > best if task.higher_is_better else new < best):
            trial.best_score, trial.best_step = new, step
            trial.best = {name: tensor.detach().cpu().clone() for name, tensor in trial.model.state_dict().items()}


@torch.no_grad()
def predict(
    task: Task,
    models: Sequence[Downstream],
    states: HiddenStates,
    split: str,
    progress: Callable[[int], object] = lambda count: None,
) -> list[list[Any]]:
    """What each model makes of all utterances of a split, in their order; ranks share them."""
    results: list[dict[int, Any]] = [{} for _ in models]
    for model in models:
        model.eval()
    for indices in ranks.share(_evaluation_batches(task, split)):
        features = _features(models, states, split, indices, [None] * len(indices))
        for model, batch, result in zip(models, features, results, strict=True):
            result.update(zip(indices, task.predict(model.head, batch), strict=True))
        progress(len(indices))
    for model in models:
        model.train()
    for part in ranks.gathered(results):
        for result, of_others in zip(results, part, strict=True):
            result.update(of_others)
    return [[result[index] for index in range(len(result))] for result in results]


def choose(task: Task, trials: Sequence[Trial]) -> Trial:
    """The learning rate with the best measure, its model as it was then."""
    sign = 1 if task.higher_is_better else -1
    best = max(trials, key=lambda trial: sign * trial.best_score if trial.best_score is not None else -math.inf)
    best.model.load_state_dict(best.best)
    return best


def _fresh(task: Task, rate: float, num_states: int, width: int, device: torch.device, seed: int) -> Trial:
    torch.manual_seed(seed)
    model = Downstream(num_states, task.head(width)).to(device).train()
    optimizer = OPTIMIZERS[task.config.optimizer](model.parameters(), lr=rate)
    return Trial(rate, model, optimizer, {}, None, 0, {}, [])


def _drawn(task: Task, seed: int, skip: int) -> Iterator[list[int]]:
    """Endless batches, epoch after epoch; nothing is read for those that are skipped."""
    epoch = 0
    while True:
        for batch in task.epoch(random.Random(f"{seed}/epoch {epoch}")):
            if skip > 0:
                skip -= 1
            else:
                yield batch
        epoch += 1


def _training_batches(
    task: Task, trials: Sequence[Trial], states: HiddenStates, drawn: list[int], generator: random.Random
) -> list[Batch]:
    indices = [task.utterance(number) for number in drawn]
    crops = [lambda length, number=number: task.crop(number, length, generator) for number in drawn]
    batches = _features([trial.model for trial in trials], states, "train", indices, crops)
    return [batch._replace(indices=drawn) for batch in batches]


def _features(
    models: Sequence[Downstream],
    states: HiddenStates,
    split: str,
    indices: list[int],
    crops: Sequence[Callable[[float], tuple[float, float]] | None],
) -> list[Batch]:
    """The batch of each model: the same utterances, cropped alike, its own features."""
    kept, weights = [], []
    for index, states_LTD, crop in zip(indices, states.get(indices), crops, strict=True):
        weights_T = states.weights(index, states_LTD.shape[1])
        if crop is not None:
            start, end = crop(float(weights_T.sum()))
            inside = slice(math.floor(start), math.ceil(end))
            states_LTD, weights_T = states_LTD[:, inside], _within(weights_T, start, end)[inside]
        kept.append(states_LTD)
        weights.append(weights_T)
    lengths_B = torch.tensor([len(weights_T) for weights_T in weights])
    weights_BT = torch.nn.utils.rnn.pad_sequence(weights, batch_first=True).to(states.upstream.device)
    return [
        Batch(split, indices, x_BTD, lengths_B, weights_BT)
        for x_BTD in weighted_sums(models, kept, states.upstream.device)
    ]


def _within(weights_T: Tensor, start: float, end: float) -> Tensor:
    """How much of each tensor along time, of which number t lasts from t to t + weight, lies from start to end (T,)."""
    starts_T = torch.arange(len(weights_T), dtype=weights_T.dtype)
    return ((starts_T + weights_T).clamp(max=end) - starts_T.clamp(min=start)).clamp(min=0)


def _evaluation_batches(task: Task, split: str) -> list[list[int]]:
    """All utterances, those of similar length together."""
    cuts = task.cuts[split]
    batches: list[list[int]] = []
    for index in sorted(range(len(cuts)), key=lambda index: -cuts[index].duration):
        longest = cuts[batches[-1][0]].duration if batches else 0.0
        if batches and (len(batches[-1]) + 1) * longest <= EVALUATION_SECONDS:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _note(trials: Sequence[Trial]) -> str:
    recent = [sum(trial.losses[-100:]) / len(trial.losses[-100:]) for trial in trials]
    return "loss " + " ".join(f"{loss:.3f}" for loss in recent)


def _save(path: Path, trials: Sequence[Trial], step: int) -> None:
    values = {
        "step": step,
        "trials": [
            {
                "learning_rate": trial.learning_rate,
                "model": trial.model.state_dict(),
                "optimizer": trial.optimizer.state_dict(),
                "best": trial.best,
                "best_score": trial.best_score,
                "best_step": trial.best_step,
                "scores": trial.scores,
                "losses": torch.tensor(trial.losses),
            }
            for trial in trials
        ],
    }
    # A file of Python's says that the disk is full; torch's own says that a write failed.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(values, file)


def _resume(path: Path, trials: Sequence[Trial]) -> int:
    """The step that a run of the same settings got to, its trials put back to where they were.

    Raises Exception of some kind where the file is damaged; the trials are of no use then.
    """
    values = torch.load(path, map_location="cpu", weights_only=True)
    for trial, saved in zip(trials, values["trials"], strict=True):
        trial.model.load_state_dict(saved["model"])
        trial.optimizer.load_state_dict(saved["optimizer"])
        trial.best, trial.best_score, trial.best_step = saved["best"], saved["best_score"], saved["best_step"]
        trial.scores, trial.losses = saved["scores"], saved["losses"].tolist()
    logger.info("%s: resumed at step %d", path, values["step"])
    return int(values["step"])
