"""The hidden states of a split of a task, from the cache where they are in it and encoded where they are not.

Both ways end in the same numbers: a tensor is rounded to its type before it goes to the cache or to the head.

Legend of the tensor suffixes: L hidden states, T frames, D features.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor

from ..data import SAMPLE_RATE, load_waveform
from ..data.audio import audio_path, num_samples
from ..quantities import duration
from ..run import ranks
from ..run.progress import Meter
from .cache import StateCache
from .protocol import AudioConfig
from .silence import trim_silence
from .upstream import Upstream

logger = logging.getLogger(__name__)

Reduction = Literal["frames", "mean", "seconds"]
"""What is kept of an utterance.

"frames": every frame, in bfloat16. "mean": the mean over frames, in float32, all that a head needs that starts with
linear maps and a mean. "seconds": the means over consecutive seconds, of which the mean over a part of the utterance
can be made.
"""

BATCH_SECONDS = {"cpu": 16.0, "cuda": 160.0}
"""Audio encoded at a time, padding included."""


def batch_seconds(device: torch.device) -> float:
    """The same for a device of any kind."""
    return BATCH_SECONDS.get(device.type, BATCH_SECONDS["cuda"])


class HiddenStates:
    """The hidden states of some utterances.

    Args:
        upstream: encodes them.
        cuts: the utterances.
        audio: what is done to their waveforms first.
        reduction: what is kept of them.
        cache: where to look first; None to encode at every call.
    """

    def __init__(
        self,
        upstream: Upstream,
        cuts: Sequence[Cut],
        audio: AudioConfig,
        reduction: Reduction,
        cache: StateCache | None,
    ) -> None:
        self.upstream, self.cuts, self.audio, self.reduction, self.cache = upstream, cuts, audio, reduction, cache
        self.block = block_frames(upstream.hop)
        stamp = _stamp()
        self._keys = [self._key(cut, stamp) for cut in cuts] if cache is not None else []

    def __len__(self) -> int:
        return len(self.cuts)

    def frames(self, index: int) -> int:
        """Frames of an utterance, or more where silence is taken out."""
        return self.upstream.num_frames(num_samples(self.cuts[index]))

    def weights(self, index: int, length: int) -> Tensor:
        """How much each of the `length` tensors along time stands for (T,): 1, less for an incomplete second."""
        weights_T = torch.ones(length)
        if self.reduction == "seconds":
            weights_T[-1] = self.frames(index) / self.block - (length - 1)
        return weights_T

    def get(self, indices: Sequence[int]) -> list[Tensor]:
        """Hidden states (L, T, D) of some utterances, on the CPU.

        With "frames" they are bfloat16. With "mean" T is 1, with "seconds" it is the number of started seconds; both
        are float32.

        Raises:
            BadAudio: a file cannot be read.
        """
        found = {index: self._look_up(index) for index in indices}
        missing = [index for index, states_LTD in found.items() if states_LTD is None]
        for index, states_LTD in self._encode(missing):
            found[index] = states_LTD
        return [found[index] for index in indices]  # type: ignore[misc]

    def fill(self, what: str, beside: Iterable[HiddenStates] = ()) -> None:
        """Encode what is not in the cache and write it there, as far as there is room; says how much that is.

        Ranks share the work, each writes what it has encoded, and afterwards all find what the others have.

        Args:
            what: of the progress bar and the log.
            beside: states that are needed at the same time: no room is made of theirs.
        """
        if self.cache is None:
            return
        cache = self.cache
        # Of several ranks one may have lost a damaged shard: the first one says what is missing.
        missing = ranks.on_first(lambda: [index for index, key in enumerate(self._keys) if key not in cache])
        if not missing:
            return
        sizes = [self._bytes(index) for index in missing]
        keep = {key for states in (self, *beside) for key in states._keys}
        room = ranks.on_first(lambda: cache.room_for(sum(sizes), keep))
        chosen = _as_fit(missing, sizes, room)
        seconds = sum(self.cuts[index].duration for index in missing)
        logger.info(
            "%s: %s of speech, %s of hidden states to keep (the limit is %s)",
            what,
            duration(seconds),
            readable_bytes(sum(sizes)),
            readable_bytes(self.cache.limit_bytes),
        )
        if len(chosen) < len(missing):
            logger.warning(
                "%s: the cache holds %d of %d utterances (%s); the others are encoded whenever they are needed: raise "
                "--cache-gb or free some space for more speed",
                what,
                len(chosen),
                len(missing),
                readable_bytes(room),
            )
        own = ranks.share(chosen)
        with Meter(what, len(own)) as meter:
            cache.write(self._keyed(own, meter.advance))
        if ranks.count() > 1:
            ranks.gathered(None)  # all have written
            cache.look_again()

    def _mend(self) -> None:
        """Write again what was lost with a damaged shard."""
        assert self.cache is not None
        missing = [index for index, key in enumerate(self._keys) if key not in self.cache]
        # No more space is used than what was lost took.
        sizes = [self._bytes(index) for index in missing]
        room = self.cache.room_for(sum(sizes), set(self.cache))
        self.cache.write(self._keyed(_as_fit(missing, sizes, room), lambda: None))

    def _keyed(self, indices: Sequence[int], progress: Callable[[], object]) -> Iterator[tuple[str, Tensor]]:
        for index, states_LTD in self._encode(indices):
            progress()
            yield self._keys[index], states_LTD

    def _look_up(self, index: int) -> Tensor | None:
        if self.cache is None or self._keys[index] not in self.cache:
            return None
        states_LTD = self.cache.read(self._keys[index])
        if states_LTD is None:
            self._mend()
            states_LTD = self.cache.read(self._keys[index]) if self._keys[index] in self.cache else None
        return states_LTD

    def _encode(self, indices: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Encode utterances of similar length together, and yield them as they come."""
        limit = batch_seconds(self.upstream.device) * SAMPLE_RATE
        for batch in similar_lengths(indices, [num_samples(self.cuts[index]) for index in indices], limit):
            waveforms = [read_waveform(self.cuts[index], self.audio) for index in batch]
            for index, states_LTD in zip(batch, self.upstream.encode(waveforms), strict=True):
                yield index, self._reduce(states_LTD).cpu()

    def _reduce(self, states_LTD: Tensor) -> Tensor:
        if self.reduction == "frames":
            return states_LTD.to(torch.bfloat16)
        if self.reduction == "mean":
            return states_LTD.mean(1, keepdim=True)
        return torch.stack([part_LTD.mean(1) for part_LTD in states_LTD.split(self.block, dim=1)], dim=1)

    def _bytes(self, index: int) -> int:
        frames = self.frames(index)
        kept = {"frames": frames, "mean": 1, "seconds": -(-frames // self.block)}[self.reduction]
        width = self.upstream.num_states * self.upstream.width
        return kept * width * (2 if self.reduction == "frames" else 4)

    def _key(self, cut: Cut, stamp: Callable[[str], str]) -> str:
        """Everything that an utterance's states depend on besides the upstream; a changed file has another key."""
        what = (
            stamp(audio_path(cut)),
            cut.start,
            num_samples(cut),
            getattr(cut, "channel", None),
            asdict(self.audio),
            self.reduction,
        )
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:24]


def read_waveform(cut: Cut, audio: AudioConfig) -> Tensor:
    """The waveform (T,) of a cut, float32 at 16 kHz, as a task wants it.

    Raises:
        BadAudio: the file cannot be read.
    """
    waveform_T = load_waveform(cut) * np.float32(10 ** (audio.gain_db / 20))
    return torch.from_numpy(trim_silence(waveform_T) if audio.trim_silence else waveform_T)


def block_frames(hop: int) -> int:
    """How many frames are kept as one mean where seconds are kept: a second of them."""
    return max(1, round(SAMPLE_RATE / hop))


def readable_bytes(number: float) -> str:
    """A size as a person reads it: 3.2 MB, 41 GB."""
    unit, name = (1e9, "GB") if number >= 1e9 else (1e6, "MB")
    return f"{number / unit:.{1 if number < 10 * unit else 0}f} {name}"


def _stamp() -> Callable[[str], str]:
    """Path, size and time of change of a file, asked for once per file."""
    known: dict[str, str] = {}

    def stamp(path: str) -> str:
        if path not in known:
            try:
                status = Path(path).stat()
                known[path] = f"{Path(path).resolve()} {status.st_size} {status.st_mtime_ns}"
            except OSError:
                known[path] = path
        return known[path]

    return stamp


def similar_lengths(indices: Sequence[int], lengths: Sequence[int], limit: float) -> Iterator[list[int]]:
    """Batches of neighbors in length, longest first, of at most `limit` samples with the padding."""
    batch: list[int] = []
    longest = 0
    for length, index in sorted(zip(lengths, indices, strict=True), key=lambda pair: (-pair[0], pair[1])):
        # More than a tenth of padding costs more than a batch saves.
        if batch and ((len(batch) + 1) * longest > limit or length < 0.9 * longest):
            yield batch
            batch = []
        longest = longest if batch else length
        batch.append(index)
    if batch:
        yield batch


def _as_fit(indices: Sequence[int], sizes: Sequence[int], room: int) -> list[int]:
    """The first of them, as many as fit."""
    chosen = []
    for index, size in zip(indices, sizes, strict=True):
        room -= size
        if room < 0:
            break
        chosen.append(index)
    return chosen
