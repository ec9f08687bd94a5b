"""Parses the output of `scontrol -o show`: one object per line, as KEY=VALUE fields."""

from __future__ import annotations

import re


def records(text: str) -> list[dict[str, str]]:
    """A dictionary per line. If a name occurs twice the first counts: comments, which are free text, come last."""
    return [dict(reversed(re.findall(r"(\w+)=(\S*)", line))) for line in text.splitlines() if "=" in line]
