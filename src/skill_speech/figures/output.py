"""Figures as files, and as SVG within a page: with words shown where they are pointed at, and a text alternative."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure

from .shapes import INK, RULE, TRUNK

_SVG = "http://www.w3.org/2000/svg"
_INKS = {INK: "var(--ink)", TRUNK: "var(--trunk)", RULE: "var(--rule)"}
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as SVG or PNG, by its suffix; the same figure gives the same bytes."""
    path = Path(path)
    if path.suffix == ".svg":
        ElementTree.ElementTree(_svg(figure)).write(path, encoding="utf-8", xml_declaration=True)
    else:
        figure.savefig(path, dpi=1.6 * figure.dpi)


def inline_svg(figure: Figure) -> str:
    """A figure as an element of an HTML page, as wide as its place, in the page's font and colors.

    The page sets the custom properties --ink, --trunk and --rule, and --grow, by which it enlarges words where the
    picture is small. Nothing in it has an id, so that a page can have many.
    """
    root = _svg(figure, **{"svg.fonttype": "none", "savefig.facecolor": "none"})
    for element in list(root.iter()):
        element.tag = element.tag.removeprefix(f"{{{_SVG}}}")
        element.tail = None
        if element.tag not in ("text", "title"):
            element.text = None
        for name in ("id", "clip-path", "width", "height", "version"):
            element.attrib.pop(name, None)
        for name in {"d", "x", "y", "transform"} & element.attrib.keys():
            element.set(name, re.sub(r"(\.\d\d)\d+", r"\1", " ".join(element.attrib[name].split())))
        if "style" in element.attrib or element.tag == "text":
            element.set("style", _style(element))
        for child in list(element):
            if child.tag.endswith("}defs"):
                element.remove(child)
    root.set("class", "picture drawn")
    return ElementTree.tostring(root, encoding="unicode")


def _svg(figure: Figure, **settings: str) -> ElementTree.Element:
    """What matplotlib writes, where gids that are words (not names, which have no spaces) have become titles."""
    written = BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "skill-speech", **settings}):
        figure.savefig(written, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(written.getvalue())
    root.remove(root[0])  # metadata
    for element in root.iter():
        if " " in element.get("id", ""):
            title = ElementTree.Element(f"{{{_SVG}}}title")
            title.text = element.attrib.pop("id")
            element.insert(0, title)
    root.attrib |= {"role": "img", "aria-label": str(figure.get_label())}
    return root


def _style(element: ElementTree.Element) -> str:
    """An element's style, in the page's inks; black words are black, whatever the page's are."""
    style = dict(part.split(": ", 1) for part in element.get("style", "").split("; ") if part)
    style = {name: _INKS.get(value, value) for name, value in style.items() if name != "font-family"}
    if element.tag == "text":
        style.setdefault("fill", "#000000")
        # matplotlib 3.8 writes one declaration: "font: 700 9.5px 'DejaVu Sans', …".
        *weight, size = re.findall(r"[\d.]+(?:px)?", style.pop("font", style.get("font-size", "")))
        style["font-size"] = f"calc({size} * var(--grow))"
        if weight:
            style["font-weight"] = weight[0]
    return "; ".join(f"{name}: {value}" for name, value in style.items())
