"""Reopens done jobs whose artefact is missing or damaged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kt_study.errors import DataError
from kt_study.hashing import job_digest
from kt_study.store.expressions import now
from kt_study.tables import job_needs, jobs, past_attempts, results

BLOCKED_IF_READY = sa.case((jobs.c.state == "ready", "blocked"), else_=jobs.c.state)


def reopen(connection: sa.Connection, ids: Sequence[int], **values: Any) -> None:
    """Done to ready or blocked, without the result rows, which come again; jobs that need these wait for them."""
    if not ids:
        return
    names = ("job_id", "fence", "worker", "started_at", "ended_at", "outcome", "progress")
    kept = [jobs.c[name] for name in ("id", "fence", "worker", "started_at", "changed_at")]
    attempt = sa.select(*kept, sa.literal("undone"), jobs.c.progress).where(jobs.c.id.in_(ids))
    connection.execute(sa.insert(past_attempts).from_select(names, attempt))
    for table in results.values():
        connection.execute(sa.delete(table).where(table.c.job_id.in_(ids)))
    waiting = sa.select(job_needs.c.job_id, sa.func.count().label("number")).where(job_needs.c.needs_id.in_(ids))
    waits = waiting.group_by(job_needs.c.job_id).subquery("waits")
    blocked = sa.update(jobs).where(jobs.c.id == waits.c.job_id)
    connection.execute(blocked.values(needs_open=jobs.c.needs_open + waits.c.number, state=BLOCKED_IF_READY))
    state = sa.case((jobs.c.needs_open == 0, "ready"), else_="blocked")
    opened = sa.update(jobs).where(jobs.c.id.in_(ids))
    connection.execute(opened.values(state=state, attempts=0, crashes=0, not_before=0.0, changed_at=now(), **values))


def maker_of(connection: sa.Connection, digest: str) -> int:
    """The job that leaves a file: the one of this digest, or the `remake` of a transfer or soup where there is one.

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
