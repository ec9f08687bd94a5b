"""Lengths of time for people."""

from __future__ import annotations


def span(seconds: float) -> str:
    """A length of time in its two largest units, e.g. `2 h 5 min`."""
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // smaller)} {part}"
    return f"{seconds:.0f} s"
