"""What `skill-speech COMMAND --help` prints: settings in groups, the ones that everybody needs first, with examples.

Printing a page must not wait for torch, as reading a command's function does: the pages are kept in help.json, which
`python -m lab.help_pages` writes from the functions, and a test holds that it is up to date.
"""

from __future__ import annotations

import argparse
import difflib
import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

COMMANDS = {
    "prepare": "check audio in any form (folders, tables, Kaldi, tar files …) and write a manifest or shards",
    "analyze": "measure how similar a teacher's layers are, and group them",
    "compress": "compress an encoder by pruning and distillation; rerun the same command to resume",
    "import": "convert a checkpoint of DPHuBERT, fairseq, TorchAudio and others to a folder that every command accepts",
    "export": "write a model for Transformers, ONNX, torch.export, TorchAudio or s3prl",
    "evaluate": "train and score heads on frozen models (SUPERB's ten tasks), or score a model's own head",
    "report": "write a self-contained HTML report on a finished run, or on several side by side",
    "profile": "measure parameters, MACs, speed and memory of a model",
}
"""Command → what it does, in the order in which they are listed."""


SHELLS = ("bash", "zsh", "tcsh")
COMPLETION = """\
Print a script for tab completion of commands, settings and their choices.

usage: skill-speech completion bash|zsh|tcsh

examples:
  eval "$(skill-speech completion bash)"                    # in ~/.bashrc
  skill-speech completion zsh > ~/.zfunc/_skill-speech      # with ~/.zfunc in fpath
  skill-speech completion tcsh > ~/.skill-speech.tcsh       # and `source` it in ~/.tcshrc

It needs shtab: pip install shtab"""
"""What `skill-speech completion --help` prints."""


class Page(NamedTuple):
    """What a command's page says besides its settings.

    Attributes:
        examples: command lines.
        document: in docs/, to read more.
        first: settings that everybody needs.
        groups: title → settings, in that order; those that are in none come last.
    """

    examples: tuple[str, ...]
    document: str
    first: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]] = MappingProxyType({})


DATA = ("max_bad", "absolute_paths", "workers", "min_seconds", "validation_data", "validation_seconds", "noise")
PAGES = {
    "prepare": Page(
        (
            "skill-speech prepare FOLDER --output cuts.jsonl.gz",
            "skill-speech prepare table.csv --column clip --output cuts.jsonl.gz",
            "skill-speech prepare FOLDER --output SHARDS --shards",
        ),
        "data.md",
        ("source", "output", "column"),
    ),
    "analyze": Page(
        ("skill-speech analyze --teacher microsoft/wavlm-base-plus --data FOLDER --output runs/look",),
        "method.md",
        ("teacher", "data", "output", "clusters"),
    ),
    "compress": Page(
        (
            "skill-speech compress --teacher microsoft/wavlm-base-plus --data FOLDER --output runs/wavlm",
            "skill-speech compress --teacher ./checkpoint --data FOLDER --output runs/mine --params 0.25 --minutes 60",
            "skill-speech compress --config recipes/wavlm-base-plus.yaml --data FOLDER --output runs/published",
        ),
        "compressing.md",
        ("teacher", "data", "output", "sparsity", "params", "clusters", "minutes"),
        {
            "Other budgets": ("macs", "speedup", "latency", "times", "round_to", "missed_budget", "pruned_units"),
            "Method": (
                *("method", "targets", "distance", "input", "keep_layers", "share_projections", "scale_layers"),
                *("input_normalization", "target_lang", "revision"),
            ),
            "Pruning": ("control", "importance"),
            "Data": DATA,
            "Quantization": ("quantization",),
            "Hardware": ("precision", "devices", "nodes", "strategy"),
            "Checkpoints": (
                *("checkpoint_every", "checkpoint_minutes", "keep_checkpoints", "milestone_every", "validate_every"),
                *("start_from", "accept_changed_data", "seed", "config", "print_config"),
            ),
        },
    ),
    "import": Page(
        ("skill-speech import dphubert.pth --output models/dphubert",), "importing.md", ("source", "output")
    ),
    "export": Page(
        (
            "skill-speech export runs/wavlm/model --format transformers --output exported",
            "skill-speech export runs/wavlm/model --format onnx --quantize int8 --output onnx",
        ),
        "export.md",
        ("model", "format", "output"),
        {"Model card": ("scores", "language", "datasets", "license", "base_model")},
    ),
    "evaluate": Page(
        (
            "skill-speech evaluate teacher=microsoft/wavlm-base-plus runs/wavlm/model --data CORPORA --output scores",
            "skill-speech evaluate runs/asr/model --own_head --data MANIFEST_WITH_TEXT",
        ),
        "superb.md",
        ("models", "data", "output", "tasks", "own_head"),
    ),
    "report": Page(
        ("skill-speech report runs/wavlm", "skill-speech report runs/skill runs/dphubert"), "report.md", ("runs",)
    ),
    "profile": Page(
        ("skill-speech profile runs/wavlm/model --compare microsoft/wavlm-base-plus",),
        "performance-inference.md",
        ("model", "compare"),
    ),
}
NESTED = {
    "analysis": "Analysis",
    "stage1": "Stage 1: pruning and distillation",
    "stage2": "Stage 2: distillation",
    "loss": "Loss",
    "augmentation": "Augmentation of the student's input",
    "units": "Teacher units",
    "head": "Head of a fine-tuned model",
}
"""Group of settings → title; their names are --GROUP.NAME."""


