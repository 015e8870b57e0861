"""The command line: the functions of the library, errors in one line, exit status 2."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from lab.help_pages import all_settings
from skill_speech import Encoder
from skill_speech.cli import _show_evaluation, main
from skill_speech.compression import CompressionResult
from skill_speech.encoder import hubert_config
from skill_speech.evaluation.own_head.evaluate import HeadEvaluation
from skill_speech.evaluation.own_head.table import HeadTable
from skill_speech.help_pages import COMMANDS, PAGES, settings
from skill_speech.profiling import Profile
from skill_speech.tables import result_table

STAGES = "--stage1.steps 2 --stage1.warmup_steps 1 --stage1.sparsity_steps 1 --stage1.batch_seconds 5 "
STAGES += "--stage2.steps 2 --stage2.warmup_steps 1 --stage2.batch_seconds 5 --analysis.batch_frames 64"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny teacher and a folder of audio."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    config = hubert_config(hidden_size=32, num_heads=2, units=64, channels=16, depth=3, positional_kernel=8)
    Encoder(config.replace(positional_groups=4)).save_pretrained("teacher")
    Path("audio").mkdir()
    for number in range(8):
        soundfile.write(f"audio/{number}.flac", 0.1 * np.random.default_rng(number).standard_normal(48_000), 16_000)
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], command: str, status: int = 0) -> str:
    assert main(command.split()) == status
    captured = capsys.readouterr()
    return captured.out + captured.err


def complaint(capsys: pytest.CaptureFixture[str], command: str) -> str:
    [line] = said(capsys, command, status=2).strip().splitlines()
    assert line.startswith("skill-speech: ")
    return line


def test_from_audio_to_student_and_profile(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "8 cuts, 24 s" in said(capsys, "prepare audio --output cuts.jsonl.gz")
    assert "cluster 1: h_0" in said(
        capsys,
        "analyze --teacher teacher --data cuts.jsonl.gz --output analysis --clusters auto --analysis.batch_frames 64",
    )
    command = f"compress --teacher teacher --data cuts.jsonl.gz --output run --params 0.5 --clusters 2 {STAGES}"
    text = said(capsys, command)
    for word in ("stage1", "surgery", "stage2", "teacher", "student", "parameters", "MACs", "faster", "run/model"):
        assert word in text
    assert "nothing to do" in said(capsys, command)
    text = said(capsys, "profile run/model --compare teacher --seconds 1")
    for word in ("front end", "attention", "feed-forward", "real-time factor", "peak memory", "MiB"):
        assert word in text


def test_a_recipe_is_a_file_of_the_same_settings(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text("teacher: teacher\nmethod: dphubert\nsparsity: 0.5\nstage1: {steps: 2}\n")
    text = said(capsys, f"compress --config recipe.yaml --data audio --output run {STAGES}")
    assert "run/model" in text
    assert "method: dphubert" in Path("run/config.yaml").read_text()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("frobnicate", ["unknown command frobnicate; choose from prepare, analyze, compress"]),
        ("compres --teacher t", ["unknown command compres (did you mean compress?)"]),
        ("compress", ["--teacher", "--data", "--output", "required", "see skill-speech compress --help"]),
        ("compress --teacher t --data d --output o --method magic", ["method is magic", "dphubert"]),
        ("compress --teacher t --data d --output o --clusters many", ["clusters is many", "a whole number or auto"]),
        ("compress --teacher t --data d --output o --sparsity much", ["sparsity is much", "a number"]),
        (
            "compress --teacher t --data d --output o --stage1.step 3",
            ["unknown setting --stage1.step (did you mean --stage1.steps?); see skill-speech compress --help"],
        ),
        ("compress --teacher t --data d --output o --frobnicate 3", ["unknown setting --frobnicate; see skill-"]),
        ("compress --config nowhere.yaml", ["nowhere.yaml"]),
        ("compress --config unknown.yaml", ["methodd"]),
        ("compress --config broken.yaml", ["line 1"]),
        ("compress --teacher ./nowhere --data audio --output o", ["./nowhere: no such file or folder"]),
        ("compress --teacher teacher --data nowhere --output o", ["nowhere: no such file or folder"]),
        ("compress --teacher teacher --data empty --output o", ["empty: no audio in this folder"]),
        ("compress --teacher teacher --data audio --output o --clusters 9", ["choose 1 to 4"]),
        ("compress --teacher teacher --data audio --output o --sparsity 2", ["sparsity is 2", "between 0 and 1"]),
        ("compress --teacher teacher --data audio --output o --sparsity 75%", ["sparsity is 75%", "(75% is 0.75)"]),
        ("compress --teacher teacher --data audio --output o --params 9G", ["params is '9G'", "has only"]),
        ("export teacher --output o", ["--format", "see skill-speech export --help"]),
        ("export", ["the following arguments are required: MODEL, --output, --format; see"]),
        ("report", ["the following arguments are required: RUNS; see"]),
        (
            "profile teacher --model teacher",
            ["--model is not a setting: give MODEL without it; see skill-speech profile"],
        ),
        ("profile teacher --compar teacher", ["unknown setting --compar (did you mean --compare?); see"]),
        ("completion fish", ["name a shell: skill-speech completion bash|zsh|tcsh"]),
        ("profile nowhere/at/all", ["nowhere/at/all: no such file or folder"]),
        ("profile teacher --seconds 0.001", ["seconds is 0.001"]),
        ("prepare audio --output cuts.txt", [".jsonl"]),
    ],
)
def test_mistakes_are_one_line(here: Path, capsys: pytest.CaptureFixture[str], command: str, words: list[str]) -> None:
    Path("empty").mkdir()
    Path("unknown.yaml").write_text("teacher: t\nmethodd: skill\n")
    Path("broken.yaml").write_text("teacher: [t\n")
    line = complaint(capsys, command)
    for word in words:
        assert word in line
    assert not Path("o").exists()


@pytest.mark.parametrize(
    "command",
    [
        "analyze --teacher teacher --data LONG --output run",
        "analyze --teacher LONG --data audio --output run",
        "compress --teacher teacher --data audio --output LONG",
        "import LONG --output run",
        "import teacher --output run/LONG",
        "export teacher --format torchaudio --output LONG",
        "profile LONG",
        "profile teacher --compare LONG",
        "prepare LONG",
        "prepare audio --output LONG.jsonl",
        "report LONG",
        "report audio --output LONG",
        "evaluate LONG --data audio --output run",
        "evaluate fbank --data LONG --output run",
    ],
)
def test_names_that_no_file_can_have_are_one_line(here: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert "which is not a valid file name" in complaint(capsys, command.replace("LONG", "9" * 300))
    assert not Path("run").exists()


def test_a_whole_number_of_thousands_of_digits_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint(capsys, f"analyze --teacher teacher --data audio --output run --analysis={'9' * 5_000}")
    assert "analysis" in line
    assert len(line) < 2_200


@pytest.mark.parametrize("option", ["--analysis=\ud800", "--config=\ud800", "--revision=\ud800", "\ud800"])
def test_half_a_character_is_one_line(here: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    assert main(["analyze", "--teacher", "teacher", "--data", "audio", "--output", "run", option]) == 2
    assert "invalid character" in capsys.readouterr().err


def test_the_working_folder_is_an_output_like_any_other(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("new").mkdir()
    monkeypatch.chdir("new")
    said(capsys, "export ../teacher --format torchaudio --output .")
    assert Path("../new/README.md").is_file()
    monkeypatch.chdir("../new")  # the folder that was written took the empty one's place
    assert "already exists" in complaint(capsys, "export ../teacher --format torchaudio --output .")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("a: &a [*a]", "contains itself"),
        (
            "a: &a [x]\n" + "\n".join(f"{n}: &{n} [{', '.join([f'*{p}'] * 9)}]" for p, n in pairwise("abcdefghijkl")),
            "expand",
        ),
        ("seed: " + "[" * 2_000 + "]" * 2_000, ""),
        (f"analysis: {{calibration_seconds: 1{'0' * 400}}}", "is too large"),
        *((f"analysis: {value}", "analysis is .* a mapping of settings") for value in ("3", "-.inf", "[1]", "true")),
        ("[" * 90, ""),
        ("analysis: " + "9" * 5_000, "Problems parsing config"),
    ],
)
def test_a_file_of_settings_that_makes_no_sense_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], settings: str, words: str
) -> None:
    Path("x.yaml").write_text(settings)
    line = complaint(capsys, "analyze --config x.yaml --teacher teacher --data audio --output run")
    assert re.search(words, line)
    assert len(line) < 2_200
    assert not Path("run").exists()


def test_names_of_folders_are_shown_and_not_obeyed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "\x1b[2J:smile:[b]"
    assert main(["import", "teacher", "--output", name]) == 0
    assert main(["profile", name, "--seconds", "0.1", "--threads", "1"]) == 0
    assert main(["export", name, "--output", f"{name}2", "--format", "torchaudio"]) == 0
    shown = capsys.readouterr().out
    assert rf"encoder: \x1b[2J:smile:[b]{chr(10)}" in shown
    assert r"torchaudio: \x1b[2J:smile:[b]2 (" in shown
    assert all(line.isprintable() for line in shown.splitlines())


def test_an_utterance_shorter_than_a_frame_is_not_profiled(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads(Path("teacher/config.json").read_text())
    config["convs"][0]["stride"] = 5_000
    Path("teacher/config.json").write_text(json.dumps(config))
    line = complaint(capsys, "profile teacher --seconds 0.5")
    assert "teacher: needs 24.3756 s for one frame, but gets 0.5 s" in line


def test_help_names_every_setting_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        text = " ".join(said(capsys, f"{command} --help").split())
        for one in all_settings()[command]:
            name = one["name"].upper() if one.get("positional") else f"--{one['name']}"
            twin = one["name"].startswith("stage2.") and "see --stage1.* for" in text
            assert name in text or twin, name
        for example in PAGES[command].examples:
            assert example in text
        assert (Path(__file__).parents[1] / "docs" / PAGES[command].document).exists()
        named = {*PAGES[command].first, *chain(*PAGES[command].groups.values())}
        assert named <= {one["name"] for one in all_settings()[command]}, command
    text = " ".join(said(capsys, "compress --help").split())
    for words in (
        "--stage1.sparsity_steps N|X Updates",
        "--stage2.steps N Number of updates (default: 25000)",
        "--macs TEXT|N|X",
    ):
        assert words in text


def test_kept_help_is_what_the_functions_say() -> None:
    assert settings() == all_settings(), "python -m lab.help_pages"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_waits_for_no_large_library(command: str) -> None:
    code = "import sys; from skill_speech.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    arguments = [sys.executable, "-c", code, *([command] if command else []), "--help"]
    assert subprocess.run(arguments, check=False, stdout=subprocess.DEVNULL).returncode == 0


def test_help_may_be_cut_off_by_its_reader() -> None:
    command = f"{sys.executable} -m skill_speech compress --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_help_fits_into_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for columns in (60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = [line for command in COMMANDS for line in said(capsys, f"{command} -h").splitlines()]
        examples = {f"  {example}" for about in PAGES.values() for example in about.examples}
        wide = [line for line in lines if len(line) > min(columns, 100) and line not in examples]
        assert not [line for line in wide if not line.startswith(("usage:", "  --", "Read more: http"))]


def test_nothing_and_help_show_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("", "--help", "-h"):
        text = said(capsys, command)
        assert all(name in text for name in (*COMMANDS, "completion"))
    done = subprocess.run([sys.executable, "-m", "skill_speech"], capture_output=True, text=True, check=False)
    assert done.stdout == text


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("com", ["compress", "completion"]),
        ("completion ", ["bash", "zsh", "tcsh"]),
        ("compress --contr", ["--control"]),
        ("compress --control o", ["one-shot"]),
        ("compress --stage1.sparsity", ["--stage1.sparsity_steps"]),
        ("compress --teacher teach", ["teacher"]),
        ("prepare aud", ["audio"]),
    ],
)
def test_bash_completes_commands_settings_choices_and_files(
    here: Path, capsys: pytest.CaptureFixture[str], words: str, completions: list[str]
) -> None:
    pytest.importorskip("shtab")
    script = said(capsys, "completion bash")
    function = re.findall(r"^complete .*-F (\w+) skill-speech$", script, re.MULTILINE)[0]
    typed = ["skill-speech", *words.split(" ")]
    asks = f"{script}\nCOMP_WORDS=({' '.join(word or repr('') for word in typed)}); COMP_CWORD={len(typed) - 1}\n"
    asks += f'{function} skill-speech "{typed[-1]}" "{typed[-2]}"\necho "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", asks], capture_output=True, text=True, check=False)
    assert done.stdout.split() == completions, done.stderr


def test_completion_says_how_it_is_set_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert 'eval "$(skill-speech completion bash)"' in said(capsys, "completion --help")


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, skill_speech; skill_speech.InputError; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_encoder_needs_torch_and_nothing_else() -> None:
    code = "import sys, skill_speech.encoder as e; " + "; ".join(
        f"assert {name!r} not in sys.modules, {name!r}" for name in ("lightning", "transformers", "lhotse", "scipy")
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("recipe", sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_read(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Up to its teacher, which is none here."""
    nowhere = ["--teacher", "nowhere/at/all", "--data", str(tmp_path), "--output", str(tmp_path / "run")]
    assert main(["compress", "--config", str(recipe), *nowhere]) == 2
    assert "nowhere/at/all: no such file or folder" in capsys.readouterr().err


@pytest.mark.parametrize("reported", [True, False])
def test_scores_of_a_run_lead_to_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], reported: bool) -> None:
    run = tmp_path / "a run"
    run.mkdir()
    if reported:
        (run / "report.html").write_text("")
    table = HeadTable("scores", ("model", "WER"), (("student", "12.3"),), ())
    _show_evaluation(HeadEvaluation(run / "evaluation", table, {}))
    said = capsys.readouterr().out
    assert "12.3" in said
    assert (f"skill-speech report '{run}' adds these scores" in said) == reported


def test_a_result_without_held_out_speech_says_why_it_has_no_loss() -> None:
    profile = Profile("model", {"encoder": 10}, {"encoder": 1e3}, 10.0, 0.1, 1)
    for loss, words in ((None, "no speech was held out"), (0.5, "0.5000")):
        result = CompressionResult(Path("run"), profile, profile, loss, loss, already_done=False)
        console = Console(width=100, record=True, file=io.StringIO())
        console.print(result_table(result))
        assert words in console.export_text()
