"""Operations of a worker on the jobs that it holds, and the expiry of leases.

A lease counts only time in which the database was seen to respond. Heartbeats and expiries record the time of each check
(`lease_checks`). After a gap longer than the time between heartbeats, the database or all workers were frozen or
unreachable: the first check then extends the leases by that time, before any lease is ended. So live workers keep their
jobs through an outage, and a dead worker's job goes back to ready when the rest of its lease has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from kt_study.errors import DataError, LeaseLost
from kt_study.failures import WORKER_DIED
from kt_study.records import Claim, Failure, JobState, Progress
from kt_study.store.expressions import chunks, now, parameter, parameters, server_started
from kt_study.store.records import HeartbeatReply, encode_progress
from kt_study.store.reopening import maker_of, reopen
from kt_study.tables import RUNNING, job_needs, jobs, lease_checks, past_attempts, results, workers

LONGEST_BACKOFF_S = 1800.0
MOST_WAITS = 10
"""How often a job may find a file gone before it fails: a disk that loses every file would keep workers busy for ever."""
# The longest time between two looks that counts: more than the third of a lease after which workers send heartbeats, and
# so little that two thirds of a lease, the least that a live worker has left, outlast it.
COUNTED_SHARE, COUNTED_S = 0.4, 1.0

PlainRows = dict[str, list[dict[str, Any]]]  # as `kt_study.store.results.plain_rows` gives them, by table
Found = Any  # a job's row, None for no such job

_CHOSEN = jobs.c.id.in_(parameters("ids"))
_HOLD = (
    sa.select(
        jobs.c.id, jobs.c.state, jobs.c.fence, jobs.c.worker, jobs.c.lease_until, jobs.c.attempts, jobs.c.crashes,
        jobs.c.paused,
    )
    .order_by(jobs.c.id)
    .with_for_update(key_share=True)
)  # fmt: skip
_RENEW = (
    sa.update(jobs)
    .where(jobs.c.id == parameter("job"))
    .values(
        lease_s=parameter("seconds", sa.Double),
        lease_until=now() + parameter("seconds", sa.Double),
        progress=sa.func.coalesce(parameter("told", sa.Text), jobs.c.progress),
    )
)
_SEEN = sa.update(workers).where(workers.c.id == parameter("name")).values(beat_at=now())
_END = (
    sa.update(jobs)
    .where(_CHOSEN)
    .values(state="done", attempts=jobs.c.attempts + 1, lease_until=None, changed_at=now())
)
_DEPENDENTS = sa.select(job_needs.c.job_id).where(job_needs.c.needs_id.in_(parameters("ids")))
_HOLD_DEPENDENTS = (
    sa.select(jobs.c.id).where(jobs.c.id.in_(_DEPENDENTS)).order_by(jobs.c.id).with_for_update(key_share=True)
)
_MET = (
    sa.select(sa.func.count())
    .where(job_needs.c.job_id == jobs.c.id, job_needs.c.needs_id.in_(parameters("ids")))
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
_OUTCOME = sa.select(past_attempts.c.outcome).where(
    past_attempts.c.job_id == parameter("job"), past_attempts.c.fence == parameter("fence")
)
_LAST_LOOK = sa.select(lease_checks.c.checked_at, now().label("moment"), server_started().label("started"))
_LOOKED = sa.update(lease_checks).values(checked_at=parameter("moment"))
_UNCOUNTED = (
    parameter("moment", sa.Double)
    - sa.case(
        (jobs.c.lease_until - jobs.c.lease_s > parameter("before", sa.Double), jobs.c.lease_until - jobs.c.lease_s),
        else_=parameter("before", sa.Double),
    )
    - sa.case((jobs.c.lease_s * COUNTED_SHARE > COUNTED_S, jobs.c.lease_s * COUNTED_SHARE), else_=COUNTED_S)
)
_STOOD_STILL = sa.select(jobs.c.id).where(RUNNING, _UNCOUNTED > 0).with_for_update(skip_locked=True, key_share=True)
_LENGTHEN = sa.update(jobs).where(_CHOSEN).values(lease_until=jobs.c.lease_until + _UNCOUNTED)


class JobLost(LeaseLost):
    """A LeaseLost that knows its job."""

    def __init__(self, claim: Claim, found: Found) -> None:
        self.job_id = claim.job_id
        super().__init__(f"{_why_lost(claim, found)}; nothing was written")


def _why_lost(claim: Claim, found: Found) -> str:
    if found is None:
        return f"job {claim.job_id} is not in this database"
    if found.state == "cancelled":
        return f"job {claim.job_id} was cancelled"
    return (
        f"job {claim.job_id}: the lease of claim {claim.fence} has ended; the job is {found.state} under claim "
        f"{found.fence} (last worker {found.worker})"
    )


def _hold(connection: sa.Connection, claims: Iterable[Claim]) -> dict[int, Any]:
    """The claims' jobs by id, locked in one order until the transaction ends."""
    rows = connection.execute(_HOLD.where(_CHOSEN), {"ids": [claim.job_id for claim in claims]})
    return {row.id: row for row in rows}


