"""What the store says about jobs, failures, workers and results. Nothing here changes anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from kt_study.schema import RESULT_TABLES
from kt_study.store.backend import Row, Transaction
from kt_study.store.records import (
    AttemptRow,
    FailureGroup,
    JobRow,
    NeedRow,
    Outlook,
    Pace,
    Selection,
    WorkerRow,
    decode_progress,
)
from kt_study.store.selections import where
from kt_study.words import JobState

EXAMPLES = 5  # ids shown of a group of failures

_JOB = """
SELECT j.id, j.kind, j.digest, j.spec, j.state, j.paused, j.priority, j.estimate_s, j.teacher, j.student, j.needs_open,
    j.attempts, j.crashes, j.fence, j.not_before, j.worker, j.lease_until, j.created_at, j.changed_at,
    {now} - j.changed_at AS age_s, CASE WHEN j.state = 'running' THEN j.progress END AS progress, {now} AS moment
FROM jobs j
"""
_ATTEMPTS = """
SELECT a.fence, a.worker, coalesce(w.host, ''), coalesce(w.log, ''), a.started_at, a.ended_at, a.outcome, a.progress,
    a.error, a.message, a.traceback, a.error_group
FROM attempts a LEFT JOIN workers w ON w.id = a.worker WHERE a.job_id = :id ORDER BY a.fence
"""
_NEEDS = """
SELECT j.id, j.kind, j.state FROM job_needs n JOIN jobs j ON j.id = n.needs_id WHERE n.job_id = :id ORDER BY j.id
"""
_STUDIES = """
SELECT s.name FROM study_jobs sj JOIN studies s ON s.id = sj.study_id WHERE sj.job_id = :id ORDER BY s.name
"""
_FAILED = """
SELECT a.error_group, a.error, a.message, j.kind, j.id, a.ended_at FROM jobs j JOIN past_attempts a ON a.job_id = j.id AND a.fence = j.fence
WHERE j.state = 'failed' AND {where} ORDER BY j.id
"""
_OUTLOOK = """
SELECT CASE WHEN j.paused AND j.state IN ('blocked', 'ready', 'running') THEN 'paused'
            WHEN j.state = 'ready' AND j.not_before > {now} THEN 'later' ELSE j.state END AS condition,
    count(*), min(CASE WHEN j.state = 'ready' THEN j.not_before - {now} END)
FROM jobs j WHERE {where} GROUP BY 1
"""
_TALLY = """
SELECT CASE WHEN j.paused AND j.state IN ('blocked', 'ready', 'running') THEN 'paused' ELSE j.state END AS condition, count(*)
FROM jobs j WHERE {where} GROUP BY 1 ORDER BY 1
"""
_ERROR_GROUPS = """
SELECT DISTINCT a.error_group FROM jobs j JOIN past_attempts a ON a.job_id = j.id AND a.fence = j.fence
WHERE a.error_group IS NOT NULL AND {where} ORDER BY 1
"""
# A failed or cancelled job keeps back whatever needs it, near or far.
_PACE = """
WITH RECURSIVE stuck (id) AS (
    SELECT n.job_id FROM jobs f CROSS JOIN job_needs n WHERE f.state IN ('failed', 'cancelled') AND f.needed AND n.needs_id = f.id
    UNION SELECT n.job_id FROM stuck k CROSS JOIN job_needs n WHERE n.needs_id = k.id
)
SELECT coalesce(sum(CASE WHEN j.state = 'done' AND j.changed_at > {now} - :window THEN 1 ELSE 0 END), 0),
    sum(CASE WHEN j.state = 'done' AND j.changed_at > {now} - :window THEN j.estimate_s END),
    sum(CASE WHEN j.state IN ('blocked', 'ready', 'running') AND k.id IS NULL THEN j.estimate_s END),
    {now} - min(CASE WHEN j.state = 'done' THEN j.changed_at END)
