"""Colours: green for done, red for failed, yellow for running. NO_COLOR turns them off (no-color.org).

click removes colours from output that does not go to a terminal.
"""

from __future__ import annotations

import os

import click

COLOURS = {"done": "green", "failed": "red", "running": "yellow"}
"""Of the states of a job; the others have none."""


def tint(text: str, state: str) -> str:
    """`text` in the colour of a state of jobs."""
    if os.environ.get("NO_COLOR") or state not in COLOURS or not text.strip("- "):
        return text
    return click.style(text, fg=COLOURS[state])
