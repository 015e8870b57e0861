"""The command line: each subcommand is the public function of the same name."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from typing import Any, NoReturn, get_type_hints

import yaml
from jsonargparse import ActionYesNo, ArgumentParser, Namespace, get_loader, set_loader
from rich.console import Console

from .errors import InputError, printable
from .help_pages import COMMANDS, COMPLETION, SHELLS, nearest, overview, page, plain_parser, settings
from .run.progress import log_to_terminal, print_error, terminal
from .run.signals import Stopped
from .yaml_values import refuse_repetition


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0; 2 for a user's mistake; 130 when interrupted; when told to stop, 143 by SIGTERM and 138 by
        SIGUSR1.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        words = [_with_underscores(word) for word in given]
        command = _asked(words)
        if not words or {"-h", "--help"} & {*words}:
            return _show_help(command)
        if command == "completion":
            return _show_completion(words)
        return _run(words, command)
    except InputError as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt:
        terminal().print("\nstopped: rerun the same command to resume")
        return 130
    except Stopped as stop:
        terminal().print(f"\nstopped by {stop}: rerun the same command to resume")
        return 128 + stop.signum


def _asked(words: Sequence[str]) -> str:
    """The command, if there is one of that name.

    Raises:
        InputError: there is none.
    """
    name = next((word for word in words if not word.startswith("-")), "")
    if name and name not in (*COMMANDS, "completion"):
        known = ", ".join((*COMMANDS, "completion"))
        raise InputError(f"unknown command {name}{nearest(name, COMMANDS)}; choose from {known}")
    return name


def _show_help(command: str) -> int:
    width = min(100, shutil.get_terminal_size().columns)
    try:
        own = COMPLETION if command == "completion" else overview(width)
        print(page(command, width) if command in COMMANDS else own, flush=True)
    except BrokenPipeError:  # `… --help | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _show_completion(words: Sequence[str]) -> int:
    """A script that completes commands and settings, for a shell to read."""
    shell = next((word for word in words if word in SHELLS), None)
    if shell is None:
        raise InputError(f"name a shell: skill-speech completion {'|'.join(SHELLS)}")
    try:
        import shtab
    except ImportError:
        raise InputError("completion needs shtab: pip install shtab") from None
    print(shtab.complete(plain_parser(shtab.FILE), shell))
    return 0


def _run(arguments: Sequence[str], asked: str) -> int:
    from . import __version__

    parser = _Parser(prog="skill-speech", version=__version__)
    commands = parser.add_subcommands(metavar="COMMAND")
    parser.asked = asked
    for name, help_text in COMMANDS.items():  # only the command that is asked for is imported
        commands.add_subcommand(name, command_parser(name) if name == asked else _Parser(), help=help_text)
    name, values = _values(parser, arguments)
    log_to_terminal()
    function, show = _command(name)
    return show(function(**values))


def _values(parser: _Parser, arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The subcommand, and the arguments of its function."""
    try:
        parsed = parser.parse_args(list(arguments))
    except RecursionError:
        parser.error("the settings are nested too deeply, or contain themselves")
    except OverflowError:  # of a whole number where a fraction is wanted
        parser.error("a number in the settings is too large")
    name = parsed.subcommand
    for key, kind in get_type_hints(_command(name)[0]).items():
        if key != "return" and is_dataclass(kind) and not isinstance(parsed[name][key], Namespace):
            parser.error(f"{key} is {parsed[name][key]}; it must be a mapping of settings")
    # jsonargparse 4.49 has a new name for it and warns of the old one.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    values = instantiate(parsed)[name].as_dict()
    values.pop("config", None)
    return name, values


def _with_underscores(word: str) -> str:
    """`--cache-gb=50` as `--cache_gb=50`: options are the functions' arguments, typed either way."""
    try:
        os.fsencode(word)  # which takes what a terminal can give, of any encoding
    except UnicodeEncodeError:
        raise InputError(f"{word[:60]}: contains an invalid character") from None
    option, equals, value = word.partition("=")
    return option[:2] + option[2:].replace("-", "_") + equals + value if word.startswith("--") else word


SETTINGS = "settings"
"""What the parser calls the way in which it reads values and files of settings."""


def _load(text: str) -> Any:
    refuse_repetition(text)
    return get_loader("yaml")(text)


# PyYAML raises the latter, too, of a whole number with thousands of digits or a day that no month has.
set_loader(SETTINGS, _load, (yaml.YAMLError, ValueError))


class _Parser(ArgumentParser):
    """A parser whose errors are ours: one line that names the setting, what it is, and what it can be."""

    asked = ""  # the subcommand, where this is the parser of the whole command line

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "parser_mode": SETTINGS} | options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise InputError."""
        said, command = _in_one_line(message), self._command().strip()
        if command:
            said = _named_as_written(said, command)
        raise InputError(f"{said}; see skill-speech {self._command()}--help")

    def _command(self) -> str:
        name = self.prog.rpartition("] ")[2] if "] " in self.prog else self.asked
        return f"{name} " if name in COMMANDS else ""


def _named_as_written(message: str, command: str) -> str:
    """A message with a command's arguments as its help names them, and with the setting that was probably meant."""
    positional = [one["name"] for one in settings()[command] if one.get("positional")]
    options = [f"--{one['name']}" for one in settings()[command] if not one.get("positional")]
    unknown = re.match(r"unrecognized arguments: --([\w.]+)", message)
    if unknown and unknown[1] in positional:
        return f"--{unknown[1]} is not a setting: give {unknown[1].upper()} without it"
    if unknown:
        return f"unknown setting --{unknown[1]}{nearest(f'--{unknown[1]}', options)}"
    return re.sub(rf"--({'|'.join(positional)})\b", lambda found: found[1].upper(), message) if positional else message


