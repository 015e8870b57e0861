"""Exported folders in onnxruntime, torch.export and s3prl, each alone on another machine."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from torch import Tensor
from torch.export.passes import move_to_device_pass

from skill_speech.checkpoints import load_encoder
from skill_speech.encoder import Encoder
from skill_speech.errors import InputError
from skill_speech.exporting import export
from tests import torchaudio_reference
from tests.card_code import assert_the_card_loads_it
from tests.clean_environment import run_with
from tests.exported_models import BATCHES, SHORTEST, STUDENTS, batch, pruned_encoder, student

ONNX_THERE = """
import sys, numpy as np, onnxruntime
try:
    import torch
except ImportError:
    pass
else:
    raise AssertionError("torch is here")
batches = np.load("batches.npz")
for name in sys.argv[1:]:
    session = onnxruntime.InferenceSession(f"{name}/model.onnx")
    names = [output.name for output in session.get_outputs()]
    made = {}
    for number in range(len(batches.files) // 2):
        inputs = {key: batches[f"{key}{number}"] for key in ("waveforms", "lengths")}
        made |= {f"{key}/{number}": array for key, array in zip(names, session.run(names, inputs))}
    np.savez(f"{name}.npz", **made)
"""

TORCH_EXPORT_THERE = """
import sys, torch
for name in sys.argv[1:]:
    program = torch.export.load(f"{name}/model.pt2").module()
    torch.save([program(*batch) for batch in torch.load("batches.pt")], f"{name}.pt")
"""

S3PRL_THERE = """
import sys, torch
from s3prl.upstream.skill_speech.hubconf import skill_speech_local
for name in sys.argv[1:]:
    upstream = skill_speech_local(ckpt=f"{name}/model.pt", model_config=None, refresh=False).eval()
    made = []
    for waveforms, lengths in torch.load("batches.pt"):
        with torch.inference_mode():
            made.append(upstream([row[:length] for row, length in zip(waveforms, lengths)]))
    torch.save(made, f"{name}.pt")
"""


TORCHAUDIO_THERE = """
import sys, torch
sys.path.insert(0, "reference")
from torchaudio_reference import hidden_states
for name in sys.argv[1:]:
    checkpoint = torch.load(f"{name}/model.pth")
    parts = checkpoint["state_dict"], checkpoint["config"]
    torch.save([hidden_states(*parts, *batch) for batch in torch.load("batches.pt")], f"{name}.pt")
"""


def students(slow: bool) -> list[str]:
    """The student that is always tried, with the most traps in it, or the others."""
    return [name for name in STUDENTS if (name != "wavlm") == slow]


def wanted(encoder: Encoder, waveforms: Tensor, lengths: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        made = encoder(waveforms, lengths)
    states = {f"hidden_state_{number}": state for number, state in enumerate(made.hidden_states)}
    return states | {"last_hidden_state": made.last_hidden_state_BTD, "frames": made.lengths_B}


# A traced program of torch needs two frames.
TRIED = dict.fromkeys(("onnx", "s3prl", "torchaudio"), (*BATCHES, SHORTEST)) | {"torch-export": (*BATCHES, batch(720))}


def write(names: list[str], folder: Path, format: str) -> dict[str, Encoder]:
    encoders = {name: student(name) for name in names}
    for name, encoder in encoders.items():
        encoder.save_pretrained(folder / "models" / name)
        export(str(folder / "models" / name), str(folder / "machine" / name), format=format)
        if format != "torchaudio":  # the others are for running, not for coming back
            with pytest.raises(InputError):
                load_encoder(folder / "machine" / name)
    torch.save(TRIED[format], folder / "machine" / "batches.pt")
    arrays = {}
    for number, (waveforms, lengths) in enumerate(TRIED[format]):
        arrays |= {f"waveforms{number}": waveforms.numpy(), f"lengths{number}": lengths.numpy()}
    np.savez(folder / "machine" / "batches.npz", **arrays)
    return encoders


def assert_close(mine: Tensor, other: Tensor, tolerance: float, what: str) -> None:
    assert mine.shape == other.shape, what
    assert float((mine.double() - other.double()).abs().max()) <= tolerance, what


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_onnx_equals_the_encoder_where_torch_is_not_installed(slow, tmp_path, monkeypatch):
    encoders = write(students(slow), tmp_path, "onnx")
    run_with(["onnxruntime"], ONNX_THERE, tmp_path / "machine", *encoders)
    for name, encoder in encoders.items():
        made = np.load(tmp_path / "machine" / f"{name}.npz")
        for number, (waveforms, lengths) in enumerate(TRIED["onnx"]):
            outputs = wanted(encoder, waveforms, lengths)
            assert {key for key in made.files if key.endswith(f"/{number}")} == {f"{key}/{number}" for key in outputs}
            for key, other in outputs.items():
                assert_close(torch.from_numpy(made[f"{key}/{number}"]), other, 1e-4, f"{name}: {key}")
        assert_the_card_loads_it(tmp_path / "machine" / name, "onnx", encoder, monkeypatch)


def test_onnx_equals_the_encoder_at_twenty_seconds_with_padding(tmp_path):
    """Tens of thousands of steps of padding are added up for the norm over time."""
    encoder = student("hubert")
    encoder.save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), str(tmp_path / "onnx"), format="onnx", hidden_states="last")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    for waveforms, lengths in (batch(320_000, 100_000, 8_000), batch(320_000), batch(320_000, 720)):
        inputs = {"waveforms": waveforms.numpy(), "lengths": lengths.numpy()}
        made, _ = session.run(["last_hidden_state", "frames"], inputs)
        exact = wanted(copy.deepcopy(encoder).double(), waveforms.double(), lengths)["last_hidden_state"]
        assert_close(torch.from_numpy(made), exact, 2e-5, str(lengths))


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torch_export_equals_the_encoder_where_only_torch_is_installed(slow, tmp_path, monkeypatch):
    encoders = write(students(slow), tmp_path, "torch-export")
    run_with(["torch"], TORCH_EXPORT_THERE, tmp_path / "machine", *encoders)
    for name, encoder in encoders.items():
        for inputs, outputs in zip(TRIED["torch-export"], torch.load(tmp_path / "machine" / f"{name}.pt"), strict=True):
            other = wanted(encoder, *inputs)
            assert outputs.keys() == other.keys()
            for key, mine in outputs.items():
                assert_close(mine, other[key], 1e-5, f"{name}: {key}")
        program = torch.export.load(tmp_path / "machine" / name / "model.pt2")
        with pytest.raises(AssertionError, match="720"):
            program.module()(*batch(719))
        assert not any(weight.requires_grad for weight in program.module().parameters())
        assert_the_card_loads_it(tmp_path / "machine" / name, "torch-export", encoder, monkeypatch)
        # Nothing stays behind when it goes to another device; one without memory is enough to see that.
        moved = move_to_device_pass(program, "meta").module()
        outputs = moved(torch.zeros(2, 9_600, device="meta"), torch.zeros(2, dtype=torch.long, device="meta"))
        assert {output.device.type for output in outputs.values()} == {"meta"}


def test_a_torchaudio_file_is_the_encoder_where_only_torch_is_installed(tmp_path):
    """By what their layout describes, of which the tests have a model of their own."""
    encoders = write(["hubert", "wavlm", "pre-norm"], tmp_path, "torchaudio")
    machine = tmp_path / "machine"
    (machine / "reference").mkdir()
    shutil.copy(torchaudio_reference.__file__, machine / "reference")
    run_with(["torch"], TORCHAUDIO_THERE, machine, *encoders)
    for name, encoder in encoders.items():
        for inputs, states in zip(TRIED["torchaudio"], torch.load(machine / f"{name}.pt"), strict=True):
            other = wanted(encoder, *inputs)
            valid = torch.arange(other["last_hidden_state"].shape[1]) < other["frames"][:, None]
            for number, mine in list(enumerate(states))[1:]:  # their first is h_0
                assert_close(mine[valid], other[f"hidden_state_{number}"][valid], 1e-5, f"{name}: {number}")
        back = load_encoder(machine / name / "model.pth")
        assert back.config == encoder.config.replace(input_norm_eps=back.config.input_norm_eps)


def s3prl_package(folder: Path, upstream: Path) -> None:
    """A package laid out as s3prl's, with the upstream in it."""
    shutil.copytree(upstream, folder / "s3prl" / "upstream" / "skill_speech", ignore=lambda *_: ["model.pt"])
    for place in ("s3prl", "s3prl/upstream", "s3prl/upstream/skill_speech"):
        (folder / place / "__init__.py").touch()


def test_s3prl_upstream_equals_the_encoder_where_only_torch_is_installed(tmp_path):
    encoders = write(list(STUDENTS), tmp_path, "s3prl")
    machine = tmp_path / "machine"
    s3prl_package(machine, machine / "wavlm")
    code = f"import sys; sys.path.insert(0, {str(machine)!r}){S3PRL_THERE}"
    run_with(["torch"], code, machine, *encoders)
    for name, encoder in encoders.items():
        for inputs, outputs in zip(TRIED["s3prl"], torch.load(machine / f"{name}.pt"), strict=True):
            other = wanted(encoder, *inputs)
            # s3prl's own upstreams give the last one behind the final norm.
            states = [*(other[f"hidden_state_{number}"] for number in range(3)), other["last_hidden_state"]]
            for number, (mine, state) in enumerate(zip(outputs["hidden_states"], states, strict=True)):
                assert_close(mine, state, 1e-5, f"{name}: {number}")
            assert_close(outputs["last_hidden_state"], other["last_hidden_state"], 1e-5, name)


def test_s3prl_upstream_keeps_its_contract(tmp_path, monkeypatch):
    """What s3prl's featurizer, its wrapper and its trainer ask of an upstream."""
    encoder = pruned_encoder("wavlm", layer_dropout=1.0)
    encoder.save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), str(tmp_path / "upstream"), format="s3prl")
    s3prl_package(tmp_path / "package", tmp_path / "upstream")
    monkeypatch.syspath_prepend(tmp_path / "package")
    from s3prl.upstream.skill_speech import hubconf

    entries = [name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")]
    assert entries == ["skill_speech_local"]  # what `-u` can name
    upstream = hubconf.skill_speech_local(str(tmp_path / "upstream" / "model.pt"))
    assert isinstance(upstream, torch.nn.Module)
    assert sum(weight.numel() for weight in upstream.parameters()) == encoder.num_parameters()
    waveforms = [torch.randn(length) for length in (16_000, 800, 48_123, 4_000)]
    downsample_rate = upstream.get_downsample_rates("hidden_states")
    assert downsample_rate == 320
    for training in (False, True):
        upstream.train(training)
        states = upstream(waveforms)["hidden_states"]
        assert isinstance(states, list)
        assert len({state.shape for state in states}) == 1  # they can be summed with weights
        batch_size, frames, width = states[0].shape
        assert (batch_size, width) == (4, 48)
        # s3prl cuts features to round(samples / rate) and accepts a total length that is off by less than 5 frames.
        assert abs(frames - round(48_123 / downsample_rate)) < 5
    torch.stack(states).mean().backward()  # a trainable upstream, of which no layer is skipped
    learned = [weight for weight in upstream.encoder.convs.parameters() if weight.requires_grad]  # scales are not
    assert all(torch.isfinite(weight.grad).all() for weight in learned)
    assert all(bool(layer.attention.output.bias.grad.any()) for layer in upstream.encoder.layers)


@pytest.mark.slow
def test_torch_export_of_the_last_hidden_state_alone(tmp_path):
    encoder = student("hubert")
    encoder.save_pretrained(tmp_path / "model")
    export(str(tmp_path / "model"), str(tmp_path / "out"), format="torch-export", hidden_states="last")
    made = torch.export.load(tmp_path / "out" / "model.pt2").module()(*BATCHES[0])
    assert made.keys() == {"last_hidden_state", "frames"}
    assert_close(made["last_hidden_state"], wanted(encoder, *BATCHES[0])["last_hidden_state"], 1e-5, "hubert")


@pytest.fixture(scope="module")
def int8(tmp_path_factory) -> tuple[Encoder, Path]:
    folder = tmp_path_factory.mktemp("int8")
    encoder = student("wavlm")
    encoder.save_pretrained(folder / "model")
    export(str(folder / "model"), str(folder / "onnx"), format="onnx", quantize="int8", hidden_states="last")
    return encoder, folder / "onnx"


def test_the_example_encodes_a_wav_file_where_torch_is_not_installed(int8, tmp_path):
    encoder, folder = int8
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (20_000, 2))
    soundfile.write(tmp_path / "speech.wav", samples, 16_000, subtype="PCM_16")
    code = (folder / "encode.py").read_text()
    assert len(code.splitlines()) <= 55  # to be read, and copied into other code
    # Where __file__ is the example's own path, as for who runs it.
    printed = run_with(
        ["onnxruntime", "numpy"],
        f"import runpy; runpy.run_path({str(folder / 'encode.py')!r})",
        tmp_path,
        str(tmp_path / "speech.wav"),
    )
    assert "speech.npz: last_hidden_state (1, 62, 48), 2 arrays" in printed
    waveform, _ = soundfile.read(tmp_path / "speech.wav", dtype="float32")
    other = wanted(encoder, torch.from_numpy(waveform.mean(1, dtype=np.float32))[None], torch.tensor([20_000]))
    made = np.load(tmp_path / "speech.npz")
    assert set(made.files) == {"last_hidden_state", "frames"}
    error = torch.from_numpy(made["last_hidden_state"]) - other["last_hidden_state"]
    assert float(error.norm() / other["last_hidden_state"].norm()) < 0.05


