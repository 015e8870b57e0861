"""Reading audio: any cut in, a float32 mono waveform at 16 kHz out.

Legend of the tensor suffixes: T samples, C channels.
"""

from __future__ import annotations

import io
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from lhotse.audio.backend import get_current_audio_backend, set_current_audio_backend
from lhotse.cut import Cut, MixedCut
from lhotse.cut.data import DataCut
from lhotse.utils import compute_num_samples

from ..errors import InputError
from ..limits import SAMPLE_RATE as SAMPLE_RATE
from .decoding import (
    SLACK_SAMPLES,
    NotAFileError,
    check_regular,
    decoded_samples,
    ends_within_a_frame,
    is_stream,
    mp3_start,
    opened,
    read_mono,
)
from .fields import BAD, HIGHEST_RATE, LOWEST_RATE, MEMBER, SLACK_SECONDS
from .media import HINT, MEDIA_SUFFIXES, MediaFile, MissingDecoderError
from .remote import read_bytes

RESAMPLING_MARGIN_SECONDS = 0.05
"""Audio read on both sides of a resampled crop, so that the filter sees what it would see in the whole file."""


FORMATS = {
    ".wav": ("WAV", "WAVEX", "RF64"),
    ".wave": ("WAV", "WAVEX", "RF64"),
    ".flac": ("FLAC",),
    ".ogg": ("OGG",),
    ".oga": ("OGG",),
    ".opus": ("OGG",),
    ".mp3": ("MP3", "MPEG"),
    ".aif": ("AIFF",),
    ".aiff": ("AIFF",),
    ".aifc": ("AIFF",),
    ".sph": ("NIST",),
}
"""What soundfile calls the contents of files with these suffixes."""

UNREAD_SUFFIXES = frozenset(f".{name}" for name in "ape awb dff dsf dts m4p mpc ra shn spx tak tta wv".split())
"""Audio that nothing here reads: such files count as bad audio, under their suffix."""

CLIPPED_SHARE = 0.001
"""Of samples at full scale, from which audio counts as clipped."""

OFFSET = 0.05
"""Mean, as a part of full scale, from which audio has a DC offset."""


class BadAudio(InputError):  # noqa: N818 (an InputError, as its message reads)
    """Audio that cannot be used: missing, not decodable, shorter than its manifest says, or with NaN or infinity.

    Attributes:
        kind: which of them, in a few words.
    """

    def __init__(self, message: str, kind: str = "not decodable") -> None:
        # A DataLoader raises a worker's error again as `type(error)(formatted traceback)`: keep our own line of it.
        super().__init__(message.rpartition(f"{type(self).__name__}: ")[2].strip())
        self.kind = kind


TRUNCATED = "truncated"

STATED_LENGTH = re.compile(r"\b(?:data|SSND) *: (\d+) \(should be (\d+)\)")
"""How libsndfile notes, in passing, that a file holds fewer bytes of audio than its header says."""

UNKNOWN_LENGTHS = (0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFF000, 0xFFFFF000)
"""What programs that write to a pipe put there."""


class AudioHeader(NamedTuple):
    """What a file says of itself: sample rate in Hz, number of channels and of samples per channel, format.

    `cut_short`: there are fewer samples than it says of itself, and `samples` is what there is.
    """

    sample_rate: int
    channels: int
    samples: int
    format: str = ""
    cut_short: bool = False


def read_header(path: str | Path, contents: io.BytesIO | None = None, *, last_sample: bool = True) -> AudioHeader:
    """Reads the header and the last sample: finds missing, foreign, empty and cut-off files without decoding them.

    Args:
        path: of the file; with `contents`, what they are called.
        contents: the bytes of a file that lies in another one.
        last_sample: False to believe the header, which for FLAC takes a fifth of the time.

    Raises BadAudio, whose message starts with the path.
    """
    source = path if contents is None else contents
    try:
        with opened(source) as file:
            _check_rate(path, file.samplerate)
            samples = decoded_samples(file) if is_stream(file) else file.frames
            cut_short = _cut_short(source, file, samples)
            header = AudioHeader(file.samplerate, file.channels, samples, file.format, cut_short)
            if samples <= 0:
                raise BadAudio(f"{path}: empty: it has no samples", "no samples")
            if last_sample and not is_stream(file):
                file.seek(samples - 1)
                if len(file.read(1)) != 1:
                    raise BadAudio(
                        f"{path}: truncated: it ends before the {samples} samples its header promises", TRUNCATED
                    )
    # A ValueError is a name that cannot be one.
    except (OSError, ValueError, soundfile.SoundFileError) as error:
        raise (_undecodable(path, error) if contents is None else _undecodable_inside(path, error)) from error
    return header


