"""Progress on stderr: a tqdm bar on a terminal, occasional plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

LINE_EVERY_S = 10.0

Advance = Callable[[str, int], None]
"""Called with the part that was just done (may be empty), and its count."""


@contextmanager
def shown(what: str, unit: str, total: int | None = None) -> Iterator[Advance]:
    """Show the progress of `what` in `unit`s, of `total` if known; the bar is removed at the end."""
    with _bar(what, unit, total) if sys.stderr.isatty() else _lines(what, unit, total) as advance:
        yield advance


@contextmanager
def _bar(what: str, unit: str, total: int | None) -> Iterator[Advance]:
    from tqdm import tqdm

    with tqdm(desc=what, total=total, unit=f" {unit}", unit_scale=True, leave=False, dynamic_ncols=True) as bar:

        def advance(part: str, count: int) -> None:
            bar.set_postfix_str(part, refresh=False)
            bar.update(count)

        yield advance


@contextmanager
def _lines(what: str, unit: str, total: int | None) -> Iterator[Advance]:
    done, last = 0, time.monotonic()
    of = f" of {total:,}" if total else ""

    def advance(part: str, count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            click.echo(f"{what}: {done:,}{of} {unit}{part and f', {part}'}", err=True)

    yield advance
