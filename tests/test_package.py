"""What is published: metadata, a README that works on a package index, and wheel and sdist where nothing else is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from packaging.requirements import Requirement

import skill_speech
from skill_speech import Encoder
from skill_speech.encoder import hubert_config
from tests.clean_environment import link_packages

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
PINNED = {
    re.split(r"[=\[ ]", line)[0]
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith((" ", "#"))
}


def targets(markdown: str) -> list[str]:
    """What links and images point to, by a reader of Markdown that knows nothing of ours."""
    return re.findall(r'(?:href|src)="([^"]*)"', MarkdownIt("commonmark").render(markdown))


def readme_of_an_index() -> str:
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    return ProjectMetadata(str(ROOT), PluginManager()).core.readme


def test_links_of_the_readme_work_on_a_package_index() -> None:
    here = targets((ROOT / "README.md").read_text(encoding="utf-8"))
    there = targets(readme_of_an_index())
    assert len(here) == len(there) > 10
    for before, after in zip(here, there, strict=True):
        if re.match(r"[a-z]+:|#", before):
            assert after == before
            continue
        kind, _, path = (
            after.removeprefix(f"{REPOSITORY}/")
            .removeprefix(f"{REPOSITORY.replace('github.com', 'raw.githubusercontent.com')}/")
            .partition("main/")
        )
        assert path == before
        assert (ROOT / path.partition("#")[0]).exists(), before
        picture = before.endswith((".png", ".svg", ".jpg"))
        assert (kind, after.startswith("https://raw.")) == (("", True) if picture else ("blob/", False))


def test_every_address_of_the_project_is_the_one_of_its_metadata() -> None:
    assert all(address.startswith(REPOSITORY) for address in PROJECT["urls"].values())
    for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff"):
        text = (ROOT / name).read_text(encoding="utf-8")
        owner = r"(?:github|raw\.githubusercontent)\.com/([\w-]+/skill-speech)"
        assert {*re.findall(owner, text)} == {REPOSITORY.partition("github.com/")[2]}, name


def test_the_version_is_the_same_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest, day = re.findall(r"^## \[([\d.]+)\] - ([\d-]+)$", changes, re.MULTILINE)[0]
    assert newest == citation["version"] == skill_speech.__version__
    assert day == str(citation["date-released"])


def test_changes_are_in_the_usual_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[([\d.]+)\]", text, re.MULTILINE)
    assert versions == sorted(versions, key=lambda version: [int(part) for part in version.split(".")], reverse=True)
    assert {*re.findall(r"^### (.+)$", text, re.MULTILINE)} <= {"Added", "Changed", "Deprecated", "Removed", "Fixed"}
    assert all(f"\n[{version}]: " in text for version in versions)


def test_classifiers_exist_and_name_the_pythons_of_the_workflow() -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    assert set(PROJECT["classifiers"]) <= known
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    tried = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
    named = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert tried == named
    assert PROJECT["requires-python"] == f">={named[0]}"


def test_extras_are_pinned_and_all_is_what_commands_use() -> None:
    extras = PROJECT["optional-dependencies"]
    [everything] = [Requirement(line) for line in extras["all"]]
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(extras) - {"all", "dev", "docs", "lab"}
    for extra, lines in extras.items():
        for requirement in map(Requirement, lines):
            normal = re.sub(r"[._]", "-", requirement.name).lower()
            assert normal in PINNED | {PROJECT["name"]}, f"{extra}: {requirement}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist of this working tree, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    build(ROOT, folder)
    return next(folder.glob("*.whl")), next(folder.glob("*.tar.gz"))


def build(source: Path, folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder), *arguments]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_installed_wheel_works_with_what_it_asks_for_alone(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, _ = built
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        metadata = Parser().parsestr(archive.read(next(name for name in files if name.endswith("METADATA"))).decode())
    assert {name.partition("/")[0] for name in files} == {"skill_speech", files[-1].partition("/")[0]}
    assert {"skill_speech/py.typed", "skill_speech/help.json"} <= {*files}
    assert metadata["License-Expression"] == "Apache-2.0"
    assert f"({REPOSITORY}/blob/main/docs/" in metadata.get_payload()

    environment, there = tmp_path / "environment", tmp_path / "packages"
    wanted = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    link_packages([one.name for one in wanted if one.marker is None], there)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    site = next(environment.glob("lib/*/site-packages"))
    (site / "packages.pth").write_text(f"{there}\n")
    install = ["-m", "pip", "--python", environment / "bin/python", "install", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *map(str, install)], check=True, capture_output=True)

    torch.manual_seed(0)
    tiny = hubert_config(hidden_size=32, num_heads=2, units=64, channels=16, depth=3, positional_kernel=8)
    Encoder(tiny.replace(positional_groups=4)).save_pretrained(tmp_path / "teacher")

    def run(*command: str) -> str:
        clean = {"PATH": f"{environment}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("python", "-c", "import skill_speech as s; print(s.__file__, s.__version__)").split()
    assert where == [str(site / "skill_speech/__init__.py"), skill_speech.__version__]
    assert run("skill-speech", "--help") == run("python", "-m", "skill_speech")
    assert skill_speech.__version__ in run("skill-speech", "--version")
    assert "real-time factor" in run("skill-speech", "profile", "teacher", "--seconds", "0.5", "--threads", "1")
    assert run("skill-speech", "report", "--help").endswith(f"{REPOSITORY}/blob/main/docs/report.md\n")


@pytest.mark.slow
def test_an_sdist_builds_the_same_wheel_and_passes_its_tests(built: tuple[Path, Path], tmp_path: Path) -> None:
    wheel, sdist = built
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    [unpacked] = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert not [path for path in unpacked.rglob("*") if path.name in ("__pycache__", ".venv", "runs")]
    build(unpacked, tmp_path / "again", "-t", "wheel")
    [again] = (tmp_path / "again").glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {item.filename: item.CRC for item in one.infolist()} == {
            item.filename: item.CRC for item in other.infolist()
        }
    shutil.rmtree(tmp_path / "again")
    tests = ["tests/test_words.py", "tests/test_yaml_values.py", "tests/test_package.py", "tests/test_profiling.py"]
    command = [sys.executable, "-m", "pytest", "-n0", "-p", "no:cacheprovider", *tests]
    environment = os.environ | {"PYTHONPATH": f"{unpacked / 'src'}{os.pathsep}{unpacked}"}
    done = subprocess.run(command, cwd=unpacked, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4_000:]
