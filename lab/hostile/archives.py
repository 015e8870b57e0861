"""Torch's files: pickles, archives of them, and the files before there were archives."""

from __future__ import annotations

import io
import pickle
import pickletools
import random
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .values import CANARY, CODE, NUMBERS, TEXTS, Case, bent, like, value


@dataclass
class Call:
    """What a pickle calls."""

    name: str
    arguments: Any


@dataclass
class Global:
    """What a pickle names."""

    name: str


@dataclass
class Stored:
    """The storage of a tensor, as a pickle refers to it."""

    reference: Any


@dataclass
class Raw:
    """Instructions as they are."""

    content: bytes


CALLS = (
    *("posix.system", "os.system", "builtins.eval", "builtins.exec", "builtins.getattr", "subprocess.Popen"),
    *("builtins.list", "builtins.set", "builtins.dict", "builtins.bytearray", "builtins.range", "__builtin__.list"),
    *("collections.OrderedDict", "collections.Counter", "collections.defaultdict", "collections.deque"),
    *("torch.Size", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_qtensor"),
    *("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state", "torch.device", "torch.load"),
    *("torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_tensor_v3", "torch.hub.load", "_codecs.encode"),
    *("numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar", "numpy.dtype", "numpy.load"),
    *("argparse.Namespace", "omegaconf.dictconfig.DictConfig", "copyreg._reconstructor", "operator.getitem"),
    *("functools.partial", "datetime.datetime", "pathlib.PosixPath", "typing.Any", "importlib.import_module"),
    *(
        "skill_speech.encoder.Encoder",
        "torch.nn.Linear",
        "a.\x1b[2J",
        "a b.c",
        "\ud800".encode("utf-8", "replace").decode(),
    ),
)
DTYPES = (
    *("FloatStorage", "HalfStorage", "BFloat16Storage", "DoubleStorage", "LongStorage", "BoolStorage", "ByteStorage"),
    *("QUInt8Storage", "QInt32Storage", "ComplexFloatStorage", "UntypedStorage", "Linear", "Float8_e5m2Storage"),
)
KINDS_OF_NUMBERS = (
    "float32",
    "quint8",
    "qint8",
    "quint2x4",
    "complex64",
    "float8_e4m3fn",
    "bits8",
    "int64",
    "x",
    "Tensor",
)


def instructions(content: Any, depth: int = 0) -> bytes:
    """Pickle's instructions that make such an object."""
    inner = [] if depth > 200 else None
    if isinstance(content, Raw):
        return content.content
    if isinstance(content, Global):
        module, _, name = content.name.rpartition(".")
        return b"c" + f"{module}\n{name}\n".encode("utf-8", "replace")
    if isinstance(content, Call):
        return instructions(Global(content.name)) + instructions(content.arguments, depth + 1) + b"R"
    if isinstance(content, Stored):
        return instructions(content.reference, depth + 1) + b"Q"
    if isinstance(content, dict) and inner is None:
        parts = (instructions(key, depth + 1) + instructions(item, depth + 1) for key, item in content.items())
        return b"}(" + b"".join(parts) + b"u"
    if isinstance(content, list | tuple) and inner is None:
        parts = b"".join(instructions(item, depth + 1) for item in content)
        return b"](" + parts + b"e" if isinstance(content, list) else b"(" + parts + b"t"
    if isinstance(content, str):
        encoded = content.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(encoded)) + encoded
    return pickle.dumps(content, protocol=2)[2:-1]


