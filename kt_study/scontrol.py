"""Parses the output of `scontrol -o show`: one object per line, as KEY=VALUE fields."""

from __future__ import annotations

import re


def records(text: str) -> list[dict[str, str]]:
    """A dictionary per line. Of a repeated name the first counts: comments, which any user can write, come last."""
    return [dict(reversed(re.findall(r"(\w+)=(\S*)", line))) for line in text.splitlines() if "=" in line]
