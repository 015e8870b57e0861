"""The tables of docs/task_route.md, from the records alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lab.heads.routes import ROUTES
from lab.heads.scoring import Errors, interval, resampled_rates

MARK, END = "<!-- heads -->\n", "<!-- end -->"
MEASURES = {"ctc": "WER", "keywords": "error", "emotions": "error"}
"""What is wrong, in per cent: words, or 100 - accuracy."""

Records = dict[tuple[str, str], dict[str, list[dict[str, Any]]]]
"""Of a task and a teacher: "teacher" and routes, each with its records by seed."""


def write_tables(results: Path, page: Path) -> None:
    """Put the tables between the marks of a page."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(MARK)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise SystemExit(f"{page}: no {MARK.strip()} … {END} to put the tables between")
    page.write_text(f"{before}{MARK}{tables(results)}{END}{after}", encoding="utf-8")


def tables(results: Path) -> str:
    """Markdown of all records: a row for every teacher and every route that it went."""
    lines = [
        "| teacher, task | route | parameters | error, % [95 %] | each seed | to the teacher's | `whole` is better by "
        "[95 %] |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for (task, teacher), found in sorted(_read(results).items()):
        if "teacher" not in found:
            raise SystemExit(f"{results}: no record of the teacher {teacher}-{task}, which has students")
        base = found["teacher"][0]
        lines.append(_row(f"{teacher}, {task} ({MEASURES[task]})", "fine-tuned", found["teacher"], base, []))
        lines += [
            _row("", f"`{route}`", found[route], base, found.get("whole", []) if route.endswith("head") else [])
            for route in ROUTES
            if route in found
        ]
    return "\n".join(lines) + "\n"


def _read(results: Path) -> Records:
    found: Records = {}
    for path in sorted(results.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        of = found.setdefault((record["task"], record["teacher"]), {})
        of.setdefault(record.get("route", "teacher"), []).append(record)
    for of in found.values():
        for records in of.values():
            records.sort(key=lambda record: record.get("seed", 0))
    return found


def _row(
    name: str, route: str, records: list[dict[str, Any]], base: dict[str, Any], whole: list[dict[str, Any]]
) -> str:
    rates = [record["rate"] for record in records]
    mean, (low, high) = sum(rates) / len(rates), interval(resampled_rates(_errors(records)))
    columns = [
        name,
        route,
        f"{records[0]['parameters'] / 1e6:.2f} M",
        f"{mean:.1f} [{low:.1f}, {high:.1f}]",
        ", ".join(f"{rate:.1f}" for rate in rates) if records[0] is not base else "",
        f"{mean / base['rate']:.2f}×" if records[0] is not base and base["rate"] else "",
        _gain(records, whole),
    ]
    return f"| {' | '.join(columns)} |"


def _gain(records: list[dict[str, Any]], whole: list[dict[str, Any]]) -> str:
    """How many points a route's error lies above that of `whole`, with the same seeds and items."""
    seeds = {record["seed"] for record in records if "seed" in record} & {record["seed"] for record in whole}
    if not seeds:
        return ""
    theirs, ours = ([one for one in some if one["seed"] in seeds] for some in (records, whole))
    gain_R = resampled_rates(_errors(theirs)) - resampled_rates(_errors(ours))
    low, high = interval(gain_R)
    mean = sum(one["rate"] for one in theirs) / len(theirs) - sum(one["rate"] for one in ours) / len(ours)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _errors(records: Iterable[dict[str, Any]]) -> list[Errors]:
    return [Errors(record["errors"], record["counts"]) for record in records]
