"""Read-only queries about jobs, failures, workers and results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kt_study.errors import UsageError
from kt_study.records import JobState, Progress
from kt_study.store.connections import Store, reads
from kt_study.store.expressions import chunks, now, of_study
from kt_study.store.records import (
    AttemptRow,
    FailureGroup,
    JobRow,
    NeedRow,
    Selection,
    Summary,
    WorkerRow,
    Workload,
)
from kt_study.store.results import converters
from kt_study.store.selections import LAST_ATTEMPT, OPEN, condition
from kt_study.tables import READY, RUNNING, attempts, job_needs, jobs, past_attempts, studies, study_jobs
from kt_study.tables import results as result_tables
from kt_study.tables import workers as worker_table

RESULTS_CHUNK = 5_000  # result rows per query
EXAMPLES = 5  # ids shown of a group of failures

_JOB = sa.select(
    *(column for column in jobs.c if column.name not in ("ticket", "started_at", "lease_s", "progress", "attempts")),
    jobs.c.attempts.label("attempts_used"),
    (now() - jobs.c.changed_at).label("age_s"),
    sa.case((jobs.c.state == "running", jobs.c.progress)).label("progress"),
)
_PAUSED = sa.and_(jobs.c.paused, jobs.c.state.in_(OPEN))
_CLAIMABLE = sa.case(
    (_PAUSED, "paused"),
    (sa.and_(jobs.c.state == "ready", jobs.c.not_before > sa.bindparam("moment")), "ready_later"),
    (jobs.c.state == "ready", "ready_now"),
    else_=jobs.c.state,
).label("claimable")  # the field of `Workload` in which a job counts
_CLAIMABLE_COUNTS = (_CLAIMABLE, sa.func.count().label("number"), sa.func.min(jobs.c.not_before).label("not_before"))


def _of(study: str | None) -> sa.ColumnElement[bool]:
    return sa.true() if study is None else of_study(study)


def _progress(text: str | None) -> Progress | None:
    """A stored progress. Fields that a newer program may have added are dropped."""
    return msgspec.json.decode(text, type=Progress) if text else None


def _workload(groups: Sequence[Any], moment: float) -> Workload:
    numbers: Counter[str] = Counter()
    for group in groups:
        numbers[group.claimable] += group.number
    waits = (group.not_before - moment for group in groups if group.claimable == "ready_later")
    return Workload(**numbers, next_s=min(waits, default=None))


def _left_s(connection: sa.Connection, study: str | None, groups: Sequence[Any]) -> float:
    """The estimates of the open jobs that can be done: a failed or cancelled job blocks all that need it, directly or not."""
    given_up = jobs.alias("given_up")
    stuck = (
        sa.select(job_needs.c.job_id.label("id"))
        .join(given_up, given_up.c.id == job_needs.c.needs_id)
        .where(given_up.c.state.in_(["failed", "cancelled"]))
        .cte("stuck", recursive=True)
    )
    stuck = stuck.union(sa.select(job_needs.c.job_id).join(stuck, stuck.c.id == job_needs.c.needs_id))
    held_back = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(jobs.c.estimate_s), 0.0))
    held_back = held_back.join_from(jobs, stuck, stuck.c.id == jobs.c.id).where(_of(study), jobs.c.state.in_(OPEN))
    number, stuck_s = connection.execute(held_back).one()
    if number == sum(group.number for group in groups):  # sums in another order may differ in the last digit
        return 0.0
    left_s: float = sum(group.estimate_s for group in groups) - stuck_s
    return max(0.0, left_s)


def _job_row(row: Any) -> JobRow:
    values = {name: value for name, value in row._mapping.items() if name != "moment"}
    values |= {"spec": msgspec.json.decode(row.spec), "progress": _progress(row.progress)}
    return JobRow(**values | {"state": JobState(row.state), "age_s": max(0.0, row.age_s)})


def _attempts(connection: sa.Connection, job_id: int) -> tuple[AttemptRow, ...]:
    elsewhere = {name: sa.func.coalesce(worker_table.c[name], "").label(name) for name in ("host", "log")}
    names = [field.name for field in msgspec.structs.fields(AttemptRow)]
    tried = sa.select(*(elsewhere[name] if name in elsewhere else attempts.c[name] for name in names))
    tried = tried.join(worker_table, worker_table.c.id == attempts.c.worker, isouter=True)
    rows = connection.execute(tried.where(attempts.c.job_id == job_id).order_by(attempts.c.fence))
    return tuple(AttemptRow(**dict(row._mapping) | {"progress": _progress(row.progress)}) for row in rows)


def _why(job: JobRow, moment: float) -> str:
    """The reason for a job's state, one line."""
    if job.state == JobState.BLOCKED:
        waits = [f"{need.job_id} ({need.kind}, {need.state})" for need in job.needs if need.state != JobState.DONE]
        return f"waits for job {', '.join(waits[:3])}{f' and {len(waits) - 3} more' if len(waits) > 3 else ''}"
    if job.paused and job.state in (JobState.READY, JobState.RUNNING):
        return "paused; `kt-study resume` continues it"
    if job.state == JobState.READY and job.not_before > moment:
        return f"retries in {job.not_before - moment:.0f} s after {_last_error(job)}"
    if job.state == JobState.READY:
        return "ready; waits for a worker"
    if job.state == JobState.RUNNING and job.lease_until is not None:
        left = job.lease_until - moment
        ends = f"ends in {left:.0f} s" if left > 0 else f"ended {-left:.0f} s ago"
        return f"runs on {job.worker}; its lease {ends}"
    if job.state == JobState.FAILED:
        return f"failed with {_last_error(job)}; `kt-study retry` runs it again"
    return str(job.state)


