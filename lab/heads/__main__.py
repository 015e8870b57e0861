"""The command line; see `lab.heads`."""

from __future__ import annotations

import argparse
from pathlib import Path

from lab.heads.data import TASKS, make_data
from lab.heads.routes import ROUTES, cells, run_cell
from lab.heads.tables import write_tables
from lab.heads.teachers import NAMES, ensure_teacher
from skill_speech.files import write_json

HERE = Path(__file__).parents[2]
RESULTS, PAGE = HERE / "lab" / "results" / "heads", HERE / "docs" / "task_route.md"


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="python -m lab.heads", description="Routes to a small fine-tuned model.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("finetune", "make teachers that are missing"),
        ("routes", "make records of cells that are missing, and what they need"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--output", type=Path, required=True, help="folder for data, models and runs")
        command.add_argument("--results", type=Path, default=RESULTS, help="folder for the records")
        command.add_argument("--teachers", nargs="+", choices=NAMES, default=NAMES)
        command.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
        command.add_argument("--jobs", type=int, default=1, help="processes that speak")
        if name == "routes":
            command.add_argument("--routes", nargs="+", choices=ROUTES, default=ROUTES[:3])
            command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    command = commands.add_parser("tables", help="write the tables from the records")
    command.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    command.add_argument("--page", type=Path, default=PAGE, help="page with marks to write between")
    given = parser.parse_args()
    if given.command == "tables":
        write_tables(given.results, given.page)
        return
    data = make_data(given.output / "data", jobs=given.jobs)
    if given.command == "finetune":
        for task in given.tasks:
            for teacher in given.teachers:
                ensure_teacher(teacher, task, data, given.output, given.results)
        return
    for cell in cells(given.teachers, given.tasks, given.routes, given.seeds):
        record = given.results / f"{cell.name}.json"
        if not record.exists():
            tuned = ensure_teacher(cell.teacher, cell.task, data, given.output, given.results)
            write_json(record, run_cell(cell, tuned, data, given.output / "cells"))


if __name__ == "__main__":
    main()
