"""Numbers of things for people."""

from __future__ import annotations


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and its noun, e.g. `1 job`, `2,000 jobs`, `2 studies`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
