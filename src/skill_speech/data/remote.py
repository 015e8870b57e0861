"""Bytes from wherever fsspec reaches: folders, http(s)://, s3://, gs:// …; whole files or parts of them."""

from __future__ import annotations

import logging
import time

import fsspec

from ..errors import InputError

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
            logger.info("%s: %s: trying again in %g s", location, type(error).__name__, wait)
            time.sleep(wait)
    if start is not None and stop is not None and len(data) != stop - start:
        raise OSError(
            f"sent {len(data)} bytes instead of {stop - start}: it is cut off, or its server does not know range "
            "requests"
        )
    return data
