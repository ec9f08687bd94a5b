"""squeue and sacct: one call each for all pilots of a user. Times are seconds since 1970, 0 if unknown."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kt_study.records import Record
from orchestrator.cluster.slurm.commands import run

NAME_PREFIX = "kt-"
"""Our Slurm jobs are named kt-<study>-<token of the launch>."""

_QUEUE_FORMAT = "%i|%j|%T|%r|%N|%S|%e|%P"
_RUN_FIELDS = "JobID,JobName,State,ExitCode,NodeList,Submit,Start,End"
_GONE_STATES = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL",
                "DEADLINE", "REQUEUED")  # fmt: skip
_HELD_BY_SLURM = ("launch failed requeued held", "JobHoldMaxRequeue")


class QueuedJob(Record, frozen=True, kw_only=True):
    """A pilots' job that is pending or running."""

    job: str  # 123 or 123_4
    name: str
    state: str
    reason: str  # Slurm's reason why it is pending
    node: str
    starts_at: float  # Slurm's estimate for a pending job
    ends_at: float
    partition: str

    @property
    def token(self) -> str:
        """The token of its launch."""
        return self.name.rpartition("-")[2]

    @property
    def is_pending(self) -> bool:
        """Whether it waits for its first or next start."""
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "CONFIGURING")

    @property
    def is_held(self) -> bool:
        """Whether Slurm holds it because it could not start it. A hold by a person has another reason."""
        return self.is_pending and self.reason in _HELD_BY_SLURM


class Run(Record, frozen=True, kw_only=True):
    """One run of a pilots' job in Slurm's accounting. A requeued job has several."""

    job: str
    name: str
    state: str
    exit_code: int
    signal: int
    node: str
    submitted_at: float
    started_at: float
    ended_at: float

    @property
    def token(self) -> str:
        """The token of its launch."""
        return self.name.rpartition("-")[2]

    @property
    def is_over(self) -> bool:
        """Whether it has ended for certain; an unknown state does not count."""
        return self.state in _GONE_STATES and self.ended_at > 0


def queue() -> list[QueuedJob]:
    """All pilots of this user that are pending or running, of any study; one entry per array task.

    Raises:
        SlurmError: slurmctld does not answer.
    """
    out = run("squeue", "--me", "--all", "--array", "--noheader", f"--format={_QUEUE_FORMAT}")
    rows = [line.strip().split("|") for line in out.splitlines() if line.count("|") == 7]
    return [_queued(row) for row in rows if row[1].startswith(NAME_PREFIX)]


def runs(names: Sequence[str], since: float) -> list[Run]:
    """The runs of jobs with these names since a time, from accounting, including earlier runs of requeued jobs.

    Raises:
        SlurmError: slurmdbd does not answer.
    """
    if not names:
        return []
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    out = run(
        "sacct", "--allocations", "--duplicates", "--noheader", "--parsable2",
        f"--starttime={start}", f"--name={','.join(names)}", f"--format={_RUN_FIELDS}",
    )  # fmt: skip
    return [_run(line.split("|")) for line in out.splitlines() if line.count("|") == 7]


def _queued(row: Sequence[str]) -> QueuedJob:
    job, name, state, reason, node, starts, ends, partition = row
    return QueuedJob(
        job=job, name=name, state=state, reason=reason, node=node, starts_at=_moment(starts), ends_at=_moment(ends),
        partition=partition,
    )  # fmt: skip


def _run(row: Sequence[str]) -> Run:
    job, name, state, exit_code, node, submit, start, end = row
    code, _, signal = exit_code.partition(":")
    return Run(
        job=job, name=name, state=state.split()[0] if state else "", exit_code=int(code or 0), signal=int(signal or 0),
        node="" if node == "None assigned" else node, submitted_at=_moment(submit), started_at=_moment(start),
        ended_at=_moment(end),
    )  # fmt: skip


def _moment(text: str) -> float:
    return float(text) if text.isdigit() else 0.0
