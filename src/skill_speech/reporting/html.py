"""The HTML report: one self-contained file about one run, or about several side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from pathlib import Path

from .. import __version__
from ..errors import InputError
from ..files import atomic_write, not_written, refuse_full_disk
from ..limits import check_options
from .evidence import Evidence, read_evidence
from .scores import update_card
from .sections import SECTIONS, write_sections

GENERATOR = '<meta name="generator" content="skill-speech report">'


def report(runs: Sequence[str], output: str | None = None) -> Path:
    """Write report.html: what came of a run, why, and how it was made; of several runs, the same side by side.

    The file needs nothing else: it opens without a network. The same runs give the same file. Scores in RUN/evaluation
    go into the student's model card too.

    Args:
        runs: One or more folders of finished runs.
        output: HTML file to write; by default, report.html in the folder of the run, or in the current folder for
            several runs.

    Returns:
        Where it is.

    Raises:
        InputError: a folder that is no finished run, or an output that is something else or cannot be written.
    """
    check_options(report, dict(locals()))
    folders = [Path(runs)] if isinstance(runs, str) else [Path(run) for run in runs]
    if not folders:
        raise InputError("no run to report on: give the folder that compress wrote")
    path = Path(output) if output is not None else (folders[0] if len(folders) == 1 else Path()) / "report.html"
    _refuse_other_files(path)
    text = write_page([read_evidence(folder) for folder in folders])
    try:
        with atomic_write(path) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names may be half of a character
    except OSError as error:
        raise not_written(path, error) from None
    for folder in folders:
        with refuse_full_disk(folder):
            update_card(folder)
    return path


def write_page(runs: Sequence[Evidence]) -> str:
    """The page as text."""
    runs = _told_apart(runs)
    several = len(runs) > 1
    title = " and ".join(run.name for run in runs) if len(runs) < 3 else f"{len(runs)} runs compared"
    style = files("skill_speech.reporting").joinpath("page.css").read_text(encoding="utf-8")
    links = "".join(f'<li><a href="#{one.name}">{escape(one.title)}</a></li>' for one in SECTIONS)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{GENERATOR}
<title>{escape(title)} · skill-speech</title>
<style>
{style}</style>
</head>
<body>
<div class="page{" several" if several else ""}">
<header>
<h1>{escape(title)}</h1>
{"".join(f"<p>{escape(_subtitle(run, several))}</p>" for run in runs)}
<nav aria-label="Sections"><ul>{links}</ul></nav>
</header>
<main>
{write_sections(runs)}
</main>
<footer>Made by skill-speech {escape(__version__)} from the files of the run{"s" * several}. Point at a
picture to see its numbers, or open the table below it.</footer>
</div>
</body>
</html>
"""


def _refuse_other_files(path: Path) -> None:
    """See that nothing but a report is written over."""
    if path.is_dir():
        raise InputError(f"{path}: a folder; --output is a file")
    if path.exists() and GENERATOR.encode() not in path.read_bytes()[:2000]:
        raise InputError(f"{path}: exists and is not a report; choose another --output")


def _told_apart(runs: Sequence[Evidence]) -> list[Evidence]:
    """Runs whose folders have the same name get as much of the path as makes a difference, or else a number."""
    names = [run.name for run in runs]
    for length in range(2, max((len(run.folder.parts) for run in runs), default=0) + 1):
        names = [
            "/".join(run.folder.parts[-length:]) if names.count(name) > 1 else name
            for run, name in zip(runs, names, strict=True)
        ]
    if len(set(names)) < len(names):  # one folder was given twice
        names = [
            f"{run.name} ({place + 1})" if names.count(name) > 1 else name
            for place, (run, name) in enumerate(zip(runs, names, strict=True))
        ]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _subtitle(run: Evidence, several: bool) -> str:
    made = f"{run.teacher_name}, method {run.settings['method']}, {run.budget}, seed {run.settings.get('seed', 0)}"
    return f"{run.name}: {made}" if several else f"A student of {made}"