FROM jobs j LEFT JOIN stuck k ON k.id = j.id WHERE {where}
"""
_BEFORE = """
SELECT count(*), coalesce(sum(CASE WHEN j.priority > :priority THEN 1 ELSE 0 END), 0) FROM jobs j
WHERE {where} AND {ready} AND j.not_before <= {now} AND (j.priority > :priority OR (j.priority = :priority
    AND (j.estimate_s > :estimate OR (j.estimate_s = :estimate AND j.id < :job))))
"""
_NEEDED = """
SELECT j.digest FROM jobs j WHERE j.kind = :kind AND (j.state IN ('blocked', 'ready', 'running') OR EXISTS (
    SELECT 1 FROM job_needs n JOIN jobs o ON o.id = n.job_id
    WHERE n.needs_id = j.id AND o.state IN ('blocked', 'ready', 'running')))
"""
_WORKERS = """
SELECT id, host, pid, slurm_job, log, device, started_at, ended_at, {now} - beat_at FROM workers
WHERE {where} ORDER BY started_at, id
"""


def counts(tx: Transaction, study: str | None) -> dict[tuple[str, JobState], int]:
    """Jobs by (kind, state)."""
    terms, parameters = where(tx, Selection(study=study))
    rows = tx.rows(
        f"SELECT j.kind, j.state, count(*) FROM jobs j WHERE {terms} GROUP BY 1, 2 ORDER BY 1, 2", **parameters
    )
    return {(kind, JobState(state)): count for kind, state, count in rows}


def tally(tx: Transaction, selection: Selection) -> dict[str, int]:
    """Selected jobs by state; open ones that are paused count as that."""
    terms, parameters = where(tx, selection)
    return dict(tx.rows(_TALLY.format(where=terms), **parameters))


def error_groups(tx: Transaction, study: str) -> list[str]:
    """Causes from which the last attempts of the study's jobs failed."""
    terms, parameters = where(tx, Selection(study=study))
    return [group for (group,) in tx.rows(_ERROR_GROUPS.format(where=terms), **parameters)]


def states(tx: Transaction, digests: list[str], study: str | None) -> dict[str, JobState]:
    """Digest -> state of those of these jobs that there are."""
    terms, parameters = where(tx, Selection(study=study))
    statement = f"SELECT j.digest, j.state FROM jobs j WHERE {tx.among('j.digest', 'digests')} AND {terms}"
    return {digest: JobState(state) for digest, state in tx.rows(statement, digests=digests, **parameters)}


def jobs(tx: Transaction, selection: Selection, limit: int) -> list[JobRow]:
    """Selected jobs, lowest id first."""
    terms, parameters = where(tx, selection)
    statement = f"{_JOB.format(now=tx.now)} WHERE {terms} ORDER BY j.id LIMIT :limit"
    return [_job_row(row) for row in tx.rows(statement, limit=limit, **parameters)]


def job(tx: Transaction, job_id: int) -> JobRow | None:
    """One job with its attempts, needs and studies."""
    rows = tx.rows(f"{_JOB.format(now=tx.now)} WHERE j.id = :id", id=job_id)
    if not rows:
        return None
    found = msgspec.structs.replace(
        _job_row(rows[0]),
        attempts=tuple(_attempt_row(row) for row in tx.rows(_ATTEMPTS, id=job_id)),
        needs=tuple(
            NeedRow(job_id=needed, kind=kind, state=JobState(state))
            for needed, kind, state in tx.rows(_NEEDS, id=job_id)
        ),
        studies=tuple(name for (name,) in tx.rows(_STUDIES, id=job_id)),
    )
    return msgspec.structs.replace(found, why=_why(found, rows[0][-1]))


