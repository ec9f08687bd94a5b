"""The transitions that end an attempt without a result: released, failed, expired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kt_study.failures import WORKER_DIED
from kt_study.store.backend import Row, Transaction
from kt_study.store.fenced import JobLost, lost
from kt_study.words import Claim, Failure, JobState

FIRST_BACKOFF_S = 15.0  # before the second try; doubles with every further one
LONGEST_BACKOFF_S = 1800.0

_HELD = "id = :id AND fence = :fence AND lease_until IS NOT NULL"  # a job has a lease exactly while it runs
_CLOSE = """
INSERT INTO past_attempts (job_id, fence, worker, started_at, ended_at, outcome, progress, error, message, traceback, error_group)
SELECT id, fence, worker, started_at, {now}, :outcome, progress, :error, :message, :traceback, :group FROM jobs
WHERE {where}
"""


def release(tx: Transaction, claim: Claim, reason: str) -> None:
    """Back to ready, as if it had not been tried. Raises LeaseLost."""
    changed = tx.change(
        f"UPDATE jobs SET state = 'ready', lease_until = NULL, changed_at = {tx.now} WHERE {_HELD}",
        id=claim.job_id,
        fence=claim.fence,
    )
    if changed:
        close(tx, "id = :id", "released", message=reason, id=claim.job_id)
    elif _outcome(tx, claim) != "released":
        raise _lost(tx, claim)


def fail(
    tx: Transaction, claim: Claim, failure: Failure, max_attempts: int, backoff_s: Callable[[int], float]
) -> JobState:
    """To ready with backoff, or to failed. Raises LeaseLost."""
    held = tx.rows(f"SELECT attempts FROM jobs WHERE {_HELD}", id=claim.job_id, fence=claim.fence)
    if not held:
        return _failed_before(tx, claim)
    attempts = held[0][0] + 1
    again = failure.transient and attempts < max_attempts
    state = JobState.READY if again else JobState.FAILED
    changed = tx.change(
        f"UPDATE jobs SET state = :state, attempts = :attempts, lease_until = NULL, not_before = {tx.now} + :backoff_s, "
        f"changed_at = {tx.now} WHERE {_HELD}",
        state=str(state),
        attempts=attempts,
        backoff_s=backoff_s(attempts) if again else 0.0,
        id=claim.job_id,
        fence=claim.fence,
    )
    if not changed:
        return _failed_before(tx, claim)
    _close_with_error(tx, claim.job_id, "retried" if again else "failed", failure)
    return state


def _failed_before(tx: Transaction, claim: Claim) -> JobState:
    """The state after a fail whose answer got lost; LeaseLost when it was not ours to fail."""
    outcome = _outcome(tx, claim)
    if outcome not in ("retried", "failed"):
        raise _lost(tx, claim)
    return JobState.READY if outcome == "retried" else JobState.FAILED


def expire(tx: Transaction, max_crashes: int, grace_s: float) -> int:
    """End the leases that are over by the database's clock, but none in the first `grace_s` after the server started."""
    return _expire_those(
        tx,
        f"lease_until < {tx.now} AND {tx.now} > {tx.server_started} + :grace_s",
        max_crashes,
        "the worker stopped sending heartbeats",
        grace_s=grace_s,
    )


def disown(tx: Transaction, workers: Sequence[str], max_crashes: int, reason: str) -> int:
    """End the leases of workers that are known to be dead, and take them off the list."""
    tx.change(
        f"UPDATE workers SET ended_at = {tx.now} WHERE ended_at IS NULL AND {tx.among('id', 'workers')}",
        workers=list(workers),
    )
    return _expire_those(tx, tx.among("worker", "workers"), max_crashes, reason, workers=list(workers))


def _expire_those(tx: Transaction, where: str, max_crashes: int, reason: str, **parameters: Any) -> int:
    rows = tx.rows(
        f"SELECT id, crashes FROM jobs WHERE {tx.running} AND {where} ORDER BY id {tx.skip_locked}",
        **parameters,
    )
    for job_id, crashes in rows:
        _expire_one(tx, job_id, crashes + 1 > max_crashes, reason)
    return len(rows)


def _expire_one(tx: Transaction, job_id: int, poisonous: bool, reason: str) -> None:
    tx.change(
        f"UPDATE jobs SET state = :state, crashes = crashes + 1, lease_until = NULL, changed_at = {tx.now} WHERE id = :id",
        state="failed" if poisonous else "ready",
        id=job_id,
    )
    failure = Failure(error=WORKER_DIED, message=reason, traceback="", group=WORKER_DIED)
    _close_with_error(tx, job_id, "failed" if poisonous else "expired", failure)


def _close_with_error(tx: Transaction, job_id: int, outcome: str, failure: Failure) -> None:
    close(
        tx, "id = :id", outcome, error=failure.error, message=failure.message, traceback=failure.traceback,
        group=failure.group, id=job_id,
    )  # fmt: skip


def close(tx: Transaction, where: str, outcome: str, **values: Any) -> None:
    """Write down the attempts of the jobs `where`, which have just ended without a result."""
    nothing = {"error": None, "message": None, "traceback": None, "group": None}
    tx.change(_CLOSE.format(now=tx.now, where=where), outcome=outcome, **(nothing | values))


def _outcome(tx: Transaction, claim: Claim) -> str | None:
    found: list[Row] = tx.rows(
        "SELECT outcome FROM past_attempts WHERE job_id = :id AND fence = :fence", id=claim.job_id, fence=claim.fence
    )
    return found[0][0] if found else None


def _lost(tx: Transaction, claim: Claim) -> JobLost:
    found = tx.rows("SELECT state, fence, worker FROM jobs WHERE id = :id", id=claim.job_id)
    return lost(claim, found[0] if found else None)
