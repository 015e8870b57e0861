"""What is written can be read by whom the umask lets read it, whoever wrote it."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from skill_speech.encoder import Encoder, hubert_config
from skill_speech.exporting import export
from skill_speech.files import atomic_folder, atomic_write, write_json


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def secretly(path: Path) -> None:
    """As `tempfile` and some libraries write: for the owner alone."""
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    os.close(descriptor)
    os.replace(name, path)


def test_a_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    with atomic_write(tmp_path / "a.safetensors") as temporary:
        save_file({"a": torch.zeros(1)}, temporary)
    with atomic_write(tmp_path / "b.bin") as temporary:
        secretly(temporary)
    with atomic_write(tmp_path / "c.txt") as temporary, temporary.open("x") as file:
        file.write("c")
    write_json(tmp_path / "d.json", {})
    assert {mode(path) for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_all_files_of_a_folder_have_it_too(tmp_path: Path, umask: int) -> None:
    with atomic_folder(tmp_path / "folder") as temporary:
        save_file({"a": torch.zeros(1)}, temporary / "a.safetensors")
        (temporary / "inner").mkdir(mode=0o700)
        secretly(temporary / "inner" / "b.bin")
    files = [path for path in (tmp_path / "folder").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert {mode(path) for path in files} == {0o666 & ~umask}
    assert mode(tmp_path / "folder") == mode(tmp_path / "folder" / "inner") == 0o777 & ~umask


@pytest.mark.parametrize("format", ["transformers", "s3prl"])
def test_an_exported_model_can_be_read_by_others(format: str, tmp_path: Path) -> None:
    config = hubert_config(
        hidden_size=16, depth=1, num_heads=2, units=8, channels=8, positional_kernel=4, positional_groups=2
    )
    Encoder(config).save_pretrained(tmp_path / "model")
    before = os.umask(0o022)
    try:
        export(str(tmp_path / "model"), str(tmp_path / "out"), format=format)  # type: ignore[arg-type]
    finally:
        os.umask(before)
    assert {mode(path) for path in (tmp_path / "out").iterdir()} == {0o644}
