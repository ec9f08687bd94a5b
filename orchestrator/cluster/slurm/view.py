"""Slurm's answers for all callers, cached in the study folder for some seconds: polling can get users banned."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from kt_study.errors import DiskError, SlurmError, UntrustedFile
from kt_study.files import write_private
from kt_study.pilots import LaunchFiles
from kt_study.records import Record
from orchestrator.cluster.slurm import listing
from orchestrator.cluster.slurm.listing import QueuedJob, Run

FRESH_S = 15.0
LONGEST_BACKOFF_S = 300.0

T = TypeVar("T")


class Answer(Record, frozen=True, kw_only=True):
    """When a daemon was last asked and how it went. `trouble` is empty, or one line; `failures` counts in a row."""

    asked_at: float = 0.0
    answered_at: float = 0.0
    trouble: str = ""
    failures: int = 0

    def is_due(self, fresh_s: float, now: float) -> bool:
        """Whether to ask again: after `fresh_s` seconds, doubled for each failure in a row."""
        return not 0 <= now - self.asked_at < min(fresh_s * 2.0**self.failures, max(fresh_s, LONGEST_BACKOFF_S))


class SlurmView(Record, frozen=True, kw_only=True):
    """The pilots in the queue and their past runs, and how old that knowledge is."""

    names: tuple[str, ...] = ()
    queue: tuple[QueuedJob, ...] = ()
    runs: tuple[Run, ...] = ()
    controller: Answer = Answer()
    accounting: Answer = Answer()

    def queue_of(self, tokens: Sequence[str]) -> list[QueuedJob]:
        """The jobs of some launches that are pending or running."""
        return [job for job in self.queue if job.token in tokens]

    @property
    def notes(self) -> list[str]:
        """What could not be learnt, one line each."""
        parts = ((self.controller, "the job list"), (self.accounting, "past runs"))
        return [_note(answer, what) for answer, what in parts if answer.trouble]


def look(files: LaunchFiles, names: Sequence[str], since: float, *, fresh_s: float = FRESH_S) -> SlurmView:
    """The latest view of the pilots named, from the study folder if it is younger than `fresh_s` seconds.

    A daemon that is away leaves the older part of the view in place, with a note, and is asked less and less often.
    """
    now = time.time()
    view = _kept(files)
    if set(names) - set(view.names):
        view = msgspec.structs.replace(view, accounting=Answer())
    queue, controller = _asked(view.controller, view.queue, listing.queue, fresh_s, now)
    runs, accounting = _asked(view.accounting, view.runs, lambda: listing.runs(names, since), fresh_s, now)
    latest = SlurmView(
        names=tuple(names), queue=tuple(queue), runs=tuple(runs), controller=controller, accounting=accounting
    )
    if latest != view:
        _keep(files, latest)
    return latest


def _asked(
    before: Answer, known: Sequence[T], ask: Callable[[], Sequence[T]], fresh_s: float, now: float
) -> tuple[Sequence[T], Answer]:
    if not before.is_due(fresh_s, now):
        return known, before
    try:
        return ask(), Answer(asked_at=now, answered_at=now)
    except SlurmError as error:
        failed = Answer(
            asked_at=now, answered_at=before.answered_at, trouble=str(error), failures=min(before.failures + 1, 8)
        )
        return known, failed


def _kept(files: LaunchFiles) -> SlurmView:
    try:
        return msgspec.json.decode(files.slurm_view.read_bytes(), type=SlurmView)
    except (OSError, msgspec.MsgspecError):
        return SlurmView()


def _keep(files: LaunchFiles, view: SlurmView) -> None:
    try:
        write_private(files.slurm_view, msgspec.json.encode(view), below=files.root)
    except (DiskError, UntrustedFile):
        return  # neither a full disk nor another user's study must hide the status; the next look asks again


def _note(answer: Answer, what: str) -> str:
    age = f"{time.time() - answer.answered_at:.0f} s old" if answer.answered_at else "unknown"
    return f"{answer.trouble}; {what} {'are' if what.endswith('s') else 'is'} {age}"
