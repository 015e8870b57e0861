"""Where a model's files are: in a folder, or on the hub, which is asked once whether it is there at all."""

from __future__ import annotations

import os
import re
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import read_json
from .native import MAX_CONFIG

COMMIT = re.compile("[0-9a-f]{40}")
SECONDS_TO_ANSWER = 5.0


class ModelFiles:
    """The files of a folder or of a model on the hub, by name. What is on the hub is downloaded when it is asked for.

    Args:
        source: a folder or a hub ID.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: what can only be a path, and is not there.
    """

    def __init__(self, source: str, revision: str | None = None) -> None:
        self.source, self.revision = source, revision
        self.folder = Path(source) if os.path.isdir(source) else None
        if self.folder is None and not _is_hub_id(source):
            if (Path(source).parent / "status.json").is_file():
                raise InputError(f"{Path(source).parent}: not finished: rerun the same compress command to resume")
            raise InputError(f"{source}: no such file or folder; check the path")

    def find(self, name: str) -> Path | None:
        """The file of that name, None if there is none.

        Raises:
            InputError: the hub does not give it, or has no such model or revision.
        """
        if self.folder is not None:
            path = self.folder / name
            return path if os.path.isfile(path) else None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        def get(local: bool) -> Path:
            return Path(hf_hub_download(self.source, name, revision=self.revision, local_files_only=local))

        try:
            # A commit never changes; a branch may have moved since it was here.
            if not COMMIT.fullmatch(self.revision or ""):
                return self._pin(get(self.not_asked is not None))
            try:
                return get(True)
            except LocalEntryNotFoundError:
                return None if self.not_asked else get(False)
        except LocalEntryNotFoundError as error:
            if self.not_asked:
                return None
            raise InputError(f"{self.source}: {name} cannot be downloaded from the hub ({first_line(error)})") from None
        except EntryNotFoundError:
            return None
        except (OSError, ValueError) as error:  # all of the hub's other errors are one of them
            raise InputError(
                f"{self.source}: no such model on disk or on the hub ({first_line(error)}); check the name"
            ) from None

    def config(self) -> dict[str, Any]:
        """What config.json says.

        Raises:
            InputError: it is not there, or not to be read.
        """
        values = self.read("config.json")
        if values is None:
            raise InputError(self._nothing_there())
        return values

    def read(self, name: str) -> dict[str, Any] | None:
        """The JSON object in the file of that name, None if there is none.

        Raises:
            InputError: it cannot be found or read.
        """
        path = self.find(name)
        return None if path is None else read_json(path, MAX_CONFIG)

    @cached_property
    def not_asked(self) -> str | None:
        """Why the hub is not asked, and only its cache is looked into; None where it is asked."""
        from huggingface_hub import constants

        parent = Path(self.source).parent
        if parent.is_dir():
            return (
                f"{parent}/ is a folder, so it is read as a path" if parent.name else "a single word is read as a path"
            )
        if constants.is_offline_mode():
            return "the hub is disabled by HF_HUB_OFFLINE"
        return None if _answers(constants.ENDPOINT) else "the hub cannot be reached"

    def _pin(self, path: Path) -> Path:
        """All files come from the commit that the first one came from."""
        if COMMIT.fullmatch(path.parent.name):
            self.revision = path.parent.name
        return path

    def _nothing_there(self) -> str:
        if self.folder is not None and (self.folder / "model" / "config.json").is_file():
            return f"{self.folder}: no config.json there; the model of a run is in {self.folder / 'model'}"
        if self.folder is not None:
            return f"{self.folder}: no config.json there; give a folder that Transformers or skill-speech wrote"
        if self.not_asked is None:
            return f"{self.source}: no config.json in this model on the hub; give one of Transformers or skill-speech"
        return (
            f"{self.source}: no such model on disk or in the hub's cache ({self.not_asked}); check the path or the name"
        )


def _is_hub_id(source: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return not source.startswith(("./", "../", "~"))


def _answers(address: str) -> bool:
    """Whether anything answers there, by a single request: huggingface_hub itself tries for most of a minute."""
    from huggingface_hub import get_session

    try:
        get_session().head(address, timeout=SECONDS_TO_ANSWER, follow_redirects=False)
    except Exception:  # of whichever client huggingface_hub uses
        return False
    return True


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
