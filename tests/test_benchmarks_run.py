"""Every benchmark runs to its end in its short form, and writes what the page is made of."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from benchmarks.readme import section


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "training_step",
        "shrinking",
        "similarity",
        "inference",
        "objectives",
        "evaluation",
        "data",
        "manifests",
        "static_int8",
    ],
)
def test_a_benchmark_runs(name: str, tmp_path: Path) -> None:
    if name == "similarity":
        pytest.importorskip("cka", reason="pip install pytorch-cka")
    benchmark = importlib.import_module(f"benchmarks.{name}")
    assert benchmark.main(["--quick", "--json", str(tmp_path / "result.json")]) == 0
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["command"] == f"python -m benchmarks.{name} --quick --json {tmp_path / 'result.json'}"
    assert all(comparison["ratio"] > 0 for comparison in result["comparisons"])
    assert section(name, result).count("\n| ") >= 1 + len(result["comparisons"])