def _last_error(job: JobRow) -> str:
    errors = [f"{attempt.error}: {attempt.message}" for attempt in job.attempts if attempt.error]
    return errors[-1] if errors else "no recorded error"


def _failure_group(group: str, rows: Sequence[Any]) -> FailureGroup:
    latest = max(rows, key=lambda row: (row.ended_at or 0.0, row.id))  # two may end within a tick of the clock
    return FailureGroup(
        group=group,
        error=latest.error or "",
        message=latest.message or "",
        count=len(rows),
        job_ids=tuple(row.id for row in rows[:EXAMPLES]),
        kinds=tuple(sorted({row.kind for row in rows})),
    )


class Listings(Store):
    """Queries. None of them changes anything."""

    @reads
    def summary(self, connection: sa.Connection, study: str | None = None, *, window_s: float = 600.0) -> Summary:
        """Numbers of jobs by kind and state, those that can be claimed, and the rate of the last `window_s` seconds."""
        moment = connection.execute(sa.select(now())).scalar_one()  # once, not per row
        lately = sa.and_(jobs.c.state == "done", jobs.c.changed_at > moment - window_s)
        figures = sa.select(
            jobs.c.kind, jobs.c.state, *_CLAIMABLE_COUNTS,
            sa.func.count(sa.case((lately, 1))).label("done"),
            sa.func.coalesce(sa.func.sum(sa.case((lately, jobs.c.estimate_s))), 0.0).label("done_s"),
            sa.func.sum(jobs.c.estimate_s).label("estimate_s"),
            sa.func.min(jobs.c.changed_at).label("first"),
        )  # fmt: skip
        grouped = figures.where(_of(study)).group_by(jobs.c.kind, jobs.c.state, "claimable")
        groups = connection.execute(grouped, {"moment": moment}).all()
        counts: Counter[tuple[str, JobState]] = Counter()
        for group in groups:
            counts[group.kind, JobState(group.state)] += group.number
        first = min((group.first for group in groups if group.state == "done"), default=moment)
        span = min(window_s, moment - first or window_s)
        done, done_s = sum(group.done for group in groups), sum(group.done_s for group in groups)
        left_s = _left_s(connection, study, [group for group in groups if group.state in OPEN])
        return Summary(
            counts=dict(counts),
            workload=_workload(groups, moment),
            jobs_per_s=done / span,
            eta_s=left_s * span / done_s if done_s and left_s else None,
        )

    @reads
    def workload(self, connection: sa.Connection, study: str | None = None) -> Workload:
        """Number of jobs by state, and of ready ones by whether they can be claimed now."""
        moment = connection.execute(sa.select(now())).scalar_one()
        grouped = sa.select(*_CLAIMABLE_COUNTS).where(_of(study)).group_by("claimable")
        return _workload(connection.execute(grouped, {"moment": moment}).all(), moment)

    @reads
    def tally(self, connection: sa.Connection, selection: Selection) -> dict[str, int]:
        """Number of the selected jobs by state; open ones that are paused count as `paused`."""
        state = sa.case((_PAUSED, "paused"), else_=jobs.c.state).label("condition")
        selected = sa.select(state, sa.func.count()).where(condition(selection))
        return {
            found: count for found, count in connection.execute(selected.group_by("condition").order_by("condition"))
        }

    @reads
    def error_groups(self, connection: sa.Connection, study: str) -> list[str]:
        """Every group of causes that a selection by `error_group` matches, in alphabetical order."""
        group = past_attempts.c.error_group
        groups = sa.select(group).distinct().join(jobs, LAST_ATTEMPT).where(group.is_not(None), of_study(study))
        return list(connection.scalars(groups.order_by(group)))

    @reads
    def states(
        self, connection: sa.Connection, digests: Collection[str], study: str | None = None
    ) -> dict[str, JobState]:
        """The state of each of these jobs that the database, or the study, has; by digest."""
        query = sa.select(jobs.c.digest, jobs.c.state).where(_of(study))
        found: dict[str, JobState] = {}
        for chunk in chunks(digests):
            rows = connection.execute(query.where(jobs.c.digest.in_(chunk)))
            found |= {digest: JobState(state) for digest, state in rows}
        return found

    @reads
    def jobs(self, connection: sa.Connection, selection: Selection | None = None, limit: int = 1000) -> list[JobRow]:
        """The first `limit` of the selected jobs by id, without their attempts and needs."""
        rows = connection.execute(_JOB.where(condition(selection or Selection())).order_by(jobs.c.id).limit(limit))
        return [_job_row(row) for row in rows]

    @reads
    def job(self, connection: sa.Connection, job_id: int) -> JobRow:
        """One job with its attempts, needs, studies and the reason for its state. Raises UsageError."""
        row = connection.execute(_JOB.add_columns(now().label("moment")).where(jobs.c.id == job_id)).first()
        if row is None:
            raise UsageError(f"no job {job_id} in {self.url}; `kt-study status` lists them")
        needs = sa.select(jobs.c.id, jobs.c.kind, jobs.c.state).join(job_needs, job_needs.c.needs_id == jobs.c.id)
        needed = connection.execute(needs.where(job_needs.c.job_id == job_id).order_by(jobs.c.id))
        names = sa.select(studies.c.name).join(study_jobs, study_jobs.c.study_id == studies.c.id)
        found = msgspec.structs.replace(
            _job_row(row),
            attempts=_attempts(connection, job_id),
            needs=tuple(NeedRow(job_id=need, kind=kind, state=JobState(state)) for need, kind, state in needed),
            studies=tuple(connection.scalars(names.where(study_jobs.c.job_id == job_id).order_by(studies.c.name))),
        )
        return msgspec.structs.replace(found, why=_why(found, row.moment))

    @reads
    def failures(self, connection: sa.Connection, study: str | None = None) -> list[FailureGroup]:
        """Failed jobs grouped by cause, the most frequent first."""
        error = [past_attempts.c[name] for name in ("error_group", "error", "message", "ended_at")]
        failed = sa.select(*error, jobs.c.kind, jobs.c.id).join(past_attempts, LAST_ATTEMPT)
        groups: dict[str, list[Any]] = {}
        for row in connection.execute(failed.where(jobs.c.state == "failed", _of(study)).order_by(jobs.c.id)):
            groups.setdefault(row.error_group or "", []).append(row)
        found = [_failure_group(group, rows) for group, rows in groups.items()]
        return sorted(found, key=lambda group: (-group.count, group.group))

    @reads
    def before(self, connection: sa.Connection, job: JobRow, study: str | None = None) -> tuple[int, int]:
        """Ready jobs that a claim without affinity takes before this one, and how many of them for higher priority."""
        preferred = jobs.c.priority > job.priority
        longer = jobs.c.estimate_s > job.estimate_s
        older = sa.and_(jobs.c.estimate_s == job.estimate_s, jobs.c.id < job.id)
        earlier = preferred | sa.and_(jobs.c.priority == job.priority, longer | older)
        counted = sa.select(sa.func.count(), sa.func.count(sa.case((preferred, 1))))
        number, higher = connection.execute(counted.where(_of(study), READY, jobs.c.not_before <= now(), earlier)).one()
        return number, higher

    @reads
    def needed_by_open_jobs(self, connection: sa.Connection, kind: str) -> set[str]:
        """Digests of the jobs of one kind that are open, or whose results an open job may still read."""
        user = jobs.alias("user")
        needed = sa.select(job_needs.c.job_id).join(user, user.c.id == job_needs.c.job_id)
        needed = needed.where(job_needs.c.needs_id == jobs.c.id, user.c.state.in_(OPEN)).correlate(jobs)
        query = sa.select(jobs.c.digest).where(jobs.c.kind == kind, jobs.c.state.in_(OPEN) | needed.exists())
        return set(connection.scalars(query))

    @reads
    def workers(self, connection: sa.Connection, alive_within_s: float | None = None) -> list[WorkerRow]:
        """Worker processes, oldest first; with `alive_within_s` only those with a heartbeat in so many seconds."""
        held: dict[str, list[int]] = {}
        running = sa.select(jobs.c.worker, jobs.c.id).where(RUNNING).order_by(jobs.c.id)
        for worker, job_id in connection.execute(running):
            held.setdefault(worker, []).append(job_id)
        beat_at = worker_table.c.beat_at
        known = sa.select(worker_table, (now() - beat_at).label("age_s"))
        known = known.order_by(worker_table.c.started_at, worker_table.c.id)
        if alive_within_s is not None:
            known = known.where(worker_table.c.ended_at.is_(None), beat_at >= now() - alive_within_s)
        return [
            WorkerRow(
                id=row.id, host=row.host, pid=row.pid, slurm_job=row.slurm_job or "", log=row.log or "",
                device=row.device or "", started_at=row.started_at, ended_at=row.ended_at,
                beat_age_s=max(0.0, row.age_s), running=tuple(held.get(row.id, ())),
            )
            for row in connection.execute(known)
        ]  # fmt: skip

    def results(self, table: str, study: str | None = None, after_id: int = 0) -> Iterator[list[dict[str, Any]]]:
        """Result rows in chunks, by id: id, job_id, study and the schema's columns. A job of two studies comes twice.

        On PostgreSQL ids are assigned before rows are committed: a row may appear later with a lower id than one that was
        read. So, while workers run, collect incrementally by job, not by the highest id.

        Raises:
            UsageError: an unknown table.
        """
        converters(table)  # raises for an unknown table
        while (found := self._results_after(table, study, after_id)) is not None:
            after_id, chunk = found
            if chunk:
                yield chunk

    @reads
    def _results_after(
        self, connection: sa.Connection, table: str, study: str | None, after_id: int
    ) -> tuple[int, list[dict[str, Any]]] | None:
        """The highest id of the next chunk, and its rows that are of the study; None after the last chunk."""
        rows = result_tables[table]
        chunk = sa.select(rows).where(rows.c.id > after_id).order_by(rows.c.id).limit(RESULTS_CHUNK).subquery()
        last = connection.scalar(sa.select(sa.func.max(chunk.c.id)))
        if last is None:
            return None
        named = sa.select(chunk.c.id, chunk.c.job_id, studies.c.name.label("study"), *list(chunk.c)[2:])
        named = named.join(study_jobs, study_jobs.c.job_id == chunk.c.job_id)
        named = named.join(studies, studies.c.id == study_jobs.c.study_id)
        if study is not None:
            named = named.where(studies.c.name == study)
        return last, [dict(row._mapping) for row in connection.execute(named.order_by(chunk.c.id, studies.c.name))]
