"""Is a student as fast as was asked for? Teacher and students in turns, on a quiet machine.

    python -m lab.speedup --data data/speech --output runs/speedup

The bundled teacher, and the shape of WavLM Base+ with random weights, are asked for two, three and four times the
speed. A student is cut at once and trained for a few updates: its widths are what matters here. Writes
lab/results/speedup.json and the table in docs/compressing.md, or OUTPUT/speedup.json alone with --try.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from lab.full_size import make_teacher
from skill_speech import Encoder, compress, load_encoder
from skill_speech.compression import StageConfig
from skill_speech.environment import environment
from skill_speech.files import write_json
from skill_speech.pruning import REFERENCE_SECONDS, Widths, count_macs, count_parameters
from skill_speech.timing import measure_times, write_times

HERE = Path(__file__).parents[1]
RESULTS = HERE / "lab" / "results"
DOCS = HERE / "docs" / "compressing.md"
SPEEDUPS = (2.0, 3.0, 4.0)
TEACHERS = ("hubert-mini", "wavlm-base-plus")
STAGE = StageConfig(steps=2, warmup_steps=1, sparsity_steps=1, batch_seconds=8)


@torch.inference_mode()
def seconds_in_turns(encoders: list[Encoder], rounds: int) -> list[float]:
    """The fastest pass of each for one utterance, as `profile` times them, one after the other in every round."""
    waveform_BT = torch.randn(1, round(REFERENCE_SECONDS * encoders[0].config.sampling_rate))
    passes = []
    for _ in range(rounds + 1):
        for encoder in encoders:
            started = time.perf_counter()
            encoder(waveform_BT)
            passes.append(time.perf_counter() - started)
    return [min(passes[number :: len(encoders)][1:]) for number in range(len(encoders))]


def check(name: str, data: str, output: Path, speedups: list[float], rounds: int) -> list[dict[str, Any]]:
    """Students of one teacher for each speed asked for, and how fast they are."""
    bundled = HERE / "lab" / "teachers" / name
    source = bundled if bundled.exists() else make_teacher(name, output / name / "teacher")
    teacher, table = load_encoder(str(source)), output / name / "times.json"
    times = measure_times(teacher, rounds=rounds)
    write_times(table, times)
    students = []
    for speedup in speedups:
        result = compress(
            str(source),
            data,
            str(output / name / f"{speedup:g}"),
            method="dphubert",
            speedup=speedup,
            times=str(table),
            control="one-shot",
            importance="sensitivity" if source == bundled else "magnitude",
            stage1=STAGE,
            stage2=STAGE,
            validation_seconds=0.0,
        )
        students.append(load_encoder(str(result.folder / "model")))
    first, *others = seconds_in_turns([teacher, *students], rounds)
    whole = Widths.of(teacher.config)
    rows = []
    for asked, student, seconds in zip(speedups, students, others, strict=True):
        widths = Widths.of(student.config)
        counts = {"parameters": count_parameters, "macs": count_macs, "table": times.count}
        shares = {what: count(student.config, widths) / count(teacher.config, whole) for what, count in counts.items()}
        rows.append(
            {
                "teacher": name,
                "asked": asked,
                "by_the_table": 1 / shares.pop("table"),
                "measured": first / seconds,
                "teacher_ms_per_second": 1000 * first / REFERENCE_SECONDS,
                "student_ms_per_second": 1000 * seconds / REFERENCE_SECONDS,
            }
            | shares
        )
    return rows


def table_of(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| teacher | asked for | by the table | measured | off by | ms for a second of audio | parameters | MACs |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['teacher']} | {row['asked']:g}× | {row['by_the_table']:.2f}× | {row['measured']:.2f}× "
            f"| {row['measured'] / row['asked'] - 1:+.1%} "
            f"| {row['teacher_ms_per_second']:.2f} → {row['student_ms_per_second']:.2f} "
            f"| {row['parameters']:.1%} | {row['macs']:.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compare the speed of students with what was asked for.")
    parser.add_argument("--data", required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--try", dest="tried", action="store_true", help="leave results and documentation alone")
    parser.add_argument("--teachers", nargs="+", default=list(TEACHERS), choices=TEACHERS)
    parser.add_argument("--speedups", nargs="+", type=float, default=list(SPEEDUPS))
    parser.add_argument("--rounds", type=int, default=10, help="how often everything is timed")
    given = parser.parse_args()
    rows = []
    for name in given.teachers:
        rows += check(name, given.data, given.output, given.speedups, given.rounds)
    command = "python -m lab.speedup --data DATA --output OUTPUT"
    folder = given.output if given.tried else RESULTS
    write_json(folder / "speedup.json", {"command": command, "machine": environment(), "rows": rows})
    if not given.tried:
        before, _, rest = DOCS.read_text(encoding="utf-8").partition("<!-- speedup -->\n")
        after = rest.partition("<!-- end -->")[2]
        DOCS.write_text(f"{before}<!-- speedup -->\n{table_of(rows)}<!-- end -->{after}", encoding="utf-8")
    print(table_of(rows))


if __name__ == "__main__":
    main()
