"""Listings that are too long to be checked before a run, and streams: as they come by, in flat memory, all the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from skill_speech.data import (
    AudioTally,
    TrainingBatches,
    audio_loader,
    evaluation_batches,
    fingerprint,
    listing,
    load_waveform,
    manifests,
    open_cuts,
    prepare,
    split_cuts,
    streams,
    tallied,
)
from skill_speech.data.listing import Entry, distinct
from skill_speech.data.streams import audio_bytes, some
from skill_speech.errors import InputError

RATE = 16_000


def table(folder: Path, count: int = 40) -> Path:
    """A table of some files, of which three cannot be used."""
    rng = np.random.default_rng(0)
    lines = ["path\ttext\tduration"]
    for number in range(count):
        soundfile.write(folder / f"{number:02}.wav", 0.1 * rng.standard_normal(RATE + 100 * number), RATE)
        lines.append(f"{number:02}.wav\tTEXT {number}\t{1 + number / 160:.2f}")
    (folder / "03.wav").unlink()
    (folder / "04.wav").write_text("no audio")
    soundfile.write(folder / "05.wav", np.zeros(100), RATE)
    (folder / "t.tsv").write_text("\n".join(lines) + "\n")
    return folder / "t.tsv"


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than nine files are many."""
    for module in (manifests, listing):
        monkeypatch.setattr(module, "LOOKED_AT", 9)


def test_a_streamed_listing_has_the_cuts_of_a_checked_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path)
    checked = {cut.id: cut for cut in open_cuts(path, max_bad=0.1)}
    monkeypatch.setattr(manifests, "LOOKED_AT", 9)
    streamed = open_cuts(path)
    assert streamed.is_lazy
    found = {cut.id: cut for cut in streamed}
    assert [cut.id for cut in streamed] == [f"{number:02}" for number in range(40)]
    for name, cut in checked.items():
        assert found[name] == cut
    assert fingerprint(streamed).cuts == 41, "lines"


@pytest.mark.usefixtures("long")
def test_bad_files_of_a_streamed_listing_are_named_and_counted_when_they_are_read(tmp_path: Path) -> None:
    cuts = open_cuts(table(tmp_path))
    batches = TrainingBatches(cuts, batch_seconds=4, min_seconds=0.5)
    tally = AudioTally("50%")
    used: set[str] = set()
    for batch in tallied(audio_loader(batches), tally):
        used |= set(batch.ids)
        if len(used) == 37 and len(tally.kinds) == 3:
            break
    kinds = {Path(file).name: kind for kind, values in tally.kinds.items() for file in values["files"]}
    assert kinds == {"03.wav": "missing", "04.wav": "not decodable", "05.wav": "too short"}
    with pytest.raises(InputError, match=r"more than the 1% that max_bad"):
        list(
            tallied(
                audio_loader(TrainingBatches(open_cuts(tmp_path / "t.tsv"), batch_seconds=4, min_seconds=0.5)),
                AudioTally(),
            )
        )


@pytest.mark.usefixtures("long")
def test_the_same_batches_whatever_was_read_before(tmp_path: Path) -> None:
    path = table(tmp_path)

    def first(count: int) -> list[list[str]]:
        train, _ = split_cuts(open_cuts(path), validation_seconds=2, seed=1)
        stream = iter(TrainingBatches(train, batch_seconds=6, min_seconds=0.5, seed=3))
        return [[cut.id for cut in next(stream)] for _ in range(count)]

    assert first(12) == first(12)


@pytest.mark.usefixtures("long")
def test_a_changed_table_is_other_data(tmp_path: Path) -> None:
    path = table(tmp_path)
    before = fingerprint(open_cuts(path))
    path.write_text(path.read_text().replace("TEXT 7", "OTHER"))
    assert fingerprint(open_cuts(path)) != before


def test_labels_are_part_of_what_data_is(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(RATE) * 0.1, RATE)
    marks = []
    for label in ("sad", "happy"):
        (tmp_path / "t.csv").write_text(f"path,label\na.wav,{label}\n")
        marks.append(fingerprint(open_cuts(tmp_path / "t.csv")).hash)
    assert marks[0] != marks[1]


def test_ids_that_several_entries_have_are_told_apart() -> None:
    entries = [
        Entry("x/a.wav", "a"),
        Entry("x/a.flac", "a"),
        Entry("y/b.wav", "b"),
        Entry("z/b.wav", "b"),
        Entry("c.wav", "c"),
    ]
    assert [one.id for one in distinct(entries)] == ["a.wav", "a.flac", "b.wav-2", "b.wav-3", "c"]


def test_a_stream_holds_so_much_audio_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    content = (tmp_path / "a.wav").read_bytes()
    rows = [{"bytes": content, "path": None}] * 20
    pq.write_table(
        pa.table({"audio": pa.array(rows), "id": [f"{number}" for number in range(20)]}), tmp_path / "x.parquet"
    )
    cuts = open_cuts(tmp_path / "x.parquet")
    assert [audio_bytes(cut) for cut in cuts] == 20 * [len(content)]
    monkeypatch.setattr(streams, "MOST_HELD", 4 * len(content))
    assert len(some(iter(cuts), 20)) == 5
    batches = iter(TrainingBatches(cuts, batch_seconds=4, min_seconds=0.5))
    seen = {cut.id for _ in range(10) for cut in next(batches)}
    assert len(seen) == 20
    with pytest.raises(InputError, match="write shards with skill-speech prepare --shards"):
        evaluation_batches(cuts, batch_seconds=4)
    assert sum(len(batch) for batch in evaluation_batches(cuts, batch_seconds=4, limit_seconds=3)) == 3
    assert all(load_waveform(cut).shape == (RATE,) for cut in cuts)
    with pytest.raises(InputError, match="copy it with --shards and --output FOLDER"):
        prepare(tmp_path / "x.parquet", tmp_path / "cuts.jsonl")


GROWTH = """
import resource, sys
from skill_speech.data import TrainingBatches, open_cuts
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
next(iter(TrainingBatches(open_cuts(sys.argv[1]), batch_seconds=60)))
small = peak()
next(iter(TrainingBatches(open_cuts(sys.argv[2]), batch_seconds=60)))
print(peak() - small)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "json"])
def test_ten_times_the_rows_take_no_more_memory(tmp_path: Path, kind: str) -> None:
    """Beyond what is looked at, 20,000; `benchmarks.manifests` measures a million."""
    soundfile.write(tmp_path / "a.wav", 0.1 * np.random.default_rng(0).standard_normal(3 * RATE), RATE)
    for count in (40_000, 400_000):
        if kind == "csv":
            lines = ["path,text,id", *(f"a.wav,SOME TEXT THAT IS SAID,{number}" for number in range(count))]
        else:
            rows = (
                {"audio_filepath": "a.wav", "duration": 3.0, "text": "SOME TEXT", "id": number}
                for number in range(count)
            )
            lines = [json.dumps(row) for row in rows]
        (tmp_path / f"{count}.{kind}").write_text("\n".join(lines) + "\n")
    files = [str(tmp_path / f"{count}.{kind}") for count in (40_000, 400_000)]
    done = subprocess.run([sys.executable, "-c", GROWTH, *files], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20_000, "KiB"