@cache
def settings() -> dict[str, list[dict[str, Any]]]:
    """Command → its settings, as help.json has them: name, value, help, default, required, positional."""
    found: dict[str, list[dict[str, Any]]] = json.loads(
        Path(__file__).with_name("help.json").read_text(encoding="utf-8")
    )
    return found


def overview(width: int = 80) -> str:
    """What `skill-speech --help` prints."""
    lines = ["Compress self-supervised speech encoders.", "", "usage: skill-speech COMMAND …", "", "commands:"]
    for name, words in COMMANDS.items():
        lines += _entry(name, words, width, indent=14)
    lines += _entry("completion", "print a script for tab completion in bash, zsh or tcsh", width, indent=14)
    lines += ["", "  -h, --help    show this help, or that of a command", "  --version     show the version", ""]
    lines += ["Start with:", "  skill-speech compress --teacher MODEL --data AUDIO --output RUN"]
    return "\n".join(lines)


def page(command: str, width: int = 80) -> str:
    """What `skill-speech COMMAND --help` prints, so many columns wide."""
    about, known = PAGES[command], {one["name"]: one for one in settings()[command]}
    lines = [*textwrap.wrap(f"{COMMANDS[command][:1].upper()}{COMMANDS[command][1:]}.", width), ""]
    usage = " ".join(_usage(one) for one in known.values() if one.get("required") or one.get("positional"))
    usage = f"usage: skill-speech {command} {usage} [settings]"
    lines += [*textwrap.wrap(usage, width, subsequent_indent="       ", break_on_hyphens=False), "", "examples:"]
    lines += [f"  {example}" for example in about.examples]
    left = dict(known)
    groups = {"Essential": about.first, **about.groups}
    for title, names in groups.items():
        lines += _group(title, [left.pop(name) for name in names if name in left], width)
    plain = [name for name in left if "." not in name]
    lines += _group("More", [left.pop(name) for name in plain], width)
    for prefix, title in NESTED.items():
        members = [left.pop(name) for name in list(left) if name.startswith(f"{prefix}.")]
        if prefix == "stage2" and members:
            members, others = _unlike(members, known)
            title += f"; see --stage1.* for {', '.join(others)}" if others else ""
        lines += _group(title, members, width)
    if "config" in known:
        words = "Settings may be spelled with - or _. --config FILE reads any of them from YAML."
        lines += ["", *textwrap.wrap(words, width)]
    return "\n".join([*lines, "", f"Read more: {_address(about.document)}"])


def _address(document: str) -> str:
    """Where a page of docs/ is: on the web, by the metadata of the installed package, or in the checkout."""
    try:
        urls = metadata("skill-speech").get_all("Project-URL") or []
    except PackageNotFoundError:
        urls = []
    pages = next((url.partition(", ")[2] for url in urls if url.startswith("Documentation, ")), "docs")
    return f"{pages}/{document}"


def _unlike(members: list[dict[str, Any]], known: dict[str, dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Settings of stage 2 whose defaults are not those of stage 1, and the names of the others."""
    unlike, alike = [], []
    for one in members:
        twin = known.get(one["name"].replace("stage2", "stage1"), {})
        if {**twin, "name": ""} == {**one, "name": ""}:
            alike.append(one["name"].partition(".")[2])
        else:
            unlike.append(one)
    return unlike, alike


def _usage(one: dict[str, Any]) -> str:
    name = one["name"].upper()
    if one.get("positional"):
        return f"{name} [{name} …]" if one.get("several") else name
    return f"--{one['name']} {name}"


def _group(title: str, members: Sequence[dict[str, Any]], width: int) -> list[str]:
    if not members:
        return []
    lines = ["", *textwrap.wrap(f"{title}:", width, subsequent_indent="  ")]
    for one in members:
        head = one["name"].upper() if one.get("positional") else f"--{one['name']} {one['value']}".rstrip()
        words = one["help"].rstrip(".")
        if one.get("required"):
            words += " (required)"
        elif one.get("default") not in (None, ""):
            words += f" (default: {one['default']})"
        lines += _entry(head, words, width)
    return lines


def _entry(head: str, words: str, width: int, indent: int = 28) -> list[str]:
    """A name and, beside it or below, what is said of it."""
    body = textwrap.wrap(words, max(20, width - indent - 2), break_on_hyphens=False) or [""]
    first = f"  {head}"
    if len(first) + 2 > indent:
        return [first, *(" " * indent + line for line in body)]
    return [first.ljust(indent) + body[0], *(" " * indent + line for line in body[1:])]


def nearest(word: str, known: Iterable[str]) -> str:
    """ " (did you mean X?)" where something known is close to what was written, else nothing."""
    close = difflib.get_close_matches(word, list(known), 1, cutoff=0.7)
    return f" (did you mean {close[0]}?)" if close else ""


def plain_parser(paths: Any) -> argparse.ArgumentParser:
    """All commands and their settings, by name and choices: nothing else is needed to complete a command line.

    Args:
        paths: what the generator of completions marks arguments with that may be files or folders.
    """
    parser = argparse.ArgumentParser(prog="skill-speech")
    commands = parser.add_subparsers()
    for command, words in COMMANDS.items():
        own = commands.add_parser(command, help=words)
        for one in settings()[command]:
            choices = one["value"].split("|") if "|" in one["value"] and one["value"].islower() else None
            name = one["name"] if one.get("positional") else f"--{one['name']}"
            action: Any = own.add_argument(name, help=one["help"].replace("%", "%%"), choices=choices)
            if any(kind in one["value"] for kind in ("TEXT", "PATH", "FILE")):
                action.complete = paths
    commands.add_parser("completion", help="print a script for tab completion").add_argument("shell", choices=SHELLS)
    return parser
