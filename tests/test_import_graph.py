"""Who knows whom: rooms import from rooms below them, and from nobody else."""

from __future__ import annotations

import importlib.util
import re
import subprocess

import pytest

from lab.rooms import LEVELS, MARKS, PAGE, PICTURE, ROOT, SMALL, arrows, shown_arrows, table

HOUSE = ROOT.parents[1]


def test_every_room_has_its_place() -> None:
    rooms = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__init__", "__main__", "__pycache__"} == set(LEVELS)


def test_imports_point_downwards() -> None:
    upwards = [
        f"{file}: {other}"
        for room, others in arrows().items()
        if room not in ("__init__", "__main__")  # the front door knows all, and is light
        for other, files in others.items()
        if LEVELS[other] <= LEVELS[room]
        for file in files
    ]
    assert not upwards


def test_imports_within_texts_are_right_too() -> None:
    """Code kept as text (programs that tests start, pages, recipes) is seen by no type checker."""
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=HOUSE, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the list of files comes from git")
    wrong = []
    for name in listed.split():
        if not (HOUSE / name).exists() or (HOUSE / name).suffix not in (".py", ".md", ".toml", ".yaml", ""):
            continue
        for room, names in re.findall(r"from (skill_speech[\w.]*) import ([\w, ]+)", (HOUSE / name).read_text()):
            module = importlib.import_module(room)
            for one in re.findall(r"(\w+)(?: as \w+)?(?:,|$)", names.strip()):
                if not hasattr(module, one) and importlib.util.find_spec(f"{room}.{one}") is None:
                    wrong.append(f"{name}: from {room} import {one}")
    assert not wrong


def test_picture_and_table_are_those_of_the_source() -> None:
    """Otherwise: python -m lab.rooms."""
    assert PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0] == table()
    svg = PICTURE.read_text(encoding="utf-8")
    assert all(f">{room}/<" in svg or f">{room}<" in svg or room in SMALL for room in LEVELS)
    assert svg.count("stroke-linecap: round") == 2 * len(shown_arrows())  # its line and its head