def tensor(rng: random.Random, key: str, shape: tuple[int, ...], bad: bool) -> Any:
    """A tensor of that storage, honest or not."""
    count, strides, product = 1, [], 1
    for length in reversed(shape):
        strides.insert(0, product)
        product *= length
    count, offset, kind, size, stride = product, 0, "FloatStorage", list(shape), list(strides)
    if bad:
        way = rng.randrange(7)
        if way == 0:
            kind = rng.choice(DTYPES)
        elif way == 1:
            count = rng.choice(NUMBERS)
        elif way == 2:
            offset = rng.choice(NUMBERS)
        elif way == 3:
            size = like(size, rng) if rng.random() < 0.5 else [rng.choice(NUMBERS) for _ in size]
        elif way == 4:
            stride = [rng.choice([0, 0, 1, -1, 2**31, 2**63]) for _ in stride]
        elif way == 5:
            key = rng.choice(["0", "1", "../../0", "\x1b", "a" * 300, 0, None])
        else:
            size, stride = [0, *([2**31] * rng.randint(1, 40))], [1] * 40
    reference: Any = ("storage", Global(f"torch.{kind}"), key, "cpu", count)
    if bad and rng.random() < 0.1:
        reference = rng.choice([reference[:3], (), "0", None, ("module", Global("os.system"), "x"), reference * 2])
    arguments: list[Any] = [
        Stored(reference),
        offset,
        tuple(size),
        tuple(stride),
        False,
        Call("collections.OrderedDict", ()),
    ]
    name = "torch._utils._rebuild_tensor_v2"
    if bad and rng.random() < 0.3:
        name = "torch._utils._rebuild_tensor_v3"
        arguments.append(Global(f"torch.{rng.choice(KINDS_OF_NUMBERS)}"))
    if bad and rng.random() < 0.1:
        arguments[rng.randrange(len(arguments))] = value(rng)
    return Call(name, tuple(arguments))


def piece(rng: random.Random) -> Any:
    """An object that no checkpoint has."""
    way = rng.randrange(10)
    if way < 3:
        arguments = rng.choice([(CODE,), (f"touch {CANARY}",), (), ([1, 2],), ({"a": 1},), (value(rng),), [1], None])
        return Call(rng.choice(CALLS), arguments)
    if way == 3:  # copies of a list, or of a text, that is remembered
        what = rng.choice(
            [b"](" + b"N" * rng.choice((10, 300_000)) + b"e", instructions("a" * 1_000_000), b"(" + b"N" * 9000 + b"t"]
        )
        maker = instructions(Global(rng.choice(CALLS)))
        return Raw(what + b"q\x00" + b"0](" + (maker + b"h\x00\x85R") * rng.choice((3, 20_000)) + b"e")
    if way == 4:  # lists of two of the one before
        return Raw(
            b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(rng.choice((10, 60, 200)))) + b""
        )
    if way == 5:
        deep = rng.choice((100, 5_000, 100_000))
        return Raw(rng.choice((b"]" * deep + b"a" * (deep - 1), b"N" + b"\x85" * deep, b"}" * deep, b"(" * deep)))
    if way == 6:  # lengths that lie
        code, width = rng.choice(
            ((b"X", "<I"), (b"\x8d", "<Q"), (b"\x8b", "<i"), (b"\x8e", "<Q"), (b"\x95", "<Q"), (b"T", "<i"))
        )
        most = 2 ** (8 * struct.calcsize(width) - 1) - 1
        return Raw(code + struct.pack(width, rng.choice((0, 5, 2**20, 2**30, most))) + b"abcdef")
    if way == 7:  # instructions in any order
        made = b""
        for _ in range(rng.randint(1, 30)):
            opcode = rng.choice(pickletools.opcodes)
            made += opcode.code.encode("latin1") + (rng.randbytes(rng.choice((1, 1, 4))) if opcode.arg else b"")
        return Raw(made)
    if way == 8:  # a number, or a place to remember, beyond all measure
        return Raw(
            rng.choice(
                (b"\x8a\xff" + b"\x7f" * 255, b"I" + b"9" * 10_000 + b"\n", b"Nr\xff\xff\xff\x7f", b"Np99999999999\n")
            )
        )
    return {rng.choice([1.5, float("nan"), (1, (2, 3)), 10**40, None, True, b"x"]): Raw(b"N") for _ in range(3)}


_LOADED: dict[str, Any] = {}


def honest(good: Path) -> tuple[bytes, dict[str, bytes]]:
    """The pickle and the storages of a good checkpoint."""
    import torch

    loaded = _LOADED.setdefault(str(good), torch.load(good / "student.pth", weights_only=True))
    rng, weights = random.Random(0), dict(enumerate(loaded["state_dict"].items()))
    tensors = {name: tensor(rng, str(key), tuple(weight.shape), False) for key, (name, weight) in weights.items()}
    storages = {str(key): weight.numpy().tobytes() for key, (_, weight) in weights.items()}
    return b"\x80\x02" + instructions({"state_dict": tensors, "config": loaded["config"]}) + b".", storages


