"""Numbers as people write them."""

from __future__ import annotations


def human(value: float) -> str:
    """A number as people write it: 23.6M, 1.2G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}" if abs(value) < 100 * size else f"{value / size:.0f}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """A time as people write it: 2.5 s, 21.3 min, 1.75 h, 1,024 h."""
    if seconds < 90:
        return f"{seconds:.3g} s"
    if seconds < 5400:
        return f"{seconds / 60:.3g} min"
    hours = seconds / 3600
    return f"{hours:.3g} h" if hours < 999.5 else f"{hours:,.0f} h"
