"""Pickles read as data: containers and numbers become themselves, everything else an inert record of itself.

A pickle is a program for a small stack machine, and some of its instructions look a name up and call what they find.
The machine here runs the same programs and calls nothing of the file's choosing: the only functions it ever calls are
the constructors that its caller hands in, and those are ours.
"""

from __future__ import annotations

import pickletools
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from mmap import mmap
from typing import IO, Any, cast

from ..errors import InputError

# Of one pickle. Those of checkpoints hold names and shapes: well below a million bytes and two hundred thousand steps.
MAX_BYTES = 16 * 2**20
MAX_STEPS = 600_000
# Beyond what any class is called, any key consists of, and any number counts.
MAX_NAME, MAX_KEY_PARTS, MAX_BITS = 500, 8, 1024

Constructors = Mapping[str, Callable[..., Any]]


class DamagedError(ValueError):
    """A pickle or an archive that does not follow its own rules; the reason is for a person."""


class UnsupportedError(Exception):
    """What a file holds is in order and not supported; the reason is for a person."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle speaks of; never looked up."""

    module: str
    name: str

    @property
    def full(self) -> str:
        """Module and name."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Record:
    """An object of a class that is not ours to build: its class's name, arguments, state and contents."""

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)


# Classes of Python's own library that a checkpoint may mention, because all they do is hold data. Everything else of
# that library is refused by name: nothing of it belongs into a checkpoint, and much of it is what malicious files use.
HOLDERS: dict[str, tuple[str, ...] | None] = {
    "_operator": ("getitem",),  # parametrized type hints in older pickles
    "argparse": ("Namespace",),
    "collections": ("Counter", "OrderedDict", "defaultdict", "deque"),
    "copy_reg": ("_reconstructor",),  # as Python 2 called it
    "copyreg": ("_reconstructor",),
    "_codecs": ("encode",),
    "datetime": ("date", "datetime", "time", "timedelta", "timezone"),
    "decimal": ("Decimal",),
    "fractions": ("Fraction",),
    "functools": ("partial",),
    "operator": ("getitem",),
    "types": ("NoneType", "SimpleNamespace"),
    "typing": None,  # type hints, under any name
    "uuid": ("UUID",),
}
HOLDERS |= dict.fromkeys(
    ("pathlib", "pathlib._local"),
    ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"),
)
HOLDERS |= dict.fromkeys(
    ("builtins", "__builtin__"),
    tuple(
        # The last three are what Python 2 called range, str, and, for the class of None, is the only way to name it.
        "bool bytearray bytes complex dict float frozenset int list long object range set slice str tuple "
        "xrange unicode type".split()
    ),
)
# Outside of it, objects are made by calling a class, and classes have capitals. Functions are called to run something,
# but for those that make an array, a tensor, a type or a device.
MAKERS = tuple(
    "numpy.core.multiarray. numpy._core.multiarray. numpy.core.numeric. numpy._core.numeric. numpy.random._pickle. "
    "numpy.dtype numpy.ndarray torch._utils. torch._tensor. torch.device torch.dtype "
    "torch.serialization._get_layout".split()
)


def read_pickle(
    file: IO[bytes] | mmap, constructors: Constructors, persistent: Callable[[Any], Any], source: str
) -> Any:
    """The object of the pickle at the file's position, which is then after it.

    Args:
        file: with `read`, `readline` and `tell`; reading from it must not allocate more than it holds.
        constructors: by full name, own functions that stand in for those that the pickle names.
        persistent: what an object is that the pickle only refers to.
        source: for messages.

    Raises:
        InputError: the pickle would run code.
        DamagedError: it cannot be read.
    """
    machine = _Machine(constructors, persistent, source)
    start = file.tell()
    try:
        for number, (opcode, argument, position) in enumerate(pickletools.genops(cast(IO[bytes], file))):
            read = (position or 0) - start
            if read > MAX_BYTES or number > MAX_STEPS:
                raise DamagedError(
                    f"its pickle is larger than {MAX_BYTES >> 20} MiB or has more than {MAX_STEPS:,} steps"
                )
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
            if machine.copied > read:
                raise DamagedError("its pickle copies more than it holds")
    except (
        *(ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, AttributeError, struct.error),
        RuntimeError,  # of torch, and of what is nested too deeply
    ) as error:
        raise DamagedError(
            str(error) if isinstance(error, DamagedError) else "its pickle is truncated or malformed"
        ) from None
    raise DamagedError("its pickle is truncated")


