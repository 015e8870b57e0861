"""Taking silence out of a waveform, as s3prl does for speaker verification with SoX's `silence 1 0.1 0.1% -1 0.1 0.1%`.

Legend of the tensor suffixes: T samples.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..data import SAMPLE_RATE

THRESHOLD = 0.001
"""Of full scale: what is quieter is silence."""

WINDOW_SECONDS = 0.02
"""Over which the loudness is measured."""

SHORTEST_SECONDS = 0.1
"""Shorter silences stay, and shorter sounds between two silences go with them."""


def trim_silence(waveform_T: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The waveform without its silent parts; a waveform that is silent throughout is returned as it is.

    The root mean square over the last 20 ms is compared with 0.1 % of full scale. Silences of 0.1 s and more are taken
    out wherever they are, and sounds of less than 0.1 s between them. Worked example, in units of 0.1 s (x sound,
    . silence, - a sound too short): `..xxx.xx...-..xx` becomes `xxx.xxxx` where the single dot is shorter than 0.1 s.
    """
    window, shortest = round(WINDOW_SECONDS * SAMPLE_RATE), round(SHORTEST_SECONDS * SAMPLE_RATE)
    energy_T = np.cumsum(np.square(waveform_T, dtype=np.float64))
    energy_T[window:] -= energy_T[:-window].copy()
    loud_T = energy_T >= window * THRESHOLD**2
    loud_T = _without_short_runs(loud_T, False, shortest, edges=True)
    loud_T = _without_short_runs(loud_T, True, shortest, edges=False)
    return waveform_T[loud_T] if loud_T.any() else waveform_T


def _without_short_runs(
    mask_T: npt.NDArray[np.bool_], value: bool, shortest: int, *, edges: bool
) -> npt.NDArray[np.bool_]:
    """A copy in which runs of `value` below `shortest` are turned over, those at the two ends only if not `edges`."""
    borders = np.flatnonzero(np.diff(mask_T)) + 1
    starts, stops = np.r_[0, borders], np.r_[borders, len(mask_T)]
    result_T = mask_T.copy()
    for start, stop in zip(starts, stops, strict=True):
        at_edge = start == 0 or stop == len(mask_T)
        if mask_T[start] == value and stop - start < shortest and not (edges and at_edge):
            result_T[start:stop] = not value
    return result_T
