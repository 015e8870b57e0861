"""What a student costs in each runtime, as a table of the report and of the model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..markdown import escaped
from ..run.folder import RUNTIMES
from ..run.records import read_record

HEADING = ("runtime", "version", "real-time factor", "speed", "peak memory", "error")


def read_runtimes(run: Path) -> dict[str, Any] | None:
    """What `profile RUN/model --runtimes` measured, if it did.

    Raises:
        InputError: its file is damaged.
    """
    path = run / RUNTIMES
    return read_record(path, "runtimes") if path.is_file() else None


def runtime_rows(values: dict[str, Any]) -> list[list[str]]:
    """Cells under `HEADING`, speed relative to the encoder as it is loaded, which comes first."""
    costs = values["runtimes"]
    return [
        [
            cost["name"],
            cost["version"],
            f"{cost['real_time_factor']:.4f}",
            f"{costs[0]['real_time_factor'] / cost['real_time_factor']:.1f}×",
            f"{cost['memory'] / 2**20:.0f} MiB",
            f"{cost['difference']:.1e}",
        ]
        for cost in costs
    ]


def runtime_caption(values: dict[str, Any]) -> str:
    """What was measured, and where."""
    machine, threads = values["machine"], values["machine"]["threads"]
    return (
        f"The encoder in the runtimes of one machine: one utterance of {values['seconds']:g} s, {threads} thread"
        f"{'s' * (threads != 1)} of {machine['processor']}; error: of the last hidden state, relative, on noise."
    )


def runtime_text(values: dict[str, Any]) -> str:
    """The same in Markdown."""
    rule = ["---", "---", *["---:"] * (len(HEADING) - 2)]
    rows = [list(HEADING), rule, *(list(map(escaped, row)) for row in runtime_rows(values))]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + f"\n\n{escaped(runtime_caption(values))}"
