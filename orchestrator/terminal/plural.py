"""Counts with singular or plural nouns."""

from __future__ import annotations


def counted(count: float, noun: str, plural: str = "") -> str:
    """A number and its noun, e.g. `1 job`, `2,000 jobs`, `2 studies`, `2.5 teachers`."""
    number = f"{int(count):,}" if count == int(count) else f"{count:g}"
    return f"{number} {noun if count == 1 else plural or noun + 's'}"
