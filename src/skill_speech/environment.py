"""Where something was made: versions, machine, threads."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from . import __version__

PACKAGES = ("torch", "lightning", "transformers", "lhotse", "numpy", "scipy")
"""Those whose version can change a result."""


def environment() -> dict[str, Any]:
    """Versions of Python and of the packages that matter, the platform, the CPUs and the accelerator; no names."""
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
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
