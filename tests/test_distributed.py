"""Several processes over gloo on this machine: one run, whoever carries it out."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from skill_speech import Encoder, InputError, compress, evaluate, load_encoder
from skill_speech.compression import AnalysisConfig
from skill_speech.distillation import StageConfig
from skill_speech.encoder import hubert_config, wavlm_config
from skill_speech.heads import HeadConfig, SpeechModel, make_head
from skill_speech.run import ranks
from skill_speech.similarity import load_analysis

from . import corpora_by_hand
from .distributed_workers import calibration, compare, lose_a_rank, observed_compress, on_first_only

pytestmark = pytest.mark.distributed

SMALL: dict[str, Any] = {"hidden_size": 32, "num_heads": 2, "units": 48, "channels": 16, "depth": 3}
SMALL |= {"positional_kernel": 16, "positional_groups": 4}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher") / "wavlm"
    Encoder(wavlm_config(**SMALL)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder, rng = tmp_path_factory.mktemp("speech"), np.random.default_rng(0)
    for number in range(40):
        samples = int(rng.integers(32_000, 48_000))
        envelope = np.sin(np.arange(samples) / rng.uniform(500, 3_000))
        soundfile.write(folder / f"{number:02}.wav", 0.1 * envelope * rng.standard_normal(samples), 16_000)
    return str(folder)


def settings(accumulate: int, steps: int = 2) -> dict[str, Any]:
    return {
        "clusters": 2,
        "control": "exact",
        "sparsity": 0.4,
        "analysis": AnalysisConfig(calibration_seconds=24, batch_seconds=6, batch_frames=64),
        "stage1": StageConfig(steps=steps, warmup_steps=1, sparsity_steps=1, batch_seconds=6, accumulate=accumulate),
        "stage2": StageConfig(steps=2, warmup_steps=1, batch_seconds=6, accumulate=accumulate),
        # Three batches: one of two ranks has to be given a repeated one.
        "validation_seconds": 6.0,
        "validate_every": 1,
        "checkpoint_every": 1,
        "precision": "float32",
    }


def run(folder: Path, processes: int, **arguments: Any) -> Any:
    arguments |= {"observations": str(folder) + "-observed", "output": str(folder)}
    if processes == 1:
        return observed_compress(**arguments)
    return ranks.start(observed_compress, arguments, processes)


def observed(folder: Path, processes: int) -> tuple[dict[str, dict[str, torch.Tensor]], list[list[Any]]]:
    """Gradients by stage and step, and the batches of every rank in the order of the sequence."""
    observations = Path(str(folder) + "-observed")
    gradients = {path.stem: torch.load(path) for path in sorted(observations.glob("gradients-*.pt"))}
    of_ranks = [
        [json.loads(line) for line in (observations / f"ids-{rank}.jsonl").read_text().splitlines()]
        for rank in range(processes)
    ]
    assert len({len(batches) for batches in of_ranks}) == 1, "every rank takes equally many"
    return gradients, [batch for turn in zip(*of_ranks, strict=True) for batch in turn]


def by_update(folder: Path, processes: int) -> dict[tuple[str, int], list[list[str]]]:
    """The cuts of the batches of every update, in the order of the sequence."""
    found: dict[tuple[str, int], list[list[str]]] = {}
    for stage, step, ids in observed(folder, processes)[1]:
        found.setdefault((stage, step), []).append(ids)
    return found


def assert_same_run(one: Path, one_processes: int, other: Path, other_processes: int) -> None:
    (one_gradients, one_ids), (gradients, ids) = observed(one, one_processes), observed(other, other_processes)
    assert ids == one_ids, "the same cuts at the same update, whoever worked on them"
    assert gradients.keys() == one_gradients.keys()
    assert len(gradients) >= 4
    for name, tensors in gradients.items():
        reference = one_gradients[name]
        assert tensors.keys() == reference.keys()
        for weight, gradient in tensors.items() if name == "gradients-stage1-0" else ():
            scale = reference[weight].abs().max().item() + 1e-6
            torch.testing.assert_close(gradient / scale, reference[weight] / scale, rtol=0, atol=1e-4, msg=weight)
        # Of the gradients that are next to nothing, AdamW makes updates as large as of any: later ones are less alike.
        flat, flat_reference = (
            torch.cat([values[key].flatten() for key in reference]) for values in (tensors, reference)
        )
        assert torch.cosine_similarity(flat, flat_reference, dim=0) > 0.999


def losses(folder: Path, stage: str) -> dict[str, float]:
    return json.loads((folder / stage / "result.json").read_text())["validation_at_start"]


def test_two_processes_are_one_that_accumulates(teacher: str, speech: str, tmp_path: Path) -> None:
    """The analysis, gradients, data, validation and files of a run on two ranks are those of a run on one."""
    common = {"teacher": teacher, "data": speech, **settings(accumulate=2)}
    run(tmp_path / "one", 1, **common)
    result = run(tmp_path / "two", 2, **common, devices=1)
    assert result.folder == tmp_path / "two"
    _, one_ids = observed(tmp_path / "one", 1)
    stage1 = [batch for batch in one_ids if batch[0] == "stage1"]
    used = [cut for _, _, cuts in stage1 for cut in cuts]
    assert len(used) == len(set(used)), "within an epoch no cut is used twice"
    # Clusters come from other minibatches of frames, and the first update goes with them.
    groups = [load_analysis(tmp_path / name / "analysis").clusters.groups for name in ("one", "two")]
    assert groups[0] == groups[1]
    assert_same_run(tmp_path / "one", 1, tmp_path / "two", 2)
    cka = [np.load(tmp_path / name / "analysis/cka.npy") for name in ("one", "two")]
    assert 0 < np.abs(cka[0] - cka[1]).max() < 0.1, "the same up to the sampling of minibatches"
    scales = [np.load(tmp_path / name / "analysis/scales.npy") for name in ("one", "two")]
    np.testing.assert_allclose(scales[0], scales[1], rtol=1e-6)
    assert losses(tmp_path / "two", "stage1") == pytest.approx(losses(tmp_path / "one", "stage1"), rel=1e-5)
    seconds = [
        json.loads((tmp_path / name / "stage1/result.json").read_text())["audio_seconds"] for name in ("one", "two")
    ]
    assert seconds[0] == pytest.approx(seconds[1])
    files = [
        {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if "events." not in path.name}
        for name in ("one", "two")
    ]
    assert files[0] == files[1], "one rank writes"


def test_a_rank_that_is_killed_ends_the_job(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Without being noticed it would keep the others waiting for half an hour."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(
        InputError, match=r"rank 1 .*(killed by SIGKILL|exited without an error), .* the other ranks were stopped"
    ):
        ranks.start(lose_a_rank, {"how": "killed", "clock": str(tmp_path / "clock")}, 2)
    assert signal.getsignal(signal.SIGTERM) is handler, "the starter's own handlers are back"
    record_property("seconds until the end of the job", time.time() - float((tmp_path / "clock").read_text()))


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_job_with_its_error() -> None:
    with pytest.raises(InputError, match=r"^there is no such thing$"):
        ranks.start(lose_a_rank, {"how": "mistake"}, 2)
    with pytest.raises(RuntimeError, match=r"rank 1 failed: ZeroDivisionError: a defect(.|\n)*in lose_a_rank"):
        ranks.start(lose_a_rank, {"how": "defect"}, 4)


@pytest.mark.slow
def test_what_the_first_rank_finds_all_ranks_know_and_statistics_add_up(tmp_path: Path) -> None:
    """Of four ranks one has no audio to compare layers on."""
    seen = ranks.start(on_first_only, {"folder": str(tmp_path)}, 4)
    shares = [[0, 4], [1], [2], [3]]
    assert [rank[:4] for rank in seen] == [(6, "refused by 0", 10.0, share) for share in shares]
    assert [path.name for path in tmp_path.iterdir()] == ["calls-0"]
    exact_LL, minibatch_LL, scales_L = compare(calibration())
    for *_, one_exact_LL, one_minibatch_LL, one_scales_L in seen:
        torch.testing.assert_close(one_exact_LL, exact_LL, rtol=0, atol=1e-9)
        torch.testing.assert_close(one_scales_L, scales_L, rtol=1e-9, atol=0)
        assert torch.equal(one_minibatch_LL, seen[0][5])
    assert (seen[0][5] - minibatch_LL).abs().max() < 0.25, "minibatches of other frames"


@pytest.mark.slow
def test_four_processes_are_one_that_accumulates(teacher: str, speech: str, tmp_path: Path) -> None:
    common = {"teacher": teacher, "data": speech, "method": "dphubert", **settings(accumulate=4)}
    run(tmp_path / "one", 1, **common)
    run(tmp_path / "four", 4, **common)
    assert_same_run(tmp_path / "one", 1, tmp_path / "four", 4)
    assert losses(tmp_path / "four", "stage1") == pytest.approx(losses(tmp_path / "one", "stage1"), rel=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(teacher: str, speech: str, tmp_path: Path) -> None:
    """Two updates on four ranks, one on one, the rest on two: the batches of a run that was never stopped."""
    common = {"teacher": teacher, "data": speech, "method": "dphubert", **settings(accumulate=4, steps=5)}
    run(tmp_path / "whole", 1, **common)
    whole = by_update(tmp_path / "whole", 1)
    updates: dict[Any, Any] = {}
    for processes, die_at in ((4, 2), (1, 3), (2, None)):
        for path in tmp_path.glob("run-observed/ids-*"):
            path.unlink()
        if die_at is None:
            run(tmp_path / "run", processes, **common)
        else:
            with pytest.raises(InputError, match="stopped by the test"):
                run(tmp_path / "run", processes, die_at=die_at, **common)
        # The update at which it was stopped has no checkpoint yet and is made again.
        updates |= by_update(tmp_path / "run", processes)
        assert updates == {update: whole[update] for update in updates}
    assert updates.keys() == whole.keys()
    one, other = (load_file(tmp_path / name / "stage1/student/model.safetensors") for name in ("whole", "run"))
    distance = sum((one[name] - other[name]).square().sum() for name in one).sqrt()
    moved = load_file(Path(teacher) / "model.safetensors")
    # Others have lost units, or are gone.
    whole_ones = [name for name in one if name in moved and one[name].shape == moved[name].shape]
    assert distance < 0.05 * sum((one[name] - moved[name]).square().sum() for name in whole_ones).sqrt()


@pytest.mark.slow
def test_a_teacher_with_unused_weights_is_trained_by_ranks_too(speech: str, tmp_path: Path) -> None:
    """The final norm of a pre-norm model is not under the loss."""
    torch.manual_seed(0)
    config = hubert_config(**SMALL, pre_norm=True, conv_norm="layer", conv_bias=True, input_normalization=True)
    Encoder(config).save_pretrained(tmp_path / "teacher")
    common = {"teacher": str(tmp_path / "teacher"), "data": speech, **settings(accumulate=2)}
    run(tmp_path / "one", 1, **common)
    run(tmp_path / "two", 2, **common)
    assert (tmp_path / "two/model/model.safetensors").exists()


@pytest.mark.slow
def test_sharded_students_are_one_that_is_whole(teacher: str, speech: str, tmp_path: Path) -> None:
    """FSDP on two ranks: the gradients and the data of one process, and a run that goes on where it stopped."""
    common = {"teacher": teacher, "data": speech, "method": "dphubert", **settings(accumulate=2, steps=4)}
    run(tmp_path / "one", 1, **common)
    run(tmp_path / "two", 2, **common, strategy="fsdp")
    assert_same_run(tmp_path / "one", 1, tmp_path / "two", 2)
    with pytest.raises(InputError, match="stopped by the test"):
        run(tmp_path / "run", 2, die_at=2, **common, strategy="fsdp")
    for path in tmp_path.glob("run-observed/ids-*"):
        path.unlink()
    run(tmp_path / "run", 2, **common, strategy="fsdp")
    updates, whole = by_update(tmp_path / "run", 2), by_update(tmp_path / "one", 1)
    assert updates == {update: whole[update] for update in updates}
    assert {*whole} - {*updates} == {("stage1", 0)}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_head_is_shared_as_the_rest_is(strategy: str, teacher: str, speech: str, tmp_path: Path) -> None:
    """A model with a CTC head: two ranks make the gradients of one process, the head's among them, and one model."""
    encoder = load_encoder(teacher)
    head = make_head(HeadConfig("ctc", 9), encoder.config)
    SpeechModel(encoder, head).save_pretrained(tmp_path / "model")
    common = {"teacher": str(tmp_path / "model"), "data": speech, "method": "dphubert", **settings(accumulate=2)}
    run(tmp_path / "one", 1, **common)
    run(tmp_path / "two", 2, **common, strategy=strategy)
    assert_same_run(tmp_path / "one", 1, tmp_path / "two", 2)
    gradients, _ = observed(tmp_path / "two", 2)
    assert all("loss.outputs.head.lm_head.weight" in tensors for tensors in gradients.values())
    one, two = (load_file(tmp_path / name / "model/head.safetensors") for name in ("one", "two"))
    assert not torch.equal(one["lm_head.weight"], head.lm_head.weight)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ranks_learn_with_rounded_numbers_as_one_process_does(
    strategy: str, teacher: str, speech: str, tmp_path: Path
) -> None:
    """In stage 2, gradients of the weights that are not rounded; the student's weights are rounded in the end."""
    common = {"teacher": teacher, "data": speech, "method": "dphubert", **settings(accumulate=2)}
    common |= {"quantization": "int8"}
    run(tmp_path / "one", 1, **common)
    run(tmp_path / "two", 2, **common, strategy=strategy)
    assert_same_run(tmp_path / "one", 1, tmp_path / "two", 2)
    gradients, _ = observed(tmp_path / "two", 2)
    name = "student.layers.0.feed_forward.input.parametrizations.weight.original"
    assert {stage for stage, tensors in gradients.items() if name in tensors} == {
        "gradients-stage2-0",
        "gradients-stage2-1",
    }
    weight_OI = load_encoder(tmp_path / "two/model").layers[0].get_submodule("feed_forward.input").weight
    codes_OI = weight_OI / (weight_OI.abs().amax(1, keepdim=True) / 63)
    torch.testing.assert_close(codes_OI, codes_OI.round(), rtol=0, atol=1e-4)


