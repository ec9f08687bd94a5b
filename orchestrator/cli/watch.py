"""`kt-study status --watch`: a page that refreshes in place on a terminal, and repeated plain blocks in a log."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import click

from kt_study.printable import printable
from kt_study.records import JobState
from orchestrator.cli import status
from orchestrator.terminal.outage import waited_for
from orchestrator.terminal.plural import counted
from orchestrator.terminal.spans import span
from orchestrator.terminal.tint import tint

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_HOME, _CLEAR, _REST_OF_LINE, _REST_OF_PAGE = "\x1b[H", "\x1b[2J", "\x1b[K", "\x1b[J"

REFRESH_S = 2.0

_BAR = (("done", "█"), ("failed", "x"), ("running", "▒"))


def watch(look: Callable[[], dict[str, Any]], *, every_s: float = REFRESH_S) -> dict[str, Any]:
    """Show what `look` sees until nothing is left that could run. Returns what it saw last; so does Ctrl-C.

    A database that goes away is waited for.
    """
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    with _page() if terminal else _blocks() as show:
        seen = look()
        try:
            while True:
                show(seen)
                if status.is_over(seen):
                    return seen
                time.sleep(every_s)
                seen = waited_for(look, _below_the_page if terminal else _as_a_line)
        except KeyboardInterrupt:
            return seen


def _as_a_line(line: str) -> None:
    click.echo(line, err=True)


def _below_the_page(line: str) -> None:
    """Until the next page is written over it."""
    click.echo(_cut(line, shutil.get_terminal_size().columns - 1), nl=False)


@contextmanager
def _blocks() -> Iterator[Callable[[dict[str, Any]], None]]:
    """For a log: a block when something has changed, each under the time of day."""
    last = ""

    def show(seen: dict[str, Any]) -> None:
        nonlocal last
        if (text := _counts(seen)) != last:
            last = text
            click.echo(f"{time.strftime('%H:%M:%S')} {status.as_text(seen)}\n", color=False)

    yield show


@contextmanager
def _page() -> Iterator[Callable[[dict[str, Any]], None]]:
    """For a terminal: each page is written over the last one, without a flicker; the last one stays."""

    def show(seen: dict[str, Any]) -> None:
        width, height = shutil.get_terminal_size()
        lines = _fitted(page(seen, width), height - 1)
        click.echo(_HOME + "".join(f"{line}{_REST_OF_LINE}\n" for line in lines) + _REST_OF_PAGE, nl=False, color=True)

    click.echo(_HIDE_CURSOR + _CLEAR, nl=False, color=True)
    try:
        yield show
    finally:
        click.echo(_SHOW_CURSOR, nl=False, color=True)


def page(seen: dict[str, Any], width: int) -> list[str]:
    """The page's lines, none wider than the terminal: head, a bar a kind, then what `status` tells of the rest."""
    rest = "\n".join(status.details(seen)).splitlines()
    lines = [_head(seen), "", *_bars(seen["counts"], width), *rest, "", _legend()]
    return [_cut(line, width - 1) for line in lines]


def _head(seen: dict[str, Any]) -> str:
    workload = seen["workload"]
    if status.is_over(seen):
        ending = "over" if workload["failed"] or workload["blocked"] else "complete"
        return tint(f"study {printable(seen['study'])}: {ending}", "failed" if ending == "over" else "done")
    eta = f", about {span(seen['eta_s'])} left" if seen["eta_s"] else ""
    workers = counted(len(seen["workers"]), "worker")
    return (
        f"study {printable(seen['study'])}: {workload['running']} running, {workers}{eta}; {time.strftime('%H:%M:%S')}"
    )


def _bars(counts: dict[str, dict[str, int]], width: int) -> list[str]:
    """One bar for each kind of job: done, failed and running, out of all."""
    room = max(10, width - 44)
    return [f"  {kind:<16}{_bar(row, room)} {_said(row)}" for kind, row in counts.items()]


def _bar(row: dict[str, int], room: int) -> str:
    total, drawn, parts = sum(row.values()), 0, []
    for state, mark in _BAR:
        count = row.get(state, 0)
        cells = min(room - drawn, max(1, round(room * count / total))) if count else 0
        drawn += cells
        parts.append(tint(mark * cells, state))
    return "".join(parts) + "·" * (room - drawn)


def _said(row: dict[str, int]) -> str:
    said = f"{row.get('done', 0):,}/{sum(row.values()):,}"
    failed = row.get(str(JobState.FAILED), 0)
    return f"{said}, {tint(f'{failed:,} failed', 'failed')}" if failed else said


def _legend() -> str:
    return "  " + "  ".join(f"{tint(mark, state)} {state}" for state, mark in _BAR) + "  · waiting"


def _counts(seen: dict[str, Any]) -> str:
    return f"{seen['counts']} {seen['failures']}"


def _cut(line: str, width: int) -> str:
    plain = click.unstyle(line)
    return line if len(plain) <= width else plain[: width - 1] + "…"


def _fitted(lines: list[str], height: int) -> list[str]:
    """As many lines as the terminal has, the last of them saying how many more there are."""
    if len(lines) <= height:
        return lines
    return [*lines[: height - 1], f"  ... and {len(lines) - height + 1} more lines; make the window higher"]
