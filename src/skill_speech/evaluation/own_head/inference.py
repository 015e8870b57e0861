"""What models say of every utterance: one pass over the audio for all of them, which can be interrupted.

Legend of the tensor suffixes: B utterances, T samples.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lhotse import CutSet
from lhotse.cut import Cut

from ...checkpoints import load_model
from ...data import SAMPLE_RATE, AudioBatch, AudioTally, BadAudio, Note, audio_loader
from ...data.audio import audio_path, num_samples
from ...errors import InputError
from ...files import write_json
from ...heads import HeadConfig, SpeechModel
from ...kernels import optimize
from ...limits import refuse_other_rates
from ...run import ranks
from ...run.progress import Meter
from ...run.records import read_record
from ...run.signals import StopSignals, stopped_by
from ..states import batch_seconds, similar_lengths
from ..upstream import model_fingerprint
from .scorers import Scorer, make_scorer

SCRATCH_SECONDS = 300.0
"""From one writing of what has been said so far to the next: a kill loses no more."""


@dataclass
class Subject:
    """A model with its head, ready to run.

    Attributes:
        name: in tables.
        source: what the user gave.
        model: length-aware, in float32, on its device.
        fingerprint: of everything that its outputs depend on.
        parameters: of encoder and head.
        scorer: what its outputs are compared with.
    """

    name: str
    source: str
    model: SpeechModel
    fingerprint: str
    parameters: int
    scorer: Scorer = field(init=False)

    @property
    def shortest(self) -> int:
        """Samples that its head needs."""
        assert self.model.head is not None
        encoder = self.model.encoder.config
        return encoder.receptive_field + (self.model.head.least_frames - 1) * encoder.hop


def open_subject(
    name: str, source: str, device: torch.device, *, revision: str | None = None, target_lang: str | None = None
) -> Subject:
    """A model with its head.

    Raises:
        InputError: nothing can be loaded from there, or it is an encoder alone.
    """
    # Padding must not be seen: what a model says of an utterance is the same in every batch.
    model = load_model(source, revision=revision, length_aware=True, target_lang=target_lang)
    if model.head is None:
        raise InputError(
            f"{source}: an encoder without a head, or with one of no known kind: leave own_head out to train and score "
            "heads on it"
        )
    refuse_other_rates(model.encoder.config.sampling_rate, source)
    mark, parameters = model_fingerprint(model), model.num_parameters()
    model.to(device)
    # In float32 the outputs are the plain encoder's but for rounding.
    model.encoder = optimize(model.encoder, "float32")  # type: ignore[assignment]
    return Subject(name, source, model.eval(), mark, parameters)


def give_scorers(subjects: Sequence[Subject], cuts: Sequence[Cut], data: str) -> None:
    """Give every subject the references of some cuts.

    Raises:
        InputError: there are none, or the subjects do not answer the same question.
    """
    first = subjects[0]
    for subject in subjects[1:]:
        mine, theirs = (one.model.head.config for one in (first, subject))  # type: ignore[union-attr]
        if _question(mine) != _question(theirs):
            raise InputError(
                f"{subject.source}: its head ({theirs.kind}, {theirs.outputs} outputs) is not comparable with that of "
                f"{first.source} does ({mine.kind}, {mine.outputs} outputs, other labels): give another teacher, or "
                "none"
            )
    for subject in subjects:
        subject.scorer = make_scorer(subject.model, cuts, data, subject.source)


def _question(head: HeadConfig) -> tuple[Any, ...]:
    """What models have to have in common to be compared: not the vocabulary, nor the speakers of the training."""
    if head.kind in ("ctc", "x-vector"):
        return (head.kind,)
    return head.kind, head.problem, head.outputs, *sorted(head.labels)


@dataclass
class Progress:
    """What has been said so far.

    Attributes:
        path: where it is written.
        done: batches.
        said: of every subject id → prediction.
        audio: what was wrong with the audio of these batches.
    """

    path: Path
    said: list[dict[str, Any]]
    audio: AudioTally
    done: int = 0

    def load(self) -> None:
        """Go on from what was written, if it was."""
        if self.path.exists():
            values = read_record(self.path, "own-head progress")
            if len(values["said"]) == len(self.said):
                self.done, self.said = values["done"], values["said"]
                self.audio.load_state_dict(values["audio"])

    def save(self) -> None:
        """Write it down."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, {"done": self.done, "said": self.said, "audio": self.audio.state_dict()})


