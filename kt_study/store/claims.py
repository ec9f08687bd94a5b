"""Selects and takes the jobs of a claim. The time does not grow with the number of jobs that do not fit."""

from __future__ import annotations

import functools
from typing import Any

import msgspec
import sqlalchemy as sa

from kt_study.records import Claim
from kt_study.store.expressions import now, of_study, parameter, parameters
from kt_study.store.records import ClaimRequest
from kt_study.tables import CLAIM_ORDER, READY, RUNNING, jobs

_ABOVE_ALL = 2**31 - 1  # a priority

_CLAIMED = (jobs.c.id, jobs.c.fence, jobs.c.kind, jobs.c.digest, jobs.c.spec, jobs.c.attempts)
_START = (
    sa.update(jobs)
    .where(jobs.c.id.in_(parameters("ids")))
    .values(
        state="running", worker=parameter("by"), ticket=parameter("number"), fence=jobs.c.fence + 1,
        lease_s=parameter("seconds", sa.Double), lease_until=now() + parameter("seconds", sa.Double), started_at=now(),
        changed_at=now(), progress=None,
    )
    .returning(*_CLAIMED)
)  # fmt: skip
_CLAIMED_BEFORE = sa.select(*_CLAIMED).where(
    RUNNING, jobs.c.worker == parameter("by"), jobs.c.ticket == parameter("number")
)


def claimed_before(connection: sa.Connection, request: ClaimRequest, ticket: int) -> list[Claim]:
    """What an earlier try of this very call has claimed, whose answer was lost."""
    rows = connection.execute(_CLAIMED_BEFORE, {"by": request.worker, "number": ticket})
    return [_as_claim(row) for row in sorted(rows)]


def claim(connection: sa.Connection, request: ClaimRequest, ticket: int) -> list[Claim]:
    """See JobStore.claim."""
    ids = _chosen(connection, request)
    if not ids:
        return []
    given = {"ids": ids, "by": request.worker, "number": ticket, "seconds": request.lease_s}
    claims = [_as_claim(row) for row in connection.execute(_START, given)]
    return sorted(claims, key=lambda each: ids.index(each.job_id))


def _as_claim(row: Any) -> Claim:
    return Claim(
        job_id=row.id, attempt_id=row.fence, fence=row.fence, kind=row.kind, digest=row.digest,
        spec=msgspec.json.decode(row.spec), attempt=row.attempts + 1,
    )  # fmt: skip


def _chosen(connection: sa.Connection, request: ClaimRequest) -> list[int]:
    """Jobs whose teacher or student the worker has, then any, both in the order of claims."""
    roles = {"teacher": request.teachers, "student": request.students}
    ids = _best(connection, request, roles, request.limit)
    if len(ids) < request.limit:
        others = _best(connection, request, {"kind": request.kinds}, request.limit + len(ids))
        ids += [job_id for job_id in others if job_id not in ids]
    return ids[: request.limit]


def _best(connection: sa.Connection, request: ClaimRequest, by: dict[str, tuple[str, ...]], limit: int) -> list[int]:
    """The first `limit` jobs with one of these keys: those of each, merged. `by` kind without kinds is any job."""
    keys = [(column, key) for column, values in by.items() for key in values]
    if "kind" in by and not keys:
        keys = [("", "")]
    found = {row for column, key in keys for row in _first(connection, request, column, key, limit)}
    return [job_id for _, _, job_id in sorted(found)][:limit]


def _first(
    connection: sa.Connection, request: ClaimRequest, column: str, key: str, limit: int
) -> list[tuple[int, float, int]]:
    """(-priority, -estimate, id) of the first `limit` jobs whose column has the key, or of all jobs."""
    select = _ready_jobs(column, bool(request.kinds), request.time_left_s is not None, request.study is not None)
    given = {"key": key, "kinds": request.kinds, "time_left_s": request.time_left_s, "study": request.study}
    if request.time_left_s is None:
        return [tuple(row) for row in connection.execute(select, given | {"most": limit})]
    found: list[tuple[int, float, int]] = []
    level = _ABOVE_ALL
    while len(found) < limit:  # within a level the jobs that fit follow each other in the index
        level = connection.scalar(_next_level(column), {"key": key, "level": level})
        if level is None:
            break
        rows = connection.execute(select, given | {"level": level, "most": limit - len(found)})
        found += [tuple(row) for row in rows]
    return found


@functools.cache
def _ready_jobs(column: str, kinds: bool, time_left: bool, study: bool) -> sa.Select[Any]:
    select = sa.select(-jobs.c.priority, -jobs.c.estimate_s, jobs.c.id).where(READY, jobs.c.not_before <= now())
    if column:
        select = select.where(jobs.c[column] == parameter("key"))
    if kinds and column != "kind":
        select = select.where(jobs.c.kind.in_(parameters("kinds")))
    if time_left:
        select = select.where(jobs.c.priority == parameter("level"), jobs.c.estimate_s <= parameter("time_left_s"))
    if study:
        select = select.where(of_study(parameter("study")))
    select = select.order_by(*CLAIM_ORDER).limit(parameter("most", sa.Integer))
    return select.with_for_update(skip_locked=True, key_share=True)  # SQLite, with one writer at a time, needs no locks


@functools.cache
def _next_level(column: str) -> sa.Select[Any]:
    """The highest priority of a ready job below `level`."""
    select = sa.select(sa.func.max(jobs.c.priority)).where(READY, jobs.c.priority < parameter("level"))
    return select.where(jobs.c[column] == parameter("key")) if column else select
