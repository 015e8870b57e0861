"""Small files that ask for much: refused in one line, in memory and time that the size of the file bounds.

One process opens all of them, by the command line, and says what each took; `y` stands on its standard input.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from skill_speech import Encoder, InputError
from skill_speech.checkpoints import load_encoder, pickles
from skill_speech.encoder import hubert_config
from tests.fairseq_files import fairseq_settings, fairseq_weights
from tests.refusals import refused
from tests.test_checkpoint_safety import in_legacy_file, in_zip, text
from tests.torchaudio_reference import random_state, student_config
from tests.transformers_models import TINY, build

MEMORY = 2**30
SECONDS = 30  # of the processor; the slowest take a tenth

OPEN_ALL = """
import contextlib, io, json, resource, sys, time, tempfile
from pathlib import Path
from transformers import CONFIG_MAPPING
from skill_speech.checkpoints import importing
from skill_speech.cli import main
def memory(name):
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)]
    return int(line.split()[1]) * 1024
CONFIG_MAPPING["hubert"](), main(["import", "nowhere/at/all", "--output", "x"])
for path in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before, started, said = memory("VmRSS"), time.process_time(), io.StringIO()
    resource.setrlimit(resource.RLIMIT_CPU, (int(started) + 60, resource.RLIM_INFINITY))
    with contextlib.redirect_stderr(said), tempfile.TemporaryDirectory() as folder:
        try:
            status = main(["import", path, "--output", folder + "/x"])
        except BaseException as error:
            status = repr(error)[:500]
    took = {"memory": memory("VmHWM") - before, "seconds": time.process_time() - started}
    print(json.dumps({"status": status, "said": said.getvalue(), **took}), flush=True)
