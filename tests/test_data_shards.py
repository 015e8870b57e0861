"""Shards on disk, over HTTP and in an object store; mixtures; runs on them that go on to the same batches."""

from __future__ import annotations

import functools
import gzip
import http.server
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pytest
import soundfile
from lhotse import CutSet

from skill_speech.data import (
    AudioTally,
    BadAudio,
    Part,
    Position,
    TrainingBatches,
    audio_loader,
    evaluation_batches,
    load_waveform,
    open_cuts,
    prepare,
    remote,
    shards,
    split_cuts,
)
from skill_speech.errors import InputError


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 files, with one of 44.1 kHz in stereo, one that is broken and one in a folder of its own."""
    folder, rng = tmp_path_factory.mktemp("audio"), np.random.default_rng(0)
    (folder / "deeper.down").mkdir()
    for number in range(23):
        name = f"{number:02}.flac" if number else "deeper.down/00.flac"
        samples = rng.integers(-32768, 32768, rng.integers(9_600, 24_000), dtype=np.int16)
        soundfile.write(folder / name, samples, 16_000, subtype="PCM_16")
    tone = 0.5 * np.sin(np.arange(44_100) / 7)
    soundfile.write(folder / "tone.wav", np.stack([tone, tone], 1), 44_100, subtype="FLOAT")
    return folder


@pytest.fixture(scope="module")
def sharded(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "corpus"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards.write_shards, "__kwdefaults__", shards.write_shards.__kwdefaults__ | {"shard_cuts": 7})
        prepare(audio, folder, shards=True)
    return folder


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Python's own server, with what object stores have and it has not: parts of files. Counts bytes by name."""

    sent: ClassVar[Counter[str]] = Counter()
    ranges = True
    failures = 0

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        if RangeHandler.failures:
            RangeHandler.failures -= 1
            return self.send_error(503)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not (wanted and self.ranges and path.exists()):
            self.sent[path.name] += path.stat().st_size if path.exists() else 0
            return super().do_GET()
        first, last = int(wanted[1]), int(wanted[2])
        data = path.read_bytes()[first : last + 1]
        self.sent[path.name] += len(data)
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{path.stat().st_size}")
        self.end_headers()
        self.wfile.write(data)
        return None