def _cut_short(path: str | Path | io.BytesIO, file: soundfile.SoundFile, samples: int) -> bool:
    if isinstance(file, MediaFile):
        return samples < file.stated_samples - SLACK_SECONDS * file.samplerate
    if file.format == "MP3" and is_stream(file):
        return ends_within_a_frame(file) or samples < mp3_start(path).samples - SLACK_SAMPLES
    stated = STATED_LENGTH.search(file.extra_info)
    return stated is not None and int(stated[1]) not in UNKNOWN_LENGTHS and int(stated[1]) > int(stated[2])


def _check_rate(path: str | Path, rate: int) -> None:
    if not LOWEST_RATE <= rate <= HIGHEST_RATE:
        raise BadAudio(
            f"{path}: has a sample rate of {rate} Hz, which is impossible: the file is damaged",
            "impossible sample rate",
        )


def doubts(waveform_T: npt.NDArray[np.float32]) -> list[str]:
    """What is odd about audio that can be used all the same: "silent", "DC offset", "clipped"."""
    if waveform_T.size == 0:
        return []
    lowest, highest = float(waveform_T.min()), float(waveform_T.max())
    if lowest == highest:
        return ["silent"]
    found = []
    if abs(float(waveform_T.mean(dtype=np.float64))) > OFFSET:
        found.append("DC offset")
    if max(-lowest, highest) >= 0.999 and float((np.abs(waveform_T) >= 0.999).mean()) > CLIPPED_SHARE:
        found.append("clipped")
    return found


def other_format(path: str | Path, header: AudioHeader) -> bool:
    """Whether the file's name promises another format than its contents have."""
    promised = FORMATS.get(Path(path).suffix.lower())
    return promised is not None and bool(header.format) and header.format not in promised


def at_16khz(cut: Cut) -> Cut:
    """The same cut counted in samples of 16 kHz; the audio itself is resampled by `load_waveform`.

    Raises InputError for a cut without audio (features only).
    """
    if not cut.has_recording:
        raise InputError(f"cut {cut.id} has no audio: give a manifest whose cuts carry recordings")
    return cut if cut.sampling_rate == SAMPLE_RATE else cut.resample(SAMPLE_RATE)


def num_samples(cut: Cut) -> int:
    """The cut's length in samples at 16 kHz."""
    return compute_num_samples(cut.duration, SAMPLE_RATE)


def load_waveform(cut: Cut) -> npt.NDArray[np.float32]:
    """Reads the audio of a cut, and only that, as waveform_T: float32, mono (channels averaged), 16 kHz.

    A part of a file that needs resampling (by soxr) equals the same part of the whole file resampled, because a margin
    is read around it. Cuts that are more than a part of one local file (mixed, in memory, one file per channel,
    augmented) are read by lhotse.

    Raises BadAudio, naming the file, for audio that is missing, cannot be decoded, is shorter than the manifest says,
    or holds NaN or infinity.
    """
    path = audio_path(cut)
    length = num_samples(cut)
    if (bad := (cut.custom or {}).get(BAD)) is not None:
        raise BadAudio(*bad)
    try:
        waveform_T = _read_part(path, cut, length) if _is_part_of_a_file(cut) else _read_by_lhotse(cut, length)
    except BadAudio:
        raise
    except (OSError, ValueError, soundfile.SoundFileError) as error:
        raise (_undecodable_inside(path, error) if _inside(cut) else _undecodable(path, error)) from error
    if not np.isfinite(waveform_T).all():
        raise BadAudio(f"{path}: the audio holds NaN or infinite values: repair or remove the file", "not finite")
    return waveform_T


def audio_path(cut: Cut) -> str:
    """Where the cut's audio lies, for messages: the path of its (first) file, else the cut's id."""
    if _member(cut) is not None:
        return f"{_member(cut)[0]}: {cut.recording_id}"
    if isinstance(cut, DataCut) and cut.recording.sources[0].type == "file":
        return str(cut.recording.sources[0].source)
    return f"cut {cut.id}"