def _is_held(claim: Claim, found: Found) -> bool:
    """Whether the claim is the newest of its job, and the job runs: it has a lease exactly then."""
    return found is not None and found.fence == claim.fence and found.lease_until is not None


def finish(connection: sa.Connection, finished: Sequence[tuple[Claim, PlainRows]]) -> list[JobLost]:
    """Done, with the rows. Returns the claims that are no longer the newest of a running job."""
    found = _hold(connection, [claim for claim, _ in finished])
    held = {claim.job_id: rows for claim, rows in finished if _is_held(claim, found.get(claim.job_id))}
    if held:
        ids = list(held)
        connection.execute(_END, {"ids": ids})
        for table in {table for rows in held.values() for table in rows}:
            given = [{"job_id": job_id, **row} for job_id, rows in held.items() for row in rows.get(table, ())]
            if given:
                connection.execute(sa.insert(results[table]), given)
        _free_dependents(connection, ids)
    others = [(claim, found.get(claim.job_id)) for claim, _ in finished if claim.job_id not in held]
    return [JobLost(claim, job) for claim, job in others if not _is_done_by(claim, job)]


def _is_done_by(claim: Claim, found: Found) -> bool:
    """Whether this very claim ended the job: its finish was committed, only the answer got lost, and it comes again."""
    return found is not None and (found.state, found.fence) == ("done", claim.fence)


def _free_dependents(connection: sa.Connection, ids: list[int]) -> None:
    """Count the needs that are met. The jobs' locks are held: a plan that adds needs to them has been committed, or waits."""
    if connection.execute(_HOLD_DEPENDENTS, {"ids": ids}).first():
        connection.execute(_FREE_DEPENDENTS, {"ids": ids})


def release(connection: sa.Connection, claim: Claim, reason: str) -> None:
    """Back to ready, as if it had not been tried. Raises LeaseLost."""
    found = _hold(connection, [claim]).get(claim.job_id)
    if _is_held(claim, found):
        close_attempts(connection, [claim.job_id], "released", message=reason)
        _put_back(connection, [claim.job_id], state="ready")
    elif _outcome(connection, claim) != "released":
        raise JobLost(claim, found)


def make_again(connection: sa.Connection, claim: Claim, digests: Iterable[str], reason: str) -> None:
    """To blocked, as if it had not been tried, and the jobs of these digests from done to ready. Raises LeaseLost, DataError."""
    makers = [maker_of(connection, digest) for digest in digests]
    rows = {row.id: row for row in connection.execute(_HOLD.where(_CHOSEN), {"ids": [claim.job_id, *makers]})}
    found = rows.get(claim.job_id)
    if not _is_held(claim, found):
        if _outcome(connection, claim) == "blocked":
            return  # its answer had got lost
        raise JobLost(claim, found)
    _refuse_endless(connection, claim, reason)
    close_attempts(connection, [claim.job_id], "blocked", message=reason)
    _put_back(connection, [claim.job_id], state="blocked")
    reopen(connection, [job_id for job_id in makers if rows[job_id].state == "done"])
    known = connection.scalars(sa.select(job_needs.c.needs_id).where(job_needs.c.job_id == claim.job_id)).all()
    if new := [{"job_id": claim.job_id, "needs_id": job_id} for job_id in makers if job_id not in known]:
        connection.execute(sa.insert(job_needs), new)
        waits = sa.update(jobs).where(jobs.c.id == claim.job_id)
        connection.execute(waits.values(needs_open=jobs.c.needs_open + len(new)))


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


def fail(
    connection: sa.Connection, claim: Claim, failure: Failure, max_attempts: int, backoff_s: Callable[[int], float]
) -> JobState:
    """To ready with backoff, or to failed. Raises LeaseLost."""
    found = _hold(connection, [claim]).get(claim.job_id)
    if found is None or not _is_held(claim, found):
        outcome = _outcome(connection, claim)
        if outcome not in ("retried", "failed"):
            raise JobLost(claim, found)
        return JobState.READY if outcome == "retried" else JobState.FAILED  # its answer had got lost
    attempts = found.attempts + 1
    again = failure.transient and attempts < max_attempts
    state = JobState.READY if again else JobState.FAILED
    _close_with_error(connection, [claim.job_id], "retried" if again else "failed", failure)
    not_before = now() + (backoff_s(attempts) if again else 0.0)
    _put_back(connection, [claim.job_id], state=state, attempts=attempts, not_before=not_before)
    return state


