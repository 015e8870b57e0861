"""Every command on a page: its settings exist, and it does what it says, literally as it stands there.

The names on the pages (FOLDER, M, microsoft/wavlm-base-plus …) are folders, files and a hub's cache in a workshop,
small and made here. What a command takes from its place on a page is there too: runs/mine is a finished run.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from skill_speech import load_encoder
from skill_speech.checkpoints import save_torchaudio
from skill_speech.cli import main
from skill_speech.help_pages import COMMANDS, PAGES, settings
from tests.corpora_by_hand import text
from tests.fairseq_files import fairseq_settings, fairseq_weights, wavlm_settings, write_fairseq
from tests.models_with_heads import fine_tuned, save_5
from tests.transformers_models import LARGE_STYLE, TINY, build, save

ROOT = Path(__file__).parents[1]
DEEP = TINY | {"num_hidden_layers": 12}
PLACES = ("README.md", "CONTRIBUTING.md", "lab/README.md", "benchmarks/README.md", "examples/README.md", "docs/**/*.md")
SEEN = sorted(page for place in PLACES for page in ROOT.glob(place)) + sorted(ROOT.glob("recipes/*.yaml"))
NAMES = [str(page.relative_to(ROOT)) for page in SEEN]
STARTS = re.compile(r"(?:[A-Z_]+=\S+ )?(skill-speech|python|make|torchrun|pip|\.ci/run|bash|sh)\b")
STAGES = " --stage1.steps 4 --stage1.warmup_steps 1 --stage1.sparsity_steps 1 --stage1.batch_seconds 5"
STAGES += " --stage2.steps 2 --stage2.warmup_steps 1 --stage2.batch_seconds 5"
MORE = {
    "analyze": " --analysis.batch_frames 64 --workers 0",
    "compress": STAGES + " --analysis.batch_frames 64 --workers 0 --missed_budget cut --validation_seconds 5",
    "evaluate": " --steps 4 --learning-rates [1e-3] --tasks pr,ks",
}
"""What makes a command short; none of it is the subject of a page."""


def commands(page: Path) -> list[str]:
    """The command lines in a page's blocks: without comments, continued lines joined, optional parts left out."""
    if page.suffix == ".yaml":
        lines = [line[1:] for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("#   ")]
    else:
        lines = _in_blocks(page.read_text(encoding="utf-8"))
    found, line = [], ""
    for part in lines:
        line += part.split("  #")[0].strip()
        if line.endswith("\\"):
            line = line[:-1]
            continue
        if STARTS.match(line):
            found.append(" ".join(re.sub(r"\[[^]=]*…\]", "", line).split(" # ")[0].split()))
        line = ""
    return found


def _in_blocks(written: str) -> Iterator[str]:
    """Lines that are indented by four, and those between fences of a shell or of no language."""
    fence = None
    for line in written.splitlines():
        if line.startswith("```"):
            fence = None if fence is not None else line[3:].strip()
        elif fence in ("", "bash", "sh", "console") or (fence is None and line.startswith("    ")):
            yield line


def of_program(command: str) -> list[str] | None:
    """The words after our program, however it is started; None of other programs."""
    words = shlex.split(command)
    starts = [place for place, word in enumerate(words) if word in ("skill-speech", "skill_speech", "skill_speech.cli")]
    return words[starts[0] + 1 :] if starts and words[0] != "pip" else None


def alternatives(words: list[str]) -> Iterator[list[str]]:
    """`--format a|b` stands for two commands."""
    for place, word in enumerate(words):
        if "|" in word:
            for one in word.split("|"):
                yield from alternatives([*words[:place], one, *words[place + 1 :]])
            return
    yield words


def test_there_are_commands_to_try() -> None:
    found = {command.split()[1] for page in SEEN for command in commands(page) if command.startswith("skill-speech ")}
    assert found >= set(COMMANDS)


@pytest.mark.parametrize("name", NAMES)
def test_settings_on_a_page_exist(name: str) -> None:
    page = ROOT / name
    inline = re.findall(r"`(skill-speech [^`]+)`", page.read_text(encoding="utf-8"))
    for command in [*commands(page), *inline]:
        words = of_program(command)
        if words and words[0] in COMMANDS:
            known = {setting["name"] for setting in settings()[words[0]]} | {"config", "help"}
            given = {word[2:].split("=")[0].replace("-", "_") for word in words if word.startswith("--")}
            assert given <= known, command


def test_examples_of_the_help_are_commands_with_known_settings() -> None:
    for command, page in PAGES.items():
        for example in page.examples:
            words = shlex.split(example)[2:]
            known = {setting["name"] for setting in settings()[command]} | {"config"}
            assert {word[2:].replace("-", "_") for word in words if word.startswith("--")} <= known, example


