"""One stage of training, from its first update or its last checkpoint to its end: the loop is `Stage.run`."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from torch import Tensor
from torch.utils.data import DataLoader

from ..data import AudioBatch, AudioTally, Position, TrainingBatches
from ..errors import InputError
from ..files import write_json
from ..pruning import Control, Widths, count_macs, replace_parameters, shrink, shrink_like
from ..pruning.size import as_float
from ..quantities import human
from ..run import ranks
from ..run.progress import Meter
from ..run.records import read_record
from ..run.signals import StopSignals
from .acceleration import memory_reused
from .checkpoints import CheckpointFolder, StageState, loaded, saved
from .logs import StageLog, full_disk_is_said_once, quiet_libraries
from .module import Distillation, Stage1Config, Stage2Config
from .parallel import Precision, Strategy, average_whole_gradients, clip_gradients, gather, make_fabric, shard
from .shrinking import worth_removing

logger = logging.getLogger(__name__)

Batches = Callable[[Position, int, int], TrainingBatches]
Reader = Callable[[Iterable[CutSet]], DataLoader[AudioBatch]]

MOST_SKIPPED_IN_A_ROW = 5
"""Updates that may be left out one after the other before an earlier state is restored."""

MOST_RETURNS = 3
"""How often a stage may restore an earlier state."""

NO_AUDIO_SAMPLES = 16_000
"""Silence that stands for a batch without audio."""


class Stage:
    """A module to be trained, with all that its training takes; every rank makes one and calls `run`.

    Args:
        module: what to train; holds its result afterwards, on every rank.
        training: makes the training batches from (where to start, rank, number of ranks).
        validation: batches whose loss is logged, at the end always; None for no validation.
        read: makes a loader of batches.
        folder: gets checkpoints/, metrics.csv and TensorBoard's events.
        name: of the stage, for messages and the progress bar.
        precision: "bf16" computes in bfloat16 where that is safe and keeps float32 weights.
        strategy: how ranks share the work where there are several: "ddp" keeps the student on each, "fsdp" shards it
            and the optimizer's state.
        seed: of everything that is drawn.
        checkpoint_every: updates between checkpoints.
        checkpoint_minutes: minutes between checkpoints, at most; 0 for no such limit.
        keep_checkpoints: how many of the newest are kept.
        milestone_every: checkpoints at multiples of this are kept permanently; 0 for none.
        validate_every: updates between validations; 0 for none between the stage's start and its end.
        round_to: what surgery will make the student's widths multiples of.
        audio: of the run so far, with the share of cuts whose audio may be unusable.
        stop: who is told to stop; then a checkpoint is written after the update at hand.
        on_step: called with this stage after every update, before anything of it is logged or saved; the gradients are
            those of the update, clipped.

    Attributes:
        state: how far the training is.

    Raises:
        InputError: the ranks cannot share an update's batches.
    """

    def __init__(
        self,
        module: Distillation,
        training: Batches,
        validation: Sequence[CutSet] | None,
        read: Reader,
        folder: Path,
        *,
        name: str,
        precision: Precision = "bf16",
        strategy: Strategy = "ddp",
        seed: int = 0,
        checkpoint_every: int = 500,
        checkpoint_minutes: float = 10.0,
        keep_checkpoints: int = 2,
        milestone_every: int = 0,
        validate_every: int = 1_000,
        round_to: int = 1,
        audio: AudioTally | None = None,
        stop: StopSignals | None = None,
        on_step: Callable[[Stage], None] | None = None,
    ) -> None:
        self.module, self.config, self.name, self.folder, self.seed = module, module.config, name, folder, seed
        self.training, self.validation, self.read = training, validation, read
        self.validate_every, self.round_to, self.on_step = validate_every, round_to, on_step
        self.stop = stop or StopSignals()
        self.share = batches_per_rank(self.config, ranks.count(), name)
        self.sharded = ranks.count() > 1 and strategy == "fsdp"
        self.fabric = make_fabric(strategy, precision, lambda module, mesh: shard(module.student, module.loss, mesh))
        self.checkpoints = CheckpointFolder(
            folder / "checkpoints",
            every=checkpoint_every,
            keep=keep_checkpoints,
            milestone_every=milestone_every,
            minutes=checkpoint_minutes,
        )
        self.log_every = max(1, min(50, self.config.steps // 20))
        self.state = StageState()
        # Held-out audio is read again and again: it is counted by itself, and named.
        audio = audio or AudioTally()
        self.tally, self.held_out = audio.beside(), audio.beside()

    def run(self) -> dict[str, Any]:
        """Train to the end.

        An update whose loss or gradient is not finite is left out. After `MOST_SKIPPED_IN_A_ROW` of them one after the
        other, weights and optimizer are restored from the last regular checkpoint before them, and training continues
        with the data that comes next; after `MOST_RETURNS` of that, it is an error.

        Returns:
            updates made in all, how many of them were left out, and how often an earlier state was restored; seconds
            taken by this call and audio seconds seen in it; what was wrong with the audio; mean losses on the
            validation set before the first update and after the last.

        Raises:
            InputError: the loss stays not finite; too much audio is bad; all checkpoints are damaged.
            OSError: the disk is full, for one.
            Stopped: by `stop`.
        """
        started, heard = time.perf_counter(), 0.0
        config, module = self.config, self.module
        with full_disk_is_said_once(), quiet_libraries(), memory_reused(), ExitStack() as self._at_end:
            losses_at_start = self._begin()
            state, batches = self.state, self._batches()
            with self.stop.deferred(), Meter(self.name, config.steps, state.step) as meter:
                while state.step < config.steps:
                    # Of gates too, which the optimizer may not know; and it knows sharded weights that are whole now.
                    module.zero_grad()
                    self.optimizer.zero_grad()
                    self._remove_closed_units()
                    values: dict[str, Tensor] = {}
                    for number in range(1, self.share + 1):
                        # Fetch.
                        batch = next(batches)
                        heard += batch.waveforms_BT.numel() / module.student.config.sampling_rate
                        self.tally.add(batch)
                        if number == self.share:
                            self.tally.check()
                        # Forward under autocast, and backward; ranks exchange gradients after the last batch.
                        with self.fabric.no_backward_sync(self.running, enabled=number < self.share):
                            loss, terms = self._loss(batch)
                            self.fabric.backward(loss / self.share)
                        values = terms or values  # of the last batch that has audio
                        state.batches += ranks.count()

                    # Clip; leave the update out on every rank if one of them has numbers that are not finite.
                    if self.sharded:
                        average_whole_gradients(module)
                    trained = [weight for group in self.optimizer.param_groups for weight in group["params"]]
                    norm = clip_gradients(trained, config.clip_norm or math.inf)
                    if ranks.largest(int(not norm.isfinite())):
                        state.skipped, state.skipped_in_a_row = state.skipped + 1, state.skipped_in_a_row + 1
                    else:
                        # Step.
                        if module.control is not None:
                            module.control.move(module.student, state.step)
                        self.optimizer.step()
                        state.skipped_in_a_row = 0

                    # Schedule. An update that was left out counts: a stage is never longer than its steps.
                    state.step += 1
                    config.set_rates(self.optimizer, state.step)
                    if state.skipped_in_a_row:
                        if state.skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
                            self._go_back(loss)
                            continue
                        self._warn_of_skipping(loss)
                    if self.on_step is not None:
                        self.on_step(self)

                    # Log.
                    values |= {"gradient_norm": norm, "skipped": torch.tensor(float(state.skipped))}
                    meter.advance(state.step - meter.done, _note(values, self.module.control))
                    if state.step % self.log_every == 0:
                        self._log(values, heard)
                    # Validate.
                    if self.validate_every and state.step % self.validate_every == 0 and self.validation is not None:
                        self.log.add(state.step - 1, _as_validation(self._validate()))
                    # Save; not in a row of updates that were left out, unless the run is to stop.
                    stops = ranks.told_to_stop(self.stop)
                    if stops or (self.checkpoints.is_due(state.step) and not state.skipped_in_a_row):
                        self._save()
                    # Stop.
                    if stops:
                        self.stop.raise_if_requested()
                # The end is saved too.
                if not ranks.on_first(self.checkpoints.at(state.step).exists):
                    self._save()
            ranks.on_first(self.checkpoints.prune)  # a run that was killed at its end has nothing to save any more
            losses = self._validate()
            self.log.add(state.step, _as_validation(losses))
        self._finish()
        return {
            "steps": state.step,
            "skipped": state.skipped,
            "returns": state.returns,
            "seconds": time.perf_counter() - started,
            "audio_seconds": sum(ranks.gathered(heard)),
            "audio": self.tally.of_all_ranks().state_dict(),
            "validation_at_start": losses_at_start,
            "validation": losses,
        }

    def _begin(self) -> dict[str, float]:
        """Set everything up, load the last checkpoint, if any; the losses before the first update."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.sharded:
            if isinstance(self.config, Stage1Config) and self.config.shrink_every:
                logger.info("%s: with fsdp, units are removed by surgery alone, not on the way", self.name)
            self.module.freeze_what_the_loss_does_not_reach()
            # Sharding cannot be undone: copies are trained, and `_finish` copies from them.
            self._whole = self.module.student, self.module.loss
            self.module.student, self.module.loss = copy.deepcopy(self._whole)
        # What a stage begins with can be returned to without a checkpoint of it.
        self._at_first = copy.deepcopy(self.module.parts)
        path, step = self.folder / "validation_at_start.json", ranks.on_first(self.checkpoints.newest)
        known = ranks.on_first(path.exists)
        if step is None or not known:
            self._set_up(None)
        if not known:
            losses = self._validate()
            ranks.on_first(lambda: write_json(path, losses))
        if step is not None:
            if not known:  # they were set up, which cannot be done twice
                self.module.parts = copy.deepcopy(self._at_first)
            self.state = self._set_up(step)
            nothing = self.tally.beside().state_dict()
            # The first rank continues with what all have counted, whoever they were.
            self.tally.load_state_dict(self.state.audio if ranks.is_first() else nothing)
            logger.info("%s: resuming at step %d of %d", self.name, step, self.config.steps)
        self.checkpoints.saved_now()
        return self._begin_log()

    def _set_up(self, step: int | None) -> StageState:
        """Wrap the module for this precision and these ranks, and make its optimizer, both as at a checkpoint.

        Args:
            step: of the checkpoint; None for none.

        Returns:
            what the checkpoint holds.

        Raises:
            InputError: another version of this program has written it.
        """
        state = StageState() if step is None else self.checkpoints.load(step)
        shrink_like(self.module.student, state.weights, "student.")
        self.running = self.fabric.setup_module(self.module)
        self.module.train()
        self.optimizer = self.module.make_optimizer()
        if step is not None:
            loaded(state, self.module, self.optimizer)
        # Make what runs of teacher and student before anything is drawn.
        with self.fabric.autocast():
            self.module.make_programs()
        return replace(state, weights={}, optimizer={})

    def _batches(self) -> Iterator[AudioBatch]:
        """This rank's, endlessly, from where the state is in the data."""
        start, self._batches_before = Position(self.state.epoch, self.state.batch), self.state.batches
        self._sequence = self.training(start, ranks.rank(), ranks.count())
        return iter(self.read(self._sequence))

    def _loss(self, batch: AudioBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """What is minimized (0-d), NaN if there is nothing to learn from the batch; and its terms, for the log."""
        # A function of the batch's number: a run that is resumed draws what it would have drawn.
        seed = (self.seed * 1_000_003 + self.state.batches + ranks.rank()) * 1_009
        usable = bool(batch.ids)
        lengths_B = self.fabric.to_device(batch.lengths_B) if batch.labels else None  # these are padded, not cropped
        loss, terms = self.running(self._audio(batch), lengths_B, step=self.state.step, seed=seed, labels=batch.labels)
        # A loss that is not finite may have finite gradients. Times NaN, every rank sees it in the gradients.
        loss = loss * torch.where(loss.detach().isfinite() & usable, 1.0, torch.nan)
        return loss, terms if usable else {}

    def _audio(self, batch: AudioBatch) -> Tensor:
        """Its waveforms (B, T), or silence: without audio there is nothing to learn, but every rank takes part."""
        waveforms_BT = batch.waveforms_BT if batch.ids else torch.zeros(1, NO_AUDIO_SAMPLES)
        return self.fabric.to_device(waveforms_BT)

    def _remove_closed_units(self) -> None:
        """Make the student smaller, every `shrink_every` updates once the target sparsity is reached.

        What is removed depends on the weights and on the number of the update alone, and no gradient is there at the
        beginning of an update: a run that is resumed does what it would have done.
        """
        config, step, student, control = self.config, self.state.step, self.module.student, self.module.control
        if not isinstance(config, Stage1Config) or control is None or not config.shrink_every or self.sharded:
            return
        if step < config.sparsity_steps or step % config.shrink_every:
            return
        # All ranks have the same weights; that they also do the same is not left to rounding.
        kept = ranks.on_first(lambda: worth_removing(student, config.shrink_below, control.budget, self.round_to))
        if not kept:
            return
        replace_parameters([self.optimizer], shrink(student, kept))
        # Compiled programs are those of the old widths, and only a few are kept.
        torch.compiler.reset()
        self.running = self.fabric.setup_module(self.module)
        logger.info(
            "step %d: closed units removed; the student has %s parameters and %s MACs per second of audio left",
            step,
            human(student.num_parameters()),
            human(as_float(count_macs(student.config, Widths.of(student.config)))),
        )

    def _warn_of_skipping(self, loss: Tensor) -> None:
        state = self.state
        logger.warning(
            "%s: update %d left out: the loss is %g, or a gradient is not finite (%d so far)",
            *(self.name, state.step, _of_ranks(loss), state.skipped),
        )

    def _go_back(self, loss: Tensor) -> None:
        """Return to the weights and the optimizer of an earlier state; data and counts continue.

        Raises:
            InputError: the weights are still those of the start, or this has been tried often enough.
        """
        state = self.state
        advice = "lower the learning rate, use float32, or look at the data; the last checkpoint is kept"
        left_out = f"{state.skipped_in_a_row} updates in a row left out"
        said = f"{self.name}: the loss is {_of_ranks(loss)} at step {state.step}, {left_out}"
        if state.returns >= MOST_RETURNS:
            raise InputError(f"{said}, after {state.returns} returns to an earlier state: {advice}")
        unchanged_since = state.step - state.skipped_in_a_row
        if not unchanged_since:
            raise InputError(f"{said}, and there is no earlier state to return to: {advice}")
        step = ranks.on_first(lambda: self.checkpoints.newest(before=unchanged_since))
        logger.warning("%s: back to the weights of step %d, and on with other data", said, step or 0)
        # Later checkpoints are removed, so that a process that is killed now goes the same way again.
        ranks.on_first(lambda: self.checkpoints.forget_after(step))
        # The student as it is may have lost units that were there in an earlier state, or be sharded permanently.
        self.module.parts = copy.deepcopy(self._at_first)
        self._at_end.close()
        state.step, state.skipped_in_a_row, state.returns = self._set_up(step).step, 0, state.returns + 1
        self._begin_log()

    def _save(self) -> None:
        state = self.state
        position = self._sequence.position(state.batches - self._batches_before)
        state.epoch, state.batch = position.epoch, position.batch
        state.audio = copy.deepcopy(self.tally.of_all_ranks().state_dict())
        self.checkpoints.save(saved(state, self.module, self.optimizer))

    def _begin_log(self) -> dict[str, float]:
        """Open the log where the state is; the losses before the first update."""
        self.log = self._at_end.enter_context(closing(StageLog(self.folder, self.state.step)))
        path = self.folder / "validation_at_start.json"
        losses = ranks.on_first(lambda: read_record(path, "validation"))
        if not self.state.step:
            self.log.add(0, _as_validation(losses))
        self._clock, self._heard = time.perf_counter(), 0.0
        return losses

    def _log(self, values: dict[str, Tensor], heard: float) -> None:
        """Into the row of the last update."""
        now = time.perf_counter()
        # Batches are about equally long: what this rank has heard stands for the others.
        speed = ranks.count() * (heard - self._heard) / (now - self._clock)
        self._clock, self._heard = now, heard
        numbers = {f"train/{name}": float(value) for name, value in values.items()}
        if self.module.control is not None:
            numbers["train/parameters"] = float(self.module.student.num_parameters())
        self.log.add(self.state.step - 1, numbers | {"train/audio_seconds_per_second": speed})

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Mean terms of the loss over all frames of the validation set; it decides nothing."""
        if self.validation is None:
            return {}
        # A rank with nothing to do would keep others waiting: shares are padded with repeats, which do not count.
        missing = -len(self.validation) % ranks.count()
        share = ranks.share([*self.validation, *[self.validation[0]] * missing])
        sums: dict[str, float] = {}
        self.module.eval()
        for number, batch in enumerate(self.read(share)):
            self.held_out.add(batch)
            self.held_out.check()
            lengths_B = self.fabric.to_device(batch.lengths_B) if batch.ids else None
            _, terms = self.running(self._audio(batch), lengths_B)
            if lengths_B is None or number * ranks.count() + ranks.rank() >= len(self.validation):
                continue
            frames = int(self.module.student.num_frames(lengths_B).sum())
            for name, value in {**terms, "frames": torch.ones(())}.items():
                sums[name] = sums.get(name, 0.0) + frames * float(value)
        self.module.train()
        parts = ranks.gathered(sums)
        totals = {name: sum(part.get(name, 0.0) for part in parts) for part in parts for name in part}
        frames_in_all = totals.pop("frames", 0.0)
        return {name: total / frames_in_all for name, total in totals.items()}

    def _finish(self) -> None:
        """Hand over a whole student.

        Raises:
            InputError: nothing was learned.
        """
        state = self.state
        if self.sharded:
            for sharded, own in zip((self.module.student, self.module.loss), self._whole, strict=True):
                gather(sharded, own)
            self.module.student, self.module.loss = self._whole
        if state.skipped_in_a_row == state.step:
            raise InputError(f"{self.name}: the loss was not finite in any of its {state.step} updates")
        if state.skipped:
            logger.warning("%s: %d of %d updates were left out", self.name, state.skipped, state.step)


def batches_per_rank(config: Stage2Config, processes: int, name: str) -> int:
    """How many batches of an update each rank takes.

    Raises:
        InputError: the batches of an update cannot be divided among so many.
    """
    if config.accumulate % processes:
        raise InputError(
            f"{name}.accumulate is {config.accumulate}: these batches of an update cannot be shared evenly by "
            f"{processes} processes; give a multiple of {processes}, or another number of devices"
        )
    return config.accumulate // processes


def _note(values: dict[str, Tensor], control: Control | None) -> str:
    """What the progress bar says of an update: the loss, and how much is removed of what the budget limits."""
    note = f"loss {float(values['distillation']):.3f}" if "distillation" in values else ""
    if "sparsity_expected" in values:
        wanted, now = float(values["sparsity_target"]), float(values["sparsity_expected"])
        limits = [] if control is None else control.budget.limits
        note += f"  {limits[0].removed if len(limits) == 1 else 'cut'} {now:.1%}/{wanted:.1%}"
    return note


def _as_validation(losses: dict[str, float]) -> dict[str, float]:
    return {f"validation/{name}": value for name, value in losses.items()}


def _of_ranks(loss: Tensor) -> float:
    """The loss to report: one that is not finite, if any rank has one."""
    losses = ranks.gathered(float(loss.detach()))
    return next((value for value in losses if not math.isfinite(value)), losses[0])
