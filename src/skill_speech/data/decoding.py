"""Opening audio files, also those that do not say how long they are: their length is what decodes.

libsndfile guesses the length of an MP3 file without a count of its frames from the bit rate of the first one, and reads
no further; a FLAC file without a length it does not read to its end; of some encodings (GSM) it cannot seek. What
comes through a pipe, however, it decodes until that ends, without a guess.
"""

from __future__ import annotations

import io
import os
import re
import select
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

from .media import container_of, decoded

BLOCK = 1 << 16
"""Bytes written to a pipe, and samples decoded, at a time."""

MOST_SAMPLES = 1 << 32
"""Decoded to find a length: three days at 16 kHz."""

SECONDS_TO_FEED = 10.0
"""Before more of a file is taken to be on its way no longer."""

UNSTATED = 1 << 62
"""Samples from which on libsndfile means that it does not know."""

FACT = re.compile(r"^fact : \d+\n  frames  : (\d+)$", re.MULTILINE)
"""How libsndfile notes how many samples a WAV file's last block of a compressed encoding is filled up from."""

LARGEST_BLOCK = 4_096
"""Samples of a block of such an encoding, at most."""


SLACK_SAMPLES = 4 * 1_152
"""By which an MP3 file may differ from what its first frame says: decoders leave out what the encoder put before it."""


MP3_FRAME = 576
"""Samples of the shortest frame of layer III, of which the longer ones are multiples."""

MP3_LEAD = 20 * 1_152
"""Samples decoded before those that are wanted: a frame of few bytes is continued in up to so many before it."""


class NotAFileError(OSError):
    """A pipe, a device or a folder: reading it might block or never end."""


class Mp3Start(NamedTuple):
    """Where an MP3 file's audio begins, after tags and a frame that counts the others; and how many samples that says.

    `whole`: the file has the size that it says.
    """

    offset: int
    samples: int = 0
    whole: bool = False


@contextmanager
def opened(source: str | Path | io.BytesIO) -> Iterator[soundfile.SoundFile]:
    """An audio file, to be read with `read_mono`; if it does not say how long it is, as a stream with an open end.

    Raises:
        OSError, soundfile.SoundFileError: it cannot be opened.
        MissingDecoderError: only PyAV reads it, which is not installed.
    """
    if not isinstance(source, io.BytesIO):
        check_regular(source)
    name = source if isinstance(source, io.BytesIO) else str(source)
    try:
        known = soundfile.SoundFile(name)
    except soundfile.SoundFileError:
        container = container_of(source)
        if container is None:
            raise
        with decoded(source, container) as media:
            yield media
        return
    with known as file:
        unstated = file.frames >= UNSTATED
        guessed = file.format == "MP3" and _guessed(source, file)
        if not unstated and not guessed:
            yield file
            return
    with _piped(source) if guessed else _Stream(name) as file:
        yield file


class _Stream(soundfile.SoundFile):
    """A file in which soundfile is not to seek, as it does after every read."""

    def seekable(self) -> bool:
        return False


class _Pipe(soundfile.SoundFile):
    """An MP3 file that is fed through a pipe.

    Attributes:
        cut_off: it ended within a frame, which was left out.
    """

    cut_off = False

    def __init__(self, reading: int) -> None:
        super().__init__(reading, closefd=False)
        self.reading = reading

    def read(self, frames: int = -1, **options: Any) -> Any:
        """As soundfile's, but a frame at a time: libsndfile gives nothing of a call that meets a frame cut off."""
        parts, left = [], frames
        while left > 0 and not self.cut_off:
            try:
                part = super().read(min(left, MP3_FRAME), **options)
            except soundfile.LibsndfileError:
                if not self._is_used_up():
                    raise
                self.cut_off = True
                break
            parts.append(part)
            left -= len(part)
            if not len(part):
                break
        return np.concatenate(parts) if parts else np.zeros((0, self.channels), dtype=np.float32)

    def _is_used_up(self) -> bool:
        """Whether nothing is left of the file, so that an error is of its end."""
        readable, _, _ = select.select([self.reading], [], [], SECONDS_TO_FEED)
        return bool(readable) and not os.read(self.reading, 1)


