"""The command line: each subcommand is the public function of the same name."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jsonargparse import ActionYesNo, ArgumentParser
from rich.console import Console

from .errors import InputError
from .progress import log_to_terminal
from .stopping import Stopped

EXAMPLES = {
    "prepare": "make a manifest of a folder of audio, a LibriSpeech folder, a tsv or another manifest",
    "analyze": "measure how similar a teacher's layers are, and group them",
    "compress": "make a small encoder of a large one; the same command goes on where it stopped",
    "import": "make a folder that every command takes out of a file of DPHuBERT, fairseq, TorchAudio and others",
    "export": "write a model for Transformers, ONNX, torch.export, TorchAudio or s3prl",
    "evaluate": "train and score heads on frozen models: SUPERB's ten tasks",
    "report": "one self-contained page about a finished run, or about several side by side",
    "profile": "parameters, MACs, speed and memory of a model",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 2 for a user's mistake; 130 when interrupted; when told to stop, 143 by SIGTERM and 138 by
        SIGUSR1.
    """
    arguments = [_with_underscores(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        return _run(arguments)
    except InputError as error:
        Console(stderr=True, soft_wrap=True).print(
            f"skill-speech: {error}", style="bold red", markup=False, highlight=False
        )
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("\nstopped; the same command goes on from the last checkpoint")
        return 130
    except Stopped as stop:
        Console(stderr=True).print(f"\nstopped by {stop}; the same command goes on from here")
        return 128 + stop.signum


def _run(arguments: Sequence[str]) -> int:
    from . import __version__

    parser = _Parser(
        prog="skill-speech", description="Make self-supervised speech encoders small.", version=__version__
    )
    commands = parser.add_subcommands(metavar="COMMAND")
    # Only the command that is asked for is imported: --help should not wait for torch.
    asked = parser.asked = next((word for word in arguments if not word.startswith("-")), "")
    for name, help_text in EXAMPLES.items():
        commands.add_subcommand(name, _parser(name) if name == asked else _Parser(), help=help_text)
    parsed = parser.parse_args(list(arguments))
    name = parsed.subcommand
    # jsonargparse 4.49 has a new name for it and warns of the old one.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    values = instantiate(parsed)[name].as_dict()
    values.pop("config", None)
    log_to_terminal()
    function, show = _command(name)
    return show(function(**values))


def _with_underscores(word: str) -> str:
    """`--cache-gb=50` as `--cache_gb=50`: options are the functions' arguments, typed either way."""
    option, equals, value = word.partition("=")
    return option[:2] + option[2:].replace("-", "_") + equals + value if word.startswith("--") else word


class _Parser(ArgumentParser):
    """A parser whose errors are ours: one line that names the setting, what it is, and what it can be."""

    asked = ""  # the subcommand, where this is the parser of the whole command line

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise InputError."""
        raise InputError(f"{_in_one_line(message)}; see skill-speech {self._command()}--help")

    def _command(self) -> str:
        name = self.prog.rpartition("] ")[2] if "] " in self.prog else self.asked
        return f"{name} " if name in EXAMPLES else ""


def _in_one_line(message: str) -> str:
    """What jsonargparse says over several lines in types of Python."""
    message = re.sub(r'^Parser key "([^"]+)":\s*', r"\1: ", message.strip().rstrip("."))
    message = re.sub(rf"\b(?:{'|'.join(EXAMPLES)})\.(\w+)", r"--\1", message)
    wanted = re.findall(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.+?)\])", message)
    given = re.search(r"(?:Got|Given) value: (.*)", message)
    if wanted and given:
        names = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
        kinds = [names.get(kind, kind) if kind else literal.replace("'", "") for kind, literal in wanted]
        key = message.partition(":")[0]
        return f"{key} is {given[1].strip()}; it must be {' or '.join(kind for kind in kinds if kind != 'NoneType')}"
    return " ".join(message.split())


def _parser(name: str) -> Any:
    function, _ = _command(name)
    parser = _Parser(description=EXAMPLES[name])
    if name in ("analyze", "compress", "evaluate"):
        parser.add_argument("--config", action="config", help="YAML file with any of the settings below")
    if name == "evaluate":
        parser.add_argument("models", type=str, nargs="+", help="[NAME=]SOURCE, or fbank for log-mel filterbanks")
        parser.add_argument("--cache", action=ActionYesNo(no_prefix="no_"), default=True, help="keep hidden states")
        parser.add_function_arguments(function, as_group=False, skip={"models", "cache"})
        return parser
    if name == "report":
        parser.add_argument("runs", type=str, nargs="+", help="folders of finished runs")
        parser.add_function_arguments(function, as_group=False, skip={"runs"})
        return parser
    if name == "prepare":
        parser.add_argument("source", type=str, help="see the first line")
        parser.add_argument("--shards", action=ActionYesNo(no_prefix="no_"), default=False, help="copy the audio too")
        parser.add_function_arguments(function, as_group=False, skip={"source", "shards"})
        return parser
    positional = {"import": "source", "profile": "model", "export": "model"}.get(name)
    if positional:
        parser.add_argument(positional, type=str, help=_help_of(function, positional))
    parser.add_function_arguments(function, as_group=False, skip={positional} if positional else None)
    return parser


def _help_of(function: Callable[..., Any], name: str) -> str | None:
    """What the docstring says of an argument."""
    reader = _Parser()
    reader.add_function_arguments(function, as_group=False)
    return next((action.help for action in reader._actions if action.dest == name), None)


def _command(name: str) -> tuple[Callable[..., Any], Callable[[Any], int]]:
    if name == "prepare":
        from .data import prepare

        return prepare, _show_cuts
    if name == "import":
        from .checkpoints import import_encoder

        return import_encoder, _show_import
    if name == "profile":
        from .profiling import profile

        return profile, _show_profiles
    if name == "export":
        from .exporting import export

        return export, _show_export
    if name == "evaluate":
        from .evaluation import evaluate

        return evaluate, _show_evaluation
    if name == "report":
        from .reporting import report

        return report, _show_report
    from .compression import analyze, compress

    return (analyze, _show_clusters) if name == "analyze" else (compress, _show_result)


def _show_cuts(cuts: Any) -> int:
    return 0  # the log has said how many there are; going through them again takes minutes for a large corpus


def _show_import(result: Any) -> int:
    from .reporting.tables import import_table

    console = Console()
    console.print(import_table(result))
    console.print(f"encoder: {result.folder}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _show_clusters(clusters: Any) -> int:
    for number, group in enumerate(clusters.groups, start=1):
        print(f"cluster {number}: {', '.join(f'h_{layer}' for layer in group)}")
    return 0


def _show_profiles(profiles: Sequence[Any]) -> int:
    from .reporting.tables import profile_table

    Console().print(profile_table(profiles))
    return 0


def _show_export(export: Any) -> int:
    from .reporting.tables import measurement_table

    console = Console()
    if export.measurements:
        console.print(measurement_table(export.measurements))
    where = f"{export.folder}" if export.address is None else f"{export.folder}, {export.address}"
    size = f"{export.size / 1e6:.1f} MB; README.md says how to load it"
    console.print(f"{export.format}: {where} ({size})", markup=False, highlight=False, soft_wrap=True)
    return 0


def _show_evaluation(evaluation: Any) -> int:
    from .reporting.tables import evaluation_table

    console = Console()
    console.print(evaluation_table(evaluation.table))
    console.print(f"{evaluation.folder / 'table.md'}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _show_report(path: Any) -> int:
    print(path)
    return 0


def _show_result(result: Any) -> int:
    from .reporting.tables import result_table

    console = Console()
    if result.already_done:
        console.print(f"{result.folder} is finished; nothing was done", markup=False)
    console.print(result_table(result))
    console.print(f"student: {result.folder / 'model'}", markup=False, highlight=False, soft_wrap=True)
    if (result.folder / "report.html").exists():
        console.print(f"report: {result.folder / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
