"""The configuration inside a checkpoint, whatever wrote it: a plain dictionary whose values are asked for by type."""

from __future__ import annotations

import math
import re
from typing import Any, TypeVar

from ..encoder.config import check_value
from ..errors import InputError
from .pickles import Record

Kind = TypeVar("Kind")
MAX_DEPTH = 50
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
_REQUIRED: Any = object()


class Settings:
    """Values by name, each asked for with its type.

    Args:
        values: as `plain` returns them.
        source: for messages.
        root: the whole configuration, which references such as "${task.normalize}" go through.
    """

    def __init__(self, values: Any, source: str, root: Any = None) -> None:
        self.values: dict[str, Any] = values if isinstance(values, dict) else {}
        self.source, self.root = source, self.values if root is None else root

    def __contains__(self, name: str) -> bool:
        return self._value(name) is not None

    def take(self, name: str, kind: type[Kind], default: Any = _REQUIRED) -> Kind:
        """The value of that name, which is of that type; the default where there is none.

        Raises:
            InputError: it is missing or of another type.
        """
        value = self._value(name)
        if value is None:
            if default is _REQUIRED:
                raise InputError(f"{self.source}: its configuration lacks {name}")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
            return kind(value)  # type: ignore[call-arg]
        unfit = isinstance(value, bool) and kind is not bool
        if unfit or not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise InputError(f"{self.source}: {name} in its configuration is no {kind.__name__}")
        return value

    def bounded(self, name: str, field: str, default: Any = _REQUIRED) -> int:
        """The whole number of that name, in the range of the encoder configuration's `field`.

        Raises:
            InputError: it is missing, of another type or out of range.
        """
        value = self.take(name, int, default)
        try:
            check_value(field, value, name)
        except ValueError as error:
            raise InputError(f"{self.source}: its configuration does not describe a valid encoder ({error})") from None
        return value

    def within(self, name: str) -> Settings:
        """The settings kept under that name; empty where there are none."""
        return Settings(self.values.get(name), self.source, self.root)

    def _value(self, name: str) -> Any:
        value = self.values.get(name)
        for _ in range(MAX_DEPTH):
            if value == "???":  # OmegaConf's mark of a value that nobody has given
                return None
            reference = REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if reference is None:
                return value
            value = self.root
            for key in reference[1].split("."):
                value = value.get(key) if isinstance(value, dict) else None
        return None


def plain(value: Any, source: str) -> Any:
    """The dictionaries, lists and values that a configuration object stands for.

    argparse's Namespace becomes a dictionary of its attributes, OmegaConf's containers and nodes become what they
    contain, an enumeration's member its value. References stay as they are.

    Raises:
        InputError: nested too deeply, or without end.
    """
    # What is contained twice is converted once: otherwise fifty lists of two could stand for 2^50 items.
    done: dict[int, Any] = {}

    def convert(value: Any, depth: int) -> Any:
        if not isinstance(value, Record | dict | list | tuple):
            return value
        if depth > MAX_DEPTH:
            raise InputError(f"{source}: its configuration is nested too deeply")
        if id(value) not in done:
            done[id(value)] = contents(value, depth + 1)
        return done[id(value)]

    def contents(value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {key: convert(item, depth) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [convert(item, depth) for item in value]
        state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
        if isinstance(state, dict) and value.name == "argparse.Namespace":
            return convert(state, depth)
        if isinstance(state, dict) and value.name.startswith("omegaconf."):
            return convert(state.get("_content", state.get("_val")), depth)
        if len(value.arguments) == 1 and isinstance(value.arguments[0], str | int):
            return value.arguments[0]
        return value

    return convert(value, 0)
