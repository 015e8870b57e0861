"""Files that would run code, that lie about their size, or that are damaged: one clear line, and nothing happens."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from skill_speech import Encoder, InputError, load_encoder
from skill_speech.checkpoints import save_torchaudio
from skill_speech.checkpoints.archives import read_archive
from skill_speech.encoder import hubert_config
from tests.fairseq_files import fairseq_settings, fairseq_weights, write_fairseq
from tests.torchaudio_reference import random_state, student_config
from tests.transformers_models import TINY, build


def refused(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_encoder(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# Pickles that make something at `target` when Python reads them, by the instruction that does it.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def payloads(target: str) -> dict[str, bytes]:
    mkdir, arguments, call = b"cos\nmkdir\n", b"(" + text(target) + b"t", b"R"
    partial = b"cfunctools\npartial\n"
    bound = b"(" + mkdir + text(target) + b"t"  # arguments that make partial(os.mkdir, target)
    state = b"(" + mkdir + arguments + b"}Nt"
    code = text(f"import os; os.mkdir({target!r})")
    os_module = b"cbuiltins\n__import__\n" + text("os") + b"\x85R"
    return {
        "REDUCE": mkdir + arguments + call,
        "REDUCE of a STACK_GLOBAL": text("os") + text("mkdir") + b"\x93" + arguments + call,
        "REDUCE of a dotted name": text("shutil") + text("os.mkdir") + b"\x93" + arguments + call,
        "REDUCE of a builtin": b"cbuiltins\nexec\n(" + code + b"t" + call,
        "REDUCE by a package outside the library": b"cnumpy\nsavetxt\n(" + text(target) + b"](K\x01et" + call,
        "REDUCE of what was memoised": mkdir + b"q\x010h\x01" + arguments + call,
        "REDUCE of what getattr found": b"cbuiltins\ngetattr\n(" + os_module + text("mkdir") + b"tR" + arguments + call,
        "REDUCE that nobody keeps": b"}" + mkdir + arguments + call + b"0",
        "REDUCE in a dictionary": b"}" + text("model") + mkdir + arguments + call + b"s",
        "INST": b"(" + text(target) + b"ios\nmkdir\n",
        "OBJ": b"(" + mkdir + text(target) + b"o",
        "NEWOBJ": partial + bound + b"\x81)" + call,
        "NEWOBJ_EX": partial + bound + b"}\x92)" + call,
        "BUILD": partial + b"(cbuiltins\nlen\ntR" + state + b"b)" + call,
    }


NAMES = tuple(payloads(""))


def in_zip(path: Path, content: bytes, *, method: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        for name, data in members.items():
            archive.writestr(f"archive/data/{name.removeprefix('key')}", data)
    return path


def in_legacy_file(path: Path, content: bytes) -> Path:
    header = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*header, content, pickle.dumps([], 2)]))
    return path


def in_plain_pickle(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_the_payloads_are_live(name, tmp_path):
    """What the next test refuses does happen when Python itself reads it."""
    target = tmp_path / "executed"
    (tmp_path / "file.pkl").write_bytes(b"\x80\x04" + payloads(str(target))[name] + b".")
    command = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))"
    subprocess.run([sys.executable, "-c", command, tmp_path / "file.pkl"], check=False, capture_output=True)
    assert target.exists()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("container", [in_zip, in_legacy_file, in_plain_pickle])
def test_code_in_a_pickle_is_refused_and_not_run(container, name, tmp_path):
    target = tmp_path / "executed"
    path = container(tmp_path / "model.pt", b"\x80\x04" + payloads(str(target))[name] + b".")
    assert "code in a checkpoint is never run" in refused(path)
    assert not target.exists()


class Evil:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


class Watching:
    """Of a class that exists here, and does something when its state is set."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __setstate__(self, state: dict[str, str]) -> None:
        os.mkdir(state["target"])


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_beside_good_weights_is_refused_too(legacy, tmp_path):
    model, path = build("Hubert", TINY), tmp_path / "m.pt"
    write_fairseq(path, "args" if legacy else "cfg", fairseq_settings(model, "hubert"), fairseq_weights(model), False)
    content = torch.load(path, weights_only=False)
    content["extra_state"] = [Evil(tmp_path / "executed")]
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert "asks Python to run posix.mkdir" in refused(path)
    assert not (tmp_path / "executed").exists()


