"""What a profile says of memory and size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from skill_speech import Encoder, profile
from skill_speech.encoder import hubert_config
from skill_speech.profiling import peak_memory

ALONE = "from skill_speech.profiling import peak_memory; print(peak_memory())"


def test_peak_memory_is_the_processs_own_and_not_what_its_parent_had() -> None:
    ballast = np.ones(40_000_000)  # 320 MB
    child = int(subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True).stdout)
    assert peak_memory() >= ballast.nbytes
    assert child < ballast.nbytes


def test_a_profile_counts_what_is_there(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small, large = (
        Encoder(hubert_config(hidden_size=64, num_heads=4, units=units, channels=32, depth=2, positional_kernel=8))
        for units in (100, 40_000)
    )
    small.save_pretrained(tmp_path / "small")
    large.save_pretrained(tmp_path / "large")
    one, other = profile(str(tmp_path / "small"), str(tmp_path / "large"), seconds=1, threads=1)
    assert (one.total_parameters, other.total_parameters) == (small.num_parameters(), large.num_parameters())
    assert one.threads == 1
    assert one.memory is not None
    assert other.memory is not None
    assert other.memory - one.memory > 4 * (other.total_parameters - one.total_parameters) / 2
