"""`prepare` and `open_cuts` on every kind of source, and what they say about bad ones."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import lhotse
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut, RecordingSet

from skill_speech.data import load_waveform, open_cuts, prepare
from skill_speech.data.tally import AudioTally
from skill_speech.errors import InputError


def write(path: Path, seconds: float = 0.5, rate: int = 16_000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).standard_normal((int(seconds * rate), channels)) * 0.1
    soundfile.write(path, noise.astype("float32"), rate)
    return path


def librispeech(root: Path) -> Path:
    for speaker, chapter in [("84", "121123"), ("84", "121550"), ("174", "50561")]:
        folder = root / speaker / chapter
        lines = []
        for number in range(2):
            utterance = f"{speaker}-{chapter}-{number:04d}"
            write(folder / f"{utterance}.flac", 0.5 + number / 4)
            lines.append(f"{utterance} HELLO FROM {speaker} NUMBER {number}")
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")
    return root


def test_folder_is_read_recursively_in_order(tmp_path: Path) -> None:
    for name in ["b/two.wav", "a/one.flac", "c.ogg", "b/.hidden.wav"]:
        write(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not audio")
    cuts = prepare(tmp_path)
    assert [cut.id for cut in cuts] == ["a/one", "b/two", "c"]
    assert all(os.path.isabs(cut.recording.sources[0].source) for cut in cuts)


def test_files_that_differ_by_suffix_keep_different_ids(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    write(tmp_path / "a.flac")
    assert [cut.id for cut in prepare(tmp_path)] == ["a.flac", "a.wav"]


@pytest.mark.parametrize("of", ["subset", "root"])
def test_librispeech_layout_gives_transcripts_and_speakers(tmp_path: Path, of: str) -> None:
    librispeech(tmp_path / "dev-clean")
    cuts = prepare(tmp_path / "dev-clean" if of == "subset" else tmp_path)
    assert len(cuts) == 6
    by_id = {cut.id: cut for cut in cuts}
    (supervision,) = by_id["174-50561-0001"].supervisions
    assert (supervision.speaker, supervision.text) == ("174", "HELLO FROM 174 NUMBER 1")
    assert supervision.duration == by_id["174-50561-0001"].duration == 0.75


def test_librispeech_agrees_with_the_recipe_of_lhotse(tmp_path: Path) -> None:
    librispeech(tmp_path / "dev-clean")
    theirs = lhotse.recipes.prepare_librispeech(tmp_path, dataset_parts=["dev-clean"])["dev-clean"]
    ours = {cut.id: cut for cut in prepare(tmp_path)}
    assert set(ours) == {recording.id for recording in theirs["recordings"]}
    for supervision in theirs["supervisions"]:
        (own,) = ours[supervision.recording_id].supervisions
        assert (own.text, own.speaker, own.duration) == (supervision.text, supervision.speaker, supervision.duration)


def test_missing_librispeech_audio_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    librispeech(tmp_path)
    (tmp_path / "84/121123/84-121123-0001.flac").unlink()
    assert len(prepare(tmp_path)) == 5
    assert "1 transcripts have no audio file (first: 84-121123-0001)" in caplog.text


def test_tsv(tmp_path: Path) -> None:
    write(tmp_path / "audio/x/a.wav", 0.5)
    write(tmp_path / "audio/b.flac", 0.25)
    (tmp_path / "train.tsv").write_text(f"{tmp_path / 'audio'}\nx/a.wav\t8000\nb.flac\t4000\n")
    cuts = list(prepare(tmp_path / "train.tsv"))
    assert [(cut.id, cut.num_samples) for cut in cuts] == [("x/a", 8000), ("b", 4000)]


def test_tsv_that_disagrees_with_a_file_names_it(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", 0.5)
    (tmp_path / "train.tsv").write_text(f"{tmp_path}\na.wav\t9000\n")
    with pytest.raises(InputError, match=r"1 of 1 files .*a\.wav: has 8000 samples, the tsv says 9000"):
        prepare(tmp_path / "train.tsv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "line 1 must be the folder"),
        ("a.wav\t8000\n", "line 1 must be the folder"),
        ("/no/such/folder\na.wav\t8000\n", "line 1 names the folder /no/such/folder, which does not exist"),
        ("{here}\na.wav\t8000\nb.wav 100\n", "line 3 is not `path <tab> number of samples`: 'b.wav 100'"),
        ("{here}\n\t8000\n", "line 2 is not `path <tab> number of samples`"),
        ("{here}\n", "contains no audio files"),
    ],
)
def test_malformed_tsv(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "train.tsv").write_text(content.format(here=tmp_path))
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "train.tsv")


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_manifest_round_trip(tmp_path: Path, name: str) -> None:
    write(tmp_path / "audio/a.wav", rate=44_100)
    write(tmp_path / "audio/b.flac", channels=2)
    in_memory = prepare(tmp_path / "audio")
    written = prepare(tmp_path / "audio", tmp_path / "out" / name)
    assert written.is_lazy
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    again = [opened(tmp_path / "out" / name, absolute_paths=True) for opened in (open_cuts, prepare)]
    for opened in (written, *again):
        assert list(opened) == list(in_memory)
        for cut, other in zip(opened, in_memory, strict=True):
            np.testing.assert_array_equal(load_waveform(cut), load_waveform(other))
    # Plain lhotse reads it too, resampling in its own way.
    assert [cut.load_audio().shape[-1] for cut in CutSet.from_file(tmp_path / "out" / name)] == [8000, 8000]


def test_foreign_manifests_of_recordings_and_cuts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skill_speech.data")
    recording = lhotse.Recording.from_file(write(tmp_path / "a.wav", 1.0, rate=8_000))
    RecordingSet.from_recordings([recording]).to_file(tmp_path / "recordings.jsonl.gz")
    CutSet.from_cuts([recording.to_cut().truncate(offset=0.25, duration=0.5)]).to_file(tmp_path / "cuts.jsonl")
    cuts = open_cuts(tmp_path / "recordings.jsonl.gz")
    assert list(cuts) == list(cuts)
    (cut,) = cuts
    assert (cut.sampling_rate, cut.num_samples) == (16_000, 16_000)
    assert caplog.text.count("not all cuts are 16 kHz (first: a): resampled on the fly") == 1
    (cut,) = prepare(tmp_path / "cuts.jsonl")
    assert (cut.start, cut.num_samples) == (0.25, 8_000)
    (cut,) = open_cuts(CutSet.from_file(tmp_path / "cuts.jsonl"))
    assert cut.sampling_rate == 16_000


def test_relative_paths_of_a_manifest_become_absolute(tmp_path: Path) -> None:
    recording = lhotse.Recording.from_file(write(tmp_path / "audio/a.wav"), relative_path_depth=2)
    RecordingSet.from_recordings([recording]).to_file(tmp_path / "recordings.jsonl")
    (cut,) = prepare(tmp_path / "recordings.jsonl", tmp_path / "cuts.jsonl")
    assert cut.recording.sources[0].source == str(tmp_path / "audio/a.wav")


def test_conversions_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "skill_speech.data")
    for number in range(5):
        write(tmp_path / f"{number}.wav", rate=48_000 if number < 2 else 16_000, channels=2 if number == 4 else 1)
    prepare(tmp_path)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        f"{tmp_path}: a folder of audio",
        "2 of 5 files are not 16 kHz: resampled on the fly",
        "1 of 5 files are not mono: mixed down on the fly",
        f"{tmp_path}: 5 cuts, 2.5 s",
    ]


def test_bad_files_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(7):
        write(tmp_path / f"{number}.flac")
    (tmp_path / "broken.flac").write_bytes(b"this is no audio")
    write(tmp_path / "empty.wav", 0.0)
    content = (tmp_path / "0.flac").read_bytes()
    (tmp_path / "truncated.flac").write_bytes(content[: len(content) // 2])
    cuts = prepare(tmp_path, tmp_path / "cuts.jsonl", max_bad=0.3)
    assert [cut.id for cut in cuts] == [str(number) for number in range(7)]
    assert "broken.flac: cannot be decoded" in caplog.text
    assert "empty.wav: empty: it has no samples" in caplog.text
    assert "truncated.flac: cannot be decoded" in caplog.text
    assert "3 of 10 files cannot be used and were left out" in caplog.text
    (tmp_path / "cuts.jsonl").unlink()
    allowed = [(1, 20, "1%"), (0, 5, "0%"), (2, 200, "1%")]
    refused = [(1, 19, "1%"), (1, 20, "0%"), (2, 199, "1%")]
    assert [AudioTally(share).is_too_much(bad, read) for bad, read, share in allowed] == [False] * 3
    assert [AudioTally(share).is_too_much(bad, read) for bad, read, share in refused] == [True] * 3
    with pytest.raises(
        InputError, match=r"3 of 10 files cannot be used, more than the 1% that max_bad .*broken\.flac: .*max_bad"
    ) as error:
        prepare(tmp_path, tmp_path / "cuts.jsonl")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*cuts.jsonl")), "nothing is left behind"


def test_manifest_whose_audio_vanished(tmp_path: Path) -> None:
    path = write(tmp_path / "audio/a.wav")
    prepare(tmp_path / "audio", tmp_path / "cuts.jsonl")
    path.unlink()
    with pytest.raises(InputError, match=r"1 of 1 files cannot be used.*a\.wav: no such file"):
        prepare(tmp_path / "cuts.jsonl", tmp_path / "again.jsonl")


def test_folder_without_audio(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError, match=r"no audio in this folder \(found nothing\)"):
        prepare(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"no audio in this folder \(found 1 \.txt\): give a folder with \.wav"):
        prepare(tmp_path)
    (tmp_path / "a.wv").write_bytes(b"x")
    (tmp_path / "b.wv").write_bytes(b"x")
    with pytest.raises(InputError, match=r"2 of 2 files cannot be used: .*a\.wv: \.wv is not supported: convert it to"):
        prepare(tmp_path)
    write(tmp_path / "c.wav")
    with pytest.raises(InputError, match=r"2 of 3 files cannot be used, more than the 1% that max_bad allows"):
        prepare(tmp_path)
    assert len(prepare(tmp_path, max_bad="70%")) == 1
    assert "skipped " in caplog.text


def test_sources_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file or folder: give a folder of audio"):
        open_cuts(tmp_path / "nowhere")
    write(tmp_path / "a.wav")
    (tmp_path / "a.xyz").write_bytes(bytes(100))
    with pytest.raises(InputError, match=r"a\.xyz: unknown kind of data: give a folder of audio"):
        prepare(tmp_path / "a.xyz")
    with pytest.raises(InputError, match=r"cuts\.json: a manifest's name must end in \.jsonl or \.jsonl\.gz"):
        prepare(tmp_path, tmp_path / "cuts.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written \(.*\): free some space"):
        prepare(tmp_path, tmp_path / "file" / "cuts.jsonl")


def test_broken_manifests_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cuts.jsonl"
    path.write_text("")
    with pytest.raises(InputError, match=r"cuts\.jsonl: contains no audio files"):
        open_cuts(path)
    with pytest.raises(InputError, match=r"cuts\.jsonl: contains no audio files"):
        prepare(path)
    path.write_text(json.dumps({"id": "a", "recording_id": "a", "start": 0, "duration": 1}) + "\n")
    with pytest.raises(InputError, match="line 1 is a SupervisionSegment: give a manifest of cuts or recordings"):
        open_cuts(path)
    path.write_text('{"some": "json"}\n')
    with pytest.raises(
        InputError, match=r"cannot be read as a lhotse manifest of cuts or recordings, at or after line 1 \("
    ):
        open_cuts(path)
    path.write_text("[1, 2\n")
    with pytest.raises(
        InputError, match=r"cannot be read as a lhotse manifest of cuts or recordings, at or after line 1 \("
    ):
        open_cuts(path)


def test_truncated_manifest_is_refused(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path / f"audio/{number}.wav", 0.05)
    path = tmp_path / "cuts.jsonl.gz"
    prepare(tmp_path / "audio", path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot be read as a lhotse manifest .* after line \d+ \(EOFError\)"):
        list(open_cuts(path))


def test_cuts_without_audio_are_refused(tmp_path: Path) -> None:
    CutSet.from_cuts([MonoCut("a", 0.0, 1.0, 0)]).to_file(tmp_path / "cuts.jsonl")
    with pytest.raises(InputError, match="cut a has no audio: give a manifest whose cuts carry recordings"):
        open_cuts(tmp_path / "cuts.jsonl")