@pytest.fixture
def address(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(remote, "WAITS_SECONDS", (0.01, 0.01))
    RangeHandler.sent.clear()
    handler = functools.partial(RangeHandler, directory=str(sharded.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/corpus"
    server.shutdown()
    server.server_close()


def training(cuts: CutSet, **options: object) -> TrainingBatches:
    return TrainingBatches(cuts, batch_seconds=4, min_seconds=0.5, max_seconds=1.2, **options)


def test_shards_hold_what_the_files_hold(audio: Path, sharded: Path) -> None:
    files = {cut.id: cut for cut in prepare(audio)}
    opened = list(open_cuts(sharded))
    assert [cut.id for cut in opened] == list(files)
    for cut in opened:
        expected_T = load_waveform(files[cut.id])
        found_T = load_waveform(cut)
        # Not only close: 16-bit samples come back as they were.
        np.testing.assert_allclose(found_T, expected_T, atol=1 / 65536 if cut.id.startswith("tone") else 0)
    part = opened[3].truncate(offset=0.25, duration=0.25)
    np.testing.assert_array_equal(load_waveform(part), load_waveform(opened[3])[4_000:8_000])
    index = json.loads((sharded / "index.json").read_text())
    assert [shard["number"] for shard in index["shards"]] == [7, 7, 7, 3]
    assert index["seconds"] == pytest.approx(sum(cut.duration for cut in files.values()), abs=0.01)


def test_lhotse_reads_them_too(sharded: Path) -> None:
    fields = {
        "cuts": sorted(sharded.glob("cuts.*.jsonl.gz")),
        "recording": sorted(sharded.glob("recording.*.tar")),
    }
    cuts = list(CutSet.from_shar(fields={name: [str(path) for path in paths] for name, paths in fields.items()}))
    for cut, ours in zip(cuts, open_cuts(sharded), strict=True):
        np.testing.assert_allclose(cut.load_audio()[0], load_waveform(ours), atol=1e-6)


def test_an_epoch_has_all_shards_in_another_order(sharded: Path) -> None:
    cuts = open_cuts(sharded)
    stored = [cut.id for cut in cuts]
    orders = [[cut.id for cut in cuts.data.in_order(key)] for key in ("a", "b", "a")]
    assert orders[0] == orders[2] != orders[1]
    assert all(sorted(order) == sorted(stored) != order for order in orders)


@pytest.mark.parametrize("workers", [0, 1])
def test_http_and_disk_give_the_same_batches_and_a_run_goes_on(sharded: Path, address: str, workers: int) -> None:
    local = list(islice(audio_loader(training(open_cuts(sharded))), 20))
    batches = training(open_cuts(address))
    loader = iter(audio_loader(batches, workers=workers))
    served = list(islice(loader, 12))
    position = batches.position(12)
    if workers:
        loader._shutdown_workers()  # else torch waits 5 s for them, whenever the garbage collector gets there
    assert position.epoch > 0
    RangeHandler.sent.clear()
    again = audio_loader(training(open_cuts(address), start=position))
    served += islice(again, 8)
    for one, other in zip(local, served, strict=True):
        assert one.ids == other.ids
        assert (one.waveforms_BT == other.waveforms_BT).all()
    tars = sum(path.stat().st_size for path in sharded.glob("*.tar"))
    read = sum(count for name, count in RangeHandler.sent.items() if name.endswith(".tar"))
    ids = sum(len(batch.ids) for batch in served[12:])
    # A worker of the first loader may still be reading ahead.
    assert workers or read < 1.1 * tars * ids / 24, "only the audio of batches still to come is read"


def test_a_server_that_is_busy_is_asked_again(address: str) -> None:
    RangeHandler.failures = 2
    assert len(list(open_cuts(address))) == 24


def test_a_server_without_parts_of_files_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (cut, *_) = open_cuts(address)
    monkeypatch.setattr(RangeHandler, "ranges", False)
    with pytest.raises(BadAudio, match=r"http://.*/corpus/recording\.000000\.tar: .*does not support range requests"):
        load_waveform(cut)


def test_an_object_store_is_read(sharded: Path) -> None:
    """fsspec's in-memory store stands for s3:// and its like: no folders, objects by name."""
    store = fsspec.filesystem("memory")
    for path in sharded.iterdir():
        store.pipe_file(f"/bucket/corpus/{path.name}", path.read_bytes())
    cuts = list(open_cuts("memory://bucket/corpus"))
    assert [cut.id for cut in cuts] == [cut.id for cut in open_cuts(sharded)]
    np.testing.assert_array_equal(load_waveform(cuts[4]), load_waveform(list(open_cuts(sharded))[4]))


def test_bad_shards_are_one_line(sharded: Path, address: str, tmp_path: Path) -> None:
    def message(location: str) -> str:
        with pytest.raises(InputError) as caught:
            list(open_cuts(location))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file: an address must point to shards" in message(address + "/nowhere")
    assert "nosuchscheme://x/index.json" in message("nosuchscheme://x")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in sharded.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "cuts.000001.jsonl.gz").write_bytes(b"not gzip")
    assert f"{copy}/cuts.000001.jsonl.gz: cannot be read, at or after line 1" in message(str(copy))
    (copy / "cuts.000001.jsonl.gz").write_bytes(gzip.compress(b'{"type": "MonoCut"}\n'))
    assert "cannot be read, at or after line 1" in message(str(copy))
    (copy / "cuts.000001.jsonl.gz").unlink()
    assert "the shards are not complete" in message(str(copy))
    (copy / "index.json").write_text('{"shards": [{"cuts": "../x", "recording": "y", "number": 1, "seconds": 1}]}')
    assert "index.json: cannot be read (it lists no shards, or files elsewhere)" in message(str(copy))
    tar = copy / "recording.000000.tar"
    (copy / "index.json").write_bytes((sharded / "index.json").read_bytes())
    tar.write_bytes(tar.read_bytes()[:40_000])
    with pytest.raises(BadAudio, match=r"recording\.000000\.tar: .*it is truncated"):
        load_waveform(list(islice(open_cuts(copy), 7))[-1])
    with pytest.raises(InputError, match="already has shards"):
        prepare(sharded.parent, sharded, shards=True)


def test_files_that_break_later_than_their_header_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        soundfile.write(tmp_path / f"{number}.wav", rng.standard_normal(16_000) * 0.1, 16_000, subtype="FLOAT")
    data = bytearray((tmp_path / "1.wav").read_bytes())
    data[-2000:-1996] = b"\x00\x00\xc0\x7f"  # a NaN
    (tmp_path / "1.wav").write_bytes(data)
    with pytest.raises(InputError, match=r"1 of 3 files cannot be used, .*1\.wav: the audio holds NaN"):
        prepare(tmp_path, tmp_path / "out", shards=True, max_bad=0)
    assert not (tmp_path / "out/index.json").exists()
    assert len(list(prepare(tmp_path, tmp_path / "out", shards=True, max_bad=0.5))) == 2
    # A run knows what its shards were made without, and of a mixture what all parts were.
    for data, times in ((tmp_path / "out", 1), ([Part(str(tmp_path / "out")), Part(str(tmp_path / "out"))], 2)):
        tally = AudioTally()
        open_cuts(data, found=tally)
        assert (tally.read, tally.left_out) == (3 * times, times)
        assert list(tally.kinds["not finite"]["files"]) == [str(tmp_path / "1.wav")]


def test_a_manifest_does_not_say_that_audio_lies_elsewhere(tmp_path: Path) -> None:
    """Only shards may; otherwise a manifest could have any file, or address, read."""
    soundfile.write(tmp_path / "a.wav", np.full(1_600, 0.25), 16_000)
    prepare(tmp_path, tmp_path / "cuts.jsonl")
    line = json.loads((tmp_path / "cuts.jsonl").read_text())
    line["custom"] = {"shard_member": ["/etc/passwd", 0, 100]}
    (tmp_path / "cuts.jsonl").write_text(json.dumps(line) + "\n")
    [cut] = open_cuts(tmp_path / "cuts.jsonl")
    np.testing.assert_allclose(load_waveform(cut), 0.25, atol=1e-4)


def parts(tmp_path: Path, sizes: tuple[int, ...], weights: tuple[float, ...]) -> list[Part]:
    found = []
    for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        folder = tmp_path / f"corpus{number}"
        folder.mkdir()
        for name in range(size):
            soundfile.write(folder / f"{number}-{name:03}.wav", np.zeros(9_600 + 160 * (name % 9)), 16_000)
        found.append(Part(str(folder), weight))
    return found


def test_a_mixture_has_its_weights_whatever_the_sizes(tmp_path: Path) -> None:
    """20 and 60 cuts with weights 3 and 1: the larger corpus is gone through once, in an epoch of about 240 cuts."""
    cuts = open_cuts(parts(tmp_path, (20, 60), (3.0, 1.0)))
    epochs = [[cut.id for cut in cuts.data.in_order(str(key))] for key in range(4)]
    assert epochs[0] != epochs[1]
    assert all({*epoch} == {*epochs[0]} and len({*epoch}) == 80 for epoch in epochs)
    shares = [np.mean([cut.startswith("0-") for cut in epoch]) for epoch in epochs]
    assert np.mean(shares) == pytest.approx(0.75, abs=0.04)
    times = Counter(cut for cut in epochs[0] if cut.startswith("0-"))
    assert max(times.values()) - min(times.values()) <= 1, "a corpus starts again only when it has come to its end"
    train, held_out = split_cuts(cuts, validation_seconds=1e6, seed=0)
    assert len({cut.id for cut in held_out}) == len(held_out)
    assert {cut.id for cut in train}.isdisjoint(cut.id for cut in held_out)
    sample = evaluation_batches(cuts, batch_seconds=4, limit_seconds=20)
    assert max(Counter(cut.id for batch in sample for cut in batch).values()) == 1


def test_a_run_on_a_mixture_goes_on(tmp_path: Path) -> None:
    data = parts(tmp_path, (12, 30), (1.0, 1.0))
    whole = [[(cut.id, cut.start) for cut in batch] for batch in islice(training(open_cuts(data)), 60)]
    start = Position()
    seen = []
    for _ in range(4):
        batches = training(open_cuts(data), start=start)
        seen += [[(cut.id, cut.start) for cut in batch] for batch in islice(batches, 15)]
        start = batches.position(15)
    assert seen == whole
    assert start.epoch > 0


def test_bad_mixtures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the list of data is empty"):
        open_cuts([])
    with pytest.raises(InputError, match=r"nowhere: no such file"):
        open_cuts([Part(str(tmp_path / "nowhere"))])
    with pytest.raises(InputError, match="its weight is 0; it must be positive"):
        open_cuts(parts(tmp_path, (1,), (0.0,)))
