"""What makes a training step faster does not change what it computes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys

import pytest
import torch

from skill_speech.distillation import DistillationLoss, acceleration, make_targets
from skill_speech.distillation.acceleration import Compiled, memory_reused, teacher_for_computing
from skill_speech.encoder import Encoder, EncoderConfig, hubert_config, wavlm_config
from skill_speech.pruning import attach_gates

SMALL = {"hidden_size": 24, "num_heads": 3, "units": 40, "channels": 8, "depth": 2}
SHAPES = {
    "wavlm": wavlm_config(**SMALL, positional_kernel=8, positional_groups=4),
    "hubert, layer norms": hubert_config(
        **SMALL, positional_kernel=7, positional_groups=3, conv_norm="layer", conv_bias=True, pre_norm=True
    ),
}


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_a_gated_step_has_the_gradients_of_torchs_own_operations(config: EncoderConfig, monkeypatch):
    torch.manual_seed(0)
    teacher = Encoder(config)
    student = attach_gates(Encoder(config)).train()
    loss = DistillationLoss(make_targets("all-layers", 2), 24)
    waveforms = torch.randn(3, 4_000)
    weights = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
    results = []
    for reference in (False, True):
        if reference:  # as in a program that is compiled
            monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        torch.manual_seed(1)
        with torch.no_grad():
            wanted = teacher(waveforms).layers
        distance = loss.of_layers(student(waveforms).layers, wanted)["distillation"]
        results.append((distance, torch.autograd.grad(distance, list(weights.values()), allow_unused=True)))
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, mine, other in zip(weights, results[0][1], results[1][1], strict=True):
        assert (mine is None) == (other is None), name
        if mine is not None:
            torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_a_teacher_in_bfloat16_is_as_near_as_autocast_is(config: EncoderConfig):
    torch.manual_seed(0)
    teacher = Encoder(config).eval().requires_grad_(False)
    fast = teacher_for_computing(teacher, torch.bfloat16)
    assert {weight.dtype for weight in teacher.parameters()} == {torch.float32}
    assert teacher_for_computing(teacher, torch.float32) is teacher
    waveforms = torch.randn(2, 4_000)
    with torch.no_grad():
        reference = teacher(waveforms).layers
        with torch.autocast("cpu", torch.bfloat16):
            mine, autocast = fast(waveforms).layers, teacher(waveforms).layers
    for fast_BTD, cast_BTD, exact_BTD in zip(mine, autocast, reference, strict=True):
        assert fast_BTD.dtype == torch.float32
        assert (fast_BTD - exact_BTD).norm() < 1.25 * (cast_BTD.float() - exact_BTD).norm()


def test_a_teacher_to_be_compiled_computes_what_autocast_does():
    torch.manual_seed(0)
    teacher = Encoder(SHAPES["wavlm"]).eval().requires_grad_(False)
    fast = teacher_for_computing(teacher, torch.bfloat16, compiles=True)
    assert {weight.dtype for weight in teacher.parameters()} == {torch.float32}
    assert fast.layers[0].attention.query.weight.dtype == torch.bfloat16
    assert fast.norm.weight is teacher.norm.weight
    waveforms = torch.randn(2, 4_000)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for mine, other in zip(fast(waveforms).layers, teacher(waveforms).layers, strict=True):
            assert torch.equal(mine, other)


def test_where_compiling_fails_the_encoder_runs_without(monkeypatch, caplog):
    def refuse(encoder, **options):
        def program(*given):
            raise torch._dynamo.exc.BackendCompilerFailed(refuse, RuntimeError("no C++ compiler"), None)

        return program

    monkeypatch.setattr(torch, "compile", refuse)
    encoder = Encoder(SHAPES["wavlm"]).eval()
    waveforms = torch.randn(1, 4_000)
    compiled = Compiled(encoder, compiles=True)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        outputs = [compiled(waveforms).last_hidden_state_BTD for _ in range(2)]
        assert torch.equal(outputs[1], encoder(waveforms).last_hidden_state_BTD)
    assert len(caplog.records) == 1
    assert "continuing without it" in caplog.text


@pytest.mark.slow
def test_a_compiled_student_trains_as_an_eager_one():
    torch.manual_seed(0)
    student = attach_gates(Encoder(SHAPES["wavlm"]), ("units",)).eval()
    waveforms = torch.randn(2, 4_000)
    results = []
    for compiles in (False, True):
        output = Compiled(student, compiles)(waveforms).last_hidden_state_BTD
        results.append((output, *torch.autograd.grad(output.square().sum(), [student.convs[0].conv.weight])))
    for mine, other in zip(*results, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-3)


RESIDENT = """
import json, os
from pathlib import Path
import torch
from skill_speech.distillation.acceleration import memory_reused

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

sizes = [resident()]
with memory_reused():
    held = [torch.ones(2**20) for _ in range(200)]  # 4 MiB each
    sizes.append(resident())
    del held
    sizes.append(resident())
sizes.append(resident())
torch.ones(2**26)
sizes.append(resident())
print(json.dumps(sizes))
"""


def test_memory_is_kept_for_the_next_step_and_returned_in_the_end():
    if acceleration._glibc() is None:
        pytest.skip("not glibc")
    # In a process of its own: what other tests leave between free blocks decides where large blocks come from.
    done = subprocess.run([sys.executable, "-c", RESIDENT], capture_output=True, text=True, check=True)
    before, within, kept, returned, later = json.loads(done.stdout)
    assert within - before > 700
    assert kept - before > 700, "for the next step"
    assert returned - before < 200
    assert later - before < 200, "and from then on at once"


def test_memory_is_left_alone_without_glibc(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(acceleration, "_glibc", lambda: None)
    with memory_reused():
        assert torch.zeros(2**24).sum() == 0