def checkpoint(good: Path, rng: random.Random) -> tuple[bytes, dict[str, bytes]]:
    """The pickle and the storages of a good checkpoint in which something is wrong."""
    import torch

    loaded = _LOADED.setdefault(str(good), torch.load(good / "student.pth", weights_only=True))
    config, names = loaded["config"], list(loaded["state_dict"])
    worse = {rng.choice(names) for _ in range(rng.choice((0, 1, 1, 2)))}
    weights, storages = {}, {}
    for number, (name, weight) in enumerate(loaded["state_dict"].items()):
        storages[str(number)] = weight.numpy().tobytes()
        weights[name] = tensor(rng, str(number), tuple(weight.shape), name in worse)
    if rng.random() < 0.3:
        weights[rng.choice([*TEXTS, *names])] = piece(rng)
    if rng.random() < 0.1:  # one storage for everything
        weights |= {f"w{n}": tensor(rng, "0", (8, 1, 10), False) for n in range(rng.choice((10, 40_000)))}
    top: Any = {"state_dict": weights, "config": bent(config, rng) if rng.random() < 0.5 else config}
    if rng.random() < 0.2:
        top[rng.choice(["state_dict", "config", "model", "cfg", "args", "skill_speech"])] = piece(rng)
    if rng.random() < 0.1:
        top = rng.choice(
            [piece(rng), weights, {"cfg": bent(config, rng), "model": weights}, [top], Call("a.B", (top,))]
        )
    return b"\x80\x02" + instructions(top) + rng.choice((b".", b".", b".", b".", b"")), storages


def pickles(good: Path, rng: random.Random) -> Case:
    """An archive in order around a pickle that is not."""
    program, storages = checkpoint(good, rng)
    members = [Member("a/data.pkl", program), *(Member(f"a/data/{key}", data) for key, data in storages.items())]
    return Case("pickle", ("import", "x.pt", "--output", "out"), {"x.pt": archive(members)})


@dataclass
class Member:
    """A member of a zip file, and what its two headers say that is not so."""

    name: str
    data: bytes
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    twin: int | None = None  # its data is that of another member


def archive(members: list[Member], **end: int) -> bytes:
    """A zip file; headers are true unless a member says otherwise."""
    out, directory, known = io.BytesIO(), io.BytesIO(), list[tuple[int, int, int]]()
    for member in members:
        if member.twin is None or not known:
            known.append((out.tell(), zlib.crc32(member.data), len(member.data)))
        else:
            known.append(known[member.twin % len(known)])
        at, checksum, length = known[-1]
        true = {"flags": 0, "method": 0, "crc": checksum, "packed": length, "size": length, "extra": b""}
        name = member.name.encode("utf-8", "surrogatepass")

        def header(said: dict[str, Any], true: dict[str, Any] = true, name: bytes = name) -> bytes:
            says = true | said
            fields = [20, says["flags"] | 0x800, says["method"], 0, 0, says["crc"]]
            fields += [says["packed"], says["size"], says.get("name_length", len(name)), len(says["extra"])]
            bits = (16, 16, 16, 16, 16, 32, 32, 32, 16, 16)
            return struct.pack("<HHHHHIIIHH", *(number % (1 << bit) for number, bit in zip(fields, bits, strict=True)))

        if member.twin is None:
            out.write(b"PK\x03\x04" + header(member.local) + name + (true | member.local)["extra"] + member.data)
        place = member.central.get("offset", at) % (1 << 32)
        directory.write(b"PK\x01\x02\x14\x00" + header(member.central) + struct.pack("<HHHII", 0, 0, 0, 0, place))
        directory.write(name + (true | member.central)["extra"])
    says = {"count": len(members), "length": directory.tell(), "start": out.tell()} | end
    out.write(directory.getvalue())
    numbers = says["count"] % 65_536, says["count"] % 65_536, says["length"] % (1 << 32), says["start"] % (1 << 32)
    out.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, *numbers, 0))
    return out.getvalue()


