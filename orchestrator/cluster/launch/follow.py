"""launch --wait: shows progress until the study is complete, and replaces workers that died."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from kt_study.errors import DiskError, EnvironmentUnusable, SlurmError
from kt_study.store import Workload
from orchestrator.cluster.launch.lock import AnotherLaunch
from orchestrator.terminal.outage import through_outages
from orchestrator.terminal.plural import counted

if TYPE_CHECKING:
    from kt_study.store import JobStore

_MAX_FAILED_STARTS = 5
_LONGEST_PAUSE_S = 60.0
_TRANSIENT = (SlurmError, DiskError, AnotherLaunch)
"""Errors that are printed once and do not end `--wait`. For an outage of the database see `orchestrator.terminal.outage`."""


class BackingOff(SlurmError):
    """The last launches finished no job; the next may start in `left_s` seconds."""

    def __init__(self, line: str, left_s: float) -> None:
        super().__init__(line)
        self.left_s = left_s


class Stopped(Exception):
    """`kt-study stop` was called: the workers exit, and this launch does not replace them."""


class Pilots(Protocol):
    """The workers of one study, here or on Slurm."""

    notes: list[str]  # for the user, after `start_missing`

    def all_gone(self) -> bool:
        """Whether no worker is active, starting or queued."""
        ...

    def maintain(self) -> None:
        """Called about once per second while workers run."""
        ...

    def start_missing(self) -> int:
        """Start the missing workers; returns how many. Raises BackingOff if it is too early for that."""
        ...

    def wait_for_first(self) -> None:
        """After `start_missing`: wait until `all_gone` can see the new workers."""
        ...


class Follower:
    """Follows one study's progress on a terminal (a bar) or in a log (a line now and then).

    It waits while the database or Slurm is down or the disk is full. Once `stopped` returns true, since `kt-study stop`
    has been called, it replaces no workers.
    """

    def __init__(
        self, store: JobStore, study: str, pilots: Pilots, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._store, self._study, self._pilots, self._stopped = store, study, pilots, stopped
        self._last_message = ""

    def until_done(self, *, poll_s: float = 1.0) -> Workload:
        """Wait until no job is left that can run or is paused, replacing dead workers.

        Raises:
            EnvironmentUnusable: workers end repeatedly without finishing a job.
            Stopped: `kt-study stop` was called.
        """
        starts, done_before = 0, -1  # starts in a row without a finished job, and the number of done jobs before them
        with _bar() if sys.stderr.isatty() else _lines() as show:
            while True:
                workload = through_outages(self._workload)
                show(workload)
                if not (workload.running or workload.ready_now or workload.ready_later or workload.paused):
                    return workload
                if self._stopped():
                    raise Stopped
                through_outages(self._maintain)
                if through_outages(self._pilots.all_gone):
                    if workload.done != done_before:
                        starts, done_before = 0, workload.done
                    if starts > _MAX_FAILED_STARTS:
                        raise EnvironmentUnusable(
                            f"workers ended {starts} times without finishing a job; read the newest log under logs/"
                        )
                    time.sleep(min(_LONGEST_PAUSE_S, 2.0**starts - 1))
                    starts += through_outages(self._start)
                time.sleep(poll_s)

    def _workload(self) -> Workload:
        self._store.expire()
        return self._store.workload(self._study)

    def _maintain(self) -> None:
        try:
            self._pilots.maintain()
        except _TRANSIENT as error:
            self._print_once(error)

    def _start(self) -> bool:
        """Whether workers were started. If it is too early for that, wait for a part of the time."""
        try:
            if not self._pilots.start_missing():
                return False
        except BackingOff as error:
            self._print_once(error)
            time.sleep(min(_LONGEST_PAUSE_S, error.left_s))
            return False
        except _TRANSIENT as error:
            self._print_once(error)
            return False
        self._last_message = ""
        self._pilots.wait_for_first()
        return True

    def _print_once(self, error: EnvironmentUnusable) -> None:
        """The remaining seconds of BackingOff change; it is printed once all the same."""
        message = type(error).__name__ if isinstance(error, BackingOff) else str(error)
        if message != self._last_message:
            click.echo(str(error), err=True)
        self._last_message = message


_LINE_S, _SAME_LINE_S = 10.0, 600.0


@contextmanager
def _lines() -> Iterator[Callable[[Workload], None]]:
    """Plain lines for a log: at most one every ten seconds, and if nothing has changed, one every ten minutes."""
    began = time.monotonic()
    printed_at, printed = began - _LINE_S, ""

    def show(workload: Workload) -> None:
        nonlocal printed_at, printed
        now, line = time.monotonic(), describe(workload)
        if now - printed_at >= (_SAME_LINE_S if line == printed else _LINE_S):
            printed_at, printed = now, line
            click.echo(f"{_clock(now - began)} {line}", err=True)

    yield show


@contextmanager
def _bar() -> Iterator[Callable[[Workload], None]]:
    """A tqdm bar over the study's jobs."""
    from tqdm import tqdm

    with tqdm(unit="job", dynamic_ncols=True, smoothing=0.1) as bar:

        def show(workload: Workload) -> None:
            bar.total = total(workload)
            bar.n = workload.done + workload.failed
            bar.set_postfix_str(f"{workload.running} running, {workload.failed} failed", refresh=False)
            bar.refresh()

        yield show


def total(workload: Workload) -> int:
    """All jobs of the study."""
    waiting = workload.ready_now + workload.ready_later + workload.blocked + workload.paused
    return waiting + workload.running + workload.done + workload.failed + workload.cancelled


def describe(workload: Workload) -> str:
    """One line about a study's jobs."""
    parts = [f"{workload.done} of {total(workload)} jobs done"]
    for count, word in (
        (workload.running, "running"),
        (workload.ready_now + workload.ready_later, "ready"),
        (workload.blocked, "blocked"),
        (workload.paused, "paused"),
        (workload.failed, "failed"),
        (workload.cancelled, "cancelled"),
    ):
        if count:
            parts.append(f"{count} {word}")
    return ", ".join(parts)


def standstill(workload: Workload) -> str:
    """What the blocked jobs wait for, when nothing can run; else empty."""
    if not workload.blocked or workload.running or workload.ready_now or workload.ready_later:
        return ""
    holding = ((workload.failed, "failed"), (workload.cancelled, "cancelled"), (workload.paused, "paused"))
    causes = " and ".join(f"{count:,} {word}" for count, word in holding if count)
    ones = "one" if workload.failed + workload.cancelled + workload.paused == 1 else "ones"
    return f"{counted(workload.blocked, 'job')} {'waits' if workload.blocked == 1 else 'wait'} for {causes} {ones}"


def tell_failures(workload: Workload) -> int:
    """The exit code of a command at the end of a study: 1, with a line that says so, where jobs have failed."""
    if not workload.failed:
        return 0
    click.echo("kt-study status shows the failures, grouped by cause; kt-study retry tries them again", err=True)
    return 1


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"
