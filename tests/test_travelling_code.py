"""What travels with exports runs on Python 3.9, s3prl's oldest, which the tests themselves do not run on."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import skill_speech
from skill_speech.exporting.travel.remote_code import ENCODER, HEADS

PACKAGE = Path(skill_speech.__file__).parent
FILES = sorted(
    [
        *(PACKAGE / "encoder").glob("*.py"),
        *(PACKAGE / "exporting/travel").glob("*.py"),
        *(PACKAGE / "heads" / name for name in HEADS.values()),
    ]
)
PYTHON = (3, 9)

LATER_ARGUMENTS = {
    "zip": {"strict"},
    "map": {"strict"},
    "dataclass": {"slots", "kw_only", "weakref_slot"},
    "field": {"kw_only"},
    "batched": {"strict"},
    "write_text": {"newline"},
    "glob": {"case_sensitive", "include_hidden", "root_dir"},
    "rglob": {"case_sensitive"},
}
"""What a function of Python's own did not take then; calls go by the last part of their name."""

LATER_NAMES = {
    "itertools": {"pairwise", "batched"},
    "typing": {
        "TypeAlias",
        "ParamSpec",
        "Concatenate",
        "TypeGuard",
        "Self",
        "Never",
        "Unpack",
        "override",
        "assert_never",
    },
    "types": {"NoneType", "UnionType", "EllipsisType"},
    "enum": {"StrEnum"},
    "contextlib": {"aclosing", "chdir"},
    "hashlib": {"file_digest"},
    "datetime": {"UTC"},
    "math": {"cbrt", "exp2", "sumprod"},
    "dataclasses": {"KW_ONLY"},
    "inspect": {"get_annotations"},
    "builtins": {"aiter", "anext", "ExceptionGroup", "BaseExceptionGroup", "EncodingWarning"},
}
"""What a module did not have then."""


def problems(code: str) -> list[str]:
    """What of some code Python 3.9 cannot run, as far as it can be seen without running it."""
    tree = ast.parse(code, feature_version=PYTHON)
    lazy = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    annotations = {id(inner) for outer in _annotations(tree) for inner in ast.walk(outer)}
    found = []
    for node in ast.walk(tree):
        if lazy and id(node) in annotations:
            continue  # never evaluated
        found += [f"line {getattr(node, 'lineno', 0)}: {what}" for what in _of(node)]
    return found


def _annotations(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                yield getattr(node, name)


def _of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr) and any(map(_is_type, (node.left, node.right))):
        yield "X | Y of types"
    elif isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        yield from (f"{name}({word.arg}=)" for word in node.keywords if word.arg in LATER_ARGUMENTS.get(name, ()))
        if name in ("isinstance", "issubclass") and any(isinstance(part, ast.BinOp) for part in node.args):
            yield "X | Y of types"
    elif isinstance(node, ast.ImportFrom):
        yield from (
            f"{node.module}.{one.name}" for one in node.names if one.name in LATER_NAMES.get(node.module or "", ())
        )
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        if node.attr in LATER_NAMES.get(node.value.id, ()):
            yield f"{node.value.id}.{node.attr}"
    elif isinstance(node, ast.Name) and node.id in LATER_NAMES["builtins"]:
        yield node.id
    elif isinstance(node, ast.Import):
        yield from (one.name for one in node.names if one.name == "tomllib")


def _is_type(node: ast.AST) -> bool:
    """Whether an operand is None, a built-in type, a class by its spelling, or a generic of one."""
    if isinstance(node, ast.Subscript):
        return _is_type(node.value)
    if isinstance(node, ast.Constant):
        return node.value is None
    name = ast.unparse(node).rpartition(".")[2] if isinstance(node, (ast.Name, ast.Attribute)) else ""
    return isinstance(getattr(builtins, name, None), type) or (name[:1].isupper() and not name.isupper())


def test_all_files_of_the_encoder_travel() -> None:
    here = {path.name for path in (PACKAGE / "encoder").glob("*.py")} - {"__init__.py"}
    assert here == set(ENCODER)


def test_files_that_lie_beside_each_other_have_names_of_their_own() -> None:
    travel = {path.name for path in (PACKAGE / "exporting/travel").glob("*.py")}
    assert len({*ENCODER, *HEADS, *travel}) == len(ENCODER) + len(HEADS) + len(travel)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_travels_runs_on_python_3_9(path: Path) -> None:
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_what_travels_needs_torch_alone(path: Path) -> None:
    """And Transformers or onnxruntime where they are whom it travels to."""
    needed = {"configuration_skill_speech.py": {"transformers"}, "modeling_skill_speech.py": {"transformers"}}
    allowed = {"torch", *needed.get(path.name, ())} if path.name != "encode.py" else {"numpy", "onnxruntime"}
    # Writing a model of our own, which nobody asks of an encoder elsewhere.
    allowed |= {"safetensors"} if path.name == "encoder.py" else set()
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {one.name.partition(".")[0] for one in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add((node.module or "").partition(".")[0])
    assert imported - set(sys.stdlib_module_names) <= allowed


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("for a, b in zip(x, y, strict=True): pass", 1),
        ("isinstance(x, int | str)", 2),
        ("isinstance(x, A.b | c.d)", 1),
        ("def f(x: int | None): pass", 1),
        ("def f() -> list[int] | Tensor: pass", 1),
        ("x: Tensor | None = None", 1),
        ("Both = Tensor | str", 1),
        ("@dataclass(frozen=True, slots=True)\nclass A: pass", 1),
        ("from itertools import pairwise, chain", 1),
        ("import hashlib\nhashlib.file_digest(f, 'md5')", 1),
        ("from __future__ import annotations\ndef f(x: int | None) -> A | B: pass", 0),
        ("from __future__ import annotations\nBoth = int | None", 1),
        ("names = one | other; flags = A_FLAG | B_FLAG; made |= {1: 2}", 0),
        ("isinstance(x, (int, str)); zip(x, y)", 0),
    ],
)
def test_the_check_sees_what_it_is_for(code: str, count: int) -> None:
    assert len(problems(code)) == count


@pytest.mark.parametrize(
    "code", ["match x:\n  case 1: pass", "try: pass\nexcept* E: pass", "type X = int", "def f[T](x): pass"]
)
def test_grammar_of_later_versions_is_refused(code: str) -> None:
    with pytest.raises(SyntaxError):
        problems(code)