def _member(cut: Cut) -> Any:
    """Where in which tar file the cut's audio lies; None for other cuts."""
    return (cut.custom or {}).get(MEMBER) if isinstance(cut, DataCut) else None


def _inside(cut: Cut) -> bool:
    """Whether the cut's audio is no file of its own."""
    return _member(cut) is not None or (isinstance(cut, DataCut) and cut.recording.sources[0].type == "memory")


def _is_part_of_a_file(cut: Cut) -> bool:
    if not isinstance(cut, DataCut):
        return False
    if _member(cut) is not None:
        return True
    recording = cut.recording
    # One change of the sample rate is what `_read_part` does itself, from the file's own rate.
    only_resampled = [_transform_name(transform) for transform in recording.transforms or ()] in ([], ["Resample"])
    return only_resampled and len(recording.sources) == 1 and recording.sources[0].type in ("file", "memory")


def is_resampled(cut: Cut) -> bool:
    """Whether the cut's audio has another sample rate on disk."""
    if not isinstance(cut, DataCut):
        return False
    return any(_transform_name(transform) == "Resample" for transform in cut.recording.transforms or ())


def _transform_name(transform: Any) -> str:
    return transform["name"] if isinstance(transform, dict) else type(transform).__name__


def _read_part(path: str, cut: DataCut, length: int) -> npt.NDArray[np.float32]:
    start = compute_num_samples(cut.start, SAMPLE_RATE)
    file_channels = cut.recording.sources[0].channels
    wanted = [cut.channel] if isinstance(cut.channel, int) else cut.channel
    channels = [file_channels.index(channel) for channel in wanted]
    with opened(_read_member(cut) if _inside(cut) else path) as file:
        if max(channels) >= file.channels:
            raise BadAudio(
                f"{path}: has {file.channels} channels, the manifest asks for channel {max(channels)}", "other channels"
            )
        _check_rate(path, file.samplerate)
        if file.samplerate == SAMPLE_RATE:
            waveform_T = read_mono(file, start, start + length, channels)
            if len(waveform_T) < length:
                raise _truncated(path, (start + len(waveform_T)) / SAMPLE_RATE, (start + length) / SAMPLE_RATE)
            return waveform_T
        return _read_resampled(file, path, start, length, channels)


def ends_early(cut: Cut, header: AudioHeader) -> BadAudio | None:
    """What is wrong with a cut that extends past the end of its file."""
    if not isinstance(cut, DataCut) or not _is_part_of_a_file(cut):
        return None
    stop = compute_num_samples(cut.start, SAMPLE_RATE) + num_samples(cut)
    # The last sample of another rate may be rounded away.
    needed = stop if header.sample_rate == SAMPLE_RATE else stop - 1
    if header.samples * SAMPLE_RATE >= needed * header.sample_rate:
        return None
    return _truncated(audio_path(cut), header.samples / header.sample_rate, stop / SAMPLE_RATE)


def _read_member(cut: DataCut) -> io.BytesIO:
    if _member(cut) is None:
        return io.BytesIO(cut.recording.sources[0].source)
    try:
        return io.BytesIO(read_bytes(*_member(cut)))
    except OSError as error:
        raise BadAudio(f"{audio_path(cut)}: {_one_line(error)}") from error


