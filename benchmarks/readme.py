"""Write the last results into benchmarks/README.md: python -m benchmarks.readme [--check]

A table for every benchmarks/results/*.json, between the two marks in the file. With --check nothing is written, and the
exit status is 1 if something would be.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- results: written by python -m benchmarks.readme -->", "<!-- end of results -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    options = parser.parse_args(arguments)
    path = FOLDER / "README.md"
    before = path.read_text(encoding="utf-8")
    after = with_results(before, sorted((FOLDER / "results").glob("*.json")))
    if after == before:
        return 0
    if options.check:
        print(f"{path} is not what benchmarks/results says: python -m benchmarks.readme")
        return 1
    path.write_text(after, encoding="utf-8")
    return 0


def with_results(text: str, results: Sequence[Path]) -> str:
    """The text with everything between the marks made anew."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    sections = [section(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in results]
    return head + "\n\n".join([BEGIN, *sections, END]) + tail


def section(name: str, result: dict[str, Any]) -> str:
    """One benchmark: what was run, on which machine, and its comparisons."""
    machine = result["machine"]
    device = machine.get("accelerator") or machine.get("processor") or machine["platform"]
    cpus, load = machine["cpus"], machine["load_before"][0]
    lines = [
        f"### {result.get('title', name)}",
        "",
        f"`{result['command']}`: {device}, {cpus} CPUs, torch {machine['versions']['torch']}, load {load:.1f} before "
        f"([{name}.json](results/{name}.json))",
        "",
        "| comparison | peer | ours | ratio | goal | |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for one in result["comparisons"]:
        peer, ours = (_value(one, side) for side in ("peer", "our"))
        goal = "" if one["goal"] is None else f"{one['goal']:g}"
        met = "" if one["goal"] is None else "met" if one["ratio"] >= one["goal"] else "missed"
        lines.append(f"| {one['name']} | {peer} | {ours} | {one['ratio']:.2f} | {goal} | {met} |")
    return "\n".join(lines)


def _value(comparison: dict[str, Any], side: str) -> str:
    unit = comparison.get("unit", "seconds")
    value = comparison.get(f"{side}_{unit}")
    return "" if value is None else f"{value:.4g} {'s' if unit == 'seconds' else unit}"


if __name__ == "__main__":
    sys.exit(main())
