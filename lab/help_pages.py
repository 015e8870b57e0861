"""python -m lab.help_pages [--check]: write src/skill_speech/help.json from the functions that are the commands.

With --check nothing is written, and the exit status is 1 if something would be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from skill_speech import help_pages
from skill_speech.cli import command_parser
from skill_speech.help_pages import COMMANDS

PATH = help_pages.__file__.replace("help_pages.py", "help.json")
HIDDEN = {"help", "print_shtab"}


def all_settings() -> dict[str, list[dict[str, Any]]]:
    """Command → its settings."""
    return {name: [one for one in map(_setting, command_parser(name)._actions) if one] for name in COMMANDS}


def _setting(action: Any) -> dict[str, Any] | None:
    name = action.dest
    if name in HIDDEN or name.endswith(".help") or action.help == "Path to a configuration file.":
        return None
    positional = not action.option_strings or action.option_strings[0] == name
    found: dict[str, Any] = {"name": name, "value": _value(action), "help": _words(action)}
    default = action.default
    if positional:
        found["positional"] = True
        if action.nargs == "+":
            found["several"] = True
    elif getattr(action, "_required", False) or action.required:
        found["required"] = True
    elif default is not None and not str(default).startswith("==") and name not in ("config", "print_config"):
        found["default"] = _shown(default)
    return found


def _words(action: Any) -> str:
    if action.dest == "print_config":  # jsonargparse's own is three sentences long
        return "Print the configuration as YAML and exit; --print_config=skip_default omits defaults."
    return " ".join((action.help or "").split())


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value(action: Any) -> str:
    """What stands behind the name."""
    if action.dest == "config":
        return "FILE"
    if action.dest == "print_config" or action.nargs == 0:
        return ""
    kind = getattr(action, "_typehint", action.type)
    return _of(kind) if kind is not None else ""


def _of(kind: Any) -> str:
    from types import UnionType
    from typing import Annotated, Literal, Union, get_args, get_origin

    origin = get_origin(kind)
    if origin is Annotated:
        return _of(get_args(kind)[0])
    if origin is Literal:
        return "|".join(map(str, get_args(kind)))
    if origin in (Union, UnionType):
        parts = dict.fromkeys(_of(one) for one in get_args(kind) if one is not type(None))
        return "|".join(part for part in parts if part)
    if origin in (list, tuple):
        inner = [one for one in get_args(kind) if one is not Ellipsis]
        return f"{_of(inner[0])},…" if inner else "VALUES"
    if origin is dict or kind is dict:
        return "{…}"
    return {bool: "true|false", int: "N", float: "X", str: "TEXT"}.get(kind, getattr(kind, "__name__", "VALUE").upper())


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(prog="python -m lab.help_pages", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    options = parser.parse_args(arguments)
    text = json.dumps(all_settings(), indent=1, ensure_ascii=False) + "\n"
    try:
        with open(PATH, encoding="utf-8") as file:
            same = file.read() == text
    except FileNotFoundError:
        same = False
    if same:
        return 0
    if options.check:
        print(f"{PATH} is not what the functions say: python -m lab.help_pages")
        return 1
    with open(PATH, "w", encoding="utf-8") as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