def _job_row(row: Row) -> JobRow:
    (
        job_id, kind, digest, spec, state, paused, priority, estimate_s, teacher, student, needs_open, attempts, crashes,
        fence, not_before, worker, lease_until, created_at, changed_at, age_s, progress, _,
    ) = row  # fmt: skip
    return JobRow(
        id=job_id, kind=kind, digest=digest, spec=msgspec.json.decode(spec), state=JobState(state), paused=bool(paused),
        priority=priority, estimate_s=estimate_s, teacher=teacher, student=student, needs_open=needs_open,
        attempts_used=attempts, crashes=crashes, fence=fence, not_before=not_before, worker=worker,
        lease_until=lease_until, created_at=created_at, changed_at=changed_at, age_s=max(0.0, age_s),
        progress=decode_progress(progress),
    )  # fmt: skip


def _attempt_row(row: Row) -> AttemptRow:
    names = [field.name for field in msgspec.structs.fields(AttemptRow)]
    values = dict(zip(names, row, strict=True))
    return AttemptRow(**values | {"progress": decode_progress(values["progress"])})


def _why(job: JobRow, moment: float) -> str:
    """One line that says why a job is where it is."""
    if job.state == JobState.BLOCKED:
        waits = [f"{need.job_id} ({need.kind}, {need.state})" for need in job.needs if need.state != JobState.DONE]
        return f"waits for job {', '.join(waits[:3])}{f' and {len(waits) - 3} more' if len(waits) > 3 else ''}"
    if job.paused and job.state in (JobState.READY, JobState.RUNNING):
        return "paused; `kt-study resume` lets it go on"
    if job.state == JobState.READY and job.not_before > moment:
        return f"backs off for another {job.not_before - moment:.0f} s after {_last_error(job)}"
    if job.state == JobState.READY:
        return "ready; waits for a worker that may run it"
    if job.state == JobState.RUNNING and job.lease_until is not None:
        left = job.lease_until - moment
        return f"runs on {job.worker}; " + (
            f"lease for another {left:.0f} s" if left > 0 else f"lease over since {-left:.0f} s"
        )
    if job.state == JobState.FAILED:
        return f"failed with {_last_error(job)}; `kt-study retry` starts it afresh"
    return str(job.state)


def _last_error(job: JobRow) -> str:
    errors = [f"{attempt.error}: {attempt.message}" for attempt in job.attempts if attempt.error]
    return errors[-1] if errors else "no recorded error"


def failures(tx: Transaction, study: str | None) -> list[FailureGroup]:
    """Failed jobs by the cause of their last attempt, the most frequent first."""
    terms, parameters = where(tx, Selection(study=study))
    groups: dict[str, list[Row]] = {}
    for row in tx.rows(_FAILED.format(where=terms), **parameters):
        groups.setdefault(row[0] or "", []).append(row)
    found = [_failure_group(group, rows) for group, rows in groups.items()]
    return sorted(found, key=lambda group: (-group.count, group.group))


def _failure_group(group: str, rows: Sequence[Row]) -> FailureGroup:
    latest = max(rows, key=lambda row: (row[5] or 0.0, row[4]))  # two may end within a tick of the clock
    return FailureGroup(
        group=group,
        error=latest[1] or "",
        message=latest[2] or "",
        count=len(rows),
        job_ids=tuple(row[4] for row in rows[:EXAMPLES]),
        kinds=tuple(sorted({row[3] for row in rows})),
    )


def outlook(tx: Transaction, study: str | None) -> Outlook:
    """How much there is to do, now and later."""
    terms, parameters = where(tx, Selection(study=study))
    found = {row[0]: row for row in tx.rows(_OUTLOOK.format(now=tx.now, where=terms), **parameters)}
    number = {condition: row[1] for condition, row in found.items()}
    later = found.get("later")
    return Outlook(
        ready_now=number.get("ready", 0),
        ready_later=number.get("later", 0),
        next_s=max(0.0, later[2]) if later else None,
        blocked=number.get("blocked", 0),
        running=number.get("running", 0),
        failed=number.get("failed", 0),
        done=number.get("done", 0),
        cancelled=number.get("cancelled", 0),
        paused=number.get("paused", 0),
    )