def heartbeat(
    connection: sa.Connection, worker: str, held: Sequence[tuple[Claim, Progress | None]], lease_s: float
) -> HeartbeatReply:
    """Renew the leases of the claims that are still held."""
    _look(connection)
    connection.execute(_SEEN, {"name": worker})
    found = _hold(connection, [claim for claim, _ in held])
    kept = [(claim, progress) for claim, progress in held if _is_held(claim, found.get(claim.job_id))]
    if kept:
        told = [
            {"job": claim.job_id, "seconds": lease_s, "told": encode_progress(progress)} for claim, progress in kept
        ]
        connection.execute(_RENEW, told)
    ours = {claim.job_id for claim, _ in kept}
    gone = [claim for claim, _ in held if claim.job_id not in ours]
    cancelled = [claim for claim in gone if _was_cancelled(claim, found.get(claim.job_id))]
    return HeartbeatReply(
        lost=frozenset(claim.job_id for claim in gone),
        cancelled=frozenset(claim.job_id for claim in cancelled),
        paused=frozenset(job_id for job_id in ours if found[job_id].paused),
    )


def _was_cancelled(claim: Claim, found: Found) -> bool:
    return found is not None and (found.state, found.fence) == ("cancelled", claim.fence)


def _look(connection: sa.Connection) -> Any:
    """Lengthen the leases by the time that does not count. Returns the last look and this moment; None while another looks."""
    look = connection.execute(_LAST_LOOK.with_for_update(skip_locked=True)).first()
    if look is None or look.moment < look.checked_at + COUNTED_S:
        return look
    # This moment and not the clock's next: the database may be frozen between two statements as well.
    given = {"moment": look.moment, "before": look.checked_at}
    ids = connection.scalars(_STOOD_STILL, given).all()
    if ids:
        connection.execute(_LENGTHEN, given | {"ids": ids})
    connection.execute(_LOOKED, given)
    return look


def expire(connection: sa.Connection, max_crashes: int, grace_s: float) -> int:
    """End the leases that are over by the database's clock, but none in the first `grace_s` after the server started."""
    look = _look(connection)
    if look is None or look.moment <= look.started + grace_s:
        return 0
    over = jobs.c.lease_until < look.moment
    return _end_leases(connection, over, max_crashes, "the worker stopped sending heartbeats")


def end_leases_of(connection: sa.Connection, names: Sequence[str], max_crashes: int, reason: str) -> int:
    """End the leases of workers that are known to be dead, and take them off the list."""
    left = sa.update(workers).where(workers.c.ended_at.is_(None), workers.c.id.in_(names)).values(ended_at=now())
    connection.execute(left)
    return _end_leases(connection, jobs.c.worker.in_(names), max_crashes, reason)


def _end_leases(connection: sa.Connection, condition: sa.ColumnElement[bool], max_crashes: int, reason: str) -> int:
    over = sa.select(jobs.c.id, jobs.c.crashes).where(RUNNING, condition).order_by(jobs.c.id)
    rows = connection.execute(over.with_for_update(skip_locked=True, key_share=True)).all()
    failure = Failure(error=WORKER_DIED, message=reason, traceback="", group=WORKER_DIED)
    poisonous = [row.id for row in rows if row.crashes >= max_crashes]
    others = [row.id for row in rows if row.crashes < max_crashes]
    for ids, state, outcome in ((poisonous, "failed", "failed"), (others, "ready", "expired")):
        if ids:
            _close_with_error(connection, ids, outcome, failure)
            _put_back(connection, ids, state=state, crashes=jobs.c.crashes + 1)
    return len(rows)


def _put_back(connection: sa.Connection, ids: list[int], **values: Any) -> None:
    """End the leases of jobs whose attempts are closed."""
    put_back = sa.update(jobs).where(_CHOSEN).values(lease_until=None, changed_at=now(), **values)
    connection.execute(put_back, {"ids": ids})


def _close_with_error(connection: sa.Connection, ids: Sequence[int], outcome: str, failure: Failure) -> None:
    close_attempts(
        connection, ids, outcome, error=failure.error, message=failure.message, traceback=failure.traceback,
        error_group=failure.group,
    )  # fmt: skip


def close_attempts(connection: sa.Connection, ids: Sequence[int], outcome: str, **told: str) -> None:
    """Write down the attempts of running jobs that end without a result; their jobs must still be as they ran."""
    kept = (jobs.c.id, jobs.c.fence, jobs.c.worker, jobs.c.started_at, now(), jobs.c.progress)
    values = {"outcome": outcome, **told}
    select = sa.select(*kept, *(sa.literal(value, sa.Text) for value in values.values())).where(_CHOSEN)
    names = ["job_id", "fence", "worker", "started_at", "ended_at", "progress", *values]
    for chunk in chunks(ids):
        connection.execute(sa.insert(past_attempts).from_select(names, select), {"ids": chunk})


def _outcome(connection: sa.Connection, claim: Claim) -> str | None:
    outcome: str | None = connection.scalar(_OUTCOME, {"job": claim.job_id, "fence": claim.fence})
    return outcome
