"""Before anything is imported: tests ask no hub, do not fight over cores, and start this environment's programs.

Whoever calls `.venv/bin/python -m pytest` has not activated the environment; `python` and `pre-commit` of a test would
then be the system's, or missing.
"""

import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)))

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass
class SyntheticCorpora:
    """lab.corpora's ten tiny corpora, written once and not to be changed, and what was planned to be in them."""

    root: Path
    jobs: list[Any] = field(default_factory=list)


@pytest.fixture(scope="session")
def planned_corpora(tmp_path_factory: pytest.TempPathFactory) -> SyntheticCorpora:
    """The corpora and the jobs that made them."""
    from lab.corpora import make_corpora
    from lab.corpora.work import Workers

    corpora = SyntheticCorpora(tmp_path_factory.mktemp("synthetic") / "corpora")
    do = Workers.do

    def noting(workers: Workers, what: str, jobs: list[Any]) -> list[Any]:
        corpora.jobs += jobs
        return do(workers, what, jobs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workers, "do", noting)
        make_corpora(corpora.root, size="tiny", jobs=1)
    return corpora


@pytest.fixture(scope="session")
def synthetic_corpora(planned_corpora: SyntheticCorpora) -> Path:
    """The folder that `evaluate --data` takes."""
    return planned_corpora.root


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: of small models two wait for each other longer than they work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
