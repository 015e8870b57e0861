"""Every kind of odd audio: what `prepare` makes of it, by name and by count, and what a run does with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from skill_speech.data import AudioTally, audio_loader, evaluation_batches, load_waveform, open_cuts, prepare, tallied
from skill_speech.errors import InputError

RATE = 16_000


def noise(seconds: float = 1.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(3).standard_normal((round(seconds * rate), channels))


def cut_off(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def with_nan(path: Path) -> None:
    audio = noise()
    audio[7_000] = np.nan
    soundfile.write(path, audio, RATE, subtype="FLOAT")


def truncated(path: Path) -> None:
    soundfile.write(path, noise(), RATE)
    cut_off(path, 0.6)


# Name of the file, how it is made, and what is said of it: (kind, left out), or nothing.
KINDS: list[tuple[str, Callable[[Path], object], tuple[str, bool] | None]] = [
    ("truncated.flac", truncated, ("not decodable", True)),
    ("truncated.wav", truncated, ("shorter than its header says", False)),  # what is there is good
    ("empty.wav", lambda path: path.write_bytes(b""), ("empty", True)),
    ("zero-length.wav", lambda path: soundfile.write(path, noise(0), RATE), ("no samples", True)),
    ("one-sample.wav", lambda path: soundfile.write(path, noise(1 / RATE), RATE), ("too short", True)),
    ("nan.wav", with_nan, ("not finite", True)),
    ("clipped.wav", lambda path: soundfile.write(path, np.clip(60 * noise(), -1, 1), RATE), ("clipped", False)),
    ("offset.wav", lambda path: soundfile.write(path, 0.3 + noise(), RATE), ("DC offset", False)),
    ("silent.wav", lambda path: soundfile.write(path, 0 * noise(), RATE), ("silent", False)),
    ("constant.wav", lambda path: soundfile.write(path, 0 * noise() + 0.25, RATE), ("silent", False)),
    ("text.wav", lambda path: path.write_text("this is no audio"), ("not decodable", True)),
    ("folder.wav", lambda path: (path / "inside").mkdir(parents=True), None),  # no file: not listed
    ("eight-channels.wav", lambda path: soundfile.write(path, noise(channels=8), RATE), None),
    ("24-bit.wav", lambda path: soundfile.write(path, noise(), RATE, subtype="PCM_24"), None),
    ("float64.wav", lambda path: soundfile.write(path, noise(), RATE, subtype="DOUBLE"), None),
    *(
        (f"{rate}.wav", lambda path, rate=rate: soundfile.write(path, noise(rate=rate), rate), None)
        for rate in (8_000, 11_025, 22_050, 44_100, 96_000, 192_000)
    ),
    (
        "flac-inside.wav",
        lambda path: soundfile.write(path, noise(), RATE, format="FLAC"),
        ("another format than its name says", False),
    ),
]


def all_kinds(folder: Path) -> dict[str, tuple[str, bool]]:
    folder.mkdir()
    for name, make, _ in KINDS:
        make(folder / name)
    return {name: said for name, _, said in KINDS if said is not None}


def test_each_kind_is_named_counted_and_left_out_or_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "skill_speech.data")
    expected = all_kinds(tmp_path / "audio")
    cuts = prepare(tmp_path / "audio", tmp_path / "cuts.jsonl", max_bad="40%", decode=True)
    files = sorted(name for name, *_ in KINDS if name != "folder.wav")
    bad = {name for name, (_, left_out) in expected.items() if left_out}
    assert {Path(cut.recording.sources[0].source).name for cut in cuts} == set(files) - bad
    found = json.loads((tmp_path / "cuts.bad_audio.json").read_text())
    assert (found["read"], found["left_out"]) == (len(files), len(bad))
    assert found["converted"] == {"resampled": 6, "mixed down": 1}
    named = {
        Path(file).name: (kind, values["left_out"])
        for kind, values in found["kinds"].items()
        for file in values["files"]
    }
    assert named == expected
    for name in bad:
        assert f"{name}: " in caplog.text
    for kind in {kind for kind, left_out in expected.values() if not left_out}:  # one file of each
        files_of = [name for name, (other, _) in expected.items() if other == kind]
        assert (
            sum("warning: kept " in line and f"{name}: " in line for line in caplog.messages for name in files_of) == 1
        )
    # What is kept can be used as it should be.
    for cut in cuts:
        waveform_T = load_waveform(cut)
        assert waveform_T.dtype == np.float32
        assert np.isfinite(waveform_T).all()
        assert len(waveform_T) == RATE or "truncated" in cut.id
    with pytest.raises(
        InputError, match=rf"{len(bad)} of {len(files)} files cannot be used, more than the 1% that max_bad allows"
    ) as e:
        prepare(tmp_path / "audio", tmp_path / "again.jsonl", decode=True)
    assert "\n" not in str(e.value)
    assert not list(tmp_path.glob("again*"))
    # A run knows what its manifest was made without.
    tally = AudioTally()
    open_cuts(tmp_path / "cuts.jsonl", found=tally)
    assert tally.left_out == len(bad)


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "secret.wav", noise(), RATE)
    (tmp_path / "secret.wav").chmod(0)
    if os.access(tmp_path / "secret.wav", os.R_OK):  # as root, who may read everything
        access, original = os.access, soundfile.SoundFile.__init__

        def refuse(self: object, file: str, *more: object, **options: object) -> None:
            raise soundfile.LibsndfileError(2) if file.endswith("secret.wav") else AssertionError(original)

        monkeypatch.setattr(soundfile.SoundFile, "__init__", refuse)
        monkeypatch.setattr(soundfile.SoundFile, "__del__", lambda self: None)
        monkeypatch.setattr(os, "access", lambda path, mode: "secret" not in str(path) and access(path, mode))
    with pytest.raises(InputError, match=r"secret\.wav: cannot be read: permission denied"):
        prepare(tmp_path)


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "good.wav", noise(), RATE)
    os.rename(tmp_path / "good.wav", os.fsencode(tmp_path) + b"/\xff.wav")
    with pytest.raises(InputError, match=r"\\udcff\.wav: its name is not UTF-8: rename it"):
        prepare(tmp_path)


def test_files_that_vanish_or_break_during_a_run_are_named_and_counted(tmp_path: Path) -> None:
    (tmp_path / "audio").mkdir()
    for number in range(6):
        soundfile.write(tmp_path / f"audio/{number}.flac", noise(), RATE)
    cuts = prepare(tmp_path / "audio")
    tally = AudioTally()
    read = tallied(audio_loader(evaluation_batches(cuts, batch_seconds=1)), tally)
    next(read)
    left = list((tmp_path / "audio").iterdir())
    (tmp_path / "audio/1.flac").unlink()
    cut_off(tmp_path / "audio/2.flac", 0.3)
    (tmp_path / "audio/3.flac").write_bytes(b"")
    got = 1 + sum(len(batch.ids) for batch in read)
    kinds = {name: kind["cuts"] for name, kind in tally.kinds.items()}
    assert (tally.read, tally.left_out, got) == (6, sum(kinds.values()), 6 - tally.left_out)
    assert len(left) == 6
    assert set(kinds) <= {"missing", "not decodable", "truncated", "empty"}
    assert tally.left_out >= 2  # one of the three may have been the first


def test_headers_that_lie_are_refused(tmp_path: Path) -> None:
    for rate in (1, 999, 2**31 - 1):
        soundfile.write(tmp_path / "a.wav", noise(), RATE)
        content = bytearray((tmp_path / "a.wav").read_bytes())
        content[24:28] = rate.to_bytes(4, "little")
        (tmp_path / "a.wav").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.wav: (has a sample rate of|cannot be decoded)"):
            prepare(tmp_path)


def write_manifest(path: Path, source: str, kind: str = "file", **more: object) -> Path:
    recording = {
        "id": "a",
        "sources": [{"type": kind, "channels": [0], "source": source}],
        "sampling_rate": RATE,
        "num_samples": RATE,
        "duration": 1.0,
    }
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(recording | more) + "\n")
    return path


def test_a_manifest_stays_in_its_corpus_unless_it_may_leave(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("corpus/in.wav", "elsewhere/out.wav"):
        soundfile.write(tmp_path / name, noise(), RATE)
    inside = write_manifest(tmp_path / "corpus/in.jsonl", "in.wav")
    assert len(list(open_cuts(inside))) == 1
    assert len(list(open_cuts(write_manifest(tmp_path / "corpus/in.jsonl", str(tmp_path / "corpus/in.wav"))))) == 1
    for source in (str(tmp_path / "elsewhere/out.wav"), "../elsewhere/out.wav", "x/../../elsewhere/out.wav"):
        path = write_manifest(tmp_path / "corpus/out.jsonl", source)
        for opened in (open_cuts, prepare):
            with pytest.raises(InputError, match=r"line 1 names .*out\.wav, which is outside its corpus"):
                opened(path)
            assert len(list(opened(path, absolute_paths=True))) == 1
    # The same for what prepare wrote, which says so: nothing in a file tells that it was.
    caplog.set_level("INFO", "skill_speech.data")
    (cut,) = prepare(tmp_path / "elsewhere", tmp_path / "corpus/prepared.jsonl.gz")
    assert load_waveform(cut).shape == (RATE,)
    assert "prepared.jsonl.gz: its audio is outside its folder: set absolute_paths" in caplog.text
    with pytest.raises(InputError, match=r"line 1 names .*out\.wav, which is outside its corpus"):
        open_cuts(tmp_path / "corpus/prepared.jsonl.gz")
    assert list(open_cuts(tmp_path / "corpus/prepared.jsonl.gz", absolute_paths=True)) == [cut]
    prepare(tmp_path / "elsewhere", tmp_path / "prepared.jsonl")
    assert list(open_cuts(tmp_path / "prepared.jsonl")) == [cut]


def test_nothing_in_a_manifest_lets_it_leave_its_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what it says of itself, nor links, nor the working folder; a tsv's first line neither."""
    (tmp_path / "corpus").mkdir()
    soundfile.write(tmp_path / "out.wav", noise(), RATE)
    (tmp_path / "corpus/link.wav").symlink_to("../out.wav")
    (tmp_path / "corpus/up").symlink_to("..")
    monkeypatch.chdir(tmp_path)
    for source in ("link.wav", "up/out.wav", "out.wav", str(tmp_path / "corpus/link.wav"), str(tmp_path / "out.wav")):
        path = write_manifest(tmp_path / "corpus/cuts.jsonl", source)
        item = json.loads(path.read_text())
        cut = {"id": "c", "start": 0, "duration": 1.0, "channel": 0, "type": "MonoCut", "recording": item}
        path.write_text(json.dumps(cut | {"custom": {"corpus_root": "/"}}) + "\n")
        with pytest.raises(InputError, match=r"line 1 names .*\.wav, which is outside its corpus"):
            open_cuts(path)
        assert load_waveform(next(iter(open_cuts(path, absolute_paths=True)))).shape == (RATE,)
    for root, name in ((tmp_path, "out.wav"), (tmp_path / "corpus/up", "out.wav"), (tmp_path / "corpus", "link.wav")):
        (tmp_path / "corpus/train.tsv").write_text(f"{root}\n{name}\t{RATE}\n")
        with pytest.raises(InputError, match=r"line [12] names .*, which is outside its corpus"):
            open_cuts(tmp_path / "corpus/train.tsv")
        assert len(open_cuts(tmp_path / "corpus/train.tsv", absolute_paths=True)) == 1


def test_a_tsv_stays_below_its_first_line_unless_it_may_leave(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    soundfile.write(tmp_path / "out.wav", noise(), RATE)
    for name in ("../out.wav", str(tmp_path / "out.wav")):
        (tmp_path / "train.tsv").write_text(f"{tmp_path / 'corpus'}\n{name}\t{RATE}\n")
        with pytest.raises(InputError, match=r"line 2 names .*out\.wav, which is outside .*corpus"):
            prepare(tmp_path / "train.tsv")
        assert len(list(prepare(tmp_path / "train.tsv", absolute_paths=True))) == 1


def test_a_manifest_runs_no_command(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "cuts.jsonl", f"touch {tmp_path}/executed; cat nothing", kind="command")
    for opened in (open_cuts, prepare):
        with pytest.raises(InputError, match="line 1 would run a command, which is never allowed: a"):
            opened(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "change", [{"sampling_rate": 0}, {"sampling_rate": 10**12}, {"duration": -1.0}, {"duration": 0}]
)
def test_a_manifest_with_impossible_numbers_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = write_manifest(tmp_path / "cuts.jsonl", "a.wav", **change)
    with pytest.raises(InputError, match="line 1"):
        open_cuts(path)