class _Machine:
    """The stack machine of pickle, protocols 0 to 5, without calls."""

    def __init__(self, constructors: Constructors, persistent: Callable[[Any], Any], source: str) -> None:
        self.constructors, self.persistent, self.source = {**_CONTAINERS, **constructors}, persistent, source
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0  # items of what was handed to constructors, which may be handed over again and again

    def step(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in _VALUES:
            if isinstance(argument, int) and argument.bit_length() > MAX_BITS:
                raise DamagedError("its pickle has an invalid count")
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _REFERENCES:
            self.stack.append(self.memo[argument])
        elif name in _MEMOIZERS:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif name not in ("PROTO", "FRAME"):
            method = getattr(self, f"_{name.lower()}", None)
            if method is None:  # the extension registry and out-of-band buffers
                raise DamagedError(f"its pickle uses {name}, which no checkpoint does")
            method() if argument is None else method(argument)

    # The stack.

    def _mark(self) -> None:
        self.marks.append(len(self.stack))

    def _since_mark(self) -> list[Any]:
        mark = self.marks.pop()
        items = self.stack[mark:]
        del self.stack[mark:]
        return items

    def _pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def _pop_mark(self) -> None:
        self._since_mark()

    def _dup(self) -> None:
        self.stack.append(self.stack[-1])

    # Containers.

    def _tuple(self) -> None:
        self.stack.append(tuple(self._since_mark()))

    def _tuple1(self) -> None:
        self._last(1)

    def _tuple2(self) -> None:
        self._last(2)

    def _tuple3(self) -> None:
        self._last(3)

    def _last(self, count: int) -> None:
        self.stack.append(tuple(self.stack.pop() for _ in range(count))[::-1])

    def _list(self) -> None:
        self.stack.append(self._since_mark())

    _frozenset = _list

    def _dict(self) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._set(items)

    def _append(self) -> None:
        self._extend([self.stack.pop()])

    def _appends(self) -> None:
        self._extend(self._since_mark())

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | Record):
            raise DamagedError("its pickle appends to something that is not a list")
        (target if isinstance(target, list) else target.items).extend(items)

    def _setitem(self) -> None:
        value = self.stack.pop()
        self._set([self.stack.pop(), value])

    def _setitems(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, Record):
            target.items.extend(pairs)
        elif isinstance(target, dict):
            target.update((_key(key), value) for key, value in pairs)
        else:
            raise DamagedError("its pickle sets items of something that is not a dictionary")

    # Names, and what Python would call.

    def _global(self, argument: str) -> None:
        self.stack.append(self._name(*argument.split(" ", 1)))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._name(module, name))

    def _name(self, module: Any, name: Any) -> Name:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedError("its pickle names something that is not a name")
        if len(module) + len(name) > MAX_NAME:
            raise DamagedError("its pickle has a name that is too long")
        # A dotted name walks from attribute to attribute, and modules have the modules they import for attributes.
        parts = [module.split(".")[0], *(name.split(".")[:-1])]
        known = HOLDERS.get(module, ())
        if any(part in _PYTHON for part in parts) and known is not None and name not in known:
            self._refuse(f"{module}.{name}")
        return Name(module, name)

    def _reduce(self) -> None:
        arguments, callee = self.stack.pop(), self.stack.pop()
        self.stack.append(self._make(callee, arguments))

    def _newobj(self) -> None:
        self._reduce()

    def _newobj_ex(self) -> None:
        keywords, arguments, callee = self.stack.pop(), self.stack.pop(), self.stack.pop()
        made = self._make(callee, arguments)
        if isinstance(made, Record):
            made.items.append(keywords)
        self.stack.append(made)

    def _obj(self) -> None:
        callee, *arguments = self._since_mark()
        self.stack.append(self._make(callee, tuple(arguments)))

    def _inst(self, argument: str) -> None:
        callee = self._name(*argument.split(" ", 1))
        self.stack.append(self._make(callee, tuple(self._since_mark())))

    def _make(self, callee: Any, arguments: Any) -> Any:
        if not isinstance(callee, Name) or not isinstance(arguments, tuple):
            raise DamagedError("its pickle calls something that is not a class")
        if callee.full in self.constructors:
            self.copied += sum(len(each) for each in arguments if isinstance(each, list | tuple | dict | str | bytes))
            return self.constructors[callee.full](*arguments)
        is_class = callee.name.split(".")[-1].lstrip("_")[:1].isupper()
        if not is_class and callee.module not in HOLDERS and not callee.full.startswith(MAKERS):
            self._refuse(callee.full)
        return Record(callee.full, arguments)

    def _build(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state
        # Anything else is built already; what a subclass of dict or Tensor keeps beside its contents is not needed.

    def _persid(self, argument: str) -> None:
        self.stack.append(self.persistent(argument))

    def _binpersid(self) -> None:
        self.stack.append(self.persistent(self.stack.pop()))

    def _refuse(self, name: str) -> None:
        raise InputError(f"{self.source}: asks Python to run {name}, and code in a checkpoint is never run; refused")


def _key(value: Any) -> Any:
    """A dictionary key that is cheap to hash: nested tuples, or numbers with one hash, can be made to take for ever."""
    parts = value if isinstance(value, tuple) else (value,)
    if len(parts) > MAX_KEY_PARTS or any(isinstance(part, int) and part.bit_length() > 60 for part in parts):
        raise DamagedError("its pickle has a dictionary key that is too large")
    if not all(part is None or isinstance(part, str | int | float | bytes | Name | Record) for part in parts):
        raise DamagedError("its pickle has a dictionary key that is neither a number nor a string")
    return value


def _mapping(content: Any = ()) -> dict[Any, Any]:
    pairs = content.items() if isinstance(content, dict) else content
    return {_key(key): value for key, value in pairs}


def _reconstructed(kind: Any, base: Any = None, state: Any = None) -> Record:
    if not isinstance(kind, Name):
        raise DamagedError("its pickle makes an object of something that is not a class")
    return Record(kind.full)


_PYTHON = sys.stdlib_module_names | {"__builtin__", "copy_reg"}
_VALUES = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 "
    "BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 FLOAT BINFLOAT".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,  # a set would hash what the file puts into it
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}
_REFERENCES = ("GET", "BINGET", "LONG_BINGET")
_MEMOIZERS = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_CONTAINERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": lambda factory=None, content=(): _mapping(content),
    "copyreg._reconstructor": _reconstructed,
    "copy_reg._reconstructor": _reconstructed,
}
_CONTAINERS |= {
    f"{module}.{name}": (lambda items=(): list(items))
    for module in ("builtins", "__builtin__")
    for name in ("set", "frozenset", "list")
}