def pace(tx: Transaction, study: str | None, window_s: float) -> Pace:
    """How fast the study goes: jobs done within the last `window_s` seconds against what is open and can be done."""
    terms, parameters = where(tx, Selection(study=study))
    done, done_s, open_s, since = tx.rows(_PACE.format(now=tx.now, where=terms), window=window_s, **parameters)[0]
    span = min(window_s, since or window_s)
    return Pace(
        jobs_per_s=done / span if done else 0.0,
        eta_s=open_s * span / done_s if done_s and open_s else None,
    )


def before(tx: Transaction, job: JobRow, study: str | None) -> tuple[int, int]:
    """Jobs that a claim would take before this ready one, and how many of them for their higher priority."""
    terms, parameters = where(tx, Selection(study=study))
    line, preferred = tx.rows(
        _BEFORE.format(now=tx.now, ready=tx.ready, where=terms),
        priority=job.priority,
        estimate=job.estimate_s,
        job=job.id,
        **parameters,
    )[0]
    return line, preferred


def needed_by_open_jobs(tx: Transaction, kind: str) -> set[str]:
    """Digests of the jobs of one kind that an open job needs, or that are open themselves."""
    return {digest for (digest,) in tx.rows(_NEEDED, kind=kind)}


def workers(tx: Transaction, alive_within_s: float | None) -> list[WorkerRow]:
    """Worker processes, oldest first; only those that have not left and sent a heartbeat within the given seconds."""
    terms, parameters = "true", {}
    if alive_within_s is not None:
        terms, parameters = f"ended_at IS NULL AND beat_at >= {tx.now} - :within", {"within": alive_within_s}
    held: dict[str, list[int]] = {}
    for worker, job_id in tx.rows(f"SELECT worker, id FROM jobs WHERE {tx.running} ORDER BY id"):
        held.setdefault(worker, []).append(job_id)
    return [_worker_row(row, held) for row in tx.rows(_WORKERS.format(now=tx.now, where=terms), **parameters)]


def _worker_row(row: Row, held: dict[str, list[int]]) -> WorkerRow:
    worker, host, pid, slurm_job, log, device, started_at, ended_at, age = row
    return WorkerRow(
        id=worker, host=host, pid=pid, slurm_job=slurm_job or "", log=log or "", device=device or "",
        started_at=started_at, ended_at=ended_at, beat_age_s=max(0.0, age), running=tuple(held.get(worker, ())),
    )  # fmt: skip


def results(tx: Transaction, table: str, study: str | None, after_id: int, limit: int) -> list[dict[str, Any]]:
    """Rows of up to `limit` results with an id above `after_id`: id, job_id, study and the columns of the schema."""
    flags = [column.name for column in RESULT_TABLES[table].columns if column.type == "bool"]
    columns = [column.name for column in RESULT_TABLES[table].columns]
    names = ", ".join(f't."{name}"' for name in columns)
    only, parameters = ("AND s.name = :study", {"study": study}) if study is not None else ("", {})
    rows = tx.rows(
        f"SELECT t.id, t.job_id, s.name, {names} "
        f"FROM (SELECT * FROM {table} WHERE id > :after ORDER BY id LIMIT :limit) t "
        f"JOIN study_jobs sj ON sj.job_id = t.job_id JOIN studies s ON s.id = sj.study_id WHERE true {only} ORDER BY t.id, s.name",
        after=after_id,
        limit=limit,
        **parameters,
    )
    found = [dict(zip(("id", "job_id", "study", *columns), row, strict=True)) for row in rows]
    for row in found if flags else ():
        row.update({name: None if row[name] is None else bool(row[name]) for name in flags})
    return found


def last_id(tx: Transaction, table: str, after_id: int, limit: int) -> int | None:
    """The highest id among the next `limit` results after `after_id`; None when there are none."""
    statement = f"SELECT max(id) FROM (SELECT id FROM {table} WHERE id > :after ORDER BY id LIMIT :limit) t"
    found: int | None = tx.rows(statement, after=after_id, limit=limit)[0][0]
    return found