def test_what_cannot_be_shared_is_refused(teacher: str, speech: str, tmp_path: Path) -> None:
    common = {"teacher": teacher, "data": speech, "output": str(tmp_path / "run")}
    with pytest.raises(InputError, match=r"stage1\.accumulate is 3: .* cannot be shared evenly by 2 processes"):
        compress(**common, **settings(accumulate=3), devices=2)
    with pytest.raises(InputError, match="2 nodes were requested: start the command on each of them by torchrun"):
        compress(**common, **settings(accumulate=2), nodes=2)
    with pytest.raises(InputError, match="devices is 0"):
        compress(**common, **settings(accumulate=2), devices=0)
    assert not (tmp_path / "run").exists()


def in_two_processes(command: list[str], environments: list[dict[str, str]]) -> list[subprocess.Popen[str]]:
    """The same command once per environment, all at the same time; their ends are waited for."""
    processes = [
        subprocess.Popen(command, env=os.environ | own, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for own in environments
    ]
    for process in processes:
        process.wait(timeout=500)
    return processes


@pytest.mark.slow
def test_torchrun_starts_the_command_line(teacher: str, speech: str, tmp_path: Path) -> None:
    """Two machines of one process each, as far as torchrun can tell; the second one knows its number from there."""
    options = ["--clusters", "2", "--analysis.calibration_seconds", "24", "--analysis.batch_seconds", "6"]
    port = free_port()
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    command += [f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=test", "-m", "skill_speech.cli", "analyze", *options]
    command += ["--teacher", teacher, "--data", speech, "--output", str(tmp_path / "run"), "--nodes", "2"]
    processes = in_two_processes(command, [{}, {}])
    assert [process.returncode for process in processes] == [0, 0]
    errors = [process.stderr.read() for process in processes if process.stderr]
    assert sum("written to " in text for text in errors) == 1, "one of them speaks"
    assert load_analysis(tmp_path / "run/analysis").clusters.groups


@pytest.mark.slow
def test_slurm_tells_each_process_its_place(teacher: str, speech: str, tmp_path: Path) -> None:
    common = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "31415",
        "SLURM_JOB_NAME": "test",
        "SLURM_NODELIST": "localhost",
        "SLURM_NODEID": "0",
        "MASTER_PORT": str(free_port()),
    }
    options = ["--method", "dphubert", "--validation_seconds", "0", "--precision", "float32"]
    for stage in ("stage1", "stage2"):
        options += [f"--{stage}.steps", "1", f"--{stage}.warmup_steps", "1", f"--{stage}.batch_seconds", "6"]
        options += [f"--{stage}.accumulate", "2"]
    command = [sys.executable, "-m", "skill_speech.cli", "compress", *options, "--stage1.sparsity_steps", "1"]
    command += ["--teacher", teacher, "--data", speech, "--output", str(tmp_path / "run")]
    places = [common | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    processes = in_two_processes(command, places)
    assert [process.returncode for process in processes] == [0, 0], processes[1].stderr
    assert (tmp_path / "run/model/model.safetensors").exists()


@pytest.mark.slow
def test_an_evaluation_is_shared(teacher: str, tmp_path: Path) -> None:
    """Encoding and scoring on two ranks give the results of one."""
    corpora_by_hand.speech_commands(tmp_path / "corpora")
    common = {"models": [f"m={teacher}"], "data": str(tmp_path / "corpora"), "tasks": "ks", "steps": 3}
    evaluate(**common, output=str(tmp_path / "one"))
    ranks.start(evaluate, common | {"output": str(tmp_path / "two")}, 2)
    one, two = (json.loads((tmp_path / name / "m/ks.json").read_text()) for name in ("one", "two"))
    assert one["metrics"] == two["metrics"]
    np.testing.assert_allclose(one["loss"], two["loss"], rtol=1e-4)
    states = [len(list((tmp_path / name).glob("hidden_states/*/*.states"))) for name in ("one", "two")]
    assert states[1] > states[0], "each rank has written what it encoded"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return int(found.getsockname()[1])
