"""Which room of the package imports from which: found in the source, and drawn.

    python -m lab.rooms          draws docs/images/rooms.svg and fills the table in docs/architecture.md

tests/test_import_graph.py holds that arrows point downwards only, and that picture and table are those of the source.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

import skill_speech

ROOT = Path(skill_speech.__file__).parent
HERE = Path(__file__).parents[1]
PAGE, PICTURE = HERE / "docs" / "architecture.md", HERE / "docs" / "images" / "rooms.svg"
MARKS = "<!-- rooms -->\n", "<!-- end -->"

# From the top down: a room imports from rooms on lower lines, and from nobody else.
ORDER = """
cli
tables
compression
exporting
reporting
evaluation
distillation
similarity
figures
data
profiling
timing
run
checkpoints
pruning
kernels heads
encoder
limits
hardware yaml_values markdown quantities help_pages
environment files
errors
"""
LEVELS = {room: level for level, line in enumerate(ORDER.split("\n")) for room in line.split()}

SMALL = {"limits", "environment", "hardware", "yaml_values", "markdown", "quantities", "help_pages", "files", "errors"}
SHOWN = [room for room in LEVELS if room not in SMALL]


def arrows() -> dict[str, dict[str, list[str]]]:
    """Room → what it imports from → files that do; what is imported for type checkers and within functions counts."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).parts
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
                names = [base[0]] if base[0] else [alias.name for alias in node.names]
                for name in names:
                    if name != parts[0].removesuffix(".py") and name != "__version__":
                        found[parts[0].removesuffix(".py")][name].append(str(file.relative_to(ROOT)))
    return found


def direct_arrows() -> dict[str, list[str]]:
    """Room → the rooms it imports from, but those that one of them leads to anyway; from the top down."""
    known = {room: set(others) for room, others in arrows().items() if room in LEVELS}

    def below(room: str) -> set[str]:
        return known.get(room, set()).union(*(below(other) for other in known.get(room, ())))

    return {
        room: sorted(
            other for other in known.get(room, ()) if not any(other in below(via) for via in known[room] - {other})
        )
        for room in LEVELS
    }


def what_it_is(room: str) -> str:
    """The first line of a room's docstring."""
    path = ROOT / room / "__init__.py" if (ROOT / room).is_dir() else ROOT / f"{room}.py"
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


def table() -> str:
    """Markdown: every room, what it is, and what it builds on."""
    lines = ["| room | what it is | builds on |", "|---|---|---|"]
    for room, others in direct_arrows().items():
        name = f"`{room}/`" if (ROOT / room).is_dir() else f"`{room}.py`"
        lines.append(f"| {name} | {what_it_is(room)} | {', '.join(others)} |")
    return "\n".join(lines) + "\n"


def heights() -> dict[str, int]:
    """How many rooms are below one, at most, on a way along the arrows; small ones that all may know do not count."""
    direct = {room: [other for other in others if other in SHOWN] for room, others in direct_arrows().items()}

    def height(room: str) -> int:
        return 1 + max((height(other) for other in direct[room]), default=0)

    return {room: height(room) for room in SHOWN}


def draw() -> Figure:
    """The rooms from the top down, and their direct arrows."""
    height, direct = heights(), direct_arrows()
    places: dict[str, tuple[float, float]] = {}
    for level in sorted(set(height.values()), reverse=True):
        rooms = [room for room in SHOWN if height[room] == level]
        above = {room: [places[other][0] for other in places if room in direct[other]] for room in rooms}
        rooms.sort(key=lambda room: sum(above[room]) / len(above[room]) if above[room] else 0.5)
        for number, room in enumerate(rooms):
            places[room] = ((number + 0.5) / len(rooms) if len(rooms) > 1 else 0.5, level)
    figure = Figure(figsize=(8, 0.62 * (max(height.values()) + 1)))
    axes = figure.add_axes((0, 0, 1, 1))
    for room, other in shown_arrows():
        far = places[room][1] - places[other][1] > 1
        axes.annotate(
            "",
            places[other],
            places[room],
            arrowprops={
                "arrowstyle": "-|>",
                "color": "#8d939a",
                "linewidth": 1.0,
                "shrinkA": 12,
                "shrinkB": 13,
                "connectionstyle": f"arc3,rad={(0.25 if places[other][0] < 0.5 else -0.25) if far else 0}",
            },
        )
    for room, (x, y) in places.items():
        folder = (ROOT / room).is_dir()
        box = {"boxstyle": "round,pad=0.35", "facecolor": "#e8f0fa" if folder else "#f4f4f4", "edgecolor": "#5b6670"}
        axes.text(x, y, room + "/" * folder, ha="center", va="center", fontsize=11, color="#22262a", bbox=box)
    small = ", ".join(room for room in LEVELS if room not in SHOWN)
    axes.text(0.5, 0.25, f"{small}: whoever needs them", ha="center", va="center", fontsize=9.5, color="#5b6670")
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.1, max(height.values()) + 0.5)
    axes.axis("off")
    return figure


def shown_arrows() -> list[tuple[str, str]]:
    """The arrows in the picture."""
    return [(room, other) for room in SHOWN for other in direct_arrows()[room] if other in SHOWN]


def main() -> None:
    """Draw, and fill the table."""
    with matplotlib.rc_context({"svg.hashsalt": "rooms", "svg.fonttype": "none"}):
        draw().savefig(PICTURE, metadata={"Date": None})
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(MARKS[0])
    PAGE.write_text(before + MARKS[0] + table() + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8")


if __name__ == "__main__":
    main()
