"""Human-readable durations and sizes."""

from __future__ import annotations


def span(seconds: float) -> str:
    """A length of time in its two largest units, e.g. `2 h 5 min`."""
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} {int(seconds % size // smaller)} {part}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """A number of bytes in the unit that leaves one to three digits before the point, e.g. `724.0 kB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.1f} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.1f} TB"