def test_int8_has_8_bits_in_the_linear_maps_of_the_transformer_alone(int8):
    encoder, folder = int8
    graph = onnx.load(folder / "model.onnx").graph
    maps = ("query", "key", "value", "output", "input")
    linear = [module for name, module in encoder.named_modules() if name.endswith(maps)]
    empty = [module for module in linear if not module.weight.numel()]
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(products) == len(linear) - len(empty)
    bytes_of = {weight.name: weight for weight in graph.initializer}
    for node in products:
        assert bytes_of[node.input[1]].data_type == onnx.TensorProto.INT8
    assert sum(node.op_type == "Conv" for node in graph.node) == 8


@pytest.mark.slow
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_weights_too_big_for_an_onnx_file_lie_beside_it(quantize, tmp_path, monkeypatch):
    monkeypatch.setattr("skill_speech.exporting.onnx_model.LARGEST", 0)
    encoder = student("hubert")
    encoder.save_pretrained(tmp_path / "model")
    result = export(str(tmp_path / "model"), str(tmp_path / "onnx"), format="onnx", quantize=quantize)
    assert (tmp_path / "onnx" / "model.onnx.data").exists()
    assert result.measurements[1].size > sum(weight.numel() for weight in encoder.parameters()) * 4
    if quantize is not None:
        assert result.measurements[2].size < result.measurements[1].size
    assert result.measurements[-1].difference < (1e-5 if quantize is None else 0.05)


def test_onnx_files_say_nothing_of_the_machine_that_wrote_them(int8):
    _, folder = int8
    contents = (folder / "model.onnx").read_bytes()
    assert b"/skill_speech/" not in contents
    assert b".py" not in contents
    dims = {
        output.name: [axis.dim_param or axis.dim_value for axis in output.type.tensor_type.shape.dim]
        for output in onnx.load(folder / "model.onnx").graph.output
    }
    assert dims == {"last_hidden_state": ["batch", "frames", 48], "frames": ["batch"]}
