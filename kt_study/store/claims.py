"""Selects and takes the jobs of a claim. The time does not grow with the number of jobs that do not fit."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterable
from typing import Any

import msgspec
import sqlalchemy as sa

from kt_study.records import Claim
from kt_study.store.connections import Store
from kt_study.store.expressions import now, of_study
from kt_study.tables import CLAIM_ORDER, READY, RUNNING, jobs

_ABOVE_ALL = 2**31 - 1  # a priority

_CLAIMED = (jobs.c.id, jobs.c.fence, jobs.c.kind, jobs.c.digest, jobs.c.spec, jobs.c.attempts)
_START = (
    sa.update(jobs)
    .where(jobs.c.id.in_(sa.bindparam("ids")))
    .values(
        state="running", worker=sa.bindparam("by"), ticket=sa.bindparam("number"), fence=jobs.c.fence + 1,
        lease_s=sa.bindparam("seconds", type_=sa.Double), lease_until=now() + sa.bindparam("seconds", type_=sa.Double), started_at=now(),
        changed_at=now(), progress=None,
    )
    .returning(*_CLAIMED)
)  # fmt: skip
_CLAIMED_BEFORE = sa.select(*_CLAIMED).where(
    RUNNING, jobs.c.worker == sa.bindparam("by"), jobs.c.ticket == sa.bindparam("number")
)


class Claims(Store):
    """Claims of ready jobs."""

    def claim(
        self,
        worker_id: str,
        *,
        kinds: Iterable[str] | None = None,
        teachers: Iterable[str] = (),
        students: Iterable[str] = (),
        time_left_s: float | None = None,
        study: str | None = None,
        limit: int = 1,
        lease_s: float = 60.0,
    ) -> list[Claim]:
        """Take up to `limit` ready jobs: first those whose teacher or student is given, then by priority, then longest first.

        Args:
            worker_id: who takes them.
            kinds: only jobs of these kinds; None for any.
            teachers, students: affinity keys of models that this worker has loaded.
            time_left_s: only jobs whose estimate fits; None for no limit.
            study: only jobs of this study. The time of a claim then grows with the ready jobs of other studies.
            limit: how many; more than one for jobs that are shorter than a claim.
            lease_s: seconds for which they are this worker's, from now and from every heartbeat.

        Returns:
            Possibly fewer than are ready: jobs that another worker is claiming at the moment are skipped.
        """
        wanted = tuple(kinds or ())
        conditions: dict[str, Any] = {"kinds": wanted, "time_left_s": time_left_s, "study": study}
        loaded = [("teacher", key) for key in teachers] + [("student", key) for key in students]
        others = [("kind", kind) for kind in wanted] or [("", "")]
        ticket = {"by": worker_id, "number": random.getrandbits(62)}
        tries = itertools.count()

        def claim(connection: sa.Connection) -> list[Claim]:
            if next(tries):  # the try before may have claimed, and its reply was lost
                before = connection.execute(_CLAIMED_BEFORE, ticket).all()
                if before:
                    return [_as_claim(row) for row in sorted(before)]
            ids = _best(connection, conditions, loaded, limit)
            if len(ids) < limit:
                ids = list(dict.fromkeys(ids + _best(connection, conditions, others, limit + len(ids))))[:limit]
            if not ids:
                return []
            started = connection.execute(_START, ticket | {"ids": ids, "seconds": lease_s})
            return sorted(map(_as_claim, started), key=lambda each: ids.index(each.job_id))

        return self._database.write(claim)


def _as_claim(row: Any) -> Claim:
    return Claim(
        job_id=row.id, attempt_id=row.fence, fence=row.fence, kind=row.kind, digest=row.digest,
        spec=msgspec.json.decode(row.spec), attempt=row.attempts + 1,
    )  # fmt: skip


def _best(connection: sa.Connection, conditions: dict[str, Any], keys: list[tuple[str, str]], limit: int) -> list[int]:
    """The first `limit` jobs in the order of claims that have one of the (column, key); column "" is any job."""
    found = {row for column, key in keys for row in _first(connection, conditions | {"key": key}, column, limit)}
    return [job_id for _, _, job_id in sorted(found)][:limit]


def _first(
    connection: sa.Connection, conditions: dict[str, Any], column: str, limit: int
) -> list[tuple[int, float, int]]:
    """(-priority, -estimate, id) of the first `limit` jobs whose column has the key, or of all jobs."""
    time_left = conditions["time_left_s"] is not None
    select = _ready_jobs(column, bool(conditions["kinds"]), time_left, conditions["study"] is not None)
    if not time_left:
        return [tuple(row) for row in connection.execute(select, conditions | {"most": limit})]
    found: list[tuple[int, float, int]] = []
    level = _ABOVE_ALL
    while len(found) < limit:  # within a level the jobs that fit follow each other in the index
        level = connection.scalar(_next_level(column), {"key": conditions["key"], "level": level})
        if level is None:
            break
        rows = connection.execute(select, conditions | {"level": level, "most": limit - len(found)})
        found += [tuple(row) for row in rows]
    return found


@functools.cache
def _ready_jobs(column: str, kinds: bool, time_left: bool, study: bool) -> sa.Select[Any]:
    select = sa.select(-jobs.c.priority, -jobs.c.estimate_s, jobs.c.id).where(READY, jobs.c.not_before <= now())
    if column:
        select = select.where(jobs.c[column] == sa.bindparam("key"))
    if kinds and column != "kind":
        select = select.where(jobs.c.kind.in_(sa.bindparam("kinds")))
    if time_left:
        select = select.where(
            jobs.c.priority == sa.bindparam("level"), jobs.c.estimate_s <= sa.bindparam("time_left_s")
        )
    if study:
        select = select.where(of_study(sa.bindparam("study")))
    select = select.order_by(*CLAIM_ORDER).limit(sa.bindparam("most", type_=sa.Integer))
    return select.with_for_update(skip_locked=True, key_share=True)  # SQLite, with one writer at a time, needs no locks


@functools.cache
def _next_level(column: str) -> sa.Select[Any]:
    """The highest priority of a ready job below `level`."""
    select = sa.select(sa.func.max(jobs.c.priority)).where(READY, jobs.c.priority < sa.bindparam("level"))
    return select.where(jobs.c[column] == sa.bindparam("key")) if column else select