@pytest.mark.parametrize("name", NAMES)
def test_other_commands_of_a_page_name_what_there_is(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for command in commands(ROOT / name):
        words = shlex.split(command)
        if words[0] == "make":
            assert set(words[1:]) <= targets, command
        elif words[0] == "pip":
            extras = re.findall(r"\[([a-z,]+)\]", command)
            assert set(",".join(extras).split(",")) - {""} <= set(project["optional-dependencies"]), command
        elif words[:2] == ["python", "-m"]:
            assert words[2] == "skill_speech" or importlib.util.find_spec(words[2]) is not None, command
        elif words[0] in ("bash", "sh", ".ci/run"):
            assert (ROOT / words[-1] if words[0] != ".ci/run" else ROOT / ".ci/run").exists(), command


def modules() -> list[str]:
    """`python -m lab.…` and `benchmarks.…` of all pages."""
    lines = [shlex.split(command) for page in SEEN for command in commands(page)]
    return sorted({words[2] for words in lines if words[:2] == ["python", "-m"] and words[2] != "skill_speech"})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", modules())
def test_programs_of_the_repository_know_the_options_on_the_pages(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, set[str]] = {}
    for page in SEEN:
        for command in commands(page):
            if command.startswith(f"python -m {module} "):
                first, *rest = shlex.split(command)[3:]
                own = first if re.fullmatch(r"[a-z]+", first) else ""
                given.setdefault(own, set()).update(word for word in (first, *rest) if word.startswith("--"))
    for own, words in given.items():
        monkeypatch.setattr(sys, "argv", [module, *[own] * bool(own), "--help"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(module, run_name="__main__")  # a process for each would take as long as importing torch
        assert not ended.value.code
        said = capsys.readouterr().out
        for word in words:
            assert word in said, (module, own, word)


# The workshop


class Workshop:
    """A working folder in which the names on the pages are something."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def model(self, name: str, build_it: Callable[[Path], Any]) -> None:
        """A model in the cache of a hub, or in a folder of that name."""
        if "/" not in name:
            build_it(self.folder / name)
            return
        cached = self.folder / "hub" / f"models--{name.replace('/', '--')}"
        build_it(cached / "snapshots" / ("a" * 40))
        (cached / "refs").mkdir()
        (cached / "refs/main").write_text("a" * 40)

    def speak(self, name: str, count: int = 12, seconds: float = 3.0) -> None:
        """A folder of audio, in LibriSpeech's layout, with transcripts."""
        for number in range(count):
            folder = self.folder / name / f"{number % 3 + 1}/{number + 1}"
            folder.mkdir(parents=True)
            said = 0.1 * np.random.default_rng(number).standard_normal(int(seconds * 16_000))
            soundfile.write(folder / f"{number % 3 + 1}-{number + 1}-0000.flac", said, 16_000)
            text(folder / f"{number % 3 + 1}-{number + 1}.trans.txt", f"{number % 3 + 1}-{number + 1}-0000 ab cd\n")


def _encoder(kind: str, changes: dict[str, Any], normalize: bool = False) -> Callable[[Path], Any]:
    return lambda folder: save(build(kind, DEEP | changes), folder, normalize)


def _recognizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    save_5(fine_tuned("Wav2Vec2", "ForCTC"), folder)


WAVLM = {"num_buckets": 32, "max_bucket_distance": 40}
MODELS: dict[str, Callable[[Path], Any]] = {
    "microsoft/wavlm-base-plus": _encoder("WavLM", WAVLM),
    "microsoft/wavlm-large": _encoder("WavLM", WAVLM | LARGE_STYLE | {"conv_bias": False}, True),
    "facebook/hubert-base-ls960": _encoder("Hubert", {}),
    "facebook/hubert-large-ll60k": _encoder("Hubert", LARGE_STYLE, True),
    "lengyue233/content-vec-best": _encoder("Hubert", {}),
    "facebook/wav2vec2-base-960h": _recognizer,
    "checkpoint": _encoder("Hubert", {}),
    **dict.fromkeys(("T", "M"), _recognizer),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the pages name and no command on them makes."""
    shop = Workshop(tmp_path_factory.mktemp("workshop"))
    for name, build_it in MODELS.items():
        shop.model(name, build_it)
    for name in ("FOLDER", "FOLDER_OF_AUDIO", "AUDIO", "D", "SPEECH", "LIBRISPEECH", "dev-clean"):
        shop.speak(name)
    here = shop.folder
    for name in ("recipes", "lab"):
        (here / name).symlink_to(ROOT / name)
    (here / "FILE").symlink_to("hubert_base_ls960.pt")
    for name, what in {"MANIFEST_WITH_TEXT": "FOLDER", "DATA": "FOLDER", "data/speech": "SPEECH", "MODEL": "T"}.items():
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).symlink_to(here / what)
    _files(here)
    soundfile.write(here / "speech.wav", 0.1 * np.random.default_rng(0).standard_normal(32_000), 16_000)
    (here / "data/test").mkdir()
    text(here / "data/test/wav.scp", f"talk {here}/speech.wav\n")
    text(here / "data/test/segments", "one talk 0 1\ntwo talk 1 2\n")
    text(here / "data/test/text", "one ab\ntwo cd\n")
    return here


def _files(here: Path) -> None:
    """Checkpoints of other code, by the names under which they are released."""
    hubert, wavlm = build("Hubert", DEEP), build("WavLM", DEEP | WAVLM)
    for name in ("hubert_base_ls960.pt", "checkpoint_best_legacy_500.pt"):
        write_fairseq(here / name, "omegaconf", fairseq_settings(hubert, "hubert"), fairseq_weights(hubert), False)
    torch.save({"cfg": wavlm_settings(wavlm, False), "model": fairseq_weights(wavlm)}, here / "WavLM-Large.pt")
    save(hubert, here / "plain", False)
    shutil.copy(here / "plain/config.json", here / "FOLDER")
    torch.save(
        {"state_dict": {f"model.{name}": tensor for name, tensor in hubert.state_dict().items()}},
        here / "FOLDER/last.ckpt",
    )
    save_torchaudio(load_encoder(here / "plain"), here / "DPHuBERT-sp0.75.pth")


# Running them


@pytest.fixture(scope="module")
def finished(made: Path) -> dict[str, Path]:
    """A finished run of an encoder and one of a recognizer, for pages that begin with a run."""
    runs = {"mine": "microsoft/wavlm-base-plus", "asr": "facebook/wav2vec2-base-960h"}
    for name, teacher in runs.items():
        with at(made):
            run(f"skill-speech compress --teacher {teacher} --data FOLDER --output finished/{name}")
    return {name: made / "finished" / name for name in runs}


@contextlib.contextmanager
def at(folder: Path) -> Iterator[None]:
    """Work there, with its cache of a hub."""
    import huggingface_hub.constants
    import transformers.utils.hub

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HUB_CACHE", str(folder / "hub"))
        for module in (huggingface_hub.constants, transformers.utils.hub.constants):
            patch.setattr(module, "HF_HUB_CACHE", str(folder / "hub"))
        yield


def run(command: str) -> None:
    """Carry out a line of a page; a program of ours in this process, unless it starts others."""
    words = of_program(command)
    if words is None:
        subprocess.run(
            shlex.split(command), check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        return
    for some in alternatives(words):
        if some[0] == "export" and "|" in command:  # every format into a folder of its own
            some = [word if word != "DIR" else f"DIR-{some[some.index('--format') + 1]}" for word in some]
        some = [name for word in some for name in (sorted(glob.glob(word)) if "*" in word else [word])]
        extended = [*some, *shlex.split("" if "--own_head" in some else MORE.get(some[0], ""))]
        if some[0] == "compress":  # each begins a run of its own, whatever the others on the page are called
            shutil.rmtree(some[some.index("--output") + 1], ignore_errors=True)
        if "--compare" in some:  # published results are not comparable with the synthetic corpora of a test
            del extended[some.index("--compare") : some.index("--compare") + 2]
        if "--speedup" in some:  # a tiny encoder spends its time on what cannot be pruned
            extended += ["--speedup", "1.1"]
        if "--devices" in some:
            subprocess.run([sys.executable, "-m", "skill_speech", *extended], check=True, capture_output=True)
        else:
            assert main(extended) == 0, command


def prepare_for(page: list[str], folder: Path, finished: dict[str, Path]) -> None:
    """Finished runs under the names that a page reads and does not make itself."""
    made_here: set[str] = set()
    for command in page:
        for name in re.findall(r"(?<![\w/])(runs/[\w-]+)", command):
            if f"--output {name}" in command:
                made_here.add(name)
            elif name not in made_here and not (folder / name).exists():
                kind = "asr" if "asr" in name else "mine"
                shutil.copytree(finished[kind], folder / name)


def can_be_run(command: str) -> bool:
    """Commands of the program, and of what it wrote; others have tests of their own, or are other people's."""
    elsewhere = ("torchrun", "hf://", "run_downstream.py", "pip", "make", "python -m lab", "python -m bench", ".ci/run")
    return not any(word in command for word in elsewhere)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", [name for name in NAMES if any(map(can_be_run, commands(ROOT / name)))])
def test_commands_of_a_page_do_what_they_say(
    name: str, made: Path, finished: dict[str, Path], synthetic_corpora: Path, tmp_path: Path
) -> None:
    here = tmp_path / "here"
    shutil.copytree(made, here, symlinks=True)
    for corpora in ("CORPORA", "ROOT", "data/superb"):
        (here / corpora).symlink_to(synthetic_corpora)
    page = [command for command in commands(ROOT / name) if can_be_run(command)]
    prepare_for(page, here, finished)
    with at(here):
        for command in page:
            run(command)
