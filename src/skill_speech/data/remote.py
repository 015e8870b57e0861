"""Bytes from wherever fsspec reaches: folders, http(s)://, s3://, gs:// …; whole files or parts of them."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import fsspec

from ..errors import InputError
from .lines import is_regular

MOST_BYTES = 1 << 30
"""Read at once: the audio of a day and a half, as shards have it."""

logger = logging.getLogger("skill_speech.data")

WAITS_SECONDS = (0.5, 2.0, 8.0)
"""Between attempts: object stores answer now and then that they are busy."""


def is_remote(location: str) -> bool:
    """Whether this is an address, not a path."""
    return "://" in location


def read_bytes(location: str, start: int | None = None, stop: int | None = None) -> bytes:
    """A file's bytes, or those from `start` to `stop`; asked for several times where that may help.

    Raises:
        InputError: there is no package for this kind of address.
        OSError: it cannot be read, or the server does not send parts of files.
    """
    if start is not None and stop is not None and not 0 <= start < stop <= start + MOST_BYTES:
        raise OSError(f"bytes {start} to {stop} are not a valid range of a file, or more than {MOST_BYTES:,}")
    if not is_remote(location) and os.path.exists(location):
        if not is_regular(Path(location)):
            raise OSError("a pipe, a device or a folder")
        # A part that is too long would be made room for before it is found missing.
        if (stop or os.path.getsize(location)) > min(os.path.getsize(location), (start or 0) + MOST_BYTES):
            raise OSError("it is truncated or too large")
    for wait in (*WAITS_SECONDS, None):
        try:
            filesystem, path = fsspec.core.url_to_fs(location)
            data = bytes(filesystem.cat_file(path, start=start, end=stop))
            break
        except (ImportError, ValueError) as error:
            raise InputError(f"{location}: {error}") from None
        except FileNotFoundError:
            raise
        # What a broken connection is depends on the kind of address.
        except Exception as error:
            if wait is None or not is_remote(location):
                raise OSError(f"{type(error).__name__}: {error}") from error
            logger.info("%s: %s: retrying in %g s", location, type(error).__name__, wait)
            time.sleep(wait)
    if start is not None and stop is not None and len(data) != stop - start:
        raise OSError(
            f"sent {len(data)} bytes instead of {stop - start}: it is truncated, or its server does not support range "
            "requests"
        )
    return data