ODD_NAMES = [
    *("a/data.pkl", "b/data.pkl", "a/data/0", "a/data/00", "a/data/", "", "/", "../x", "/etc/x", "a\\data\\0", "a/\0b"),
    *(
        "a/constants.pkl",
        "a/byteorder",
        "a/\x1b[2J",
        "a/\udcff",
        "a/" + "x" * 60_000,
        "a//data.pkl",
        "./a/data.pkl",
        "A/DATA.PKL",
    ),
]


def archives(good: Path, rng: random.Random) -> Case:
    """A directory of a zip file that lies about its members."""
    program, storages = honest(good) if rng.random() < 0.8 else (pickle.dumps({}, 2), {"0": b"\0" * 4096})
    members = [Member("a/data.pkl", program), *(Member(f"a/data/{key}", data) for key, data in storages.items())]
    end: dict[str, int] = {}
    lies = {"flags": [1, 8, 64, 65_535], "method": [8, 12, 14, 99], "crc": [0, 1]}
    lies |= {"packed": [0, 1, 2**31, 2**32 - 1], "size": [0, 1, 2**31, 2**32 - 1], "offset": [0, 1, 2**31, 2**32 - 1]}
    lies |= {"extra": [b"\1\0\xff\xff", b"\1\0\x10\0" + b"\xff" * 16, b"x" * 60_000], "name_length": [0, 1, 65_535]}
    for _ in range(rng.choice((1, 1, 2, 4))):
        way, member = rng.randrange(7), rng.choice(members)
        if way < 2:
            said = rng.choice(list(lies))
            rng.choice((member.local, member.central))[said] = rng.choice(lies[said])
        elif way == 2:
            member.name = rng.choice(ODD_NAMES)
        elif way == 3:
            members.insert(
                rng.randrange(len(members) + 1), Member(rng.choice(ODD_NAMES), rng.choice((b"", program, b"big")))
            )
        elif way == 4:
            large = rng.random() < 0.3
            data = b"\0" * 4_000_001 if large else b"\0" * 100
            first, many = len(members), rng.choice((3, 3000))
            members += [Member("a/data/big", data), *(Member(f"a/data/t{n}", b"", twin=first) for n in range(many))]
        elif way == 5:
            end[rng.choice(("count", "length", "start"))] = rng.choice((0, 1, 65_535, 2**31, 2**32 - 1))
        else:
            members += [Member(f"a/data/n{n}", b"") for n in range(rng.choice((10, 60_000)))]
    return Case("zip", ("import", "x.pt", "--output", "out"), {"x.pt": archive(members, **end)})


def legacy(good: Path, rng: random.Random) -> Case:
    """The files before there were archives: pickles one after another, then the storages."""
    program, storages = checkpoint(good, rng) if rng.random() < 0.5 else honest(good)
    first = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True, "type_sizes": {"int": 4}}]
    keys: Any = list(storages)
    if rng.random() < 0.3:
        keys = rng.choice([[], keys * 2, keys * 5000, [*keys, "x"], keys[:-1], None, {}, [0], [[]], [value(rng)]])
    if rng.random() < 0.2:
        first[rng.randrange(3)] = value(rng)
    # A storage's reference has one part more than in an archive: which view it is.
    program = program.replace(
        b"tQ", rng.choice((b"NtQ", b"NtQ", b"NtQ", b"tQ", b"(X\1\0\0\0aK\0J\xff\xff\xff\x7ftNtQ", b"(NNNttQ"))
    )
    content = (
        b"".join(b"\x80\x02" + instructions(part) + b"." for part in first)
        + program
        + b"\x80\x02"
        + instructions(keys)
        + b"."
    )
    for data in storages.values():
        count = len(data) // 4 if rng.random() < 0.97 else rng.choice((0, 2**31, 2**63 - 1, 2**64 - 1, 2**62))
        content += struct.pack("<Q", count) + data
    return Case("legacy", ("import", "x.pt", "--output", "out"), {"x.pt": content})
