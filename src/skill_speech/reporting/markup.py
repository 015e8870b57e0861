"""HTML as text: what comes in as words is escaped, what comes in as markup was made here."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .pictures import mark


class Markup(str):
    """HTML that was made here; any other string is words."""


def markup(words: str) -> str:
    """Words escaped, markup as it is."""
    return words if isinstance(words, Markup) else escape(words)


def paragraph(words: str, kind: str) -> str:
    """A paragraph of a class of page.css."""
    return f'<p class="{escape(kind)}">{markup(words)}</p>'


def table(
    heading: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    name: str = "",
    numbers: bool = True,
    marked: Sequence[int] = (),
) -> str:
    """A table in a frame that scrolls by itself, so that the page never does.

    Args:
        heading: of the columns; the first names the rows.
        rows: cells, the first one names the row.
        caption: what the table is, shown above it.
        name: the same for those who cannot see it, where there is no caption.
        numbers: cells are numbers; otherwise words, which may be long.
        marked: rows that stand out.
    """
    kind = ' class="n"' if numbers else ""
    head = "".join(
        f'<th scope="col"{kind if column else ""}>{markup(words)}</th>' for column, words in enumerate(heading)
    )
    cell = "n" if numbers else "long"
    body = []
    for number, (name, *cells) in enumerate(rows):
        said = "".join(f'<td class="{cell}">{markup(words)}</td>' for words in cells)
        differs = ' class="differs"' if number in marked else ""
        body.append(f'<tr{differs}><th scope="row">{markup(name)}</th>{said}</tr>')
    title = f"<caption>{markup(caption)}</caption>" if caption else ""
    inner = f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    # Reached by keyboard, because what scrolls has to be.
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption or name or "table")}">{inner}</div>'
    )


def details(summary: str, inside: str) -> str:
    """What is there for those who want it."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def figure(title: str, picture: str, caption: str, numbers: str, before: str = "") -> str:
    """A picture with its title, a caption in words and its numbers as a table."""
    head = f'<p class="title">{escape(title)}</p>' if title else ""
    return f"<figure>{head}{before}{picture}<figcaption>{markup(caption)}</figcaption>{numbers}</figure>"


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Names beside a sample of their line, bar or mark, each with its class of page.css."""
    parts = []
    for name, kind in entries:
        sample = f'<rect x="0" y="1" width="16" height="6" rx="1" class="{kind}"/>'
        if kind in ("main", "second", "aim"):
            sample = f'<line x1="0" x2="16" y1="4" y2="4" class="line {kind}"/>'
        elif kind.startswith("mark "):
            sample = mark(kind.removeprefix("mark "), 8, 4, 3.5)
        parts.append(f'<li><svg viewBox="0 0 16 8" aria-hidden="true">{sample}</svg>{escape(name)}</li>')
    return f'<ul class="legend">{"".join(parts)}</ul>'


def section(name: str, title: str, inside: str) -> str:
    """A section of the page with its heading."""
    return f'<section id="{escape(name)}"><h2>{escape(title)}</h2>{inside}</section>'


def panels(parts: Sequence[str]) -> str:
    """Side by side where there is room, otherwise one below the other."""
    return f'<div class="panels">{"".join(f"<div>{part}</div>" for part in parts)}</div>'
