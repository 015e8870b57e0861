"""Manifests, shards and folders that are made to do harm: refused in one line, in bounded time and memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from skill_speech.data import evaluation_batches, load_waveform, manifests, open_cuts, prepare
from skill_speech.data.fields import LONGEST_SECONDS
from skill_speech.errors import InputError

RATE = 16_000


def cut(**changes: Any) -> dict[str, Any]:
    """A cut of r.wav; the names of changes are paths of fields: recording__id."""
    recording = {"id": "r", "sampling_rate": RATE, "num_samples": RATE, "duration": 1.0}
    recording |= {"sources": [{"type": "file", "channels": [0], "source": "r.wav"}]}
    said = {
        "id": "s",
        "recording_id": "r",
        "start": 0.0,
        "duration": 1.0,
        "channel": 0,
        "text": "HELLO",
        "speaker": "a",
    }
    item = {"id": "c", "start": 0, "duration": 1.0, "channel": 0, "type": "MonoCut"}
    item |= {"supervisions": [said], "recording": recording}
    for path, value in changes.items():
        *where, last = path.split("__")
        inside: Any = item
        for name in where:
            inside = inside[int(name) if name.isdigit() else name]
        inside[int(last) if last.isdigit() else last] = value
    return item


def manifest(folder: Path, *items: Any) -> Path:
    soundfile.write(folder / "r.wav", 0.1 * np.random.default_rng(0).standard_normal(RATE), RATE)
    (folder / "cuts.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return folder / "cuts.jsonl"


def refused(path: Path, match: str) -> None:
    for opened in (prepare, open_cuts):
        with pytest.raises(InputError, match=match) as caught:
            list(opened(path))
        assert str(caught.value).isprintable(), "one line, without anything that a terminal obeys"


NUMBERS = ("start", "duration", "recording__sampling_rate", "recording__num_samples", "recording__duration")
IMPOSSIBLE = (float("nan"), float("inf"), -1, 1e12, 10**18, 10**400, "1", None, True, [], {})
TEXTS = ("id", "recording__id", "recording__sources__0__source", "supervisions__0__id", "supervisions__0__recording_id")
OTHERS = {
    "channel": (-1, 0.5, "0", [], None, 10**9),
    "supervisions": ("x", {}, 1, ["x"], [1]),
    "supervisions__0__start": ("x", float("nan"), None),
    "supervisions__0__speaker": (1, [], "\ud800"),
    "supervisions__0__text": (1, {}),
    "recording__sources": ([], "r.wav", None, [1], {}),
    "recording__sources__0__type": (1, None),
    "recording__sources__0__channels": (0, [], [-1], ["0"]),
    "recording__transforms": ("x", [1], [{"name": "Speed"}], [{"name": "Speed", "kwargs": {"factor": 1e-9}}]),
    "custom": ([], "x", 1),
    "recording": ([], "x", 1),
}
WRONG = [
    *((field, value) for field in NUMBERS for value in IMPOSSIBLE),
    *((field, value) for field in TEXTS for value in (1, None, [], {}, "\0", "\ud800", "a" * 5_000)),
    *((field, value) for field, values in OTHERS.items() for value in values),
]


def test_every_field_of_a_wrong_type_or_size_is_named(tmp_path: Path) -> None:
    for field, value in WRONG:
        path = manifest(tmp_path, cut(), cut(**{field: value}))
        name = field.split("__")[-1]
        refused(path, rf"cuts\.jsonl: line 2: .*({'|'.join((name, field.split('__')[0]))}).*correct it, or prepare")
        # The same wherever a cut is: as a recording of its own, in a mixture.
        if field.startswith("recording__"):
            refused(manifest(tmp_path, cut(**{field: value})["recording"]), rf"line 1: .*{name}")
        tracks = [{"type": "MonoCut", "cut": cut(**{field: value})}]
        refused(manifest(tmp_path, {"type": "MixedCut", "id": "m", "tracks": tracks}), r"line 1: tracks\[0\]\.cut")


def test_lengths_have_to_fit_to_each_other(tmp_path: Path) -> None:
    refused(manifest(tmp_path, cut(recording__duration=5.0)), r"recording: duration is 5 s, but num_samples make 1 s")
    refused(manifest(tmp_path, cut(start=0.5)), r"the cut ends at 1\.5 s, its recording at 1 s")
    assert len(list(open_cuts(manifest(tmp_path, cut())))) == 1


def test_a_manifest_that_promises_more_than_the_file_holds_is_bad_audio(tmp_path: Path) -> None:
    long = cut(duration=9.0, recording__duration=9.0, recording__num_samples=9 * RATE)
    with pytest.raises(InputError, match=r"1 of 2 files .*r\.wav: ends after 1\.000 s, .* at least 9\.000 s"):
        prepare(manifest(tmp_path, cut(), long))


@pytest.mark.parametrize("kind", ["url", "memory", "shar", "x" * 30])
def test_only_files_are_read(tmp_path: Path, kind: str) -> None:
    path = manifest(
        tmp_path, cut(recording__sources__0__type=kind, recording__sources__0__source="http://127.0.0.1:9/x")
    )
    refused(path, "line 1")


def test_an_impulse_response_is_a_recording_from_anywhere(tmp_path: Path) -> None:
    rir = cut()["recording"] | {"sources": [{"type": "command", "channels": [0], "source": f"touch {tmp_path}/RAN"}]}
    reverb = [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": rir}}]
    for item in (
        cut(recording__transforms=reverb),
        {"type": "MixedCut", "id": "m", "tracks": [{"type": "MonoCut", "cut": cut()}], "transforms": reverb},
    ):
        refused(manifest(tmp_path, item), r"transforms\[0\]\.name is 'ReverbWithImpulseResponse'; it must be one of")
    assert not (tmp_path / "RAN").exists()


def test_the_name_of_a_file_is_no_command(tmp_path: Path) -> None:
    """lhotse reads .sph files of mixtures by a program, in a shell that is given their name."""
    name = "a;touch RAN;.sph"
    tracks = [{"type": "MonoCut", "cut": cut(recording__sources__0__source=name)} for _ in range(2)]
    path = manifest(tmp_path, {"type": "MixedCut", "id": "m", "tracks": tracks})
    os.rename(tmp_path / "r.wav", tmp_path / name)
    (mixed,) = open_cuts(path)
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert load_waveform(mixed).shape == (RATE,)
    finally:
        os.chdir(here)
    assert not (tmp_path / "RAN").exists()


def shards(folder: Path) -> Path:
    manifest(folder, cut())
    prepare(folder / "cuts.jsonl", folder / "shards", shards=True)
    return folder / "shards"


@pytest.mark.parametrize("field", ["cuts", "recording"])
@pytest.mark.parametrize("name", ["../x", "/etc/passwd", ".", "..", "a\\b", "c:x", "", 1, None, "\ud800"])
def test_an_index_of_shards_names_files_beside_it(tmp_path: Path, field: str, name: object) -> None:
    folder = shards(tmp_path)
    index = json.loads((folder / "index.json").read_text())
    index["shards"][0][field] = name
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"index\.json: cannot be read \(") as caught:
        open_cuts(folder)
    assert str(caught.value).isprintable()


def test_a_link_in_shards_does_not_lead_out(tmp_path: Path) -> None:
    folder = shards(tmp_path)
    tar = next(folder.glob("*.tar"))
    tar.rename(tmp_path / "outside.tar")
    tar.symlink_to("../outside.tar")
    with pytest.raises(InputError, match=r"names recording\.000000\.tar, a link to what is outside its corpus"):
        open_cuts(folder)
    assert len(load_waveform(next(iter(open_cuts(folder, absolute_paths=True))))) == RATE


@pytest.mark.parametrize("place", [[-5, 10], [0, 10**18], [10, 5], [0, 3 << 30], "x", [0], [0, "1"], None])
def test_a_shard_does_not_say_that_its_audio_is_huge(tmp_path: Path, place: object) -> None:
    folder = shards(tmp_path)
    (lines,) = folder.glob("cuts.*.jsonl.gz")
    item = json.loads(gzip.decompress(lines.read_bytes()))
    item["custom"]["shard_member"] = place
    lines.write_bytes(gzip.compress(json.dumps(item).encode() + b"\n"))
    with pytest.raises(InputError, match=r"(cuts|recording)\.000000\."):
        [load_waveform(one) for one in open_cuts(folder)]


def test_recordings_of_days_are_not_cut_into_windows_all_at_once(tmp_path: Path) -> None:
    """A hundred cuts, as long as they may be: six million windows, of which some are drawn."""
    long = cut(duration=LONGEST_SECONDS, recording__duration=LONGEST_SECONDS, recording__num_samples=RATE * 10**6)
    path = manifest(tmp_path, *(long | {"id": str(number)} for number in range(100)))
    batches = evaluation_batches(open_cuts(path), batch_seconds=60, limit_seconds=600)
    windows = [one for batch in batches for one in batch]
    assert sum(one.duration for one in windows) == pytest.approx(600, abs=16)
    assert len({one.id.partition("-")[0] for one in windows}) > 20, "from all of them, not from the first"
    with pytest.raises(InputError, match="more than 200,000 windows"):
        evaluation_batches(open_cuts(path), batch_seconds=60)


def deep(folder: Path) -> Path:
    path = manifest(folder)
    path.write_text("[" * 100_000 + "]" * 100_000 + "\n")
    return path


def deep_inside(folder: Path) -> Path:
    path = manifest(folder)
    path.write_text(json.dumps(cut(custom="HERE")).replace('"HERE"', '{"a":' * 100_000 + "1" + "}" * 100_000) + "\n")
    return path


def one_line(folder: Path, content: bytes = b" ") -> Path:
    """1.5 GB, packed: a gzip file is as many packed parts as one likes."""
    (folder / "long.jsonl.gz").write_bytes(1_500 * gzip.compress(content * (1_000_000 // len(content))))
    return folder / "long.jsonl.gz"


def test_cuts_packed_as_no_manifest_packs_them_are_refused_before_they_are_all_read(tmp_path, monkeypatch) -> None:
    """A million cuts that name one file, in a megabyte: what they name would be looked at for minutes."""
    soundfile.write(tmp_path / "r.wav", np.zeros(RATE), RATE)
    path = tmp_path / "cuts.jsonl.gz"
    path.write_bytes(250 * gzip.compress((json.dumps(cut()).encode() + b"\n") * 4_000))
    looked, check = [], manifests.check_header
    monkeypatch.setattr(manifests, "check_header", lambda entry: looked.append(entry) or check(entry))
    with pytest.raises(InputError, match="unpacks to more than 100 times"):
        prepare(path)
    assert 0 < len(looked) < 30_000


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.jsonl")
    return folder / "pipe.jsonl"


def device(folder: Path) -> Path:
    (folder / "zero.tsv").symlink_to("/dev/zero")
    return folder / "zero.tsv"


def pipes_inside(folder: Path) -> Path:
    (folder / "audio").mkdir()
    os.mkfifo(folder / "audio/a.wav")
    os.mkfifo(folder / "audio/a.trans.txt")
    (folder / "audio/b.wav").symlink_to("/dev/zero")
    return folder / "audio"


def named_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "p.wav")
    return manifest(folder, cut(recording__sources__0__source="p.wav"))


def circle(folder: Path) -> Path:
    (folder / "audio").mkdir()
    for name in ("a", "b", "c"):
        (folder / "audio" / name).symlink_to(".")
    return folder / "audio"


def pipe_in_kaldi(folder: Path) -> Path:
    (folder / "kaldi").mkdir()
    soundfile.write(folder / "kaldi/a.wav", np.zeros(RATE), RATE)
    (folder / "kaldi/wav.scp").write_text("a a.wav\n")
    os.mkfifo(folder / "kaldi/text")
    return folder / "kaldi"


def pipe_among_tars(folder: Path) -> Path:
    (folder / "tars").mkdir()
    os.mkfifo(folder / "tars/a.tar")
    return folder / "tars"


def endless_quotation(folder: Path) -> Path:
    (folder / "t.csv").write_text('path,text\na.wav,"' + 3_000_000 * "x y,\n")
    return folder / "t.csv"


def deep_row(folder: Path) -> Path:
    (folder / "t.json").write_text('{"path": "a.wav"}\n{"path": ' + "[" * 200_000 + "\n")
    return folder / "t.json"


def endless_text(folder: Path) -> Path:
    (folder / "t.txt").symlink_to("/dev/zero")
    return folder / "t.txt"


HUGE: list[Callable[[Path], Path]] = [
    deep,
    deep_inside,
    one_line,
    lambda folder: one_line(folder, b"\n"),
    lambda folder: one_line(folder, b"[" * 999_999 + b"\n"),
    pipe,
    device,
    pipes_inside,
    named_pipe,
    circle,
    pipe_in_kaldi,
    pipe_among_tars,
    endless_quotation,
    deep_row,
    endless_text,
]

SCRIPT = """
import resource, sys
from skill_speech.data import prepare
from skill_speech.errors import InputError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for source in sys.argv[1:]:
    try:
        prepare(source)
    except InputError as error:
        print(error, flush=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_nothing_hangs_or_grows(tmp_path: Path) -> None:
    """In a process of its own, whose memory is looked at, and which is ended if it waits for ever."""
    sources = []
    for number, make in enumerate(HUGE):
        (tmp_path / str(number)).mkdir()
        sources.append(str(make(tmp_path / str(number))))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *sources], capture_output=True, text=True, timeout=240, check=True
    )
    *said, grown = done.stdout.splitlines()
    assert len(said) == len(sources)
    for source, line in zip(sources, said, strict=True):
        assert line.startswith(source)
        assert line.isprintable()
    assert int(grown) < 300_000, "KiB"