def _read_resampled(
    file: soundfile.SoundFile, path: str, start: int, length: int, channels: list[int]
) -> npt.NDArray[np.float32]:
    """Samples start … start + length at 16 kHz of a file with another rate.

    Input and output share an instant every `block_in` input and `block_out` output samples; reading starts at such an
    instant, or the output would be shifted by a fraction of a sample. At 44.1 kHz the blocks are 441 and 160 samples:

        output wanted      |  start = 1000 … |
        block 6 starts at  960 (out) = 2646 (in); with the margin of 0.05 s (5 blocks) we read from block 1 = 441 (in).
    """
    rate = file.samplerate
    block_in, block_out = rate // math.gcd(rate, SAMPLE_RATE), SAMPLE_RATE // math.gcd(rate, SAMPLE_RATE)
    margin = math.ceil(RESAMPLING_MARGIN_SECONDS * rate / block_in)
    first = max(0, start // block_out - margin)
    last = math.ceil((start + length) / block_out) + margin
    source_T = read_mono(file, first * block_in, last * block_in, channels)
    if first * block_in + len(source_T) < (start + length - 1) * rate / SAMPLE_RATE:
        raise _truncated(path, first * block_in / rate + len(source_T) / rate, (start + length) / SAMPLE_RATE)
    skip = start - first * block_out
    waveform_T = soxr.resample(source_T, rate, SAMPLE_RATE)[skip : skip + length]
    # The last sample of a file may fall between two input samples and be rounded away.
    return np.pad(waveform_T, (0, length - len(waveform_T)), mode="edge")


def _read_by_lhotse(cut: Cut, length: int) -> npt.NDArray[np.float32]:
    try:
        for path in local_files(cut):
            check_regular(path)
        with _only_libsndfile():
            audio_CT = np.atleast_2d(cut.load_audio())
    # What goes wrong inside depends on the kind of source; to us it is one thing: this cut cannot be read.
    except Exception as error:
        raise BadAudio(f"{audio_path(cut)}: cannot be read: {_one_line(error)}") from error
    waveform_T = soxr.resample(audio_CT.mean(axis=0, dtype=np.float32), cut.sampling_rate, SAMPLE_RATE)[:length]
    return np.pad(waveform_T, (0, length - len(waveform_T)), mode="edge")


_LHOTSE_BACKEND = threading.Lock()


@contextmanager
def _only_libsndfile() -> Iterator[None]:
    """Keep lhotse from its other ways of reading, some of which run programs, by a shell that gets the file's name."""
    with _LHOTSE_BACKEND:
        before = get_current_audio_backend()
        set_current_audio_backend("LibsndfileBackend")
        try:
            yield
        finally:
            set_current_audio_backend(before)


def local_files(cut: Cut) -> list[str]:
    """The files that a cut's audio is read from, of all its tracks."""
    cuts = [track.cut for track in cut.tracks] if isinstance(cut, MixedCut) else [cut]
    recordings = [one.recording for one in cuts if isinstance(one, DataCut) and one.has_recording]
    return [str(source.source) for one in recordings for source in one.sources if source.type == "file"]


def _truncated(path: str, found_seconds: float, expected_seconds: float) -> BadAudio:
    return BadAudio(
        f"{path}: ends after {found_seconds:.3f} s, the manifest expects at least {expected_seconds:.3f} s: "
        "truncated or replaced; prepare the data again",
        TRUNCATED,
    )


def _undecodable(path: str | Path, error: Exception) -> BadAudio:
    """Why a file cannot be opened or decoded."""
    if isinstance(error, UnicodeEncodeError):
        return BadAudio(f"{shown(path)}: its name is not UTF-8: rename it", "name that is not UTF-8")
    if not os.path.exists(path):
        return BadAudio(f"{path}: no such file", "missing")
    if isinstance(error, PermissionError) or not os.access(path, os.R_OK):
        return BadAudio(f"{path}: cannot be read: permission denied", "no permission")
    if os.path.isfile(path) and not os.path.getsize(path):
        return BadAudio(f"{path}: empty: it has no bytes", "empty")
    if isinstance(error, NotAFileError):
        return BadAudio(f"{path}: not a regular file but a pipe, a device or a folder", "not a file")
    suffix = Path(path).suffix.lower()
    if isinstance(error, MissingDecoderError):
        return _needs_pyav(path, suffix)
    if suffix in UNREAD_SUFFIXES:
        return BadAudio(
            f"{path}: {suffix} is not supported: convert it to FLAC or WAV", f"format that is not read, {suffix}"
        )
    return BadAudio(f"{path}: cannot be decoded ({_one_line(error)})")


def _undecodable_inside(path: str | Path, error: Exception) -> BadAudio:
    """Why audio that lies in another file cannot be decoded."""
    if isinstance(error, MissingDecoderError):
        return _needs_pyav(path, Path(path).suffix.lower())
    return BadAudio(f"{path}: cannot be decoded ({_one_line(error)})")


def _needs_pyav(path: str | Path, suffix: str) -> BadAudio:
    suffix = suffix if suffix in MEDIA_SUFFIXES else "this container"
    return BadAudio(f"{path}: {suffix} is not read without PyAV: {HINT}", "format that needs PyAV")


def shown(path: str | Path) -> str:
    """A path for a message or a file: bytes of its name that are not UTF-8 are written as such."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _one_line(error: Exception) -> str:
    return " ".join((getattr(error, "error_string", None) or str(error) or type(error).__name__).split())
