"""Changes of jobs that several methods of the store make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kt_study.errors import DataError
from kt_study.hashing import job_digest
from kt_study.store.expressions import chunks, now
from kt_study.tables import job_needs, jobs, past_attempts, results

BLOCKED_IF_READY = sa.case((jobs.c.state == "ready", "blocked"), else_=jobs.c.state)
AFRESH = {
    "state": sa.case((jobs.c.needs_open == 0, "ready"), else_="blocked"),
    "attempts": 0, "crashes": 0, "not_before": 0.0, "changed_at": now(),
}  # fmt: skip
"""A job that starts again, with all its attempts."""


def record_attempts(
    connection: sa.Connection, ids: Sequence[int], outcome: str, ended_at: Any = None, **error: str
) -> None:
    """Record the attempts of jobs before these change: those that end without a result, and those that are undone."""
    columns = (jobs.c.id, jobs.c.fence, jobs.c.worker, jobs.c.started_at, jobs.c.progress)
    values = {"outcome": sa.literal(outcome), "ended_at": now() if ended_at is None else ended_at}
    values |= {name: sa.literal(value) for name, value in error.items()}
    select = sa.select(*columns, *values.values())
    names = ["job_id", "fence", "worker", "started_at", "progress", *values]
    for chunk in chunks(ids):
        connection.execute(sa.insert(past_attempts).from_select(names, select.where(jobs.c.id.in_(chunk))))


def add_needs(connection: sa.Connection, pairs: Sequence[tuple[int, int]]) -> None:
    """Let jobs wait for other jobs too: pairs of a job and one that it needs, which is not done."""
    if pairs:
        waits = sa.update(jobs).where(jobs.c.id == sa.bindparam("job"))
        waits = waits.values(needs_open=jobs.c.needs_open + 1, state=BLOCKED_IF_READY)
        connection.execute(waits, [{"job": job_id} for job_id, _ in pairs])
        connection.execute(sa.insert(job_needs), [{"job_id": job_id, "needs_id": needed} for job_id, needed in pairs])


def reopen(connection: sa.Connection, ids: Sequence[int], **values: Any) -> None:
    """Done to ready or blocked, without the result rows, which come again; jobs that need these wait for them."""
    if not ids:
        return
    record_attempts(connection, ids, "undone", jobs.c.changed_at)
    for table in results.values():
        connection.execute(sa.delete(table).where(table.c.job_id.in_(ids)))
    waiting = sa.select(job_needs.c.job_id, sa.func.count().label("number")).where(job_needs.c.needs_id.in_(ids))
    waits = waiting.group_by(job_needs.c.job_id).subquery("waits")
    blocked = sa.update(jobs).where(jobs.c.id == waits.c.job_id)
    connection.execute(blocked.values(needs_open=jobs.c.needs_open + waits.c.number, state=BLOCKED_IF_READY))
    connection.execute(sa.update(jobs).where(jobs.c.id.in_(ids)).values(**AFRESH, **values))


def maker_of(connection: sa.Connection, digest: str) -> int:
    """The job that makes a file: the one of this digest, or the `remake` of a transfer or soup where there is one.

    Raises:
        DataError: no such job.
    """
    row = connection.execute(sa.select(jobs.c.id, jobs.c.kind, jobs.c.spec).where(jobs.c.digest == digest)).first()
    if row is None:
        raise DataError(f"no job {digest} in this database, which would make it again; plan the study again")
    job_id: int = row.id
    if row.kind in ("transfer", "soup"):
        remake = sa.select(jobs.c.id).where(jobs.c.digest == job_digest("remake", msgspec.json.decode(row.spec)))
        return connection.scalar(remake) or job_id
    return job_id