def _in_one_line(message: str) -> str:
    """What jsonargparse says over several lines in types of Python."""
    message = re.sub(r'^Parser key "([^"]+)":\s*', r"\1: ", message.strip().rstrip("."))
    message = re.sub(rf"\b(?:{'|'.join(COMMANDS)})\.(\w+)", r"--\1", message)
    wanted = re.findall(r"Expected an? (?:<class '(?:\w+\.)*(\w+)'>|typing\.Literal\[(.+?)\])", message)
    given = re.search(r"(?:Got|Given) value: (.*)", message)
    if wanted and given:
        names = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
        kinds = [names.get(kind, kind) if kind else literal.replace("'", "") for kind, literal in wanted]
        key, value = message.partition(":")[0], given[1].strip()
        said = f"{key} is {value}; it must be {' or '.join(kind for kind in kinds if kind != 'NoneType')}"
        percent = re.fullmatch(r"(\d+(?:\.\d+)?) ?%", value)
        return f"{said} ({value} is {float(percent[1]) / 100:g})" if percent else said
    return " ".join(message.split())


def command_parser(name: str) -> Any:
    """What reads the arguments of a command; it imports the command's function."""
    function, _ = _command(name)
    parser = _Parser(description=COMMANDS[name])
    if name in ("analyze", "compress", "evaluate"):
        parser.add_argument(
            "--config", action="config", help="YAML file with any of these settings; options override it."
        )
    if name == "evaluate":
        parser.add_argument("models", type=str, nargs="+", help=_help_of(function, "models"))
        parser.add_argument(
            "--own_head",
            action=ActionYesNo(no_prefix="no_"),
            default=False,
            help="Score the model's own head on any data with text or labels, instead of training new ones.",
        )
        help_of_cache = _help_of(function, "cache")
        parser.add_argument("--cache", action=ActionYesNo(no_prefix="no_"), default=True, help=help_of_cache)
        parser.add_function_arguments(function, as_group=False, skip={"models", "own_head", "cache"})
        return parser
    if name == "report":
        parser.add_argument("runs", type=str, nargs="+", help=_help_of(function, "runs"))
        parser.add_function_arguments(function, as_group=False, skip={"runs"})
        return parser
    if name == "prepare":
        parser.add_argument("source", type=str, nargs="+", help=_help_of(function, "source"))
        help_of_shards = _help_of(function, "shards")
        parser.add_argument("--shards", action=ActionYesNo(no_prefix="no_"), default=False, help=help_of_shards)
        parser.add_function_arguments(function, as_group=False, skip={"source", "shards"})
        return parser
    if name == "profile":
        parser.add_argument("model", type=str, help=_help_of(function, "model"))
        help_of_runtimes = _help_of(function, "runtimes")
        parser.add_argument("--runtimes", action=ActionYesNo(no_prefix="no_"), default=False, help=help_of_runtimes)
        parser.add_function_arguments(function, as_group=False, skip={"model", "runtimes"})
        return parser
    positional = {"import": "source", "export": "model"}.get(name)
    if positional:
        parser.add_argument(positional, type=str, help=_help_of(function, positional))
    # on_step is for programs.
    parser.add_function_arguments(function, as_group=False, skip={positional} if positional else {"on_step"})
    return parser


def _help_of(function: Callable[..., Any], name: str) -> str | None:
    """What the docstring says of an argument."""
    reader = _Parser()
    reader.add_function_arguments(function, as_group=False, skip={"on_step"})
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


def _print(line: str) -> None:
    """A line with names in it on stdout, as long as it is; a name cannot make anything else of it."""
    Console().print(printable(line), markup=False, highlight=False, emoji=False, soft_wrap=True)


def _show_cuts(cuts: Any) -> int:
    return 0  # the log has said how many there are; going through them again takes minutes for a large corpus


def _show_import(result: Any) -> int:
    from .tables import import_table

    Console().print(import_table(result))
    _print(f"{'encoder' if result.head is None else 'model'}: {result.folder}")
    return 0


def _show_clusters(clusters: Any) -> int:
    for number, group in enumerate(clusters.groups, start=1):
        print(f"cluster {number}: {', '.join(f'h_{layer}' for layer in group)}")
    return 0


def _show_profiles(profiles: Sequence[Any]) -> int:
    from .tables import profile_table, runtime_table

    Console().print(profile_table(profiles))
    for one in profiles:
        if one.runtimes:
            Console().print(runtime_table(one))
    return 0


def _show_export(export: Any) -> int:
    from .tables import measurement_table

    if export.measurements:
        Console().print(measurement_table(export.measurements))
    where = f"{export.folder}" if export.address is None else f"{export.folder}, {export.address}"
    size = f"{export.size / 1e6:.1f} MB; README.md says how to load it"
    _print(f"{export.format}: {where} ({size})")
    return 0


def _show_evaluation(evaluation: Any) -> int:
    from .tables import evaluation_table

    Console().print(evaluation_table(evaluation.table))
    for path in evaluation.files:
        _print(f"{path}")
    for run in dict.fromkeys(path.parent.parent for path in evaluation.files if path.parent.name == "evaluation"):
        if (run / "report.html").exists():
            _print(f"skill-speech report {shlex.quote(str(run))} adds these scores to the report of the run")
    return 0


def _show_report(path: Any) -> int:
    _print(f"{path}")
    return 0


def _show_result(result: Any) -> int:
    from .tables import result_table

    Console().print(result_table(result))
    _print(f"student: {result.folder / 'model'}")
    if (result.folder / "report.html").exists():
        _print(f"report: {result.folder / 'report.html'} (what was kept, and what to do next)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
