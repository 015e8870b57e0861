"""SVG as text: elements with escaped attributes and titles, and an axis of round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape


def element(tag: str, *children: str, **attributes: str | float) -> str:
    """An element; `children` are markup already, attributes are escaped, `class_` and `stroke_width` lose their bar."""
    said = "".join(f' {_name(name)}="{escape(_value(value))}"' for name, value in attributes.items())
    return f"<{tag}{said}>{''.join(children)}</{tag}>" if children else f"<{tag}{said}/>"


def text(x: float, y: float, words: str, **attributes: str | float) -> str:
    """Words at a place, escaped."""
    return element("text", escape(words), x=x, y=y, **attributes)


def hover(words: str) -> str:
    """What is shown over the element that it stands in."""
    return f"<title>{escape(words)}</title>"


def picture(width: float, height: float, label: str, parts: Iterable[str], kind: str = "") -> str:
    """A picture that fills the width it is given, with its text alternative."""
    return element(
        "svg",
        *parts,
        viewBox=f"0 0 {_value(width)} {_value(height)}",
        role="img",
        aria_label=label,
        class_=f"picture {kind}".strip(),
    )


def round_steps(low: float, high: float, about: int = 7) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about so many of them."""
    span = max(high - low, 1e-9 * max(1.0, abs(high)), 1e-12)
    rough = span / max(1, about - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _name(name: str) -> str:
    return name.rstrip("_").replace("_", "-") if name != "viewBox" else name


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"
