"""`kt-study status --watch`: a page that refreshes in place on a terminal, and repeated plain blocks in a log."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from kt_study.printable import printable
from kt_study.records import JobState
from orchestrator.cli import status
from orchestrator.terminal.outage import through_outages
from orchestrator.terminal.plural import counted
from orchestrator.terminal.spans import span
from orchestrator.terminal.tint import tint

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_HOME, _CLEAR, _REST_OF_LINE, _REST_OF_PAGE = "\x1b[H", "\x1b[2J", "\x1b[K", "\x1b[J"

REFRESH_S = 2.0

_BAR = (("done", "█"), ("failed", "x"), ("running", "▒"))


def watch(summarise: Callable[[], dict[str, Any]], *, every_s: float = REFRESH_S) -> dict[str, Any]:
    """Show the summary until no job is left that can run, or Ctrl-C. Returns the last one.

    Waits while the database is down.
    """
    terminal = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    with _page() if terminal else _blocks() as show:
        summary = summarise()
        try:
            while True:
                show(summary)
                if status.is_over(summary):
                    return summary
                time.sleep(every_s)
                summary = through_outages(summarise, _below_page if terminal else partial(click.echo, err=True))
        except KeyboardInterrupt:
            return summary


def _below_page(line: str) -> None:
    """Until the next page overwrites it."""
    click.echo(_cut(line, shutil.get_terminal_size().columns - 1), nl=False)


@contextmanager
def _blocks() -> Iterator[Callable[[dict[str, Any]], None]]:
    """For a log: a block with the time of day whenever something has changed."""
    last = ""

    def show(summary: dict[str, Any]) -> None:
        nonlocal last
        if (counts := f"{summary['counts']} {summary['failures']}") != last:
            last = counts
            click.echo(f"{time.strftime('%H:%M:%S')} {status.as_text(summary)}\n", color=False)

    yield show


@contextmanager
def _page() -> Iterator[Callable[[dict[str, Any]], None]]:
    """For a terminal: each page overwrites the last one without flicker; the last one stays."""

    def show(summary: dict[str, Any]) -> None:
        width, height = shutil.get_terminal_size()
        lines = _fitted(page(summary, width), height - 1)
        click.echo(_HOME + "".join(f"{line}{_REST_OF_LINE}\n" for line in lines) + _REST_OF_PAGE, nl=False, color=True)

    click.echo(_HIDE_CURSOR + _CLEAR, nl=False, color=True)
    try:
        yield show
    finally:
        click.echo(_SHOW_CURSOR, nl=False, color=True)


def page(summary: dict[str, Any], width: int) -> list[str]:
    """The page's lines, cut to the width: headline, a bar per kind, then the details of `status`."""
    rest = "\n".join(status.details(summary)).splitlines()
    lines = [_head(summary), "", *_bars(summary["counts"], width), *rest, "", _legend()]
    return [_cut(line, width - 1) for line in lines]


def _head(summary: dict[str, Any]) -> str:
    workload = summary["workload"]
    if status.is_over(summary):
        ending = "over" if workload["failed"] or workload["blocked"] else "complete"
        return tint(f"study {printable(summary['study'])}: {ending}", "failed" if ending == "over" else "done")
    eta = f", about {span(summary['eta_s'])} left" if summary["eta_s"] else ""
    workers = counted(len(summary["workers"]), "worker")
    return f"study {printable(summary['study'])}: {workload['running']} running, {workers}{eta}; {time.strftime('%H:%M:%S')}"


def _bars(counts: dict[str, dict[str, int]], width: int) -> list[str]:
    """One bar per kind of job: done, failed and running, out of all."""
    room = max(10, width - 44)
    return [f"  {kind:<16}{_bar(row, room)} {_numbers(row)}" for kind, row in counts.items()]


def _bar(row: dict[str, int], room: int) -> str:
    total, drawn, parts = sum(row.values()), 0, []
    for state, mark in _BAR:
        count = row.get(state, 0)
        cells = min(room - drawn, max(1, round(room * count / total))) if count else 0
        drawn += cells
        parts.append(tint(mark * cells, state))
    return "".join(parts) + "·" * (room - drawn)


def _numbers(row: dict[str, int]) -> str:
    done = f"{row.get('done', 0):,}/{sum(row.values()):,}"
    failed = row.get(str(JobState.FAILED), 0)
    return f"{done}, {tint(f'{failed:,} failed', 'failed')}" if failed else done


def _legend() -> str:
    return "  " + "  ".join(f"{tint(mark, state)} {state}" for state, mark in _BAR) + "  · waiting"


def _cut(line: str, width: int) -> str:
    plain = click.unstyle(line)
    return line if len(plain) <= width else plain[: width - 1] + "…"


def _fitted(lines: list[str], height: int) -> list[str]:
    """As many lines as fit; the last one gives the number of omitted lines."""
    if len(lines) <= height:
        return lines
    return [*lines[: height - 1], f"  ... and {len(lines) - height + 1} more lines; make the window taller"]
