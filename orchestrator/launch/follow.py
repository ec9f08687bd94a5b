"""launch --wait: shows progress until the study is complete, and replaces workers that died."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol

import click

from kt_study.errors import EnvironmentUnusable, SlurmError
from kt_study.store import JobStore, Outlook

_MAX_BARREN_STARTS = 5


class Crew(Protocol):
    """The workers of one study, wherever they run."""

    def is_alone(self) -> bool:
        """Whether nobody is at work or on the way."""
        ...

    def tend(self) -> None:
        """What is to be done about once a second while they work."""
        ...

    def add(self) -> int:
        """Start the workers that are missing; returns how many."""
        ...

    def wait_for_first(self) -> None:
        """After `add`: until `is_alone` can see the new ones."""
        ...


class Follower:
    """Follows one study's progress on a terminal (a bar) or in a log (a line now and then)."""

    def __init__(self, store: JobStore, study: str, crew: Crew) -> None:
        self._store, self._study, self._crew = store, study, crew
        self._told = ""

    def until_done(self, *, poll_s: float = 1.0) -> Outlook:
        """Wait until nothing is left that could run, replacing workers that died.

        Raises:
            EnvironmentUnusable: workers end again and again without finishing a single job.
        """
        show = _bar if sys.stderr.isatty() else _lines
        barren, done_before = 0, -1
        with show() as progress:
            while True:
                self._store.expire()
                outlook = self._store.outlook(self._study)
                progress.show(outlook)
                if not (outlook.running or outlook.ready_now or outlook.ready_later):
                    return outlook
                self._patiently(self._crew.tend)
                if self._crew.is_alone():
                    barren = barren + 1 if outlook.done == done_before else 0
                    done_before = outlook.done
                    if barren > _MAX_BARREN_STARTS:
                        raise EnvironmentUnusable(
                            f"workers ended {barren} times without finishing a job; read the newest log under logs/"
                        )
                    time.sleep(min(60.0, 2.0**barren - 1))
                    self._patiently(self._crew.add)
                    self._crew.wait_for_first()
                time.sleep(poll_s)

    def _patiently(self, act: Callable[[], object]) -> None:
        """Slurm may be away, or want us to wait, in the middle of a study: say so once and go on."""
        try:
            act()
        except SlurmError as error:
            if str(error) != self._told:
                click.echo(str(error), err=True)
            self._told = str(error)


class _lines:
    """Plain lines for a log: when a percent is done, at most one every ten seconds."""

    def __init__(self) -> None:
        self._last = 0.0
        self._began = time.monotonic()

    def __enter__(self) -> _lines:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, outlook: Outlook) -> None:
        """Print a line if it is time."""
        now = time.monotonic()
        if now - self._last >= 10:
            self._last = now
            click.echo(f"{_clock(now - self._began)} {describe(outlook)}", err=True)


class _bar:
    """A tqdm bar over the study's jobs."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._tqdm = tqdm(unit="job", dynamic_ncols=True, smoothing=0.1)

    def __enter__(self) -> _bar:
        return self

    def __exit__(self, *exc: object) -> None:
        self._tqdm.close()

    def show(self, outlook: Outlook) -> None:
        """Move the bar."""
        self._tqdm.total = total(outlook)
        self._tqdm.n = outlook.done + outlook.failed
        self._tqdm.set_postfix_str(f"{outlook.running} running, {outlook.failed} failed", refresh=False)
        self._tqdm.refresh()


def total(outlook: Outlook) -> int:
    """All jobs of the study."""
    waiting = outlook.ready_now + outlook.ready_later + outlook.blocked + outlook.paused
    return waiting + outlook.running + outlook.done + outlook.failed + outlook.cancelled


def describe(outlook: Outlook) -> str:
    """One line about a study's jobs."""
    parts = [f"{outlook.done} of {total(outlook)} jobs done"]
    for count, word in (
        (outlook.running, "running"),
        (outlook.ready_now + outlook.ready_later, "ready"),
        (outlook.blocked, "blocked"),
        (outlook.paused, "paused"),
        (outlook.failed, "failed"),
        (outlook.cancelled, "cancelled"),
    ):
        if count:
            parts.append(f"{count} {word}")
    return ", ".join(parts)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"
