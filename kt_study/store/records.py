"""Records that only the store takes and returns; those that all parts share are in `kt_study.records`."""

from __future__ import annotations

from typing import Any

from kt_study.records import JobState, Progress, Record


class WorkerRecord(Record, frozen=True, kw_only=True):
    """One worker process, as it registers. `id` must differ between any two processes, also after a restart."""

    id: str
    host: str
    pid: int
    slurm_job: str = ""  # e.g. 123_4
    log: str = ""
    device: str = ""


class Planned(Record, frozen=True, kw_only=True):
    """What a plan did with the distinct jobs it was given: new + linked + existing of them."""

    new: int = 0  # rows added
    linked: int = 0  # rows that another study had planned and this one now shares
    existing: int = 0  # rows that this study had already


class HeartbeatReply(Record, frozen=True, kw_only=True):
    """The reply to a heartbeat: ids of jobs, each in at most one of `lost` and `paused`."""

    lost: frozenset[int] = frozenset()  # no longer this worker's; stop, write nothing (cancelled ones among them)
    cancelled: frozenset[int] = frozenset()  # lost because the user cancelled them
    paused: frozenset[int] = frozenset()  # still held; checkpoint and release


class Selection(Record, frozen=True, kw_only=True):
    """A filter of jobs: those that match every given field. An empty selection is every job of the database."""

    study: str | None = None
    kind: str | None = None
    job_ids: tuple[int, ...] | None = None
    pair: tuple[str, str] | None = None  # globs over names or keys of (teacher, student)
    error_group: str | None = None  # of the last failure
    state: JobState | None = None


class AttemptRow(Record, frozen=True, kw_only=True):
    """One attempt of a job, numbered by its fencing number."""

    fence: int
    worker: str
    host: str
    log: str
    started_at: float
    ended_at: float | None
    # done | failed | retried | released | blocked | expired | undone | cancelled; None while it runs
    outcome: str | None
    progress: Progress | None
    error: str | None
    message: str | None
    traceback: str | None
    error_group: str | None


class NeedRow(Record, frozen=True, kw_only=True):
    """A job that must be done first."""

    job_id: int
    kind: str
    state: JobState


class JobRow(Record, frozen=True, kw_only=True):
    """One job. Times are seconds since 1970 by the database's clock; `age_s` is how long it has been in its state."""

    id: int
    kind: str
    digest: str
    spec: dict[str, Any]
    state: JobState
    paused: bool
    priority: int
    estimate_s: float
    teacher: str | None
    student: str | None
    needs_open: int
    attempts_used: int  # attempts that count towards the limit
    crashes: int  # attempts whose worker died
    fence: int
    not_before: float
    worker: str | None  # that runs it, or ran it last
    lease_until: float | None
    created_at: float
    changed_at: float
    age_s: float
    progress: Progress | None  # of the attempt that runs
    attempts: tuple[AttemptRow, ...] = ()  # oldest first; filled by `store.job`
    needs: tuple[NeedRow, ...] = ()  # filled by `store.job`
    studies: tuple[str, ...] = ()  # filled by `store.job`
    why: str = ""  # one line: why it is not running; filled by `store.job`


class FailureGroup(Record, frozen=True, kw_only=True):
    """Failed jobs with one cause."""

    group: str
    error: str
    message: str  # of the latest
    count: int
    job_ids: tuple[int, ...]  # some examples, lowest first
    kinds: tuple[str, ...]


class Workload(Record, frozen=True, kw_only=True):
    """Numbers of jobs. A pilot that can claim none waits if any is `ready_later` or `running`, else exits."""

    ready_now: int = 0
    ready_later: int = 0  # backing off
    next_s: float | None = None  # seconds until the first of those may start
    blocked: int = 0
    running: int = 0
    failed: int = 0
    done: int = 0
    cancelled: int = 0
    paused: int = 0  # open jobs that are paused; not counted elsewhere


class Summary(Record, frozen=True, kw_only=True):
    """The jobs of a study in numbers."""

    counts: dict[tuple[str, JobState], int]  # by kind and state
    workload: Workload
    jobs_per_s: float
    eta_s: float | None  # None if no job was done recently, or no job is left that can run


class WorkerRow(WorkerRecord, frozen=True, kw_only=True):
    """One worker process as the database knows it."""

    started_at: float
    ended_at: float | None
    beat_age_s: float  # seconds since its last heartbeat
    running: tuple[int, ...] = ()  # jobs it holds
