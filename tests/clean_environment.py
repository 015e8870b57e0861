"""Another person's machine: a process that sees some packages, what they depend on, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def run_with(packages: list[str], code: str, folder: Path, *arguments: str, **environment: str) -> str:
    """Run Python code where only `packages` and their dependencies can be imported; what it prints.

    `folder` gets the environment and is the working directory.
    """
    site = folder / "site-packages"
    if not site.exists():
        link_packages(packages, site)
    home = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    code = f"import sys; sys.path.insert(0, {str(site)!r})\n{code}"
    # -I and -S: no environment variables of Python's, no site-packages of its own.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *arguments],
        cwd=folder,
        env=home | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def link_packages(packages: list[str], site: Path) -> None:
    """Make a folder from which `packages` and their dependencies, without extras, can be imported, and nothing else."""
    site.mkdir(parents=True)
    for found in _closure(packages):
        _link(found, site)


def _closure(names: list[str]) -> list[Distribution]:
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # what this build of torch does without
            continue
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return list(found.values())


def _link(found: Distribution, site: Path) -> None:
    for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
        target = site / top
        if not target.exists():
            target.symlink_to(Path(str(found.locate_file(top))))
