"""Operations of a worker on the jobs that it holds, and the expiry of leases.

A lease counts only time in which the database was seen to respond. Heartbeats and expiries record the time of each check
(`lease_checks`). After a gap longer than the time between heartbeats, the database or all workers were frozen or
unreachable: the first check then extends the leases by that time, before any lease is ended. So live workers keep their
jobs through an outage, and a dead worker's job goes back to ready when the rest of its lease has passed.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from kt_study.errors import DataError, LeaseLost
from kt_study.failures import WORKER_DIED
from kt_study.records import Claim, Failure, JobState, Progress
from kt_study.store.connections import Store, writes
from kt_study.store.expressions import larger, now, server_started
from kt_study.store.records import HeartbeatReply
from kt_study.store.results import Rows, plain_rows
from kt_study.store.transitions import add_needs, maker_of, record_attempts, reopen
from kt_study.tables import RUNNING, job_needs, jobs, lease_checks, past_attempts, results, workers

LONGEST_BACKOFF_S = 1800.0
MOST_WAITS = 10
"""How often a job may wait for missing files before it fails: a disk that loses every file would keep workers busy forever."""
# The longest time between two checks that counts: more than a third of a lease, after which workers send heartbeats, and
# less than two thirds, which a live worker has left at least.
COUNTED_SHARE, COUNTED_S = 0.4, 1.0

PlainRows = dict[str, list[dict[str, Any]]]  # by table
Current = Any  # the columns `_HELD` of a job as it is now; None for no such job

_CHOSEN = jobs.c.id.in_(sa.bindparam("ids"))
_HELD = ("id", "state", "fence", "worker", "lease_until", "attempts", "crashes", "paused")
_HOLD = sa.select(*(jobs.c[name] for name in _HELD)).where(_CHOSEN).order_by(jobs.c.id).with_for_update(key_share=True)
_RENEW = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("job"))
    .values(
        lease_s=sa.bindparam("seconds", type_=sa.Double),
        lease_until=now() + sa.bindparam("seconds", type_=sa.Double),
        progress=sa.func.coalesce(sa.bindparam("reported", type_=sa.Text), jobs.c.progress),
    )
)
_END = (
    sa.update(jobs)
    .where(_CHOSEN)
    .values(state="done", attempts=jobs.c.attempts + 1, lease_until=None, changed_at=now())
)
_DEPENDENTS = sa.select(job_needs.c.job_id).where(job_needs.c.needs_id.in_(sa.bindparam("ids")))
_HOLD_DEPENDENTS = (
    sa.select(jobs.c.id).where(jobs.c.id.in_(_DEPENDENTS)).order_by(jobs.c.id).with_for_update(key_share=True)
)
_MET = (
    sa.select(sa.func.count())
    .where(job_needs.c.job_id == jobs.c.id, job_needs.c.needs_id.in_(sa.bindparam("ids")))
    .correlate(jobs)
    .scalar_subquery()
)
_FREE_DEPENDENTS = (
    sa.update(jobs)
    .where(jobs.c.id.in_(_DEPENDENTS))
    .values(
        needs_open=jobs.c.needs_open - _MET,
        state=sa.case((sa.and_(jobs.c.state == "blocked", jobs.c.needs_open == _MET), "ready"), else_=jobs.c.state),
        changed_at=now(),
    )
)
_LAST_CHECK = sa.select(lease_checks.c.checked_at, now().label("moment"), server_started().label("started"))
_CHECKED = sa.update(lease_checks).values(checked_at=sa.bindparam("moment"))
_UNCOUNTED = (
    sa.bindparam("moment", type_=sa.Double)
    - larger(jobs.c.lease_until - jobs.c.lease_s, sa.bindparam("before", type_=sa.Double))
    - larger(jobs.c.lease_s * COUNTED_SHARE, sa.literal(COUNTED_S))
)
_FROZEN = sa.select(jobs.c.id).where(RUNNING, _UNCOUNTED > 0).with_for_update(skip_locked=True, key_share=True)
_EXTEND = sa.update(jobs).where(_CHOSEN).values(lease_until=jobs.c.lease_until + _UNCOUNTED)


class JobLost(LeaseLost):
    """A LeaseLost that knows its job."""

    def __init__(self, claim: Claim, current: Current) -> None:
        self.job_id = claim.job_id
        if current is None:
            reason = f"job {claim.job_id} is not in this database"
        elif current.state == "cancelled":
            reason = f"job {claim.job_id} was cancelled"
        else:
            reason = (
                f"job {claim.job_id}: the lease of claim {claim.fence} has ended; the job is {current.state} under claim "
                f"{current.fence} (last worker {current.worker})"
            )
        super().__init__(f"{reason}; nothing was written")


class Leases(Store):
    """What a worker does to the jobs that it holds, and what ends the leases of workers that died."""

    @writes
    def heartbeat(
        self, connection: sa.Connection, worker_id: str, held: Mapping[Claim, Progress | None], lease_s: float = 60.0
    ) -> HeartbeatReply:
        """One heartbeat: renew the leases of the claims, store their progress, and learn which are lost or paused."""
        _check_leases(connection)
        connection.execute(sa.update(workers).where(workers.c.id == worker_id).values(beat_at=now()))
        current = _hold(connection, held)
        kept = {claim.job_id: claim for claim in held if _is_held(claim, current.get(claim.job_id))}
        if kept:
            renewed = [
                {"job": job_id, "seconds": lease_s, "reported": encoded(held[claim])} for job_id, claim in kept.items()
            ]
            connection.execute(_RENEW, renewed)
        lost = [claim for claim in held if claim.job_id not in kept]
        return HeartbeatReply(
            lost=frozenset(claim.job_id for claim in lost),
            cancelled=frozenset(each.job_id for each in lost if _ended_as("cancelled", each, current.get(each.job_id))),
            paused=frozenset(job_id for job_id in kept if current[job_id].paused),
        )

    def finish(self, claim: Claim, rows: Rows) -> None:
        """Store the result rows and mark the job done; jobs for which it was the last need become ready.

        Args:
            claim: the job.
            rows: rows by table name, each a mapping of the columns of `kt_study.schema`. NaN is stored as missing.

        Raises:
            LeaseLost: the job is no longer this worker's; nothing was written.
            UsageError: a table or column that the schema does not have; nothing was written.
        """
        for error in self._finish([(claim, plain_rows(rows))]):
            raise error

    def finish_many(self, finished: Sequence[tuple[Claim, Rows]]) -> frozenset[int]:
        """Finish several jobs in one transaction. Returns the ids of those whose lease was lost; they are not changed."""
        lost = self._finish([(claim, plain_rows(rows)) for claim, rows in finished]) if finished else []
        return frozenset(error.job_id for error in lost)

    @writes
    def _finish(self, connection: sa.Connection, finished: Sequence[tuple[Claim, PlainRows]]) -> list[JobLost]:
        current = _hold(connection, [claim for claim, _ in finished])
        held = {claim.job_id: rows for claim, rows in finished if _is_held(claim, current.get(claim.job_id))}
        if held:
            ids = list(held)
            connection.execute(_END, {"ids": ids})
            for table in {table for rows in held.values() for table in rows}:
                added = [{"job_id": job_id, **row} for job_id, rows in held.items() for row in rows.get(table, ())]
                if added:
                    connection.execute(sa.insert(results[table]), added)
            # The jobs' locks are held: a plan that adds needs to them has been committed, or waits.
            if connection.execute(_HOLD_DEPENDENTS, {"ids": ids}).first():
                connection.execute(_FREE_DEPENDENTS, {"ids": ids})
        others = [(claim, current.get(claim.job_id)) for claim, _ in finished if claim.job_id not in held]
        # A job that this very claim finished was committed before, and only the reply was lost.
        return [JobLost(claim, job) for claim, job in others if not _ended_as("done", claim, job)]

    @writes
    def release(self, connection: sa.Connection, claim: Claim, *, reason: str) -> None:
        """Put a job back to ready without using up an attempt: on preemption, time limit or pause. Raises LeaseLost."""
        current = _hold(connection, [claim]).get(claim.job_id)
        if _is_held(claim, current):
            _end_attempts(connection, [claim.job_id], "released", {"message": reason}, state="ready")
        elif _outcome(connection, claim) != "released":
            raise JobLost(claim, current)

    @writes
    def make_again(self, connection: sa.Connection, claim: Claim, makers: Collection[str], *, reason: str) -> None:
        """Release a job whose input is missing or damaged, and reopen the jobs that make the input: the job waits for them.

        Args:
            claim: the job that found it; the attempt does not count.
            makers: digests of the jobs that left the files; those that are done are opened again, without their result
                rows, which come again. A transfer's student is made by its `remake` where there is one.
            reason: one line.

        Raises:
            LeaseLost: the job is no longer this worker's; nothing was changed.
            DataError: no such maker, or the job has waited for files ten times; nothing was changed.
        """
        ids = [maker_of(connection, digest) for digest in makers]
        rows = {row.id: row for row in connection.execute(_HOLD, {"ids": [claim.job_id, *ids]})}
        current = rows.get(claim.job_id)
        if not _is_held(claim, current):
            if _outcome(connection, claim) == "blocked":
                return  # it was committed before, and the reply was lost
            raise JobLost(claim, current)
        _refuse_endless(connection, claim, reason)
        _end_attempts(connection, [claim.job_id], "blocked", {"message": reason}, state="blocked")
        reopen(connection, [job_id for job_id in ids if rows[job_id].state == "done"])
        known = connection.scalars(sa.select(job_needs.c.needs_id).where(job_needs.c.job_id == claim.job_id)).all()
        add_needs(connection, [(claim.job_id, job_id) for job_id in ids if job_id not in known])

    @writes
    def fail(self, connection: sa.Connection, claim: Claim, failure: Failure) -> JobState:
        """End an attempt with an error.

        Returns:
            READY if the failure is transient and attempts are left: the job is retried after a backoff that doubles with
            each attempt. FAILED otherwise.

        Raises:
            LeaseLost: the job is no longer this worker's.
        """
        current = _hold(connection, [claim]).get(claim.job_id)
        if current is None or not _is_held(claim, current):
            outcome = _outcome(connection, claim)
            if outcome not in ("retried", "failed"):
                raise JobLost(claim, current)
            return JobState.READY if outcome == "retried" else JobState.FAILED  # the reply was lost
        attempts = current.attempts + 1
        again = failure.transient and attempts < self._max_attempts
        state = JobState.READY if again else JobState.FAILED
        error = {"error": failure.error, "message": failure.message, "traceback": failure.traceback}
        error["error_group"] = failure.group
        backoff_s = min(self._first_backoff_s * 2.0 ** (attempts - 1), LONGEST_BACKOFF_S)
        # At random, so that jobs that failed together are not retried together.
        not_before = now() + (backoff_s * random.uniform(0.75, 1.25) if again else 0.0)
        _end_attempts(
            connection, [claim.job_id], "retried" if again else "failed", error,
            state=state, attempts=attempts, not_before=not_before,
        )  # fmt: skip
        return state

    @writes
    def expire(self, connection: sa.Connection, *, grace_s: float = 30.0) -> int:
        """End every lease that is over by the database's clock: back to ready, or failed after too many crashes.

        Args:
            grace_s: seconds after a start of the database server in which no lease ends, since no worker could renew it.

        Returns:
            The number of leases ended.
        """
        check = _check_leases(connection)
        if check is None or check.moment <= check.started + grace_s:
            return 0
        over = jobs.c.lease_until < check.moment
        return self._end_leases(connection, over, "the worker stopped sending heartbeats")

    @writes
    def end_leases(self, connection: sa.Connection, worker_ids: Collection[str], reason: str) -> int:
        """End the leases of workers that are known to be dead, without waiting for the leases. Returns how many."""
        dead = workers.c.ended_at.is_(None) & workers.c.id.in_(worker_ids)
        connection.execute(sa.update(workers).where(dead).values(ended_at=now()))
        return self._end_leases(connection, jobs.c.worker.in_(worker_ids), reason)

    def _end_leases(self, connection: sa.Connection, condition: sa.ColumnElement[bool], reason: str) -> int:
        over = sa.select(jobs.c.id, jobs.c.crashes).where(RUNNING, condition).order_by(jobs.c.id)
        rows = connection.execute(over.with_for_update(skip_locked=True, key_share=True)).all()
        error = {"error": WORKER_DIED, "message": reason, "traceback": "", "error_group": WORKER_DIED}
        poisonous = [row.id for row in rows if row.crashes >= self._max_crashes]
        others = [row.id for row in rows if row.crashes < self._max_crashes]
        for ids, state, outcome in ((poisonous, "failed", "failed"), (others, "ready", "expired")):
            if ids:
                _end_attempts(connection, ids, outcome, error, state=state, crashes=jobs.c.crashes + 1)
        return len(rows)


def encoded(progress: Progress | None) -> str | None:
    """A progress as it is stored."""
    return None if progress is None else msgspec.json.encode(progress).decode()


def _hold(connection: sa.Connection, claims: Iterable[Claim]) -> dict[int, Any]:
    """The claims' jobs by id, locked in one order until the transaction ends."""
    rows = connection.execute(_HOLD, {"ids": [claim.job_id for claim in claims]})
    return {row.id: row for row in rows}


