"""What is said to a command, and what runs have written."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from .good import BASE
from .values import GOOD, NUMBERS, TEXTS, Case, as_json, bent

WORDS = (
    *(
        "nan",
        "inf",
        "-inf",
        "0",
        "-1",
        "1",
        "0.5",
        "1e30",
        "-1e30",
        "1e-30",
        "9" * 20,
        "-" + "9" * 20,
        "9" * 5000,
        "1e400",
    ),
    *(
        "-0",
        "1_000",
        "\u0663",
        "0x10",
        "",
        "text",
        "true",
        "null",
        "[1]",
        "{a: 1}",
        "1e3",
        "100%",
        "-5%",
        "1G",
        "0M",
        "nanM",
    ),
    *("\x1b[2J", "\ud800", "a\nb", "[[[[", "!!python/object/apply:os.system [touch CANARY]", "&a [*a]", "a" * 10_000),
)
STARTS_PROCESSES = ("devices", "nodes", "workers")
NOT_VALUES = ("help", "version", "config", "print_config", "push_to_hub")
_OPTIONS: dict[str, list[str]] = {}


def options(command: str) -> list[str]:
    """All of a command's, as it declares them."""
    from skill_speech.cli import command_parser

    if command not in _OPTIONS:
        actions = [action for action in command_parser(command)._actions if action.option_strings]
        names = [
            action.option_strings[0].removeprefix("--")
            for action in actions
            if action.option_strings[0].startswith("--")
        ]
        _OPTIONS[command] = sorted(name for name in names if name not in NOT_VALUES and not name.endswith("help"))
    return _OPTIONS[command]


def option_values(good: Path, rng: random.Random) -> Case:
    """One or two of a command's options have values that make no sense, or hardly."""
    command = rng.choice(("compress", "compress", "compress", "analyze", "evaluate", "evaluate", *BASE))
    said = []
    for name in rng.sample(options(command), min(len(options(command)), rng.choice((1, 1, 1, 2)))):
        words = (
            WORDS
            if name not in STARTS_PROCESSES
            else [word for word in WORDS if word not in ("1", "\u0663", "1e3", "1_000", "true")]
        )
        said.append(f"--{name}={rng.choice(words)}")
    source, *rest = BASE[command]
    if not source.startswith("--") and rng.random() < 0.2:
        source = rng.choice(WORDS)
    copies = ("run",) if command == "report" else ()
    return Case("option", (command, source, *rest, *said), copies=copies, stoppable=True)


def settings(good: Path, rng: random.Random) -> Case:
    """A file of settings with something wrong."""
    import yaml

    command = rng.choice(("compress", "compress", "analyze", "evaluate"))
    tree: Any = {
        "clusters": 2,
        "seed": 0,
        "analysis": {"calibration_seconds": 5, "batch_seconds": 5, "batch_frames": 64},
    }
    if command == "compress":
        stage = {"steps": 1, "warmup_steps": 1, "batch_seconds": 5, "learning_rate": 1e-4, "clip_norm": 10.0}
        tree |= {"stage1": stage, "stage2": dict(stage), "loss": {"l1": 1.0, "cosine": 1.0}, "method": "skill"}
        tree |= {"pruned_units": ["channels", "heads"], "data": [{"path": str(good / "speech"), "weight": 1.0}]}
    elif command == "evaluate":
        tree = {
            "learning_rates": [1e-3],
            "seed": 0,
            "settings": {"ks": {"learning_rate": 1e-3, "batch_size": 4, "eval_every": 1}},
        }
    text = yaml.dump(bent(tree, rng), allow_unicode=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    if rng.random() < 0.15:
        laughs = "\n".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]" for n in range(rng.choice((3, 12))))
        odd = (
            "!!python/object/apply:os.system ['touch CANARY']",
            "? [a]\n: b",
            "- 1\n- 2",
            "a: &a [*a]",
            f"a0: &a0 x\n{laughs}",
            "[" * 5000,
        )
        text = rng.choice(odd).encode()
    words = [word for word in BASE[command] if not word.startswith(("--stage", "--clusters", "--analysis"))]
    words = [word for word in words if word not in ("2", "5", "64")]
    if command == "compress" and rng.random() < 0.5:
        place = words.index("--data")
        words = words[:place] + words[place + 2 :]
    return Case("settings", (command, "--config", "x.yaml", *words), {"x.yaml": text}, stoppable=True)


def runs(good: Path, rng: random.Random) -> Case:
    """A file of a run that says what no run has written; then a report, an export, the same run again."""
    import yaml

    names = [
        path.relative_to(good).as_posix()
        for path in sorted((good / "run").rglob("*"))
        if path.suffix in (".json", ".yaml", ".csv")
    ]
    name = rng.choice(names)
    content = (good / name).read_bytes()
    if name.endswith(".json"):
        content = as_json(bent(json.loads(content), rng), rng)
    elif name.endswith(".yaml"):
        content = yaml.dump(bent(yaml.safe_load(content), rng)).encode("utf-8", "surrogatepass")
    else:
        rows = [line.split(",") for line in content.decode().splitlines()]
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(TEXTS + [repr(number) for number in NUMBERS[:10]])
        content = "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogatepass")
    again = [word if word != "out" else "run" for word in BASE["compress"]]
    evaluation = (
        "evaluate",
        "run/model",
        "--data",
        f"{GOOD}/corpora",
        "--output",
        "run/evaluation",
        "--tasks",
        "ks",
        "--steps",
        "1",
    )
    commands = (
        *(2 * [("report", "run")]),
        ("compress", *again),
        ("export", "run/model", "--output", "out", "--format", "transformers"),
        ("report", "run", "other", "--output", "page.html"),
        evaluation,
    )
    command = evaluation if "evaluation" in name and rng.random() < 0.5 else rng.choice(commands)
    # What is finished is not looked into again.
    unfinished = command[0] == "compress" and rng.random() < 0.7 and name != "run/result.json"
    files: dict[str, bytes | None] = {name: content} | ({"run/result.json": None} if unfinished else {})
    return Case("run", command, files, ("run", "other"), stoppable=True)
