"""The diarization error rate, and the accuracy of frames that a model is chosen by.

Legend of the tensor suffixes: T frames, S speakers, N recordings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpora.utterances import Turn


def diarization_error(references: Mapping[str, Sequence[Turn]], hypotheses: Mapping[str, Sequence[Turn]]) -> float:
    """DER of some recordings: missed speech, false alarms and confused speakers over the time spoken, all together.

    No collar, overlapping speech is scored, and the speakers of a recording are matched so that the error is smallest;
    by pyannote.metrics (Bredin 2017).

    Args:
        references: recording → its turns.
        hypotheses: the same recordings → their turns, speakers under any names.
    """
    from pyannote.metrics.diarization import DiarizationErrorRate

    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    for recording, turns in references.items():
        _score(metric, turns, hypotheses[recording])
    return 100 * float(abs(metric))


def diarization_parts(
    references: Mapping[str, Sequence[Turn]], hypotheses: Mapping[str, Sequence[Turn]]
) -> NDArray[np.float64]:
    """Of each recording the seconds of errors and of speech (N, 2), whose sums make the DER."""
    from pyannote.metrics.diarization import DiarizationErrorRate

    metric, parts = DiarizationErrorRate(collar=0.0, skip_overlap=False), []
    for recording, turns in references.items():
        found = _score(metric, turns, hypotheses[recording])
        errors = sum(found[name] for name in ("missed detection", "false alarm", "confusion"))
        parts.append((errors, found["total"]))
    return np.array(parts, dtype=np.float64).reshape(-1, 2)


def _score(metric: Any, turns: Sequence[Turn], found: Sequence[Turn]) -> dict[str, float]:
    """Let the metric count one recording; what it counted."""
    from pyannote.core import Timeline

    reference, hypothesis = _annotation(turns), _annotation(found)
    extents = [part.get_timeline().extent() for part in (reference, hypothesis)]
    scored = Timeline([extent for extent in extents if extent]).extent()
    return dict(metric(reference, hypothesis, uem=Timeline([scored]), detailed=True))


def frame_accuracy(active_TS: NDArray[np.bool_], true_TS: NDArray[np.bool_]) -> float:
    """Share of frames and speakers in which activity is right, speakers already matched."""
    return 100 * float((active_TS == true_TS).mean())


def turns_of(active_TS: NDArray[np.bool_], seconds_per_frame: float) -> list[Turn]:
    """The turns of every speaker, from activity per frame; frame t lasts from t to t+1."""
    turns = []
    for speaker, active_T in enumerate(active_TS.T):
        borders = np.flatnonzero(np.diff(np.r_[False, active_T, False].astype(np.int8)))
        for start, end in borders.reshape(-1, 2).tolist():
            turns.append(Turn(str(speaker), start * seconds_per_frame, end * seconds_per_frame))
    return turns


def _annotation(turns: Sequence[Turn]) -> Any:
    from pyannote.core import Annotation, Segment

    annotation = Annotation()
    for number, turn in enumerate(turns):
        if turn.end > turn.start:
            annotation[Segment(turn.start, turn.end), number] = turn.speaker
    return annotation
