"""lhotse's manifests of cuts or recordings, read one line at a time, as data."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse import Recording
from lhotse.cut import Cut, MixedCut
from lhotse.cut.data import DataCut
from lhotse.serialization import deserialize_item
from lhotse.utils import fastcopy

from ..errors import InputError
from .audio import shown
from .corpus import Corpus
from .fields import BAD, MEMBER, FieldError, check_line
from .lines import blocks, lines


@dataclass(frozen=True)
class ManifestReader:
    """Iterates over the cuts of a jsonl manifest of cuts or recordings, one line at a time, with absolute paths.

    Files have to lie below the manifest's folder, links followed; with `absolute_paths` they may be anywhere. Relative
    paths are relative to the working folder, as in lhotse, else to the manifest's own. Sources that are commands, which
    lhotse would run, or addresses are refused.

    `bare`: without what training does not need and what may be large: custom fields, features, alignments.
    `labels`: but with the supervisions' custom["label"].
    """

    path: Path
    absolute_paths: bool = False
    bare: bool = False
    labels: bool = False

    def __iter__(self) -> Iterator[Cut]:
        corpus = Corpus(self.path.parent, self.absolute_paths)
        number = 1
        try:
            for number, line in enumerate(lines(self._blocks(), str(self.path)), start=1):
                item = json.loads(line.decode())
                check_line(item)
                if self.bare:
                    strip(item, self.labels)
                yield self._to_cut(deserialize_item(item), number, corpus)
        except InputError:
            raise
        except FieldError as error:
            raise InputError(f"{self.path}: line {number}: {error}: correct it, or prepare the data again") from None
        # What damaged JSON, a truncated gzip stream and a foreign object make of themselves inside lhotse.
        except Exception as error:
            raise InputError(
                f"{self.path}: cannot be read as a lhotse manifest of cuts or recordings, at or after line {number} "
                f"({type(error).__name__}): prepare the data again"
            ) from error

    def fingerprint(self) -> tuple[int, str]:
        """The number of lines, and their hash."""
        digest, count, last = hashlib.sha256(), 0, b"\n"
        for block in self._blocks():
            digest.update(block)
            count += block.count(b"\n")
            last = block
        return count + (not last.endswith(b"\n")), digest.hexdigest()

    def _blocks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            yield from blocks(file, str(self.path))

    def _to_cut(self, item: object, number: int, corpus: Corpus) -> Cut:
        if isinstance(item, Recording):
            item = item.to_cut()
        if not isinstance(item, Cut):
            raise InputError(
                f"{self.path}: line {number} is a {type(item).__name__}: give a manifest of cuts or recordings"
            )
        if isinstance(item, MixedCut):
            for track in item.tracks:
                track.cut = self._checked(track.cut, number, corpus)
            return item
        return self._checked(item, number, corpus)

    def _checked(self, cut: Cut, number: int, corpus: Corpus) -> Cut:
        """The cut with absolute paths."""
        if not isinstance(cut, DataCut):
            return cut
        # Only shards may say that audio lies in another file than the recording's.
        for name in (MEMBER, BAD):
            (cut.custom or {}).pop(name, None)
        cut.custom = cut.custom or None
        if not cut.has_recording:
            return cut
        for source in cut.recording.sources:
            if source.type == "command":
                raise InputError(f"{self.path}: line {number} would run a command, which is never allowed: {cut.id}")
            if source.type != "file":
                raise InputError(
                    f"{self.path}: line {number} has audio of the type {source.type!r}: only files are read; download "
                    "it, and give their paths"
                )
        sources = [
            fastcopy(source, source=self._absolute(source.source, number, corpus)) for source in cut.recording.sources
        ]
        known = [channel for source in sources for channel in source.channels]
        wanted = cut.channel if isinstance(cut.channel, list) else [cut.channel]
        if not all(channel in known for channel in wanted):
            raise InputError(f"{self.path}: line {number}: {cut.id} has no channel {cut.channel}")
        return fastcopy(cut, recording=fastcopy(cut.recording, sources=sources))

    def _absolute(self, name: str, number: int, corpus: Corpus) -> str:
        here = found = os.path.abspath(name)
        if not os.path.isabs(name):
            own = os.path.abspath(self.path.parent / name)
            found = here if os.path.exists(here) and (corpus.holds(here) or not os.path.exists(own)) else own
        if not corpus.holds(found):
            raise InputError(f"{self.path}: line {number} names {shown(name)}, {corpus.outside}")
        return found


def strip(item: dict[str, Any], labels: bool) -> None:
    """Leave out of a cut's line what training does not need; `labels`: but for the supervisions' custom["label"]."""
    for name in ("custom", "features", "alignment"):
        item.pop(name, None)
    for said in item.get("supervisions") or ():
        custom = said.get("custom") or {}
        strip(said, labels)
        if labels and "label" in custom:
            said["custom"] = {"label": custom["label"]}
    for mixed in item.get("tracks") or ():
        strip(mixed["cut"], labels)
