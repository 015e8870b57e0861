"""Teachers from the hub: their commit is written down, and used from then on. The hub is a cache made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
import torch
import transformers.utils.hub
import yaml

from skill_speech import InputError, analyze, compress, load_encoder
from skill_speech.checkpoints import resolve_revision
from skill_speech.compression import AnalysisConfig
from skill_speech.distillation import StageConfig
from tests.test_bad_audio import RATE, noise
from tests.test_wrapped_checkpoints import speechbrain
from tests.transformers_models import TINY, build

FIRST, SECOND = "a" * 40, "b" * 40
SHORT = StageConfig(steps=1, warmup_steps=1, sparsity_steps=1, batch_seconds=5)
QUICK: dict[str, Any] = {
    "method": "dphubert",
    "params": "0.8",
    "stage1": SHORT,
    "stage2": SHORT,
    "validation_seconds": 0.0,
    "precision": "float32",
}


class Hub:
    """huggingface_hub's cache folder, offline: what a branch stands for is in refs/."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "models--acme--tiny"

    def commit(self, commit: str, seed: int) -> None:
        snapshot = self.model / "snapshots" / commit
        model = build("Hubert", TINY)
        with torch.no_grad():
            model.encoder.layers[0].feed_forward.output_dense.weight.mul_(seed)
        model.save_pretrained(snapshot)
        transformers.Wav2Vec2FeatureExtractor(do_normalize=False).save_pretrained(snapshot)
        self.point("main", commit)

    def point(self, branch: str, commit: str) -> None:
        (self.model / "refs").mkdir(exist_ok=True)
        (self.model / "refs" / branch).write_text(commit)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    for module, name in (
        (huggingface_hub.constants, "HF_HUB_CACHE"),
        (transformers.utils.hub.constants, "HF_HUB_CACHE"),
    ):
        monkeypatch.setattr(module, name, str(tmp_path / "hub"))
    made = Hub(tmp_path / "hub")
    made.commit(FIRST, seed=1)
    return made


@pytest.fixture
def speech(tmp_path: Path) -> str:
    import soundfile

    (tmp_path / "speech").mkdir()
    for number in range(4):
        soundfile.write(tmp_path / f"speech/{number}.wav", noise(2.5), RATE)
    return str(tmp_path / "speech")


def settings(run: Path) -> dict[str, Any]:
    values = yaml.safe_load((run / "config.yaml").read_text())
    assert isinstance(values, dict)
    return values


def test_a_branch_a_tag_or_nothing_stands_for_a_commit(hub: Hub, tmp_path: Path) -> None:
    hub.commit(SECOND, seed=2)
    hub.point("v1", FIRST)
    assert resolve_revision("acme/tiny", None) == SECOND
    assert resolve_revision("acme/tiny", "v1") == FIRST
    assert resolve_revision("acme/tiny", FIRST) == FIRST
    assert resolve_revision(tmp_path, None) is None
    with pytest.raises(InputError, match="acme/other: no such model on disk or in the hub's cache"):
        resolve_revision("acme/other", None)
    with pytest.raises(InputError, match="no such file or folder; check the path"):
        resolve_revision(tmp_path / "nowhere", None)


def test_a_model_of_speechbrain_on_the_hub_and_the_one_that_it_wraps(hub: Hub) -> None:
    """Its own weights, and the configuration of a model that is elsewhere on the hub."""
    trained = hub.model.parent / "models--acme--trained"
    snapshot = trained / "snapshots" / SECOND
    snapshot.mkdir(parents=True)
    (trained / "refs").mkdir()
    (trained / "refs/main").write_text(SECOND)
    speechbrain(snapshot, build("Hubert", TINY, seed=7), "acme/tiny")
    assert resolve_revision("acme/trained", None) == SECOND
    ours, wrapped = load_encoder("acme/trained"), load_encoder("acme/tiny")
    assert ours.config == wrapped.config.replace(input_norm_eps=1e-5)
    model = build("Hubert", TINY, seed=7).state_dict()
    weight = "encoder.layers.1.feed_forward.output_dense.weight"
    assert torch.equal(ours.state_dict()["layers.1.feed_forward.output.weight"], model[weight])