"""


def safetensors(path: Path, header: dict[str, Any], data: bytes = b"") -> Path:
    content = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content)) + content + data)
    return path


def folder_of(path: Path, config: dict[str, Any], weights: bytes | None = None) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "hubert"} | config))
    if weights is None:
        safetensors(path / "model.safetensors", {})
    else:
        (path / "pytorch_model.bin").write_bytes(weights)
    return path


def copies(maker: bytes) -> Callable[[Path], Path]:
    """A list of 300,000 entries that is copied 20,000 times by a call that looks harmless."""
    program = b"\x80\x02]q\x00(" + b"N" * 300_000 + b"e0](" + (maker + b"h\x00\x85R") * 20_000 + b"e."
    return lambda path: in_zip(path, program)


def overlapping(path: Path) -> Path:
    """300 storages, each a tensor of its own, that all are one member of four million bytes."""
    tensors = {str(n): torch.zeros(4) for n in range(300)}
    torch.save(tensors, path)
    with zipfile.ZipFile(path) as archive:
        program = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    in_zip(path, program, key0=b"\0" * 4_000_001)
    with zipfile.ZipFile(path, "a") as archive:
        member = archive.infolist()[-1]
        for number in range(1, 300):
            twin = zipfile.ZipInfo(f"archive/data/{number}")
            twin.header_offset, twin.CRC = member.header_offset, member.CRC
            twin.compress_size = twin.file_size = member.file_size
            archive.filelist.append(twin)
        archive._didModify = True
    return path


def layers_over_one_storage(path: Path) -> Path:
    """250 layers of 1,000 hidden units whose matrices are one matrix."""
    width = 1_000
    square, vector = torch.zeros(width, width), torch.zeros(width)
    tiny = TINY | {"hidden_size": width, "intermediate_size": width, "num_hidden_layers": 1}
    weights = dict(build("Hubert", tiny).state_dict())
    first = [name.removeprefix("encoder.layers.0.") for name in weights if name.startswith("encoder.layers.0.")]
    weights |= {
        f"encoder.layers.{n}.{name}": square if name.endswith("weight") and "norm" not in name else vector
        for n in range(250)
        for name in first
    }
    torch.save(weights, path.with_suffix(".bin"))
    return folder_of(path, tiny | {"num_hidden_layers": 250}, path.with_suffix(".bin").read_bytes())


def absent_sublayers(path: Path) -> Path:
    """250 layers of 65,536 hidden units without attention and feed-forward, of which only the biases are ours."""
    depth, width, config = 250, 2**16, student_config(wavlm=False, large=False)
    state, norm = random_state(config), torch.ones(width)
    kinds = [f"{kind}.{part}" for kind in ("layer_norm", "final_layer_norm") for part in ("weight", "bias")]
    state |= {f"encoder.transformer.layers.{n}.{kind}": norm for n in range(depth) for kind in kinds}
    flags = {"encoder_use_attention": [False] * depth, "encoder_use_feed_forward": [False] * depth}
    sizes = {"encoder_ff_interm_features": 8, "encoder_num_heads": 1, "encoder_head_dim": width}
    config |= {"encoder_num_layers": depth, "encoder_embed_dim": width} | flags | sizes
    torch.save({"state_dict": state, "config": config}, path)
    return path


def missing_projection(path: Path) -> Path:
    """fairseq leaves out a projection between equal widths; the identity in its place is the square of the width."""
    model = build("Hubert", TINY)
    weights = fairseq_weights(model) | {"layer_norm.weight": torch.ones(2**16), "layer_norm.bias": torch.ones(2**16)}
    del weights["post_extract_proj.weight"]
    settings = fairseq_settings(model, "hubert") | {"encoder_embed_dim": 2**16}
    torch.save({"cfg": {"model": settings}, "model": weights}, path)
    return path


def giant_json(path: Path) -> Path:
    folder_of(path, {})
    with (path / "config.json").open("r+b") as file:
        file.truncate(2**30)
    return path


def many_heads(path: Path) -> Path:
    """Our own format with a 256 layers of a thousand heads."""
    encoder = Encoder(hubert_config(hidden_size=1024, num_heads=1024, depth=1, units=1, channels=1))
    encoder.save_pretrained(path)
    values = asdict(encoder.config)
    values["layers"] = values["layers"] * 256
    (path / "config.json").write_text(json.dumps({"model_type": "skill-speech"} | values))
    return path


# A quantized tensor over a storage that is too small for it.
QUANTISED = b"\x80\x02}" + text("weight") + b"ctorch._utils\n_rebuild_tensor_v3\n((" + text("storage")
QUANTISED += (
    b"ctorch\nUntypedStorage\n" + text("0") + text("cpu") + b"K\x08tQK\x00K\x08\x85K\x01\x85\x89}ctorch\n%s\ntRs."
)

HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    **{
        f"{dtype}.pt": (
            lambda path, dtype=dtype: in_zip(path, QUANTISED.replace(b"%s", dtype.encode()), key0=b"\0" * 8),
            f"tensors of torch.{dtype} are not supported; save the model in float32",
        )
        for dtype in ("quint8", "qint8", "qint32", "quint4x2", "quint2x4", "complex64", "float8_e4m3fn", "load")
    },
    "copies-list.pt": (copies(b"cbuiltins\nlist\n"), "copies more than it holds"),
    "copies-set.pt": (copies(b"cbuiltins\nset\n"), "copies more than it holds"),
    "copies-size.pt": (copies(b"ctorch\nSize\n"), "copies more than it holds"),
    "overlapping.pt": (overlapping, "its members overlap"),
    "layers": (layers_over_one_storage, "share"),
    "absent.pth": (absent_sublayers, "share"),
    "projection.pt": (missing_projection, "post_extract_proj.weight is missing"),
    "names.pt": (
        lambda path: in_zip(path, b"\x80\x02" + text("A" * 10**6) + b"q\x000" + b"h\x00h\x00\x93)R" * 20_000 + b"."),
        "a name that is too long",
    ),
    "keys.pt": (
        lambda path: in_zip(path, b"\x80\x02(" + b"N" * 300_000 + b"tq\x000}" + b"h\x00Ns" * 20_000 + b"."),
        "key that is too large",
    ),
    "colliding.pt": (  # all of these numbers have the hash 0
        lambda path: in_zip(
            path,
            b"\x80\x02}("
            + b"".join(b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") + b"N" for n in range(1, 100_000))
            + b"u.",
        ),
        "key that is too large",
    ),
    "nested.pt": (  # a tensor of a tensor of a tensor
        lambda path: in_zip(
            path, b"\x80\x02" + b"(ctorch._tensor\n_rebuild_from_type_v2\n" * 30_000 + b"t" * 30_000 + b"R."
        ),
        "malformed",
    ),
    "empty.safetensors": (
        lambda path: safetensors(
            path, {f"l.{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(150_000)}
        ),
        "holds 150,000 tensors",
    ),
    "float8.safetensors": (
        lambda path: safetensors(path, {"w": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}, b"1234"),
        "of the type F8_E4M3; save the model in float32",
    ),
    "complex.safetensors": (
        lambda path: safetensors(path, {"w": {"dtype": "C64", "shape": [1], "data_offsets": [0, 8]}}, b"12345678"),
        "of the type C64; save the model in float32",
    ),
    "empty-but-huge.safetensors": (
        lambda path: safetensors(path, {"w": {"dtype": "F32", "shape": [0, 2**32, 2**32], "data_offsets": [0, 0]}}),
        "weights of no known speech encoder",
    ),
    "many-layers": (lambda path: folder_of(path, {"num_hidden_layers": 30_000_000}), "num_hidden_layers is 30000000"),
    "many-labels": (lambda path: folder_of(path, {"num_labels": 30_000_000}), "is missing"),
    "wide": (lambda path: folder_of(path, {"hidden_size": 2 * 10**8, "num_attention_heads": 1}), "hidden_size is 2"),
    "largest": (
        lambda path: folder_of(
            path,
            {"hidden_size": 2**16, "num_attention_heads": 2**12, "num_hidden_layers": 2**8, "intermediate_size": 2**20},
        ),
        "is missing",
    ),
    "giant-json": (giant_json, "larger than the limit of 16 MiB"),
    "deep-json": (
        lambda path: folder_of(path, {}) and (path / "config.json").write_text("[" * 10**6) and path,
        "nested too deeply",
    ),
    "wide-json": (
        lambda path: folder_of(path, {}) and (path / "config.json").write_text(f"[{'{},' * 3_000_000}0]") and path,
        "not a JSON object",
    ),
    "many-heads": (many_heads, "has 256 layers for"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("hostile")
    paths = [make(folder / name) for name, (make, _) in HOSTILE.items()]
    command = [sys.executable, "-c", OPEN_ALL, *map(str, paths)]
    done = subprocess.run(command, input="y\n" * 100, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths), f"{list(HOSTILE)[len(lines)]} ended the process ({done.returncode})"
    return dict(zip(HOSTILE, map(json.loads, lines), strict=True))


@pytest.mark.skipif(sys.platform != "linux", reason="where /proc is")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line_and_within_bounds(outcomes, name):
    outcome = outcomes[name]
    assert outcome["status"] == 2, outcome
    [line] = outcome["said"].splitlines()
    assert HOSTILE[name][1] in line
    assert outcome["memory"] < MEMORY
    assert outcome["seconds"] < SECONDS


def test_the_steps_of_a_pickle_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_STEPS", 1_000)
    program = b"\x80\x02" + b"N0" * 600 + b"N."
    for path in (in_zip(tmp_path / "m.pt", program), in_legacy_file(tmp_path / "l.pt", program)):
        assert "more than 1,000 steps" in refused(path)


def test_layers_may_share_their_weights(tmp_path):
    """Within reason: six layers over the weights of one are read, each with a copy of its own."""
    model = build("Hubert", TINY | {"num_hidden_layers": 6})
    layers = model.encoder.layers
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    weights = model.state_dict()
    shared = {
        name: weights[f"encoder.layers.0.{name.split('.', 3)[3]}"] for name in weights if "encoder.layers." in name
    }
    torch.save(weights | shared, tmp_path / "pytorch_model.bin")
    model.config.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    pointers = [layer.attention.query.weight.data_ptr() for layer in encoder.layers]
    assert len(set(pointers)) == 6
    with torch.inference_mode():
        waveforms = torch.randn(1, 4_000)
        theirs = model(waveforms).last_hidden_state
        assert torch.allclose(encoder(waveforms).last_hidden_state_BTD, theirs, atol=1e-5)


def test_weights_are_read_in_time_that_grows_with_their_number(tmp_path, monkeypatch):
    """The file is opened again for every so many bytes, not for every tensor."""
    from skill_speech.checkpoints import weights

    opened = []
    real = weights.safe_open
    monkeypatch.setattr(weights, "safe_open", lambda *args, **options: opened.append(1) or real(*args, **options))
    header = {f"l.{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(2_000)}
    assert list(weights.read_file(safetensors(tmp_path / "w.safetensors", header))) == sorted(header)
    assert len(opened) == 1
    (tmp_path / "w.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="damaged or not a safetensors file"):
        weights.read_file(tmp_path / "w.safetensors")
