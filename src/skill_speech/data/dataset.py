"""From a batch of cuts to a batch of waveforms.

Legend of the tensor suffixes: B utterances, T samples.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from lhotse import CutSet
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from .audio import BadAudio, load_waveform

logger = logging.getLogger("skill_speech.data")

JUDGED_FROM = 1000
"""The share of bad audio is taken of at least so many cuts, lest one bad file among the first ends a run."""

COUNTERS = 256
"""Counters in shared memory, one for each worker so that they need no lock; a worker beyond that shares one."""


class AudioBatch(NamedTuple):
    """Waveforms at 16 kHz, padded with zeros to the longest; lengths in samples; the cuts' ids."""

    waveforms_BT: Tensor
    lengths_B: Tensor
    ids: tuple[str, ...]


class WaveformDataset(Dataset[AudioBatch]):
    """Reads batches: `dataset[cuts]` is the AudioBatch of a CutSet; to be used with a sampler that yields CutSets.

    Bad audio is left out of its batch with a warning that names it, and counted over all workers.

    Args:
        max_bad: the share of cuts that may be bad, 0.01 for 1 %, of all that were read or of the first 1000 if fewer.

    Raises BadAudio, from `dataset[cuts]`, when the share is exceeded or nothing of a batch can be read.
    """

    def __init__(self, max_bad: float = 0.01) -> None:
        self.max_bad = max_bad
        self._counts = torch.zeros(COUNTERS, 2, dtype=torch.int64).share_memory_()

    @property
    def read_cuts(self) -> int:
        """The number of cuts asked for so far, by all workers."""
        return int(self._counts[:, 0].sum())

    @property
    def bad_cuts(self) -> int:
        """How many of them could not be used."""
        return int(self._counts[:, 1].sum())

    def __getitem__(self, cuts: CutSet) -> AudioBatch:
        waveforms, ids = [], []
        error: BadAudio | None = None
        for cut in cuts:
            try:
                waveform_T = load_waveform(cut)
            except BadAudio as bad:
                error = bad
                logger.warning("left out: %s", bad)
                self._count(bad=1)
                continue
            self._count(bad=0)
            waveforms.append(torch.from_numpy(waveform_T))
            ids.append(cut.id)
        if error is not None:
            self._judge(error, nothing_left=not waveforms)
        lengths_B = torch.tensor([len(waveform_T) for waveform_T in waveforms], dtype=torch.int64)
        return AudioBatch(torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), lengths_B, tuple(ids))

    def _count(self, *, bad: int) -> None:
        worker = get_worker_info()
        slot = 0 if worker is None else 1 + worker.id % (COUNTERS - 1)
        self._counts[slot, 0] += 1
        self._counts[slot, 1] += bad

    def _judge(self, last: BadAudio, *, nothing_left: bool) -> None:
        if nothing_left:
            raise BadAudio(f"none of the audio of a batch can be used (last: {last})")
        bad, read = self.bad_cuts, self.read_cuts
        if bad > self.max_bad * max(read, JUDGED_FROM):
            raise BadAudio(
                f"{bad} of {read} cuts cannot be used, more than the {self.max_bad:.3g} share allowed (max_bad), "
                f"last: {last}"
            )


def audio_loader(batches: Iterable[CutSet], *, workers: int = 0, max_bad: float = 0.01) -> DataLoader[AudioBatch]:
    """A DataLoader of AudioBatch over `TrainingBatches` or `evaluation_batches`.

    The number of worker processes changes nothing but the speed. `loader.dataset` is the WaveformDataset, whose
    `read_cuts` and `bad_cuts` count; its length is that of `batches`, where it has one.
    """
    return DataLoader(
        WaveformDataset(max_bad),
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        # The default turns the tuple of ids into a list.
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Any) -> Any:
    return batch
