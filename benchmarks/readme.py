"""Write the last results into benchmarks/README.md and the tables of inference into docs/performance-inference.md.

python -m benchmarks.readme [--check]

In the first a table for every benchmarks/results/*.json, between the two marks in the file. With --check nothing is
written, and the exit status is 1 if something would be.
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
PAGE = FOLDER.parent / "docs" / "performance-inference.md"
BEGIN_INFERENCE, END_INFERENCE = "<!-- inference -->\n", "<!-- end -->"
PRECISIONS = ("float32", "bf16", "int8")
OURS = ("teacher", "Transformers-style", "encoder")
"""What is not another runtime."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or compare it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.readme", description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say whether the file is up to date")
    options = parser.parse_args(arguments)
    old = 0
    for path, made in ((FOLDER / "README.md", with_results), (PAGE, with_inference)):
        before = path.read_text(encoding="utf-8")
        after = made(before, sorted((FOLDER / "results").glob("*.json")))
        if after != before and options.check:
            print(f"{path} is not what benchmarks/results says: python -m benchmarks.readme")
            old = 1
        elif after != before:
            path.write_text(after, encoding="utf-8")
    return old


def with_results(text: str, results: Sequence[Path]) -> str:
    """The text with everything between the marks made anew."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    sections = [section(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in results]
    return head + "\n\n".join([BEGIN, *sections, END]) + tail


def with_inference(text: str, results: Sequence[Path]) -> str:
    """The page with the tables of inference.json."""
    head, _, rest = text.partition(BEGIN_INFERENCE)
    _, _, tail = rest.partition(END_INFERENCE)
    result = next(json.loads(path.read_text(encoding="utf-8")) for path in results if path.name == "inference.json")
    return head + BEGIN_INFERENCE + inference_tables(result["comparisons"]) + END_INFERENCE + tail


def inference_tables(comparisons: Sequence[dict[str, Any]]) -> str:
    """Speed against the teacher and the fastest runtime, by threads and length; memory by length."""
    ratios: dict[str, dict[tuple[str, str], float]] = {}
    for one in comparisons:
        setting, _, versus = one["name"].rpartition(": ")
        ours, _, peer = versus.partition(" against ")
        ratios.setdefault(setting, {})[ours, peer] = one["ratio"]

    def best(setting: str) -> str:
        found = ratios.get(setting, {})
        rivals = [
            [ratio for (ours, peer), ratio in found.items() if ours == precision and peer not in OURS]
            for precision in PRECISIONS
        ]
        return ", ".join(f"{min(some):.2f}" if some else "–" for some in rivals)

    lines = [
        "| audio | float32 (goal 5) | bfloat16 | int8 (goal 20 for the best) | Transformers-style modules, float32 "
        "(goal 1.5) | the fastest runtime: float32, bfloat16, int8 | the same at full width |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for setting, found in ratios.items():
        if ("float32", "Transformers-style") in found:
            faster = [f"{found[precision, 'teacher']:.1f}" for precision in PRECISIONS]
            style = f"{found['float32', 'Transformers-style']:.1f}"
            full = best(f"wav2vec 2.0 Base, layer norms: {setting}")
            lines.append(f"| {setting} | {' | '.join(faster)} | {style} | {best(setting)} | {full} |")
    lines += ["", "| peak memory in MiB | teacher | float32 | bfloat16 | int8 |", "|---|---:|---:|---:|---:|"]
    memory: dict[str, list[dict[str, Any]]] = {}
    for one in comparisons:
        if one.get("unit") == "MiB":
            memory.setdefault(one["name"].partition(":")[0], []).append(one)
    for length, rows in memory.items():
        values = [rows[0]["peer_MiB"], *(row["our_MiB"] for row in rows)]
        lines.append(f"| {length} | {' | '.join(f'{value:.0f}' for value in values)} |")
    return "\n".join(lines) + "\n"


def section(name: str, result: dict[str, Any]) -> str:
    """One benchmark: what was run, on which machine, and its comparisons."""
    machine = result["machine"]
    device = machine.get("accelerator") or machine.get("processor") or machine["platform"]
    cpus, load = machine["cpus"], machine["load_before"][0]
    versions = ", ".join(f"{name} {one}" for name, one in result.get("peers", {}).items())
    lines = [
        f"### {result.get('title', name)}",
        "",
        f"`{result['command']}`: {device}, {cpus} CPUs, torch {machine['versions']['torch']}, load {load:.1f} before "
        f"([{name}.json](results/{name}.json))" + (f"; peers: {versions}" if versions else ""),
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
