"""Audio that does not say how long it is: the length is what decodes, whole and in parts."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from skill_speech.data import load_waveform, prepare
from skill_speech.data.audio import read_header
from skill_speech.errors import InputError

CASES = Path(__file__).parent / "audio"
SECONDS = 4.0


def sound(rate: int) -> np.ndarray:
    """A second of silence, by which a decoder takes the file to be long, and loud noise, by which it would be short."""
    time = np.arange(round(SECONDS * rate)) / rate
    return np.where(time < 1, 0.0, 0.3) * np.random.default_rng(0).standard_normal(len(time)).clip(-2, 2)


def mp3(path: Path, rate: int, *, first_loud: bool = False, header: bool = False) -> None:
    """Variable bit rate; its first frame, which counts the others, is cut away."""
    audio = sound(rate)[::-1] if first_loud else sound(rate)
    soundfile.write(path, audio, rate, subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.6)
    content = path.read_bytes()
    second = content.index(content[:2], 64)
    path.write_bytes(content if header else content[second:])


def flac(path: Path, rate: int) -> None:
    soundfile.write(path, sound(rate), rate)
    content = bytearray(path.read_bytes())
    # The number of samples, 36 bits of STREAMINFO.
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)


def gsm(path: Path, rate: int) -> None:
    soundfile.write(path, sound(rate), rate, subtype="GSM610")


KINDS: dict[str, tuple[str, int, Callable[[Path, int], None]]] = {
    "MP3 that begins with silence": ("a.mp3", 44_100, mp3),
    "MP3 that begins loud": ("a.mp3", 44_100, lambda path, rate: mp3(path, rate, first_loud=True)),
    "MP3 at 16 kHz": ("a.mp3", 16_000, mp3),
    "FLAC": ("a.flac", 16_000, flac),
    "FLAC at 22 kHz": ("a.flac", 22_050, flac),
    "GSM": ("a.wav", 8_000, gsm),
}


def decoded_through_a_pipe(path: Path) -> np.ndarray:
    """The reference for MP3: soundfile on a pipe, all at once, and soxr."""
    reading, writing = os.pipe()
    threading.Thread(target=lambda: os.fdopen(writing, "wb").write(path.read_bytes())).start()
    with soundfile.SoundFile(reading) as file:
        audio = file.read(10**7, dtype="float32")
        return soxr.resample(audio, file.samplerate, 16_000)


@pytest.mark.parametrize("kind", KINDS)
def test_all_of_it_is_read_whole_and_in_parts(tmp_path: Path, kind: str) -> None:
    name, rate, make = KINDS[kind]
    make(tmp_path / name, rate)
    (cut,) = prepare(tmp_path)
    # MP3 has silence of its encoder before and after, GSM fills up a block.
    assert cut.duration == pytest.approx(SECONDS, abs=0.15 if name != "a.flac" else 0)
    whole_T = load_waveform(cut)
    assert len(whole_T) == cut.num_samples
    original = sound(rate)[::-1] if "loud" in kind else sound(rate)
    expected_T = soxr.resample(original.astype(np.float32), rate, 16_000)
    for start, stop in ((0, 4), (0, 1), (1, 4)) if "loud" not in kind else ((0, 3), (3, 4)):
        found, expected = (np.sqrt(np.mean(x[start * 16_000 : stop * 16_000] ** 2)) for x in (whole_T, expected_T))
        assert found == pytest.approx(expected, rel=0.15, abs=0.05), "loud and silent where it was"
    if name == "a.mp3":
        np.testing.assert_allclose(whole_T, decoded_through_a_pipe(tmp_path / name)[: len(whole_T)], atol=1e-5)
    for start, length in ((0, 5_000), (17_001, 20_000), (cut.num_samples - 9_000, 9_000)):
        part = cut.truncate(offset=start / 16_000, duration=length / 16_000)
        np.testing.assert_allclose(load_waveform(part), whole_T[start : start + length], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "rate"),
    [("vbr_no_header.mp3", 44_100), ("flac_length_unstated.flac", 16_000), ("gsm_unseekable.wav", 8_000)],
)
def test_files_of_other_programs(name: str, rate: int) -> None:
    header = read_header(CASES / name)
    assert header.sample_rate == rate
    assert header.samples / rate == pytest.approx(3.0, abs=0.1 if name.endswith("mp3") else 0)


def test_a_part_of_an_mp3_file_is_the_part_of_the_whole(tmp_path: Path) -> None:
    """Frames are continued in those before them: a decoder that starts at one has not all of it."""
    mp3(tmp_path / "a.mp3", 44_100, header=True)
    (cut,) = prepare(tmp_path)
    assert cut.duration == pytest.approx(SECONDS, abs=1e-4)
    whole_T = load_waveform(cut)
    for start in range(3_000, 60_000, 3_331):
        part = cut.truncate(offset=start / 16_000, duration=0.25)
        np.testing.assert_allclose(load_waveform(part), whole_T[start : start + 4_000], atol=2e-5)


def test_a_count_of_frames_that_does_not_fit_is_not_believed(tmp_path: Path) -> None:
    """Two files one after the other, and one that says it is twice what it is, which is named; what decodes is used."""
    mp3(tmp_path / "a.mp3", 44_100, header=True)
    one = (tmp_path / "a.mp3").read_bytes()
    at = one.index(b"Xing") + 8
    doubled = [(2 * int.from_bytes(one[at + shift : at + shift + 4], "big")).to_bytes(4, "big") for shift in (0, 4)]
    (tmp_path / "a.mp3").write_bytes(one[:at] + b"".join(doubled) + one[at + 8 :])
    mp3(tmp_path / "two.mp3", 44_100)
    (tmp_path / "two.mp3").write_bytes(one + (tmp_path / "two.mp3").read_bytes())
    half, two = prepare(tmp_path, tmp_path / "cuts.jsonl")
    assert half.duration == pytest.approx(SECONDS, abs=0.15)
    assert two.duration == pytest.approx(2 * SECONDS, abs=0.15)
    found = json.loads((tmp_path / "cuts.bad_audio.json").read_text())["kinds"]
    assert list(found["shorter than its header says"]["files"]) == [str(tmp_path / "a.mp3")]


def test_ordinary_files_are_not_decoded_for_their_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.flac", sound(16_000), 16_000)
    mp3(tmp_path / "a.mp3", 16_000, header=True)
    read: list[int] = []
    original = soundfile.SoundFile.read
    monkeypatch.setattr(
        soundfile.SoundFile,
        "read",
        lambda self, frames=-1, **options: read.append(frames) or original(self, frames, **options),
    )
    prepare(tmp_path)
    assert read == [1, 1]


@pytest.mark.parametrize("rate", [44_100, 16_000])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_of_an_mp3_file_cut_off_within_a_frame_all_whole_frames_are_read_and_it_is_named(
    tmp_path: Path, rate: int, share: float
) -> None:
    mp3(tmp_path / "a.mp3", rate)
    assert not read_header(tmp_path / "a.mp3").cut_short
    whole_T = load_waveform(next(iter(prepare(tmp_path))))
    content = (tmp_path / "a.mp3").read_bytes()
    (tmp_path / "a.mp3").write_bytes(content[: round(share * len(content)) - 20])
    assert read_header(tmp_path / "a.mp3").cut_short
    (cut,) = prepare(tmp_path)
    read_T = load_waveform(cut)
    assert len(read_T) == cut.num_samples
    # The silence at the start takes few bytes; frames are 36 ms at the most.
    lost = SECONDS - cut.duration
    assert len(whole_T) - len(read_T) > 0
    assert lost < 0.1 if share == 1 else 1 < lost < 2
    np.testing.assert_allclose(read_T[:-2_000], whole_T[: len(read_T) - 2_000], atol=1e-3)


def test_an_mp3_file_that_cannot_be_decoded_before_its_end_is_no_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mp3(tmp_path / "a.mp3", 44_100)
    read = soundfile.SoundFile.read

    def breaks(file: soundfile.SoundFile, *more: object, **options: object) -> object:
        if file.tell() > 10_000:
            raise soundfile.LibsndfileError(29)
        return read(file, *more, **options)

    with (tmp_path / "a.mp3").open("ab") as file:
        file.write(bytes(200_000))
    monkeypatch.setattr(soundfile.SoundFile, "read", breaks)
    with pytest.raises(InputError, match="cannot be decoded"):
        prepare(tmp_path)