def run_models(
    subjects: Sequence[Subject], cuts: Sequence[Cut], scratch: Path, max_bad: float | str, stop: StopSignals
) -> tuple[list[dict[str, Any]], AudioTally]:
    """What every subject says of the cuts that all have references of; ranks share the batches.

    Args:
        subjects: whose outputs are wanted.
        cuts: all of them.
        scratch: prefix of the files that let an interrupted pass resume.
        max_bad: the share of them that may be unusable.
        stop: who is told to stop; then what has been said is written down first.

    Returns:
        Of every subject id → prediction, in the order of the cuts; and what was wrong with the audio.

    Raises:
        BadAudio: too much of it is.
        Stopped: as told.
    """
    device = next(iter(subjects[0].model.head.parameters())).device  # type: ignore[union-attr]
    wanted = [cut for cut in cuts if all(cut.id in subject.scorer.references for subject in subjects)]
    shortest = max(subject.shortest for subject in subjects)
    lengths = [num_samples(cut) for cut in wanted]
    long_enough = [index for index, length in enumerate(lengths) if length >= shortest]
    kept = [lengths[index] for index in long_enough]
    batches = [
        CutSet([wanted[index] for index in batch])
        for batch in similar_lengths(long_enough, kept, batch_seconds(device) * SAMPLE_RATE)
    ]
    own = ranks.share(batches)
    path = scratch.with_name(f"{scratch.name}{ranks.rank()}of{ranks.count()}.json")
    progress = Progress(path, [{} for _ in subjects], AudioTally(max_bad))
    progress.load()
    if not progress.done and ranks.is_first():
        for cut, length in zip(wanted, lengths, strict=True):
            if length < shortest:
                message = f"{audio_path(cut)}: {length} samples; the head needs {shortest}"
                progress.audio.read += 1
                progress.audio.note(Note("too short for the head", audio_path(cut), message, True))
    with stop.deferred(), Meter("own head", len(own), progress.done) as meter:
        for batch in _read(own, progress, meter, stop):
            progress.audio.add(batch)
            if ranks.count() == 1:
                progress.audio.check()
            if batch.ids:
                for subject, said in zip(subjects, progress.said, strict=True):
                    said.update(zip(batch.ids, _say(subject, batch, device), strict=True))
    stopped = ranks.largest(stop.requested or 0)
    if stopped:
        raise stopped_by(stopped)
    progress.audio.check()
    tally = progress.audio.of_all_ranks()
    parts = ranks.gathered(progress.said)
    found = [{name: one for part in parts for name, one in part[number].items()} for number in range(len(subjects))]
    if not found[0]:
        raise BadAudio(f"none of the audio is usable: {tally.named()}")
    return [{cut.id: said[cut.id] for cut in wanted if cut.id in said} for said in found], tally


def _read(batches: Sequence[CutSet], progress: Progress, meter: Meter, stop: StopSignals) -> Iterator[AudioBatch]:
    """The batches that are still to be done; a batch is done when the next one is asked for."""
    written = time.monotonic()
    for batch in audio_loader(batches[progress.done :]):
        yield batch
        progress.done += 1
        meter.advance()
        if stop.requested or time.monotonic() > written + SCRATCH_SECONDS:
            progress.save()
            written = time.monotonic()
        if stop.requested:
            return


@torch.no_grad()
def _say(subject: Subject, batch: AudioBatch, device: torch.device) -> list[Any]:
    waveforms_BT, lengths_B = batch.waveforms_BT.to(device), batch.lengths_B.to(device)
    made = subject.model(waveforms_BT, None if len(batch.lengths_B.unique()) == 1 else lengths_B)
    return subject.scorer.predict(made, batch.ids)


def remove_scratch(scratch: Path) -> None:
    """Remove what a pass wrote on its way."""
    ranks.on_first(partial(_remove, scratch))


def _remove(scratch: Path) -> None:
    for path in scratch.parent.glob(f"{scratch.name}*"):
        path.unlink()
