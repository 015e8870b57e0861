"""The benchmarks' page says what their result files say."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.readme import BEGIN, END, main, with_results

RESULT = {
    "title": "reading",
    "command": "python -m benchmarks.data --json FILE",
    "machine": {
        "processor": "a CPU",
        "cpus": 2,
        "load_before": [0.25, 0, 0],
        "versions": {"torch": "2.9"},
        "platform": "",
    },
    "comparisons": [
        {"name": "wav", "ratio": 600.0, "goal": 500.0, "unit": "seconds", "peer_seconds": 60.0, "our_seconds": 0.1},
        {"name": "memory", "ratio": 2.0, "goal": 4.0, "unit": "MiB", "peer_MiB": 512.0, "our_MiB": 256.0},
        {"name": "cache", "ratio": 5.5, "goal": None},
    ],
}


def test_the_page_is_up_to_date() -> None:
    assert main(["--check"]) == 0


def test_results_stand_between_the_marks(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(RESULT))
    text = with_results(f"above\n{BEGIN}\nold\n{END}\nbelow\n", [tmp_path / "data.json"])
    assert text.startswith(f"above\n{BEGIN}\n\n### reading\n")
    assert text.endswith(f"{END}\nbelow\n")
    assert "old" not in text
    assert "| wav | 60 s | 0.1 s | 600.00 | 500 | met |" in text
    assert "| memory | 512 MiB | 256 MiB | 2.00 | 4 | missed |" in text
    assert "| cache |  |  | 5.50 |  |  |" in text
