"""The state of Slurm, cached in the study folder for some seconds for all callers: sites ban users who poll too often."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec
from msgspec import field

from kt_study.errors import DiskError, SlurmError, UntrustedFile
from kt_study.files import write_private
from kt_study.pilots import LaunchFiles
from kt_study.records import Record
from orchestrator.cluster.slurm import listing
from orchestrator.cluster.slurm.listing import QueuedJob, Run

FRESH_S = 15.0
LONGEST_BACKOFF_S = 300.0

T = TypeVar("T")


class DaemonState(Record, frozen=True, kw_only=True):
    """When a daemon was last queried. `error` is empty, or one line; `failures` counts failed queries in a row."""

    asked_at: float = 0.0
    answered_at: float = 0.0
    error: str = field(name="trouble", default="")
    failures: int = 0

    def is_due(self, fresh_s: float, now: float) -> bool:
        """Whether to query again: after `fresh_s` seconds, doubled for each failure in a row."""
        return not 0 <= now - self.asked_at < min(fresh_s * 2.0**self.failures, max(fresh_s, LONGEST_BACKOFF_S))


class SlurmView(Record, frozen=True, kw_only=True):
    """The pilots in the queue and their past runs, and how old this information is."""

    names: tuple[str, ...] = ()
    queue: tuple[QueuedJob, ...] = ()
    runs: tuple[Run, ...] = ()
    controller: DaemonState = DaemonState()
    accounting: DaemonState = DaemonState()

    def queue_of(self, tokens: Sequence[str]) -> list[QueuedJob]:
        """The jobs of some launches that are pending or running."""
        return [job for job in self.queue if job.token in tokens]

    @property
    def notes(self) -> list[str]:
        """What is out of date and why, one line each."""
        parts = ((self.controller, "the job list"), (self.accounting, "past runs"))
        return [_note(state, what) for state, what in parts if state.error]


def current_view(files: LaunchFiles, names: Sequence[str], since: float, *, fresh_s: float = FRESH_S) -> SlurmView:
    """The queue, and past runs of the jobs with these names, from the study folder if younger than `fresh_s` seconds.

    While a daemon is down, its part of the view stays as it was, with a note, and it is queried less and less often.
    """
    now = time.time()
    view = _read(files)
    if set(names) - set(view.names):
        view = msgspec.structs.replace(view, accounting=DaemonState())
    queue, controller = _queried(view.controller, view.queue, listing.queue, fresh_s, now)
    runs, accounting = _queried(view.accounting, view.runs, lambda: listing.runs(names, since), fresh_s, now)
    latest = SlurmView(
        names=tuple(names), queue=tuple(queue), runs=tuple(runs), controller=controller, accounting=accounting
    )
    if latest != view:
        with contextlib.suppress(
            DiskError, UntrustedFile
        ):  # a full disk, or another user's study: query again next time
            write_private(files.slurm_view, msgspec.json.encode(latest), below=files.root)
    return latest


def _queried(
    state: DaemonState, known: Sequence[T], query: Callable[[], Sequence[T]], fresh_s: float, now: float
) -> tuple[Sequence[T], DaemonState]:
    if not state.is_due(fresh_s, now):
        return known, state
    try:
        return query(), DaemonState(asked_at=now, answered_at=now)
    except SlurmError as error:
        failures = min(state.failures + 1, 8)
        return known, msgspec.structs.replace(state, asked_at=now, error=str(error), failures=failures)


def _read(files: LaunchFiles) -> SlurmView:
    try:
        return msgspec.json.decode(files.slurm_view.read_bytes(), type=SlurmView)
    except (OSError, msgspec.MsgspecError):
        return SlurmView()


def _note(state: DaemonState, what: str) -> str:
    age = f"{time.time() - state.answered_at:.0f} s old" if state.answered_at else "unknown"
    return f"{state.error}; {what} {'are' if what.endswith('s') else 'is'} {age}"
