"""Audio in containers that libsndfile does not read: decoded by PyAV, or named with how to install it."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skill_speech.data import load_waveform, media, open_cuts, prepare
from skill_speech.errors import InputError

SECONDS = 3.0


def tone(rate: int) -> np.ndarray:
    """A tone that climbs, loud in its second second: a shift by a frame or another order would be seen."""
    time = np.arange(round(SECONDS * rate)) / rate
    loud = np.where((time >= 1) & (time < 2), 0.5, 0.1)
    return (loud * np.sin(2 * np.pi * (200 + 100 * time) * time)).astype(np.float32)


def write(path: Path, codec: str, rate: int = 48_000, container: str | None = None, picture: bool = False) -> None:
    av: Any = pytest.importorskip("av")
    with av.open(str(path), "w", format=container) as file:
        if picture:
            frames = file.add_stream("mpeg4", rate=10)
            frames.width, frames.height, frames.pix_fmt = 32, 32, "yuv420p"
        track = file.add_stream(codec, rate=rate)
        track.layout, track.bit_rate = "mono", 64_000
        if picture:
            for number in range(50):  # longer than the sound
                file.mux(
                    frames.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), number, np.uint8), format="rgb24"))
                )
            file.mux(frames.encode(None))
        audio = tone(rate)
        resampler = av.AudioResampler(
            format=track.format, layout="mono", rate=rate, frame_size=track.frame_size or None
        )
        for start in range(0, len(audio), 4_800):
            frame = av.AudioFrame.from_ndarray(audio[None, start : start + 4_800], format="flt", layout="mono")
            frame.sample_rate, frame.pts = rate, start
            for part in resampler.resample(frame):
                file.mux(track.encode(part))
        for part in resampler.resample(None):
            file.mux(track.encode(part))
        file.mux(track.encode(None))


def found_at(waveform_T: np.ndarray, expected_T: np.ndarray) -> tuple[int, float]:
    """By how many samples later the expected tone is found, and the correlation there."""
    length = len(waveform_T) + len(expected_T)
    spectrum = np.fft.rfft(waveform_T, length) * np.conj(np.fft.rfft(expected_T, length))
    correlations = np.fft.irfft(spectrum, length) / (np.linalg.norm(waveform_T) * np.linalg.norm(expected_T))
    best = int(np.argmax(correlations))
    return best if best < length // 2 else best - length, float(correlations[best])


KINDS = {
    "a.m4a": {"codec": "aac", "container": "ipod"},
    "a.mp4": {"codec": "aac", "container": "mp4"},
    "a.aac": {"codec": "aac", "container": "adts"},
    "opus.mp4": {"codec": "libopus", "container": "mp4"},
    "a.webm": {"codec": "libopus", "container": "webm"},
    "a.mka": {"codec": "flac", "container": "matroska"},
    "a.wma": {"codec": "wmav2", "container": "asf", "rate": 44_100},
    "a.ac3": {"codec": "ac3", "container": "ac3"},
    "video.mp4": {"codec": "aac", "container": "mp4", "picture": True},
    "video.mkv": {"codec": "aac", "container": "matroska", "picture": True},
    "called.wav": {"codec": "aac", "container": "mp4"},
}


@pytest.mark.parametrize("name", KINDS)
def test_what_was_written_is_read_whole_and_in_parts(tmp_path: Path, name: str) -> None:
    write(tmp_path / name, **KINDS[name])
    (cut,) = prepare(tmp_path, tmp_path / "cuts.jsonl")
    assert cut.duration == pytest.approx(SECONDS, abs=0.12), "codecs fill up their last frame"
    whole_T = load_waveform(cut)
    shift, alike = found_at(whole_T, tone(16_000))
    assert alike > 0.97
    # Without a container's note of it, a codec's delay stays, or more is cut off.
    assert abs(shift) <= (3_000 if name in ("a.aac", "a.wma", "a.ac3") else 8)
    for start, samples in ((0, 5_000), (17_001, 16_000)):
        part = cut.truncate(offset=start / 16_000, duration=samples / 16_000)
        np.testing.assert_allclose(load_waveform(part), whole_T[start : start + samples], atol=1e-3)
    (again,) = open_cuts(tmp_path / "cuts.jsonl")
    np.testing.assert_array_equal(load_waveform(again), whole_T)
    kinds = json.loads((tmp_path / "cuts.bad_audio.json").read_text())["kinds"] if name == "called.wav" else {}
    assert list(kinds) == (["another format than its name says"] if name == "called.wav" else [])


def test_it_is_read_in_tar_files_too(tmp_path: Path) -> None:
    write(tmp_path / "a.m4a", "aac", container="ipod")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "a.m4a", "key.m4a")
    (cut,) = open_cuts(tmp_path / "x.tar")
    (alone,) = open_cuts(tmp_path / "a.m4a")
    np.testing.assert_array_equal(load_waveform(cut), load_waveform(alone))


def test_a_video_without_sound_and_damage_are_bad_audio(tmp_path: Path) -> None:
    av: Any = pytest.importorskip("av")
    with av.open(str(tmp_path / "mute.mp4"), "w") as file:
        frames = file.add_stream("mpeg4", rate=10)
        frames.width, frames.height, frames.pix_fmt = 32, 32, "yuv420p"
        file.mux(frames.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        file.mux(frames.encode(None))
    with pytest.raises(InputError, match=r"mute\.mp4: cannot be decoded \(it has no audio track\)"):
        prepare(tmp_path / "mute.mp4")
    write(tmp_path / "a.m4a", "aac", container="ipod")
    content = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "a.m4a").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"a\.m4a: cannot be decoded \(mov: "):
        prepare(tmp_path / "a.m4a")
    write(tmp_path / "a.webm", "libopus", container="webm")
    content = (tmp_path / "a.webm").read_bytes()
    (tmp_path / "a.webm").write_bytes(content[: len(content) // 2])
    (cut,) = prepare(tmp_path / "a.webm", tmp_path / "cuts.jsonl")
    assert 1 < cut.duration < 2
    assert "shorter than its header says" in (tmp_path / "cuts.bad_audio.json").read_text()


def test_without_pyav_they_are_named_with_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "find_spec", lambda name: None)
    (tmp_path / "a.m4a").write_bytes(b"\0\0\0\x1cftypM4A \0\0\0\0" + bytes(100))
    with pytest.raises(
        InputError,
        match=r"a\.m4a: \.m4a is not read without PyAV: pip install av, or convert it to FLAC",
    ):
        prepare(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile secret.wav\n",
    ],
)
def test_a_playlist_is_no_audio(tmp_path: Path, text: str) -> None:
    import soundfile

    soundfile.write(tmp_path / "secret.wav", tone(16_000), 16_000)
    (tmp_path / "a.mp4").write_text(text)
    with pytest.raises(InputError, match=r"a\.mp4: cannot be decoded"):
        prepare(tmp_path / "a.mp4")


def test_containers_are_recognized_without_pyav() -> None:
    assert media.container_of(io.BytesIO(b"\x1a\x45\xdf\xa3" + bytes(12))) == "matroska"
    assert media.container_of(io.BytesIO(b"\xff\xfb\x90\x00" + bytes(12))) is None, "MP3"
    assert media.container_of(io.BytesIO(b"")) is None
