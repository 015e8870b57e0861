"""Hidden states from the cache are those of the encoder, whatever happened to the cache in between."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from skill_speech.encoder import Encoder, wavlm_config
from skill_speech.errors import InputError
from skill_speech.evaluation import cache as cache_module
from skill_speech.evaluation.cache import StateCache
from skill_speech.evaluation.protocol import AudioConfig
from skill_speech.evaluation.states import HiddenStates
from skill_speech.evaluation.upstream import open_upstream
from tests.evaluation_data import Tones

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("frames", "mean", "seconds")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    config = wavlm_config(
        hidden_size=16, depth=2, num_heads=2, units=24, channels=12, positional_kernel=8, positional_groups=2
    )
    Encoder(config).save_pretrained(folder / "tiny")
    return open_upstream(str(folder / "tiny"), torch.device("cpu"))


@pytest.fixture
def cuts(tmp_path):
    return list(Tones(tmp_path / "audio")._asr().splits["train"])


def open_cache(tmp_path: Path, upstream, limit: float = 1e9) -> StateCache:
    return StateCache(tmp_path / "cache", upstream.fingerprint, limit)


def states_of(upstream, cuts, cache, kind="frames") -> HiddenStates:
    return HiddenStates(upstream, cuts, AudioConfig(), kind, cache)


def everything(states: HiddenStates) -> list[torch.Tensor]:
    return states.get(range(len(states)))


def assert_same(one: list[torch.Tensor], other: list[torch.Tensor]) -> None:
    for ours, theirs in zip(one, other, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours.float(), theirs.float(), atol=1e-5, rtol=2**-7)


class Counted:
    """An upstream that counts what it encodes."""

    def __init__(self, upstream) -> None:
        self.upstream, self.encoded = upstream, 0

    def __getattr__(self, name):
        return getattr(self.upstream, name)

    def encode(self, waveforms):
        self.encoded += len(waveforms)
        return self.upstream.encode(waveforms)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_is_encoded(tmp_path, upstream, cuts, kind):
    states_of(upstream, cuts, open_cache(tmp_path, upstream), kind).fill("test")
    counted = Counted(upstream)
    read = everything(states_of(counted, cuts, open_cache(tmp_path, upstream), kind))
    assert counted.encoded == 0
    assert_same(read, everything(states_of(upstream, cuts, None, kind)))


def test_means_and_seconds_are_means_of_the_frames(upstream, cuts):
    frames, means, seconds = (everything(states_of(upstream, cuts, None, kind)) for kind in KINDS)
    states = states_of(upstream, cuts, None, "seconds")
    for index, (every, mean, parts) in enumerate(zip(frames, means, seconds, strict=True)):
        every = every.float()
        torch.testing.assert_close(mean[:, 0], every.mean(1), atol=2e-2, rtol=2e-2)
        torch.testing.assert_close(parts[:, 0], every[:, :50].mean(1), atol=2e-2, rtol=2e-2)
        weights = states.weights(index, parts.shape[1])
        torch.testing.assert_close((parts * weights[:, None]).sum(1) / weights.sum(), mean[:, 0])


def test_an_utterance_is_encoded_once_for_all_tasks(tmp_path, upstream, cuts):
    counted, cache = Counted(upstream), open_cache(tmp_path, upstream)
    states_of(counted, cuts[:8], cache).fill("one task")
    states_of(counted, cuts, cache).fill("another task")
    assert counted.encoded == len(cuts)


def test_a_changed_file_is_encoded_again(tmp_path, upstream, cuts):
    states_of(upstream, cuts, open_cache(tmp_path, upstream)).fill("before")
    path = cuts[0].recording.sources[0].source
    samples, rate = soundfile.read(path, dtype="float32")
    soundfile.write(path, samples[::-1], rate)
    os.utime(path, ns=(1, 1))
    counted = Counted(upstream)
    after = everything(states_of(counted, cuts, open_cache(tmp_path, upstream)))
    assert counted.encoded == 1
    assert_same(after, everything(states_of(upstream, cuts, None)))


def _with_first(index: dict[str, Any], **changes: Any) -> dict[str, Any]:
    key, place = next(iter(index["places"].items()))
    return index | {"places": index["places"] | {key: place | changes}}


def _turned(index: dict[str, Any]) -> dict[str, Any]:
    L, T, D = next(iter(index["places"].values()))["shape"]
    return _with_first(index, shape=[D, T, L])


INDICES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a list": lambda index: [index],
    "no places": lambda index: {"bytes": index["bytes"]},
    "places in a list": lambda index: index | {"places": [1]},
    "a place that is text": lambda index: index | {"places": {"key": "text"}},
    "an offset below 0": lambda index: _with_first(index, offset=-8),
    "an offset that is text": lambda index: _with_first(index, offset="8"),
    "an unknown type": lambda index: _with_first(index, dtype="complex"),
    "a shape beyond the file": lambda index: _with_first(index, shape=[10**6, 10**6, 10**6]),
    "a shape of the same size": _turned,
}
"""What may have become of an index."""


@pytest.mark.parametrize("damage", ["flipped", "cut off", "no index", "removed", *INDICES])
def test_damage_is_found_said_and_mended(tmp_path, upstream, cuts, damage, caplog):
    cache = open_cache(tmp_path, upstream)
    states_of(upstream, cuts, cache).fill("before")
    (shard,) = cache.own.glob("*.states")
    if damage == "flipped":
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 0xFF
        shard.write_bytes(content)
    elif damage == "cut off":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "no index":
        shard.with_suffix(".json").write_text("{")
    elif damage in INDICES:
        index = shard.with_suffix(".json")
        index.write_text(json.dumps(INDICES[damage](json.loads(index.read_text()))))
    else:
        shard.unlink()
    expected = everything(states_of(upstream, cuts, None))
    with caplog.at_level(logging.WARNING, "skill_speech"):
        states = states_of(upstream, cuts, open_cache(tmp_path, upstream))
        states.fill("after")
        assert_same(everything(states), expected)
    assert "damaged" in caplog.text
    counted = Counted(upstream)
    assert_same(everything(states_of(counted, cuts, open_cache(tmp_path, upstream))), expected)
    assert counted.encoded == 0


def test_an_interrupted_write_keeps_what_was_whole(tmp_path, upstream, cuts, monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD_BYTES", 20_000)  # a shard every few utterances
    cache = open_cache(tmp_path, upstream)
    states = states_of(upstream, cuts, cache)
    encode, seen = states._encode, []

    def interrupted(indices):
        for index, tensor in encode(indices):
            if len(seen) == 9:
                raise KeyboardInterrupt
            seen.append(index)
            yield index, tensor

    monkeypatch.setattr(states, "_encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        states.fill("interrupted")
    assert not [path for path in cache.own.iterdir() if path.name.startswith(".")]
    counted, again = Counted(upstream), open_cache(tmp_path, upstream)
    kept = len(again)
    assert 0 < kept < len(cuts)
    states = states_of(counted, cuts, again)
    states.fill("again")
    assert counted.encoded == len(cuts) - kept
    assert_same(everything(states), everything(states_of(upstream, cuts, None)))


def test_what_has_no_room_is_encoded_when_it_is_needed(tmp_path, upstream, cuts, caplog):
    sizes = [states.numel() * 2 for states in everything(states_of(upstream, cuts, None))]
    cache = open_cache(tmp_path, upstream, limit=sum(sizes) / 2)
    states = states_of(upstream, cuts, cache)
    with caplog.at_level(logging.WARNING, "skill_speech"):
        states.fill("test")
    assert "the cache holds" in caplog.text
    assert 0 < len(cache) < len(cuts)
    assert sum(path.stat().st_size for path in cache.own.glob("*.states")) <= sum(sizes) / 2
    assert_same(everything(states), everything(states_of(upstream, cuts, None)))


def test_room_is_made_of_what_other_models_and_tasks_left(tmp_path, upstream, cuts):
    size = sum(states.numel() * 2 for states in everything(states_of(upstream, cuts, None)))
    other = StateCache(tmp_path / "cache", "other", 1e9)
    other.write([("key", torch.zeros(1, size // 4, 1, dtype=torch.bfloat16))])
    cache = open_cache(tmp_path, upstream, limit=1.2 * size)
    states_of(upstream, cuts[:6], cache).fill("one task")
    assert other.own.exists()
    states_of(upstream, cuts[6:], cache).fill("another task")
    assert not other.own.exists()
    assert len(cache) == len(cuts)
    cache.limit_bytes = size / 1.5
    states_of(upstream, cuts[:4], cache, "mean").fill("a third task")
    assert all(key in cache for key in states_of(upstream, cuts[:4], cache, "mean")._keys)


def test_room_for_one_split_is_not_made_of_another_one_of_the_task(tmp_path, upstream, cuts):
    size = sum(states.numel() * 2 for states in everything(states_of(upstream, cuts, None)))
    cache = open_cache(tmp_path, upstream, limit=0.7 * size)
    train, dev = states_of(upstream, cuts[:6], cache), states_of(upstream, cuts[6:], cache)
    train.fill("train", beside=[dev])
    dev.fill("dev", beside=[train])
    assert all(key in cache for key in train._keys)
    assert not all(key in cache for key in dev._keys)


def test_what_dead_processes_left_behind_is_removed(tmp_path, upstream):
    own = open_cache(tmp_path, upstream).own
    (own / ".999999999.some.states").write_bytes(b"half")
    orphan = own / "orphan.states"
    orphan.write_bytes(b"whole, without index")
    open_cache(tmp_path, upstream)
    assert list(own.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, upstream):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        StateCache(tmp_path / "file", upstream.fingerprint, 1e9)