def test_a_run_keeps_its_teachers_commit_when_the_branch_moves(hub: Hub, speech: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    compress("acme/tiny", speech, str(run), **QUICK)
    assert (settings(run)["teacher"], settings(run)["revision"]) == ("acme/tiny", FIRST)
    weights = (run / "model/model.safetensors").read_bytes()
    hub.commit(SECOND, seed=2)
    # The same command goes on with the commit of the run; asking for another one is a changed setting.
    assert compress("acme/tiny", speech, str(run), **QUICK).already_done
    (run / "status.json").unlink()
    for name in ("stage1", "surgery", "stage2"):
        (run / name / "result.json").unlink()
    assert not compress("acme/tiny", speech, str(run), **QUICK).already_done
    assert (run / "model/model.safetensors").read_bytes() == weights
    with pytest.raises(InputError, match=rf"revision \(was {FIRST}, now {SECOND}\)"):
        compress("acme/tiny", speech, str(run), revision="main", **QUICK)
    compress("acme/tiny", speech, str(tmp_path / "new"), **QUICK)
    assert settings(tmp_path / "new")["revision"] == SECOND
    assert (tmp_path / "new/model/model.safetensors").read_bytes() != weights


def test_an_analysis_keeps_its_teachers_commit(hub: Hub, speech: str, tmp_path: Path) -> None:
    short = AnalysisConfig(calibration_seconds=5, batch_seconds=5, batch_frames=64)
    analyze("acme/tiny", speech, str(tmp_path / "run"), clusters=2, analysis=short)
    assert settings(tmp_path / "run/analysis")["revision"] == FIRST
    hub.commit(SECOND, seed=2)
    analyze("acme/tiny", speech, str(tmp_path / "run"), clusters=2, analysis=short)
    with pytest.raises(InputError, match=r"revision \(was a+, now b+\)"):
        analyze("acme/tiny", speech, str(tmp_path / "run"), clusters=2, analysis=short, revision="main")


# With a network, and without: what the hub's client is asked, and when not at all.


class Client:
    """The hub's client, which answers out of a folder and counts what it is asked."""

    def __init__(self, snapshot: Path, reachable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.snapshot, self.reachable, self.asked = snapshot, reachable, list[str]()
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub, "get_session", lambda: self)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)

    def head(self, address: str, **options: Any) -> None:
        self.asked.append(address)
        if not self.reachable:
            raise OSError("Name or service not known")

    def download(self, source: str, name: str, *, revision: str | None, local_files_only: bool) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError

        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        self.asked.append(f"{source}/{name}@{revision}")
        response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
        if source != "acme/tiny":
            raise RepositoryNotFoundError("404 Client Error. Repository Not Found", response=response)
        if not (self.snapshot / name).exists():
            raise RemoteEntryNotFoundError("404 Client Error. Entry Not Found", response=response)
        return str(self.snapshot / name)


@pytest.fixture
def snapshot(hub: Hub) -> Path:
    return hub.model / "snapshots" / FIRST


def test_a_hub_id_is_downloaded_when_the_hub_answers(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(snapshot, True, monkeypatch)
    assert load_encoder("acme/tiny").config.hidden_size == TINY["hidden_size"]
    assert client.asked[0] == huggingface_hub.constants.ENDPOINT
    # All files are of the commit of the first one.
    assert f"acme/tiny/model.safetensors@{FIRST}" in client.asked
    assert client.asked.count(huggingface_hub.constants.ENDPOINT) == 1
    with pytest.raises(InputError, match=r"acme/other: no such model on disk or on the hub \(404 Client Error"):
        load_encoder("acme/other")


def test_a_hub_id_where_the_hub_cannot_be_reached(snapshot: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(snapshot, False, monkeypatch)
    with pytest.raises(InputError, match=r"in the hub's cache \(the hub cannot be reached\); check the path or"):
        load_encoder("acme/tiny")
    assert client.asked == [huggingface_hub.constants.ENDPOINT]  # once, and nothing else


@pytest.mark.parametrize(
    "source",
    ["runs/tuned", "./tuned", "../tuned", "~/tuned", "/tuned", "a/b/c", "tuned", "two words", "a" * 300, "a\0b/c"],
)
def test_what_looks_like_a_path_is_never_looked_for_on_the_hub(
    source: str, snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    client = Client(snapshot, True, monkeypatch)
    for refuse in (load_encoder, lambda path: resolve_revision(path, None)):
        with pytest.raises(InputError, match=r"no such file or folder|no such model on disk or in the hub's") as caught:
            refuse(source)
        assert str(caught.value).endswith(("check the path", "check the path or the name"))
    assert client.asked == []


def test_a_cached_model_is_found_although_a_folder_has_its_owners_name(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme").mkdir()
    assert load_encoder("acme/tiny").config.hidden_size == TINY["hidden_size"]


def test_a_commit_in_the_cache_needs_no_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*arguments: Any, **options: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", unreachable)
    assert load_encoder("acme/tiny", revision=FIRST).config.hidden_size == TINY["hidden_size"]