def _is_held(claim: Claim, current: Current) -> bool:
    """Whether the claim is the newest of its job, and the job runs: it has a lease exactly then."""
    return current is not None and current.fence == claim.fence and current.lease_until is not None


def _ended_as(state: str, claim: Claim, current: Current) -> bool:
    """Whether the job is in this state since this very claim."""
    return current is not None and (current.state, current.fence) == (state, claim.fence)


def _refuse_endless(connection: sa.Connection, claim: Claim, reason: str) -> None:
    """Refuse the eleventh wait in a row; a retry by hand after that failure restarts the count. Raises DataError."""
    failed = past_attempts.alias()
    last_failure = sa.select(sa.func.coalesce(sa.func.max(failed.c.fence), 0)).where(
        failed.c.job_id == claim.job_id, failed.c.outcome == "failed"
    )
    waits = sa.select(sa.func.count()).where(
        past_attempts.c.job_id == claim.job_id,
        past_attempts.c.outcome == "blocked",
        past_attempts.c.fence > last_failure.scalar_subquery(),
    )
    if (connection.scalar(waits) or 0) >= MOST_WAITS:
        raise DataError(f"{reason}; made again {MOST_WAITS} times already: check the disk, then kt-study retry")


def _check_leases(connection: sa.Connection) -> Any:
    """Extend the leases by the time that does not count. Returns the last check and this moment; None while another checks."""
    check = connection.execute(_LAST_CHECK.with_for_update(skip_locked=True)).first()
    if check is None or check.moment < check.checked_at + COUNTED_S:
        return check
    # This moment and not the clock's next: the database may be frozen between two statements as well.
    times = {"moment": check.moment, "before": check.checked_at}
    if ids := connection.scalars(_FROZEN, times).all():
        connection.execute(_EXTEND, times | {"ids": ids})
    connection.execute(_CHECKED, times)
    return check


def _end_attempts(
    connection: sa.Connection, ids: Sequence[int], outcome: str, error: Mapping[str, str], **values: Any
) -> None:
    """Record the attempts of running jobs that end without a result, and end their leases."""
    record_attempts(connection, ids, outcome, **error)
    ended = sa.update(jobs).where(_CHOSEN).values(lease_until=None, changed_at=now(), **values)
    connection.execute(ended, {"ids": ids})


def _outcome(connection: sa.Connection, claim: Claim) -> str | None:
    past = (past_attempts.c.job_id == claim.job_id) & (past_attempts.c.fence == claim.fence)
    outcome: str | None = connection.scalar(sa.select(past_attempts.c.outcome).where(past))
    return outcome
