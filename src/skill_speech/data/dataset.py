"""From a batch of cuts to a batch of waveforms.

Legend of the tensor suffixes: B utterances, T samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from lhotse import CutSet
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from .audio import BadAudio, audio_path, doubts, load_waveform
from .labels import LabelField, labels_of
from .tally import Note


class AudioBatch(NamedTuple):
    """Waveforms at 16 kHz, padded with zeros to the longest; lengths in samples; the cuts' ids; their labels if wanted.

    Without a cut that can be used, all of them are empty. The notes say what was wrong, also with cuts that are not in
    the batch: whoever uses the batch counts them (`AudioTally`), so that what workers read ahead does not count.
    """

    waveforms_BT: Tensor
    lengths_B: Tensor
    ids: tuple[str, ...]
    notes: tuple[Note, ...] = ()
    labels: tuple[tuple[Any, ...] | None, ...] = ()


class WaveformDataset(Dataset[AudioBatch]):
    """Reads batches: `dataset[cuts]` is the AudioBatch of a CutSet; to be used with a sampler that yields CutSets.

    Args:
        labels: where the cuts' supervisions have what is wanted of them; None for nothing.
    """

    def __init__(self, labels: LabelField | None = None) -> None:
        self.labels = labels

    def __getitem__(self, cuts: CutSet) -> AudioBatch:
        waveforms, ids, notes, labels = [], [], [], []
        for cut in cuts:
            try:
                waveform_T = load_waveform(cut)
            except BadAudio as bad:
                notes.append(Note(bad.kind, audio_path(cut), str(bad), True))
                continue
            path = audio_path(cut)
            notes += [Note(kind, path, f"{path}: {kind}", False) for kind in doubts(waveform_T)]
            waveforms.append(torch.from_numpy(waveform_T))
            ids.append(cut.id)
            if self.labels is not None:
                labels.append(labels_of(cut, self.labels))
        lengths_B = torch.tensor([len(waveform_T) for waveform_T in waveforms], dtype=torch.int64)
        padded_BT = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True) if waveforms else torch.empty(0, 0)
        return AudioBatch(padded_BT, lengths_B, tuple(ids), tuple(notes), tuple(labels))


def audio_loader(
    batches: Iterable[CutSet], *, workers: int = 0, labels: LabelField | None = None
) -> DataLoader[AudioBatch]:
    """A DataLoader of AudioBatch over `TrainingBatches` or `evaluation_batches`.

    The number of worker processes changes nothing but the speed. Its length is that of `batches`, where it has one.

    Raises InputError for a negative number of workers.
    """
    if workers < 0:
        raise InputError(f"workers is {workers}; it must be 0 or more processes")
    return DataLoader(
        WaveformDataset(labels),
        sampler=batches,
        batch_size=None,
        num_workers=workers,
        # The default turns the tuple of ids into a list.
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
    )


def _as_it_is(batch: Any) -> Any:
    return batch
