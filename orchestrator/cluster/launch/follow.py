"""launch --wait: shows progress until the study is complete, and replaces workers that died."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import click

from kt_study.errors import DiskError, EnvironmentUnusable, SlurmError
from kt_study.store import Workload
from orchestrator.cluster.launch.lock import AnotherLaunch
from orchestrator.terminal.outage import waited_for
from orchestrator.terminal.plural import counted

if TYPE_CHECKING:
    from kt_study.store import JobStore

_MAX_BARREN_STARTS = 5
_LONGEST_PAUSE_S = 60.0
_PASSING = (SlurmError, DiskError, AnotherLaunch)
"""What is said once and does not end the watch. That the database is away does not either: see `orchestrator.terminal.outage`."""


class BackingOff(SlurmError):
    """Launches came to nothing; the next has to wait `left_s` seconds."""

    def __init__(self, line: str, left_s: float) -> None:
        super().__init__(line)
        self.left_s = left_s


class Stopped(Exception):
    """`kt-study stop` was called: the workers leave, and this launch does not replace them."""


class Pilots(Protocol):
    """The workers of one study, wherever they run."""

    def is_alone(self) -> bool:
        """Whether no worker is active or queued."""
        ...

    def tend(self) -> None:
        """What is to be done about once per second while they work."""
        ...

    def add(self) -> int:
        """Start the workers that are missing; returns how many. Raises BackingOff when it is too early for that."""
        ...

    def wait_for_first(self) -> None:
        """After `add`: until `is_alone` can see the new ones."""
        ...


class Follower:
    """Follows one study's progress on a terminal (a bar) or in a log (a line now and then).

    A database that is away is waited for, and so are Slurm and a full disk. `stopped` says whether `kt-study stop` has
    been called since: then nobody is replaced any more.
    """

    def __init__(
        self, store: JobStore, study: str, pilots: Pilots, stopped: Callable[[], bool] = lambda: False
    ) -> None:
        self._store, self._study, self._pilots, self._stopped = store, study, pilots, stopped
        self._told = ""

    def until_done(self, *, poll_s: float = 1.0) -> Workload:
        """Wait until nothing is left that could run, replacing workers that died. Paused jobs are waited for.

        Raises:
            EnvironmentUnusable: workers end again and again without finishing a single job.
            Stopped: `kt-study stop` was called.
        """
        show = _bar if sys.stderr.isatty() else _lines
        barren, done_before = 0, -1  # starts in a row, and the jobs that were done before them
        with show() as progress:
            while True:
                workload = waited_for(self._look)
                progress.show(workload)
                if not (workload.running or workload.ready_now or workload.ready_later or workload.paused):
                    return workload
                if self._stopped():
                    raise Stopped
                waited_for(self._tend)
                if waited_for(self._pilots.is_alone):
                    if workload.done != done_before:
                        barren, done_before = 0, workload.done
                    if barren > _MAX_BARREN_STARTS:
                        raise EnvironmentUnusable(
                            f"workers ended {barren} times without finishing a job; read the newest log under logs/"
                        )
                    time.sleep(min(_LONGEST_PAUSE_S, 2.0**barren - 1))
                    barren += waited_for(self._start)
                time.sleep(poll_s)

    def _look(self) -> Workload:
        self._store.expire()
        return self._store.workload(self._study)

    def _tend(self) -> None:
        """Slurm may be away, or want us to wait, in the middle of a study: say so once and go on."""
        try:
            self._pilots.tend()
        except _PASSING as error:
            self._say(error)

    def _start(self) -> bool:
        """Whether workers were started. Where it is too early for that, some of the time is waited here."""
        try:
            if not self._pilots.add():
                return False
        except BackingOff as wait:
            self._say(wait)
            time.sleep(min(_LONGEST_PAUSE_S, wait.left_s))
            return False
        except _PASSING as error:
            self._say(error)
            return False
        self._told = ""
        self._pilots.wait_for_first()
        return True

    def _say(self, error: EnvironmentUnusable) -> None:
        """Once, though the seconds that are left change."""
        told = type(error).__name__ if isinstance(error, BackingOff) else str(error)
        if told != self._told:
            click.echo(str(error), err=True)
        self._told = told


_LINE_S, _SAME_LINE_S = 10.0, 600.0


class _lines:
    """Plain lines for a log: at most one every ten seconds, and when nothing has changed, one every ten minutes."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._last, self._said = self._began - _LINE_S, ""

    def __enter__(self) -> _lines:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, workload: Workload) -> None:
        """Print a line if it is time."""
        now, line = time.monotonic(), describe(workload)
        if now - self._last >= (_SAME_LINE_S if line == self._said else _LINE_S):
            self._last, self._said = now, line
            click.echo(f"{_clock(now - self._began)} {line}", err=True)


class _bar:
    """A tqdm bar over the study's jobs."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._tqdm = tqdm(unit="job", dynamic_ncols=True, smoothing=0.1)

    def __enter__(self) -> _bar:
        return self

    def __exit__(self, *exc: object) -> None:
        self._tqdm.close()

    def show(self, workload: Workload) -> None:
        """Move the bar."""
        self._tqdm.total = total(workload)
        self._tqdm.n = workload.done + workload.failed
        self._tqdm.set_postfix_str(f"{workload.running} running, {workload.failed} failed", refresh=False)
        self._tqdm.refresh()


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
    click.echo("see kt-study status for the failures, grouped by cause; kt-study retry tries them again", err=True)
    return 1


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02d}:{int(seconds % 60):02d}"