def test_an_object_of_an_unknown_class_is_left_alone(tmp_path):
    model, path = build("Hubert", TINY), tmp_path / "m.pt"
    write_fairseq(path, "cfg", fairseq_settings(model, "hubert"), fairseq_weights(model), False)
    content = torch.load(path, weights_only=False)
    torch.save(content | {"extra_state": Watching(tmp_path / "executed")}, path)
    load_encoder(path)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    torch.load(path, weights_only=False)
    assert (tmp_path / "executed").exists()  # so it was there to be set off


def test_nothing_is_imported_for_the_configuration(tmp_path):
    model = build("Hubert", TINY)
    path = write_fairseq(
        tmp_path / "m.pt", "omegaconf", fairseq_settings(model, "hubert"), fairseq_weights(model), False
    )
    load_encoder(path)
    assert not [name for name in sys.modules if name.startswith(("omegaconf", "fairseq"))]


# Pickles and archives that claim to be large.


class Claim:
    """A tensor of a size of its own choosing over four numbers."""

    def __init__(self, size: Any, stride: Any, offset: Any = 0) -> None:
        self.arguments = (offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, (torch.ones(4).storage(), *self.arguments)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    ("claim", "message"),
    [
        (Claim((10**12,), (1,)), "1,000,000,000,000 numbers where 4 are stored"),
        (Claim((10**12,), (0,)), "1,000,000,000,000 numbers where 4 are stored"),
        (Claim((10**6, 10**6), (0, 0)), "1,000,000,000,000 numbers where 4 are stored"),
        (Claim((2,), (4,)), "2 numbers where 4 are stored"),
        (Claim((2,), (1,), 3), "2 numbers where 4 are stored"),
        (Claim((0, 2**60), (1, 1)), "a tensor of an impossible size"),
        (Claim((2,), (-1,)), "without proper sizes and strides"),
        (Claim((2,), (1, 1)), "without proper sizes and strides"),
        (Claim(2, 1), "malformed"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(claim, message, legacy, tmp_path):
    torch.save({"weight": claim}, tmp_path / "m.pt", _use_new_zipfile_serialization=not legacy)
    assert message in refused(tmp_path / "m.pt")


def storage_claim(count: int, key: str = "0") -> bytes:
    """A pickle of one tensor of `count` numbers whose storage claims as many."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", count) if isinstance(value, Evil) else None

    class Tensor:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Evil(Path()), 0, (count,), (1,), False, OrderedDict())

    import io

    file = io.BytesIO()
    Pickler(file, 2).dump({"weight": Tensor()})
    return file.getvalue()


def test_a_storage_that_claims_more_than_the_file_holds(tmp_path):
    path = in_zip(tmp_path / "m.pt", storage_claim(10**12), key0=b"\0" * 16)
    assert "shorter than expected" in refused(path)
    assert "data/7 is missing" in refused(in_zip(tmp_path / "m.pt", storage_claim(4, "7"), key0=b"\0" * 16))
    # Deflated, a terabyte of zeros would fit into a gigabyte.
    bomb = in_zip(tmp_path / "m.pt", storage_claim(10**6), method=zipfile.ZIP_DEFLATED, key0=b"\0" * 4 * 10**6)
    assert bomb.stat().st_size < 10_000
    assert "is compressed" in refused(bomb)


def nested_key(depth: int) -> bytes:
    """A dictionary whose key is a tuple of twice a tuple, of twice a tuple, …: hashing it takes 2^depth steps."""
    return b"\x80\x02})" + b"2\x86" * depth + b"K\x01s."


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02}r" + struct.pack("<I", 2**31) + b"K\x01" + b"r" + struct.pack("<I", 2**32 - 1) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b".",
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b".",
        nested_key(200),
        b"\x80\x02" + b"(" * 10_000 + b".",
        b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
        b"\x80\x02\x82\x01.",
        b"\x80\x05\x97.",
        b"\x80\x02N.",
        b"\x80\x02h\x07.",
        b"\x80\x02.",
        b"\x80\x02K",
        b"\x80\x02K\x01K\x02R.",
        b"\x80\x02NK\x01a.",
        b"\x80\x02X\x02\0\0\0\xff\xff.",
        b"\x80\x02Q.",
        b"\x80\x02K\x01Q.",
        b"hello",
        b"\xff\xfe",
    ],
)
@pytest.mark.parametrize("container", [in_zip, in_legacy_file, in_plain_pickle])
def test_pickles_that_make_no_sense_or_bombs_are_refused(container, content, tmp_path):
    refused(container(tmp_path / "m.pt", content))


def test_a_configuration_that_grows_when_it_is_unfolded(tmp_path):
    """Fifty lists, each of twice the one before: 2^50 items, were it written out."""
    model, bomb = build("Hubert", TINY), ["end"]
    for _ in range(45):
        bomb = [bomb, bomb]
    content = {"cfg": {"model": fairseq_settings(model, "hubert"), "bomb": bomb}, "model": fairseq_weights(model)}
    torch.save(content, tmp_path / "m.pt")
    assert load_encoder(tmp_path / "m.pt").config.family == "hubert"
    bomb[0] = bomb
    torch.save(content, tmp_path / "m.pt")
    assert "nested too deeply" in refused(tmp_path / "m.pt")


def test_a_configuration_of_a_giant_is_refused_before_memory_is_asked_for(tmp_path):
    encoder = Encoder(hubert_config(hidden_size=48, num_heads=4, depth=2, units=8, channels=8, positional_groups=4))
    encoder.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values["convs"][3]["channels"] = 10**9
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="channels of convolution 3 is 1000000000; it must be"):
        load_encoder(tmp_path)
    values["convs"][3]["channels"] = 2**16
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="has the shape"):
        load_encoder(tmp_path)


# Damaged files, and files of something else.


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("student") / "student.pth"
    encoder = Encoder(hubert_config(hidden_size=48, num_heads=4, depth=2, units=8, channels=8, positional_groups=4))
    save_torchaudio(encoder, path)
    load_encoder(path)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_truncated_files_are_refused(share, legacy, tmp_path):
    config = student_config(wavlm=True, large=False)
    path = tmp_path / "student.pth"
    content = {"state_dict": random_state(config), "config": config}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    load_encoder(path)
    os.truncate(path, int(path.stat().st_size * share))
    assert "damaged or not a torch archive" in refused(path)


@pytest.mark.parametrize("keys", [None, {}, "0", 0, [0], [[]], [None], [{}], [("0",)], ["0", []], ["x"], [b"0"]])
def test_a_list_of_storages_that_is_none_is_refused(keys, tmp_path):
    path = in_legacy_file(tmp_path / "m.pt", pickle.dumps({}, 2))
    end = pickle.dumps([], 2)
    content = path.read_bytes()
    assert content.endswith(end)
    path.write_bytes(content.removesuffix(end) + pickle.dumps(keys, 2))
    assert "storage" in refused(path)


@pytest.mark.parametrize("place", ["data.pkl", "data/0", "data/20"])
def test_a_flipped_bit_is_found(student, place, tmp_path):
    path = tmp_path / "student.pth"
    path.write_bytes(student)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"archive/{place}")
        names = student[info.header_offset + 26 : info.header_offset + 30]
        start = info.header_offset + 30 + sum(struct.unpack("<HH", names))
    damaged = bytearray(student)
    damaged[start + info.file_size // 2] ^= 1
    path.write_bytes(damaged)
    assert f"archive/{place} has a wrong checksum" in refused(path)


def test_archives_without_checksums_are_read(tmp_path):
    encoder = Encoder(hubert_config(hidden_size=48, num_heads=4, depth=2, units=8, channels=8, positional_groups=4))
    torch.serialization.set_crc32_options(False)
    try:
        save_torchaudio(encoder, tmp_path / "student.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_encoder(tmp_path / "student.pth").config.hidden_size == 48


def test_files_of_something_else(tmp_path):
    path = tmp_path / "file.pt"
    path.write_bytes(b"")
    assert "it is empty" in refused(path)
    path.write_text("epoch,loss\n1,0.5\n")
    assert "damaged or not a torch archive" in refused(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "damaged or not a torch archive" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    assert "it has no data.pkl" in refused(path)
    torch.save(torch.nn.Linear(2, 2), path)
    assert "holds an object of torch.nn.modules.linear.Linear, not its weights" in refused(path)
    torch.save([1, 2], path)
    assert "holds a list, not a checkpoint" in refused(path)
    torch.save({"epoch": 3}, path)
    assert "not a known checkpoint" in refused(path)
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    assert "weights of no known speech encoder (weight, …)" in refused(path)
    torch.save({"state_dict": {"weight": torch.ones(1)}, "config": {}}, path)
    assert "weights of no known speech encoder" in refused(path)
    safetensors = path.with_suffix(".safetensors")
    safetensors.write_bytes(b"\xff" * 100)
    assert "not a safetensors file" in refused(safetensors)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_program_is_refused_by_its_name(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    assert "a TorchScript program" in refused(tmp_path / "model.pt")


# What is left: data, equal to what torch itself reads.


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"pickle_protocol": 4},
        {"pickle_protocol": 5},
        {"_use_new_zipfile_serialization": False},
        {"_use_new_zipfile_serialization": False, "pickle_protocol": 4},
    ],
    ids=["zip", "zip-4", "zip-5", "legacy", "legacy-4"],
)
def test_data_equals_torchs_own_reading(how, tmp_path):
    torch.manual_seed(0)
    base = torch.randn(6, 5)
    tensors = {
        **{str(dtype): torch.arange(7).to(dtype) for dtype in (torch.float64, torch.float32, torch.float16)},
        **{str(dtype): torch.arange(7).to(dtype) for dtype in (torch.bfloat16, torch.int64, torch.int32, torch.int16)},
        **{str(dtype): torch.arange(7).to(dtype) for dtype in (torch.int8, torch.uint8, torch.bool)},
        "transposed": base.T,
        "slice": base[2:4, 1:3],
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "parameter": torch.nn.Parameter(torch.randn(3)),
    }
    plain_values = {
        "numbers": [1, -2, 1 << 70, 1.5, True, None],
        "nested": {"a": (1, (2, "drei")), 3: OrderedDict(b=[])},
        "size": torch.Size([1, 2]),
    }
    if how.get("_use_new_zipfile_serialization", True):  # torch does not read its own legacy files of these
        tensors["uint16"] = torch.arange(7).to(torch.uint16)
    odd = {"path": Path("x"), "array": numpy.arange(3), "number": numpy.float64(1), "device": torch.device("cpu")}
    path = tmp_path / "file.pt"
    torch.save(tensors | plain_values | odd | {"state": torch.nn.Linear(2, 3).state_dict()}, path, **how)
    ours, theirs = read_archive(path), torch.load(path, weights_only=False)
    for name in tensors:
        assert ours[name].dtype == theirs[name].dtype
        assert ours[name].stride() == theirs[name].stride()
        assert torch.equal(ours[name], theirs[name])
    for name in plain_values:
        assert ours[name] == theirs[name]
    assert torch.equal(ours["state"]["weight"], theirs["state"]["weight"])