def check_regular(path: str | Path) -> None:
    """Raises NotAFileError for what is no file with an end, and OSError for what is not there."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise NotAFileError(f"{path}: a pipe, a device or a folder")


def is_stream(file: soundfile.SoundFile) -> bool:
    """Whether the file can only be decoded from its start, up to an end that nobody has stated."""
    return not file.seekable()


def ends_within_a_frame(file: soundfile.SoundFile) -> bool:
    """Whether an MP3 file that was read to its end was cut off there."""
    return isinstance(file, _Pipe) and file.cut_off


def decoded_samples(file: soundfile.SoundFile) -> int:
    """The length of a stream, by decoding it; of compressed WAV files without what fills up the last block."""
    found = 0
    while count := len(file.read(BLOCK, dtype="float32", always_2d=True)):
        found += count
        if found > MOST_SAMPLES:
            raise ValueError(f"more than {MOST_SAMPLES:,} samples, and no length is stated")
    stated = FACT.search(file.extra_info)
    return int(stated[1]) if stated and found - LARGEST_BLOCK < int(stated[1]) < found else found


def read_mono(file: soundfile.SoundFile, start: int, stop: int, channels: list[int]) -> npt.NDArray[np.float32]:
    """Samples start … stop, or as many of them as there are, of the mean of some channels."""
    if start >= file.frames:
        return np.zeros(0, dtype=np.float32)
    if not is_stream(file):
        first = max(0, start - MP3_LEAD) if file.format == "MP3" else start
        file.seek(first)
        audio_TC = file.read(stop - first, dtype="float32", always_2d=True)
        return _mean(audio_TC[start - first :], channels)
    parts, place = [np.zeros(0, dtype=np.float32)], 0
    while place < stop:
        audio_TC = file.read(min(BLOCK, stop - place), dtype="float32", always_2d=True)
        if not len(audio_TC):
            break
        parts.append(_mean(audio_TC[max(0, start - place) :], channels))
        place += len(audio_TC)
    return np.concatenate(parts)


def _mean(audio_TC: npt.NDArray[np.float32], channels: list[int]) -> npt.NDArray[np.float32]:
    if audio_TC.shape[1] == 1:
        return audio_TC[:, 0]
    return audio_TC[:, channels].mean(axis=1, dtype=np.float32)


def _guessed(source: str | Path | io.BytesIO, file: soundfile.SoundFile) -> bool:
    """Whether libsndfile guesses how long an MP3 file is."""
    start = mp3_start(source)
    return not start.whole or abs(start.samples - file.frames) > SLACK_SAMPLES


@contextmanager
def _piped(source: str | Path | io.BytesIO) -> Iterator[soundfile.SoundFile]:
    reading, writing = os.pipe()
    feeder = threading.Thread(target=_feed, args=(source, mp3_start(source).offset, writing), daemon=True)
    feeder.start()
    try:
        with _Pipe(reading) as file:
            yield file
    finally:
        os.close(reading)
        feeder.join()


def _feed(source: str | Path | io.BytesIO, offset: int, writing: int) -> None:
    try:
        with os.fdopen(writing, "wb", buffering=0) as pipe, _bytes_of(source) as file:
            file.seek(offset)
            while block := file.read(BLOCK):
                pipe.write(block)
    except OSError:
        pass  # nobody reads any more, or the file has gone: then the audio ends early, as whoever reads will notice


def _bytes_of(source: str | Path | io.BytesIO) -> io.BufferedIOBase:
    return io.BytesIO(source.getbuffer()) if isinstance(source, io.BytesIO) else open(source, "rb")


# Of MPEG audio, by the bits of a frame's header: ISO 11172-3 and 13818-3, and the tables of the programs Xing and LAME.
SIDE_BYTES = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}
"""Of layer III, between the header and the table, by (version 1, mono)."""

KILOBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),
}
RATES = (44_100, 48_000, 32_000, 44_100)
"""Hz, of version 1; the last one is none."""


def mp3_start(source: str | Path | io.BytesIO) -> Mp3Start:
    """What the first frame of an MP3 file says of the file's length (Xing, Info or VBRI), checked against its size."""
    with _bytes_of(source) as file:
        size = file.seek(0, io.SEEK_END)
        offset = _after_id3(file)
        file.seek(offset)
        frame = file.read(256)
    if len(frame) < 256 or frame[0] != 0xFF or frame[1] & 0xE0 != 0xE0:
        return Mp3Start(offset)
    version1 = frame[1] & 0x18 == 0x18
    table = 4 + SIDE_BYTES[version1, frame[3] & 0xC0 == 0xC0]
    if frame[table : table + 4] in (b"Xing", b"Info") and frame[table + 7] & 3 == 3:
        frames, stated = _number(frame, table + 8), _number(frame, table + 12)
    elif frame[36:40] == b"VBRI":
        frames, stated = _number(frame, 50), _number(frame, 46)
    else:
        return Mp3Start(offset)
    # A tag of 128 bytes may follow the frames, and some programs do not count the first.
    whole = abs(size - offset - stated) <= 2_048
    return Mp3Start(offset + _frame_bytes(frame), frames * (1_152 if version1 else 576), whole)


def _frame_bytes(frame: bytes) -> int:
    version1 = frame[1] & 0x18 == 0x18
    kilobits = KILOBITS[version1][frame[2] >> 4]
    # Versions 2 and 2.5 (without the bit 0x10) halve the sample rate, each once more.
    rate = RATES[frame[2] >> 2 & 3] // (1 if version1 else 2 if frame[1] & 0x10 else 4)
    return (144_000 if version1 else 72_000) * kilobits // rate + (frame[2] >> 1 & 1)


def _number(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")


def _after_id3(file: io.BufferedIOBase) -> int:
    """The first byte after the tags at the start of an MP3 file."""
    offset = 0
    while True:
        file.seek(offset)
        tag = file.read(10)
        if len(tag) < 10 or tag[:3] != b"ID3" or max(tag[6:]) > 0x7F:
            return offset
        length = tag[6] << 21 | tag[7] << 14 | tag[8] << 7 | tag[9]
        offset += 10 + length + (10 if tag[5] & 0x10 else 0)
