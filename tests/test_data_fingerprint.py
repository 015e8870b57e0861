"""Whether data is still the same: every kind of it, and what makes it another."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from skill_speech.data import Part, check_same_data, fingerprint, open_cuts, prepare, split_cuts
from skill_speech.errors import InputError

RATE = 16_000


def write(path: Path, seconds: float) -> None:
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(round(seconds * RATE)), RATE)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    (tmp_path / "audio").mkdir()
    for number in range(6):
        write(tmp_path / f"audio/{number}.wav", 0.5 + number / 10)
    return tmp_path / "audio"


def as_folder(audio: Path) -> Path:
    return audio


def as_manifest(audio: Path) -> Path:
    prepare(audio, audio.parent / "cuts.jsonl.gz")
    return audio.parent / "cuts.jsonl.gz"


def as_shards(audio: Path) -> Path:
    shutil.rmtree(audio.parent / "shards", ignore_errors=True)
    prepare(audio, audio.parent / "shards", shards=True)
    return audio.parent / "shards"


def as_mixture(audio: Path) -> list[Part]:
    return [Part(str(audio)), Part(str(as_manifest(audio)), 2.0)]


KINDS: list[Callable[[Path], Path | list[Part]]] = [as_folder, as_manifest, as_shards, as_mixture]
CHANGES: dict[str, tuple[int, Callable[[Path], object]]] = {
    "one more": (1, lambda audio: write(audio / "9.wav", 0.5)),
    "one less": (-1, lambda audio: (audio / "3.wav").unlink()),
    "one longer": (0, lambda audio: write(audio / "3.wav", 0.9)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_change_is_seen_and_nothing_else(audio: Path, kind: Callable[[Path], Path | list[Part]], change: str) -> None:
    times = 2 if kind is as_mixture else 1
    before = fingerprint(open_cuts(kind(audio)))
    assert before.cuts == 6 * times
    assert fingerprint(open_cuts(kind(audio))) == before, "prepared again, packed at another time"
    more, make = CHANGES[change]
    make(audio)
    after = fingerprint(open_cuts(kind(audio)))
    assert after.cuts == (6 + more) * times
    assert after.hash != before.hash


def test_another_order_or_another_name_of_a_file_is_a_change(audio: Path) -> None:
    path = as_manifest(audio)
    before = fingerprint(open_cuts(path))
    lines = gzip.decompress(path.read_bytes()).splitlines()
    plain = path.with_name("plain.jsonl")
    plain.write_bytes(b"\n".join([*lines, b""]))
    assert fingerprint(open_cuts(plain)) == before
    plain.write_bytes(b"\n".join([*lines[::-1], b""]))
    assert fingerprint(open_cuts(plain)) != before
    here = fingerprint(open_cuts(audio))
    audio.rename(audio.with_name("moved"))
    assert fingerprint(open_cuts(audio.with_name("moved"))) != here


def test_the_weights_of_a_mixture_count(audio: Path) -> None:
    parts = [[Part(str(audio)), Part(str(audio), weight)] for weight in (1.0, 2.0)]
    assert fingerprint(open_cuts(parts[0])) != fingerprint(open_cuts(parts[1]))


def test_changed_data_is_named_with_its_numbers(audio: Path, tmp_path: Path) -> None:
    note = tmp_path / "run/data.json"
    note.parent.mkdir()

    def opened() -> dict[str, object]:
        train, held_out = split_cuts(open_cuts(audio), validation_seconds=100, seed=0)
        return {"data": train, "validation_data": held_out}

    values = check_same_data(note, opened(), accept=False)
    note.write_text(json.dumps(values))
    assert check_same_data(note, opened(), accept=False) == values
    (audio / "5.wav").unlink()
    with pytest.raises(InputError, match=r"run: the data has changed .*: data \(had 6 cuts, now 5\)") as caught:
        check_same_data(note, opened(), accept=False)
    assert "accept_changed_data" in str(caught.value)
    changed = check_same_data(note, opened(), accept=True)
    assert changed["data"]["cuts"] == 5
    with pytest.raises(InputError, match=r"validation_data \(had 0 cuts, now 5\)"):
        check_same_data(note, opened() | {"data": None, "validation_data": open_cuts(audio)}, accept=False)
    for text in ("", "[]", '{"data": 1}', '{"data": {"cuts": -1, "hash": "x"}}', "[" * 100_000):
        note.write_text(text)
        with pytest.raises(InputError, match=r"data\.json: cannot be read .*; delete it to resume"):
            check_same_data(note, opened(), accept=False)


def test_another_transcript_is_other_data(tmp_path: Path) -> None:
    """What a head learns from counts, wherever it stands: in a corpus's own files, too."""
    chapter = tmp_path / "train-clean-100/1/2"
    chapter.mkdir(parents=True)
    soundfile.write(chapter / "1-2-0000.flac", np.zeros(16_000) + 0.1, 16_000)
    found = []
    for text in ("ONE", "TWO", "ONE"):
        (chapter / "1-2.trans.txt").write_text(f"1-2-0000 {text}\n")
        found.append(fingerprint(open_cuts(tmp_path)))
    assert found[0] == found[2] != found[1]
