"""The estimate of a step's memory: counted as autograd keeps it; batches that do not fit are divided or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from skill_speech import InputError
from skill_speech.compression.steps import fitting
from skill_speech.distillation import Distillation, HeadTraining, OutputLoss, UnitLoss, memory
from skill_speech.distillation.memory import available_bytes, fit_batch, needed_bytes, saved_bytes
from skill_speech.files import size
from skill_speech.heads import HeadConfig, TDNNConfig, make_head
from skill_speech.heads.config import AdapterConfig
from skill_speech.run.folder import RunFolder
from tests.test_distillation import tiny_module

GIB = 2**30


def kept_for_backward(module: Distillation, seconds: float, bf16: bool, utterances: int = 2) -> int:
    """What autograd really keeps of a step, by the hooks that it offers, on real tensors."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in module.parameters()}
    module.student.train()
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        _, terms = module.distil(torch.randn(utterances, round(seconds * 16_000 / utterances)), None)
    assert terms["distillation"].isfinite()
    return sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in weights)


@pytest.mark.parametrize("bf16", [False, True])
def test_activations_are_counted_as_autograd_keeps_them(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module()
    monkeypatch.setattr(memory, "LONGEST_SECONDS", 5.0)
    state = torch.random.get_rng_state()
    estimated = saved_bytes(module, 10.0, "bf16" if bf16 else "float32")  # two utterances of 5 s
    assert torch.equal(torch.random.get_rng_state(), state)
    assert estimated == pytest.approx(kept_for_backward(module, 10.0, bf16), rel=0.02)
    assert all(weight.grad is None for weight in module.parameters())


WITH: dict[str, HeadConfig] = {
    "ctc": HeadConfig("ctc", outputs=9, adapter=AdapterConfig(layers=2, width=32, kernel=3, stride=2)),
    "sequence": HeadConfig("sequence", outputs=5, projection=14, weighted_layer_sum=True),
    "frame": HeadConfig("frame", outputs=3),
    "x-vector": HeadConfig("x-vector", outputs=7, tdnn=(TDNNConfig(20, 5, 1), TDNNConfig(24, 1, 1)), embedding=18),
}


@pytest.mark.parametrize("seconds", [5.0, 10.0])  # one utterance and two
@pytest.mark.parametrize("kind", WITH)
def test_heads_and_units_are_counted_too(kind: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module()
    config = module.teacher.config
    module.loss.outputs = OutputLoss(make_head(WITH[kind], config), HeadTraining())
    module.loss.units = UnitLoss(torch.randn(11, config.hidden_size), 1, 0.1)
    monkeypatch.setattr(memory, "LONGEST_SECONDS", 5.0)
    estimated = saved_bytes(module, seconds, "bf16")
    kept = kept_for_backward(module, seconds, True, utterances=round(seconds / 5))
    assert estimated == pytest.approx(kept, rel=0.03)


def test_batches_that_do_not_fit_are_divided(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    module = tiny_module()
    monkeypatch.setattr(memory, "NEGLIGIBLE", 0)
    monkeypatch.setattr(memory, "needed_bytes", lambda module, seconds, precision: round(seconds * GIB))
    stage = replace(module.config, batch_seconds=64.0, accumulate=3)
    assert fit_batch(module, stage, "float32", "stage1", 72 * GIB) is stage
    tight = fit_batch(module, stage, "float32", "stage1", 31 * GIB)
    assert (tight.batch_seconds, tight.accumulate) == (16.0, 12)  # 32 s are more than 90 % of it
    assert "batches of 64 s need too much memory; using 12 batches of 16 s per update instead" in caplog.text
    with pytest.raises(InputError, match=r"stage1: batches of 4 s need about 4\.0 GiB more memory and 4\.0 GiB are av"):
        fit_batch(module, stage, "float32", "stage1", 4 * GIB)
    assert fit_batch(module, stage, "float32", "stage1", None) is stage  # nobody knows


def test_a_longer_batch_needs_more() -> None:
    module = tiny_module()
    short, long = (needed_bytes(module, seconds, "float32") for seconds in (4.0, 16.0))
    assert long > short > 16 * module.student.num_parameters()


def test_a_stage_keeps_the_batches_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny_module()
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1/batch.json").write_text(json.dumps({"batch_seconds": 5.0, "accumulate": 2}))
    stage = fitting(module, module.config, "float32", "stage1", RunFolder(tmp_path))
    assert (stage.batch_seconds, stage.accumulate, stage.steps) == (5.0, 2, module.config.steps)
    fresh = fitting(module, module.config, "float32", "stage2", RunFolder(tmp_path))
    assert fresh == module.config
    assert json.loads((tmp_path / "stage2/batch.json").read_text()) == {"batch_seconds": 4, "accumulate": 1}


def test_bytes_are_said_as_a_person_reads_them() -> None:
    assert [size(count) for count in (5, 2048, 3 * 2**20, 1.5 * GIB, 2**42)] == [
        *("5 bytes", "2.0 KiB", "3.0 MiB", "1.5 GiB", "4.0 TiB")
    ]


def system_of(root: Path, own: str, groups: dict[str, dict[str, str]], free: int = 20 * GIB) -> Path:
    """A folder like /, with some memory and some control groups."""
    files = {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable: {free // 1024} kB\n", "proc/self/cgroup": own}
    files |= {
        f"sys/fs/cgroup/{group}/{name}": text for group, values in groups.items() for name, text in values.items()
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_files_that_were_read_do_not_take_memory_from_a_container(tmp_path: Path) -> None:
    """What a container has read and written counts as its usage, and is given back when memory is short."""
    stat = f"anon {GIB}\nfile {7 * GIB}\ninactive_file {4 * GIB}\nactive_file {2 * GIB}\nshmem {GIB}\n"
    group = {"memory.max": str(8 * GIB), "memory.current": str(8 * GIB - 4096), "memory.stat": stat}
    assert available_bytes(system_of(tmp_path / "own", "0::/\n", {".": group})) == 6 * GIB + 4096
    # Seen from inside, with the name that the host has for it.
    assert available_bytes(system_of(tmp_path / "host", "0::/docker/1a2b\n", {".": group})) == 6 * GIB + 4096
    del group["memory.stat"]
    assert available_bytes(system_of(tmp_path / "no-stat", "0::/\n", {".": group})) == 4096


def test_every_control_group_around_a_process_limits_it(tmp_path: Path) -> None:
    job = {"memory.max": str(6 * GIB), "memory.current": str(GIB), "memory.stat": ""}
    step = {"memory.max": "max", "memory.current": str(GIB), "memory.stat": ""}
    groups = {"slurm/job_1": job, "slurm/job_1/step_0": step}
    assert available_bytes(system_of(tmp_path / "two", "0::/slurm/job_1/step_0\n", groups)) == 5 * GIB
    assert available_bytes(system_of(tmp_path / "small", "0::/slurm/job_1\n", groups, GIB)) == GIB
    old = {"memory.limit_in_bytes": str(3 * GIB), "memory.usage_in_bytes": str(2 * GIB)}
    old |= {"memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n"}
    own = "5:cpu,cpuacct:/\n4:memory:/a/b\n0::/\n"
    assert available_bytes(system_of(tmp_path / "one", own, {"memory/a": old})) == 3 * GIB // 2
    assert available_bytes(system_of(tmp_path / "none", own, {})) == 20 * GIB
    assert available_bytes(tmp_path / "nothing") is None
