"""Audio in containers that libsndfile does not read (MP4, Matroska, ADTS, ASF …), decoded by PyAV if it is installed.

A file is recognized by its first bytes, and only the demuxer of that container is ever tried: FFmpeg's own guessing
takes texts for playlists, which name other files.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HINT = "pip install av, or convert it to FLAC or WAV"

MEDIA_SUFFIXES = frozenset(
    f".{name}" for name in "3gp aac ac3 amr avi eac3 flv m4a m4b m4r m4v mka mkv mov mp4 mts ts webm wma wmv".split()
)
"""What files of these containers are called; how they are read is decided by their contents."""

STARTS: tuple[tuple[int, bytes, str], ...] = (
    (4, b"ftyp", "mov"),
    (0, b"\x1a\x45\xdf\xa3", "matroska"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf"),
    (0, b"#!AMR", "amr"),
    (8, b"AVI ", "avi"),
    (0, b"FLV\x01", "flv"),
    (0, b"\x0b\x77", "ac3"),
    # Of ADTS: twelve bits set, any version, layer 0, which MPEG audio never has.
    *((0, bytes([0xFF, second]), "aac") for second in (0xF0, 0xF1, 0xF8, 0xF9)),
)
"""(offset, bytes there, FFmpeg's demuxer)."""


class MissingDecoderError(OSError):
    """A container that only PyAV reads, and PyAV is not installed."""


def container_of(source: str | Path | io.BytesIO) -> str | None:
    """FFmpeg's name of the container that a file's first bytes are those of; None for other ones."""
    if isinstance(source, io.BytesIO):
        start = bytes(source.getbuffer()[:16])
    else:
        with open(source, "rb") as file:
            start = file.read(16)
    return next((name for at, mark, name in STARTS if start[at : at + len(mark)] == mark), None)


@contextmanager
def decoded(source: str | Path | io.BytesIO, container: str) -> Iterator[MediaFile]:
    """The first audio track of a file, to be read from its start.

    Raises:
        MissingDecoderError: PyAV is not installed.
        OSError: the file is damaged, or has no audio track.
    """
    if find_spec("av") is None:
        raise MissingDecoderError(f"the container {container} is not read without PyAV: {HINT}")
    import av

    # The bytes, not the name, and no protocol: what a container refers to elsewhere is not opened.
    with io.BytesIO(source.getbuffer()) if isinstance(source, io.BytesIO) else open(source, "rb") as file:
        try:
            with av.open(file, format=container, options={"protocol_whitelist": "none"}) as opened:
                yield MediaFile(opened, container)
        except av.FFmpegError as error:
            raise OSError(f"{container}: {error.strerror or error}") from error


class MediaFile:
    """The part of soundfile.SoundFile that reading needs: a stream with an open end."""

    extra_info = ""
    frames = 1 << 62  # unknown, as libsndfile writes it

    def __init__(self, container: Any, name: str) -> None:
        if not container.streams.audio:
            raise OSError("it has no audio track")
        track = container.streams.audio[0]
        if track.codec_context is None:
            raise OSError("its codec is unknown")
        self.format = name
        self.samplerate, self.channels = int(track.codec_context.sample_rate), int(track.codec_context.channels)
        seconds = float(track.duration * track.time_base) if track.duration else (container.duration or 0) / 1e6
        # Matroska states the length of the whole file, which a picture may outlast; so it is none of the sound.
        self.stated_samples = round(seconds * self.samplerate) if len(container.streams) == 1 else 0
        self._parts = self._decoded(container, track)
        self._rest = np.zeros((0, self.channels), dtype=np.float32)

    def seekable(self) -> bool:
        """It is not: what precedes a place decides what is decoded there."""
        return False

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> npt.NDArray[np.float32]:
        """The next samples (T, C), fewer at the end."""
        parts, count = [self._rest], len(self._rest)
        while count < frames and (part := next(self._parts, None)) is not None:
            parts.append(part)
            count += len(part)
        audio_TC = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self._rest = audio_TC[frames:]
        return audio_TC[:frames]

    def _decoded(self, container: Any, track: Any) -> Iterator[npt.NDArray[np.float32]]:
        from av.audio.resampler import AudioResampler

        resampler = AudioResampler(format="fltp")  # of the same rate and channels
        for frame in container.decode(track):
            if frame.sample_rate != self.samplerate or len(frame.layout.channels) != self.channels:
                raise OSError("its sample rate or number of channels changes midway")
            for part in resampler.resample(frame):
                yield np.asarray(part.to_ndarray().T, dtype=np.float32)
