"""Reading audio: compared with soundfile and soxr used directly on the whole file."""

from __future__ import annotations

from pathlib import Path

import lhotse
import numpy as np
import pytest
import soundfile
import soxr

from skill_speech.data import BadAudio, load_waveform, prepare
from skill_speech.data.audio import at_16khz

PITCH = 440.0


def write_sine(path: Path, rate: int, channels: int = 1, seconds: float = 1.5) -> np.ndarray:
    time = np.arange(int(seconds * rate)) / rate
    # Channels of different loudness: a wrong mix shows.
    audio_TC = np.stack([0.5 / (1 + c) * np.sin(2 * np.pi * PITCH * time) for c in range(channels)], axis=1)
    soundfile.write(path, audio_TC.astype("float32"), rate)
    return audio_TC


def read_whole(path: Path) -> np.ndarray:
    """The reference: decode everything, average the channels, resample everything."""
    audio_TC, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(audio_TC.mean(axis=1), rate, 16_000)


def loudest_frequency(waveform_T: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform_T * np.hanning(len(waveform_T))))
    return float(np.fft.rfftfreq(len(waveform_T), 1 / 16_000)[spectrum.argmax()])


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_any_rate_and_channels_become_16khz_mono(tmp_path: Path, rate: int, channels: int, suffix: str) -> None:
    write_sine(tmp_path / f"a.{suffix}", rate, channels)
    (cut,) = prepare(tmp_path)
    waveform_T = load_waveform(cut)
    assert waveform_T.dtype == np.float32
    assert waveform_T.shape == (24_000,)
    assert loudest_frequency(waveform_T) == pytest.approx(PITCH, abs=1.0)
    np.testing.assert_allclose(waveform_T, read_whole(tmp_path / f"a.{suffix}"), atol=1e-5)


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_056, 44_100, 48_000])
def test_crop_equals_the_same_samples_of_the_whole_file(tmp_path: Path, rate: int) -> None:
    noise = np.random.default_rng(0).standard_normal(2 * rate).astype("float32") * 0.1
    soundfile.write(tmp_path / "a.wav", noise, rate, subtype="FLOAT")
    (cut,) = prepare(tmp_path)
    whole_T = read_whole(tmp_path / "a.wav")
    for start, length in [(0, 4_001), (7_777, 9_000), (32_000 - 5_003, 5_003)]:
        crop = cut.truncate(offset=start / 16_000, duration=length / 16_000)
        np.testing.assert_allclose(load_waveform(crop), whole_T[start : start + length], atol=2e-5)


def test_crop_reads_only_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_sine(tmp_path / "a.wav", 16_000, seconds=60)
    (cut,) = prepare(tmp_path)
    read: list[int] = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames=-1, **options: read.append(frames) or original(self, frames, **options),
    )
    load_waveform(cut.truncate(offset=30, duration=2))
    assert read == [32_000]


def test_what_lhotse_alone_can_read_is_read_by_lhotse(tmp_path: Path) -> None:
    write_sine(tmp_path / "a.wav", 44_100)
    (cut,) = prepare(tmp_path)
    whole_T = load_waveform(cut)
    in_memory = at_16khz(lhotse.Recording.from_file(tmp_path / "a.wav").move_to_memory().to_cut())
    assert load_waveform(in_memory).shape == whole_T.shape
    mixed = cut.append(cut)
    waveform_T = load_waveform(mixed)
    assert waveform_T.shape == (48_000,)
    assert loudest_frequency(waveform_T) == pytest.approx(PITCH, abs=1.0)


def test_vanished_file_is_named(tmp_path: Path) -> None:
    write_sine(tmp_path / "a.wav", 16_000)
    (cut,) = prepare(tmp_path)
    (tmp_path / "a.wav").unlink()
    with pytest.raises(BadAudio, match=r"a\.wav: no such file"):
        load_waveform(cut)


@pytest.mark.parametrize("rate", [16_000, 22_050])
@pytest.mark.parametrize(
    ("suffix", "message"), [("wav", r"ends after 0\.\d+ s, .* 1\.500 s: truncated"), ("flac", "cannot be decoded")]
)
def test_file_truncated_after_preparation_is_named(tmp_path: Path, suffix: str, message: str, rate: int) -> None:
    path = tmp_path / f"a.{suffix}"
    write_sine(path, rate)
    (cut,) = prepare(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(BadAudio, match=rf"a\.{suffix}: {message}") as error:
        load_waveform(cut)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_audio_is_named(tmp_path: Path, value: float) -> None:
    audio_T = np.zeros(16_000, dtype="float32")
    audio_T[100] = value
    soundfile.write(tmp_path / "a.wav", audio_T, 16_000, subtype="FLOAT")
    (cut,) = prepare(tmp_path)
    with pytest.raises(BadAudio, match=r"a\.wav: the audio holds NaN or infinite values"):
        load_waveform(cut)
