"""Data: from a user's audio to deterministic batches of 16 kHz waveforms; a lhotse CutSet all the way.

`prepare` makes a manifest, `open_cuts` opens one, `TrainingBatches` and `evaluation_batches` say which cuts make up
which batch, `audio_loader` reads them.
"""

from .audio import SAMPLE_RATE, BadAudio, load_waveform
from .batches import Position, TrainingBatches, evaluation_batches
from .dataset import AudioBatch, WaveformDataset, audio_loader
from .fingerprint import Fingerprint, check_same_data, fingerprint
from .labels import (
    LABEL_FIELDS,
    LabelField,
    find_labels,
    label_field,
    labels_of,
    listed,
    transcript_of,
    value_of,
)
from .manifests import Part, open_cuts, prepare
from .split import split_cuts
from .tally import AudioTally, Note, tallied

__all__ = [
    "LABEL_FIELDS",
    "SAMPLE_RATE",
    "AudioBatch",
    "AudioTally",
    "BadAudio",
    "Fingerprint",
    "LabelField",
    "Note",
    "Part",
    "Position",
    "TrainingBatches",
    "WaveformDataset",
    "audio_loader",
    "check_same_data",
    "evaluation_batches",
    "find_labels",
    "fingerprint",
    "label_field",
    "labels_of",
    "listed",
    "load_waveform",
    "open_cuts",
    "prepare",
    "split_cuts",
    "tallied",
    "transcript_of",
    "value_of",
]
