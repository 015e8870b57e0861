"""An evaluation that is stopped, killed or out of room, and another one in the same folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from skill_speech import InputError, evaluate
from skill_speech.encoder import Encoder, hubert_config
from skill_speech.evaluation import training
from skill_speech.run.signals import Stopped
from tests import corpora_by_hand
from tests.full_disk import full_at
from tests.test_kills import HOLD

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 6


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpora")
    corpora_by_hand.speech_commands(root)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    config = hubert_config(hidden_size=16, depth=2, num_heads=2, units=24, channels=12, positional_kernel=8)
    folder = tmp_path_factory.mktemp("encoder") / "tiny"
    Encoder(config.replace(positional_groups=2)).save_pretrained(folder)
    return str(folder)


def run(model: str, corpora: Path, folder: Path) -> None:
    evaluate([model], str(corpora), str(folder), tasks="ks", steps=STEPS, settings={"ks": {"eval_every": 2}})


def result(folder: Path) -> dict[str, Any]:
    """What does not say how long it took, when, and on how many threads."""
    values = json.loads((folder / "tiny/ks.json").read_text())
    values["environment"].pop("threads")
    return {name: value for name, value in values.items() if "seconds" not in name and name != "started"}


@pytest.fixture(scope="module")
def whole(model: str, corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    run(model, corpora, folder)
    return result(folder)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_signal_saves_the_head_and_the_same_call_ends_in_the_same_numbers(
    model: str, corpora: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    seen, original = [], training.update

    def update(*arguments: Any) -> None:
        original(*arguments)
        seen.append(arguments[-1])
        if len(seen) == 3:
            os.kill(os.getpid(), signum)

    with monkeypatch.context() as patch:
        patch.setattr(training, "update", update)
        with pytest.raises(Stopped) as caught:
            run(model, corpora, tmp_path)
    assert caught.value.code == 128 + signum
    assert seen[-1] == "0/3", "after the update at hand"
    (checkpoint,) = (tmp_path / "tiny").glob(".ks-*.ckpt")
    assert torch.load(checkpoint)["step"] == 3
    run(model, corpora, tmp_path)
    assert result(tmp_path) == whole
    assert not list((tmp_path / "tiny").glob(".*"))


def test_a_stop_signal_while_states_are_encoded_ends_it_at_once(
    model: str, corpora: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skill_speech.evaluation.states import HiddenStates

    with monkeypatch.context() as patch:
        patch.setattr(HiddenStates, "_encode", lambda *a: os.kill(os.getpid(), signal.SIGTERM) or ())
        with pytest.raises(Stopped):
            run(model, corpora, tmp_path)
    assert not list(tmp_path.rglob(".*"))
    run(model, corpora, tmp_path)
    assert result(tmp_path) == whole


@pytest.mark.parametrize(
    "damage", [b"", b"PK", "cut", {"step": 3}, {"step": 3, "trials": [{"model": {"a": 1}}]}, {"step": 3, "trials": []}]
)
def test_a_damaged_checkpoint_of_a_head_is_named_and_its_training_starts_again(
    model: str,
    corpora: Path,
    whole: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    damage: Any,
) -> None:
    save = training._save
    with monkeypatch.context() as patch:
        patch.setattr(training, "_save", lambda *a: (save(*a), os.kill(os.getpid(), signal.SIGTERM)))
        with pytest.raises(Stopped):
            run(model, corpora, tmp_path)
    (checkpoint,) = (tmp_path / "tiny").glob(".ks-*.ckpt")
    if isinstance(damage, dict):
        torch.save(damage, checkpoint)
    else:
        checkpoint.write_bytes(checkpoint.read_bytes()[:1_000] if damage == "cut" else damage)
    run(model, corpora, tmp_path)
    assert f"{checkpoint}: damaged" in caplog.text
    assert result(tmp_path) == whole


def test_one_evaluation_at_a_time_writes_into_a_folder(
    model: str, corpora: Path, whole: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"in use by another run \(process {holder.pid} on "):
            run(model, corpora, folder)
        assert [path.name for path in folder.iterdir()] == ["lock"]
    finally:
        holder.kill()
        holder.wait()
    (folder / "tiny").mkdir()
    for name in (".999.evaluation.json", "tiny/.12.ks.json"):
        (folder / name).write_text("half")
    # What a killed one was writing is removed, even before it had said what the folder is.
    (folder / "tiny/.12.ks.json").rename(folder / ".12.ks.json")
    (folder / "tiny").rmdir()
    run(model, corpora, folder)
    assert result(folder) == whole
    assert not list(folder.rglob(".*"))


FILES = ("evaluation.json", "tiny/ks.json", "table.md", "table.json", "tiny/layer_weights.png")


def test_a_full_disk_is_one_line_and_loses_nothing(
    model: str, corpora: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FILES:
        with monkeypatch.context() as patch:
            met = full_at(patch, tmp_path / name)
            with pytest.raises(
                InputError, match="the disk is full: free some space and rerun the same command to resume"
            ):
                run(model, corpora, tmp_path)
        assert met, name
        assert not [path for path in tmp_path.rglob(".*") if not path.name.startswith(".ks-")]
    run(model, corpora, tmp_path)
    assert result(tmp_path) == whole


@pytest.mark.parametrize("name", ["evaluation.json", "tiny/ks.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"kind": 3}', '{"kind": "skill-speech evaluation"}'])
def test_damaged_results_are_named(model: str, corpora: Path, tmp_path: Path, name: str, content: str) -> None:
    run(model, corpora, tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as caught:
        run(model, corpora, tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)
