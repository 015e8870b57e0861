"""Which control ends in the best student? Runs of equal length and data, one JSON record each, and the table of them.

    python -m lab.speech --output data/speech
    python -m lab.control run --data data/speech --output runs/control
    python -m lab.control tables

A cell is a teacher, a budget, a number of updates in stage 1 (and 120 in stage 2), a control and a seed. `run` makes
the cells of the table, the most informative first, or those that are named; a record that exists is not made again. The
gates of the published control move at a fixed rate ("lagrangian": 0.05 an update, as in version 0.1), or as far as
published ("lagrangian-travel": the rate follows the length of the ramp). `tables` writes the table in
docs/results-choices.md.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skill_speech.compression import AnalysisConfig, StageConfig, analyze, compress
from skill_speech.environment import environment
from skill_speech.files import write_json

HERE = Path(__file__).parents[1]
RECORDS = HERE / "lab" / "results" / "control"
DOCS = HERE / "docs" / "results-choices.md"
STAGE2_UPDATES = 120
BATCH_SECONDS = 4.0
PUBLISHED_TRAVEL = 16.7
TEACHERS = ("hubert-mini", "wavlm-mini")
CONTROLS = ("exact", "one-shot", "lagrangian", "one-shot-magnitude", "lagrangian-travel")
COMPARED, MORE_AT_FIRST = CONTROLS[:3], ("one-shot-magnitude",)
# The table in the order in which it is filled: updates, and what is removed in per cent.
STEPS = (((60, 150), ("75",)), ((60, 150), ("50", "90")), ((400,), ("75", "50", "90")), ((1500,), ("75", "50", "90")))
BUDGETS = {
    "50": ("sparsity=0.5", "macs=0.5"),
    "75": ("sparsity=0.75", "macs=0.25"),
    "90": ("sparsity=0.9", "macs=0.1"),
}


CELLS = sum(len(lengths) * len(TEACHERS) * len(BUDGETS[share]) for lengths, shares in STEPS for share in shares)
Row = tuple[str, str, int, int]
"""Teacher, what is limited, per cent of it that is removed, updates."""


def cells(controls: list[str] | None, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """All cells of the table, the most informative first; with other controls than the table's, if any are named."""
    for lengths, shares in STEPS:
        for updates, share, teacher in itertools.product(lengths, shares, TEACHERS):
            first = (updates, share, teacher) == (60, "75", TEACHERS[0])
            compared = controls or (*COMPARED, *MORE_AT_FIRST * first)
            for budget, control, seed in itertools.product(BUDGETS[share], compared, seeds):
                yield {"updates": updates, "teacher": teacher, "budget": budget, "control": control, "seed": seed}


def stages(control: str, updates: int) -> tuple[StageConfig, StageConfig]:
    """Both stages; of the first, ramp and warm-up are the default shares, and the longer ramp for the old control."""
    ramp, warmup = (0.4, 0.2) if control.startswith("lagrangian") else (0.1, 0.3)
    ramp, warmup = max(1, round(ramp * updates)), max(1, round(warmup * updates))
    rate = {"lagrangian": 0.05, "lagrangian-travel": PUBLISHED_TRAVEL / (ramp - warmup / 2)}.get(control, 0.02)
    common: dict[str, Any] = {"learning_rate": 1e-3, "batch_seconds": BATCH_SECONDS, "student_dropout": False}
    first = StageConfig(steps=updates, warmup_steps=warmup, sparsity_steps=ramp, gate_learning_rate=rate, **common)
    return first, StageConfig(steps=STAGE2_UPDATES, warmup_steps=20, **common)


def run_cell(cell: dict[str, Any], data: str, output: Path, precision: str) -> dict[str, Any]:
    """Compress as a cell says; what came of it."""
    control = cell["control"]
    first, second = stages(control, cell["updates"])
    folder = output / name_of(cell)
    how, of = cell["budget"].split("=")
    budget = {"sparsity": float(of)} if how == "sparsity" else {"macs": of}
    teacher, analysis = str(HERE / "lab" / "teachers" / cell["teacher"]), AnalysisConfig(calibration_seconds=300)
    # Of all cells of a teacher: controls are compared, not analyses.
    same = output / f"analysis-{cell['teacher']}"
    analyze(teacher, data, str(same), analysis=analysis)
    result = compress(
        teacher,
        data,
        str(folder),
        start_from=str(same / "analysis"),
        control="one-shot" if control.startswith("one-shot") else control.removesuffix("-travel"),  # type: ignore[arg-type]
        importance="magnitude" if control.endswith("magnitude") else "sensitivity",
        missed_budget="cut",
        analysis=analysis,
        stage1=first,
        stage2=second,
        validation_seconds=60,
        validate_every=10_000,
        checkpoint_every=10_000,
        precision=precision,  # type: ignore[arg-type]
        seed=cell["seed"],
        **budget,  # type: ignore[arg-type]
    )
    stage1 = json.loads((folder / "stage1" / "result.json").read_text())
    with (folder / "stage1" / "metrics.csv").open() as file:
        sizes = [
            float(row["train/sparsity_expected"]) for row in csv.DictReader(file) if row["train/sparsity_expected"]
        ]
    student, whole = result.student, result.teacher
    return cell | {
        "sparsity_at_end": sizes[-1],
        "sparsity_at_most": max(sizes),
        "loss_before_surgery": stage1["validation"]["distillation"],
        "loss_after_surgery": result.loss_after_surgery,
        "loss": result.loss,
        "parameters": student.total_parameters / whole.total_parameters,
        "macs": student.total_macs / whole.total_macs,
        "batch_seconds": BATCH_SECONDS,
        "precision": precision,
        "environment": environment(),
    }


