"""The command line of the study."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.study.calibration import compare_samples
from lab.study.cells import make_data, record_path, run_cell
from lab.study.grid import Cell, Study
from lab.study.tables import write_tables


def main() -> int:
    """Run the command; the exit status is 1 if a cell failed."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.study", description="SKILL against DPHuBERT, on the lab's data."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("run", "every cell that is not done, the worthiest first"),
        ("list", "what is done and what is not"),
        ("cell", "one cell"),
        ("calibration", "how much audio the clusters need"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--config", type=Path, default=Path("lab/study/study.yaml"))
        command.add_argument("--output", type=Path, required=True)
        command.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells, or speakers, at a time")
        if name == "cell":
            command.add_argument("id")
        if name in ("run", "list"):
            command.add_argument("--only", default="", help="groups, comma-separated")
        if name == "run":
            command.add_argument("--limit", type=int, default=0, help="so many cells at most")
    tables = commands.add_parser("tables", help="every table and figure, from the records alone")
    tables.add_argument("--results", type=Path, default=Path("lab/results/study"))
    tables.add_argument("--config", type=Path, default=Path("lab/study/study.yaml"))
    arguments = parser.parse_args()
    study = Study.read(arguments.config)
    if arguments.command == "tables":
        write_tables(study, arguments.results)
        return 0
    cells = study.cells()
    if arguments.command in ("run", "list"):
        chosen = {name for name in arguments.only.split(",") if name}
        if unknown := chosen - {group["name"] for group in study.groups}:
            parser.error(
                f"no group {', '.join(sorted(unknown))}; there are {', '.join(g['name'] for g in study.groups)}"
            )
        cells = [cell for cell in cells if not chosen or chosen & set(cell.groups)]
    if arguments.command == "list":
        for cell in cells:
            print("done   " if record_path(arguments.output, cell).exists() else "not run", cell.id, *cell.groups)
        return 0
    make_data(study, arguments.output, arguments.jobs)
    if arguments.command == "calibration":
        compare_samples(study, arguments.output)
        return 0
    if arguments.command == "cell":
        named = [cell for cell in cells if cell.id == arguments.id]
        if not named:
            parser.error(f"no cell {arguments.id}; `list` shows them")
        run_cell(study, named[0], arguments.output)
        return 0
    todo = [cell for cell in cells if not record_path(arguments.output, cell).exists()]
    todo = todo[: arguments.limit] if arguments.limit else todo
    return _run_all(todo, arguments.config, arguments.output, arguments.jobs)


def _run_all(cells: list[Cell], config: Path, output: Path, jobs: int) -> int:
    """Each cell in a process of its own, so many at a time, its words in a log."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    (output / "logs").mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    done, lock = 0, threading.Lock()

    def run(cell: Cell) -> None:
        nonlocal done
        command = [sys.executable, "-m", "lab.study", "cell", cell.id, "--config", str(config), "--output", str(output)]
        started = time.monotonic()
        with (output / "logs" / f"{cell.id}.txt").open("a", encoding="utf-8") as log:
            status = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
        with lock:
            done += 1
            if status:
                failed.append(cell.id)
            what = f"failed, see logs/{cell.id}.txt" if status else f"{(time.monotonic() - started) / 60:.1f} minutes"
            print(f"{done}/{len(cells)}  {cell.id}: {what}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, cells))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
