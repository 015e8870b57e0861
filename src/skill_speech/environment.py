"""Where something was made: versions, machine, threads."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import __version__

PACKAGES = ("torch", "lightning", "transformers", "lhotse", "numpy", "scipy")
"""Those whose version can change a result."""


def environment() -> dict[str, Any]:
    """Versions of Python and of the packages that matter, the platform, the processor and the accelerator; no names.

    The processor belongs to what a result can depend on: its kernels for matrix products may round differently.
    """
    import torch

    versions = {"skill-speech": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a tree that was put together by hand
            continue
    return {
        "versions": versions,
        "platform": platform.platform(),
        "processor": processor(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor() -> str:
    """The processor's name, with family and model where Linux tells them, since clouds hide the rest of the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    details = [f"{name.split()[-1]} {said[name]}" for name in ("cpu family", "model") if said.get(name)]
    return ", ".join([said.get("model name") or platform.processor(), *details])