def name_of(cell: dict[str, Any]) -> str:
    """The cell as a file's name."""
    return "-".join(str(cell[key]) for key in ("teacher", "budget", "updates", "control", "seed")).replace("=", "")


def table() -> str:
    """Markdown of all records, and what they say about the bars."""
    found: dict[Row, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text())
        how, value = record["budget"].split("=")
        removed = float(value) if how == "sparsity" else 1 - float(value)
        row = (
            record["teacher"],
            "parameters" if how == "sparsity" else "MACs",
            round(100 * removed),
            record["updates"],
        )
        found.setdefault(row, {}).setdefault(record["control"], []).append(record)
    lines = [
        "| teacher | removed | updates | at the end of stage 1, %: exact | lagrangian "
        "| surgery moves the loss by: exact | lagrangian "
        "| final loss: exact | one-shot | one-shot, magnitude | lagrangian |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for (teacher, what, removed, updates), controls in sorted(found.items()):
        exact, old = controls.get("exact", []), controls.get("lagrangian", [])
        cells = [
            *(", ".join(f"{100 * r['sparsity_at_end']:.1f}" for r in records) for records in (exact, old)),
            *(", ".join(f"{moved(r):.3f}" for r in records) for records in (exact, old)),
            *(
                ", ".join(f"{r['loss']:.3f}" for r in controls.get(control, []))
                for control in ("exact", "one-shot", "one-shot-magnitude", "lagrangian")
            ),
        ]
        lines.append(f"| {teacher} | {removed} % of {what} | {updates:,} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *bars(found)]) + "\n"


def moved(record: dict[str, Any]) -> float:
    """What surgery does to the loss."""
    return float(record["loss_after_surgery"] - record["loss_before_surgery"])


def bars(found: dict[Row, dict[str, list[dict[str, Any]]]]) -> list[str]:
    """What the records say about the exact control, as a list."""
    whole = [row for row, controls in found.items() if controls.keys() >= set(COMPARED)]
    exact = [(row[2], record) for row, controls in found.items() for record in controls.get("exact", [])]
    missed = max(abs(100 * record["sparsity_at_end"] - removed) for removed, record in exact)
    above = max(100 * record["sparsity_at_most"] - removed for removed, record in exact)
    lines = [
        f"- Of the {CELLS} cells planned, {len(whole)} have records of exact, one-shot and lagrangian; the rows above "
        "are those with any record. Several values are several seeds.",
        f"- exact: at most {missed:.2f} points from its target at the end of stage 1, {above:.2f} above it on the "
        f"way; surgery moves the loss by {max(abs(moved(record)) for _, record in exact):.4f} at most.",
    ]
    for other in COMPARED[1:]:
        gains = [
            theirs["loss"] - ours["loss"]
            for controls in found.values()
            for ours in controls.get("exact", [])
            for theirs in controls.get(other, [])
            if ours["seed"] == theirs["seed"]
        ]
        lines.append(
            f"- exact against {other}, final loss of the same seed: lower in {sum(gain > 0 for gain in gains)} of "
            f"{len(gains)} pairs, by {statistics.mean(gains):+.4f} on average ({min(gains):+.4f} to {max(gains):+.4f})."
        )
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare the controls of the size.")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="make records that are missing: the table's, or those that are named")
    runs.add_argument("--data", required=True)
    runs.add_argument("--output", type=Path, required=True)
    runs.add_argument("--teachers", nargs="+", choices=TEACHERS)
    runs.add_argument("--budgets", nargs="+")
    runs.add_argument("--updates", nargs="+", type=int)
    runs.add_argument("--controls", nargs="+", choices=CONTROLS)
    runs.add_argument("--seeds", nargs="+", type=int, default=[0])
    runs.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    commands.add_parser("tables", help="write the table in docs/results-choices.md")
    given = parser.parse_args()
    if given.command == "tables":
        before, _, rest = DOCS.read_text(encoding="utf-8").partition("<!-- control -->\n")
        after = rest.partition("<!-- end -->")[2]
        DOCS.write_text(f"{before}<!-- control -->\n{table()}<!-- end -->{after}", encoding="utf-8")
        return
    asked = {"teacher": given.teachers, "budget": given.budgets, "updates": given.updates}
    for cell in cells(given.controls, given.seeds):
        path = RECORDS / f"{name_of(cell)}.json"
        if not path.exists() and all(wanted is None or cell[key] in wanted for key, wanted in asked.items()):
            write_json(path, run_cell(cell, given.data, given.output, given.precision))
            shutil.rmtree(given.output / name_of(cell))


if __name__ == "__main__":
    main()
