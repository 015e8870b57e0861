"""Files that other machines run: hooks before a commit, the workflow of a hosted CI, the script for a rented GPU."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "rented_gpu.sh"
STUB = """\
#!/usr/bin/env bash
echo "$*" >> "$CALLS"
while (($#)); do
  if [[ $1 == --output && $2 != *.gz ]]; then output=$2; elif [[ $1 == --output ]]; then touch "$2"; fi
  shift
done
[[ -z ${output-} ]] || mkdir -p "$output"
[[ ${output-} != */run ]] || touch "$output/report.html" "$output/config.yaml" "$output/result.json"
[[ ${output-} != */evaluation ]] || touch "$output/results.json"
"""


def run(command: list[str | Path], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    values = os.environ | environment
    return subprocess.run(command, cwd=folder, env=values, capture_output=True, text=True, check=False)


def test_hooks_mend_a_file_before_it_is_committed(tmp_path: Path) -> None:
    pytest.importorskip("pre_commit")
    for name in (".pre-commit-config.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "module.py").write_text('"""A module."""\nimport os\nx = {  "a":1 }\n')
    run(["git", "init", "--quiet"], tmp_path)
    run(["git", "add", "."], tmp_path)
    home = {"PRE_COMMIT_HOME": str(tmp_path / ".hooks"), "SKIP": "mypy"}
    assert run(["pre-commit", "validate-config"], tmp_path, **home).returncode == 0
    first = run(["pre-commit", "run", "--all-files"], tmp_path, **home)
    assert first.returncode == 1, first.stdout + first.stderr
    assert (tmp_path / "module.py").read_text() == '"""A module."""\n\nx = {"a": 1}\n'
    second = run(["pre-commit", "run", "--all-files"], tmp_path, **home)
    assert second.returncode == 0, second.stdout
    assert second.stdout.count("Passed") == 2


def test_hooks_are_what_make_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert lint is not None
    assert sorted(hook["name"] for hook in hooks) == sorted(re.findall(r"\$\(BIN\)/(mypy|ruff \w+)", lint[1]))


def test_the_workflow_runs_targets_that_exist() -> None:
    workflow: dict[Any, Any] = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    asked = {name for step in steps for name in re.findall(r"make ([\w-]+)", step.get("run", ""))}
    made = {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)}
    assert {"lint", "test", "test-slow", "docs"} == asked
    assert asked - made <= (set() if (ROOT / "mkdocs.yml").exists() else {"docs"})
    assert "schedule" in workflow[True]  # YAML's reading of `on`
    assert all(job["timeout-minutes"] <= 360 for job in workflow["jobs"].values())


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = run(["shellcheck", SCRIPT, ROOT / ".ci/run"], ROOT)
    assert done.returncode == 0, done.stdout


def test_a_dry_run_prints_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    done = run([SCRIPT, "--dry-run", "--work", tmp_path / "work", "--", "--minutes", "480"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert [*tmp_path.iterdir()] == []
    lines = done.stdout.splitlines()
    wanted = [
        "make -C",
        "dev-clean.tar.gz",
        "train-other-500.tar.gz",
        "prepare",
        "--minutes 480",
        "evaluate teacher=mic",
    ]
    wanted += ["report", "--format transformers", "--format onnx", "tar -czf"]
    found = [next(number for number, line in enumerate(lines) if words in line) for words in wanted]
    assert found == sorted(found)
    assert all(f"/{name}.tar.gz" in done.stdout for name in ("train-clean-100", "train-clean-360", "test-clean"))
    assert done.stdout.count("train-clean-100.tar.gz https") == 1


def test_the_script_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    for words in (["--frobnicate"], ["--work"]):
        done = run([SCRIPT, *words], tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert words[0] in done.stderr
    assert "--dry-run" in run([SCRIPT, "--help"], tmp_path).stdout


@pytest.fixture
def server(tmp_path: Path) -> Path:
    """A folder with archives of two subsets in LibriSpeech's layout, and their sums."""
    root, folder = tmp_path / "server", tmp_path / "LibriSpeech"
    root.mkdir()
    for subset in ("train-clean-100", "dev-clean", "test-clean"):
        (folder / subset).mkdir(parents=True)
        (folder / subset / "1-2-0000.flac").write_bytes(os.urandom(100_000))
        with tarfile.open(root / f"{subset}.tar.gz", "w:gz") as archive:
            archive.add(folder / subset, f"LibriSpeech/{subset}")
    sums = [f"{hashlib.md5(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(root.iterdir())]
    (root / "md5sum.txt").write_text("".join(sums))
    return root


def test_the_script_resumes_and_checks_what_it_downloads(tmp_path: Path, server: Path) -> None:
    work, stubs, calls = tmp_path / "work", tmp_path / "stubs", tmp_path / "calls"
    stubs.mkdir()
    (stubs / "skill-speech").write_text(STUB)
    (stubs / "skill-speech").chmod(0o755)
    given = {"LIBRISPEECH_URL": f"file://{server}", "CALLS": str(calls), "PATH": f"{stubs}:{os.environ['PATH']}"}
    command = [
        SCRIPT,
        "--work",
        work,
        "--no-install",
        "--train",
        "train-clean-100",
        "--tasks",
        "asr",
        "--",
        "--seed",
        "1",
    ]

    whole = (server / "test-clean.tar.gz").read_bytes()
    (server / "test-clean.tar.gz").write_bytes(whole[:50_000] + b"x" + whole[50_001:])
    done = run(command, tmp_path, **given)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("rented_gpu.sh: test-clean.tar.gz is damaged: rerun to download it again")
    assert not (work / "test-clean.tar.gz").exists()

    (server / "test-clean.tar.gz").write_bytes(whole)
    (work / "test-clean.tar.gz").write_bytes(whole[:30_000])  # a download that was interrupted
    (work / "train-clean-100.tar.gz").write_bytes((server / "train-clean-100.tar.gz").read_bytes())  # one that was not
    done = run(command, tmp_path, **given)
    assert done.returncode == 0, done.stderr
    for subset in ("train-clean-100", "dev-clean", "test-clean"):
        name = f"LibriSpeech/{subset}/1-2-0000.flac"
        assert (work / name).read_bytes() == (tmp_path / name).read_bytes()
    assert not [*work.glob("*clean*.tar.gz")]
    words = [line.split()[0] for line in calls.read_text().splitlines()]
    assert words == ["prepare", "compress", "evaluate", "report", "export", "export"]
    assert "--seed 1" in calls.read_text()
    with tarfile.open(work / "publish.tar.gz") as archive:
        packed = archive.getnames()
    assert {"publish/transformers", "publish/onnx", "publish/report.html", "publish/evaluation/results.json"} <= {
        *packed
    }

    shutil.rmtree(server)  # everything is here
    assert run(command, tmp_path, **given).returncode == 0
    words = [line.split()[0] for line in calls.read_text().splitlines()]
    assert words[6:] == ["compress", "evaluate", "report"]
