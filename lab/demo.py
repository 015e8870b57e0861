"""What `make demo` runs: synthetic speech, the bundled teacher, its student, and what came of it.

python -m lab.demo --output demo
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from rich.console import Console

from lab.corpora import make_corpora
from lab.speech import make_speech
from skill_speech.cli import main as skill_speech

HERE = Path(__file__).parents[1]
TEACHER = HERE / "lab" / "teachers" / "hubert-mini"
RECIPE = HERE / "recipes" / "hubert-mini.yaml"
HEADS = HERE / "lab" / "demo.yaml"
TASKS = ("pr", "ks", "sid")  # what is said, sound by sound and as a whole, and who says it
NEXT = """
Everything in one page: {run}/report.html
Which layers are alike, and how they were grouped: {run}/analysis/similarity.png and dendrogram.png

  from skill_speech import load_encoder
  encoder = load_encoder("{run}/model")
  out = encoder(waveforms_BT)   # 16 kHz; out.hidden_states, out.last_hidden_state_BTD

The same with a teacher and speech of your own, on a machine with a GPU:

  skill-speech compress --config recipes/wavlm-base-plus.yaml --data FOLDER_OF_AUDIO --output runs/mine

This teacher and this speech are synthetic: the figures show that the machinery works, not how good a method is.
"""


def run(console: Console, title: str, *command: str | Path) -> None:
    """Show a command as one would type it, run it in this process, and leave the demo with its status if it fails."""
    words = [str(word) for word in command]
    console.print(f"\n[bold]{title}[/bold]")
    console.print(f"$ skill-speech {shlex.join(words)}", style="cyan", markup=False, highlight=False, soft_wrap=True)
    if status := skill_speech(words):
        sys.exit(status)


def demo(
    output: Path,
    *,
    hours: float = 0.5,
    seed: int = 0,
    options: list[str] | None = None,
    size: str = "small",
    heads: Path = HEADS,
) -> None:
    """Make speech, compress the bundled teacher, evaluate both, show the result; what is there is not made again.

    Args:
        output: a folder.
        hours: of speech.
        seed: of the speech.
        options: more options for `skill-speech compress`.
        size: of the corpora that teacher and student are evaluated on.
        heads: the settings of that, a YAML file.
    """
    console = Console()
    started = time.monotonic()
    speech, cuts, finished, corpora = output / "speech", output / "cuts.jsonl.gz", output / "run", output / "corpora"
    if not cuts.exists():
        console.print(f"[bold]1. Speech[/bold]: {hours * 60:.0f} minutes of random sentences, spoken by espeak-ng")
        make_speech(speech, hours=hours, seed=seed, subsets=("train-clean-100",))
        run(console, "2. A manifest of it", "prepare", speech, "--output", cuts)
    run(
        console,
        "3. Which layers are alike, and a student of a quarter of the size and a third of the work",
        *("compress", "--config", RECIPE, "--teacher", TEACHER, "--data", cuts, "--output", finished),
        *(options or []),
    )
    run(console, "4. What it costs", "profile", finished / "model", "--compare", TEACHER)
    console.print("\n[bold]5. Synthetic corpora of three tasks[/bold]")
    make_corpora(corpora, size=size, seed=seed, tasks=TASKS, jobs=2)
    run(
        console,
        "6. What it is good for: heads on frozen features, beside the teacher's and log-mel filterbanks'",
        *("evaluate", f"teacher={TEACHER}", f"student={finished / 'model'}", "fbank", "--tasks", ",".join(TASKS)),
        *("--data", corpora, "--config", heads, "--output", finished / "evaluation"),
    )
    run(console, "7. The report, now with scores", "report", finished)
    console.print(NEXT.format(run=finished), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{(time.monotonic() - started) / 60:.1f} minutes in all")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compress the bundled teacher on synthetic speech.")
    parser.add_argument("--output", type=Path, default=Path("demo"))
    demo(parser.parse_args().output)


if __name__ == "__main__":
    main()
