"""Writing the code of a model beside its weights."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

ENCODER = ("config.py", "inputs.py", "layers.py", "encoder.py")


def write_code(folder: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Write the encoder's files and those named, all of them flat, as they import each other there.

    Args:
        folder: where the model is.
        names: of further files of this folder.
    """
    here = Path(__file__).parent
    # In the package the encoder's files have a folder of their own; where an exported model is loaded they are here.
    for name in (*ENCODER, *names):
        path = here / name if (here / name).exists() else here.parents[1] / "encoder" / name
        code = re.sub(r"^from \.\.\.encoder\.", "from .", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        temporary = Path(folder) / f".{name}.tmp"
        temporary.write_text(code, encoding="utf-8")
        os.replace(temporary, Path(folder) / name)
