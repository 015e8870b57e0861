"""An upstream folder for s3prl."""

from __future__ import annotations

from pathlib import Path

import torch

from ..encoder import Encoder
from .travel.remote_code import write_code

FILE = "model.pt"


def save_s3prl(encoder: Encoder, folder: Path) -> None:
    """Write hubconf.py, expert.py, the encoder's code, and model.pt with configuration and weights.

    Args:
        encoder: in evaluation mode.
        folder: that exists.
    """
    write_code(folder, ["hubconf.py", "expert.py"])
    torch.save({"config": encoder.config.to_dict(), "weights": encoder.state_dict()}, folder / FILE)
