"""Packages that only some metrics need."""

from __future__ import annotations

from importlib.util import find_spec

from ...errors import InputError


def require_package(package: str, what: str) -> None:
    """See that a package is there.

    Raises:
        InputError: it is not; says what needs it.
    """
    if find_spec(package.partition(".")[0]) is None:
        raise InputError(f"{what} is scored by {package}: pip install {package}")
