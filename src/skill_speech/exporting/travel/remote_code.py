# SPDX-License-Identifier: Apache-2.0
"""Writing the code of a model beside its weights."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

ENCODER = ("config.py", "inputs.py", "layers.py", "encoder.py")
HEADS = {"head_config.py": "config.py", "heads.py": "heads.py"}
"""Files of heads/, by the names that they have beside those of the encoder."""

CODE_LICENSE = "LICENSE-CODE.txt"
"""Of the code, named so that nobody takes it for the license of the weights beside it."""

# How imports read in the package and beside each other, of this folder's files and of those of heads/.
FLAT_HERE = {r"^from \.\.\.heads\.config ": "from .head_config ", r"^from \.\.\.(encoder|heads)\.": "from ."}
FLAT_HEADS = {r"^from \.config ": "from .head_config ", r"^from \.\.encoder\.": "from ."}


def write_code(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Write the encoder's files and those named, all of them flat, as they import each other there, and their license.

    Args:
        folder: where the model is.
        names: of further files of this folder and of `HEADS`.
    """
    here = Path(__file__).parent
    for name in (*ENCODER, *names):
        # In the package the encoder's files and the heads' have folders of their own; where an exported model is
        # loaded they are here.
        path, changes = here / name, FLAT_HERE
        if not path.exists() and name in HEADS:
            path, changes = here.parents[1] / "heads" / HEADS[name], FLAT_HEADS
        elif not path.exists():
            path, changes = here.parents[1] / "encoder" / name, {}
        code = path.read_text(encoding="utf-8")
        for inside, beside in changes.items():
            code = re.sub(inside, beside, code, flags=re.MULTILINE)
        temporary = Path(folder) / f".{name}.tmp"
        temporary.write_text(code, encoding="utf-8")
        os.replace(temporary, Path(folder) / name)
    write_license(folder)


def write_license(folder: str | os.PathLike[str]) -> None:
    """Write the license of code that goes into a folder; code that Transformers has copied is without it."""
    path = Path(__file__).parent / CODE_LICENSE
    if path.exists():
        shutil.copyfile(path, Path(folder) / CODE_LICENSE)
