"""Each transition of docs/job-states.md, alone, against what a hand would write down."""

from __future__ import annotations

import time

import pytest

from kt_study.database import parse_url, sqlalchemy_engine
from kt_study.errors import LeaseLost, UsageError
from kt_study.records import JobState, Progress
from kt_study.store import JobStore, Selection, WorkerRecord, open_store
from tests.store.making import (
    claim_one,
    job,
    lasting,
    number,
    passing,
    plan,
    result_rows,
    row,
    state_of,
    states,
)


def test_a_needed_job_unblocks_the_job_that_needs_it_when_the_last_is_done(store: JobStore) -> None:
    first, second = job(1), job(2)
    plan(store, job(3, kind="transfer", needs=[first, second]), first, second)
    assert states(store) == {1: "ready", 2: "ready", 3: "blocked"}
    store.finish(claim_one(store), {})
    assert states(store)[3] == "blocked"
    store.finish(claim_one(store), {})
    assert states(store) == {1: "done", 2: "done", 3: "ready"}


def test_finish_writes_the_rows_and_the_state_together(store: JobStore) -> None:
    plan(store, job(1))
    claim = claim_one(store)
    store.finish(claim, row(93.5))
    (found,) = result_rows(store)
    assert (found["job_id"], found["acc"], found["n"], found["study"]) == (claim.job_id, 93.5, 10, "study")
    done = store.job(claim.job_id)
    assert (done.state, done.attempts_used, done.worker) == (JobState.DONE, 1, "worker")
    assert [attempt.outcome for attempt in done.attempts] == ["done"]


def test_finish_with_a_row_that_does_not_fit_changes_nothing(store: JobStore) -> None:
    plan(store, job(1))
    claim = claim_one(store)
    twice = {"class_flips": [{"class_index": 1, "n": 1}, {"class_index": 1, "n": 2}]}  # unique by class
    with pytest.raises(Exception, match=r"(?i)unique"):
        store.finish(claim, row() | twice)
    with pytest.raises(UsageError, match="no column accuracy"):
        store.finish(claim, {"evaluations": [{"accuracy": 1.0}]})
    with pytest.raises(UsageError, match="no result table 'flips'"):
        store.finish(claim, {"flips": [{"n": 1}]})
    assert state_of(store, claim.job_id) == JobState.RUNNING
    assert result_rows(store) == []
    store.finish(claim, row())
    assert len(result_rows(store)) == 1


def test_finishing_again_is_recognised_by_the_fence(store: JobStore) -> None:
    first = job(1)
    plan(store, first, job(2, needs=[first]), job(3, needs=[first, job(4)]), job(4))
    claim = claim_one(store, kinds=["logits"])
    store.finish(claim, row())
    store.finish(claim, row(50.0))  # as after a commit whose answer was lost
    assert [found["acc"] for found in result_rows(store)] == [1.0]
    assert states(store) == {1: "done", 2: "ready", 3: "blocked", 4: "ready"}
    assert store.job(3).needs_open == 1


def test_nan_is_stored_as_missing_and_infinity_as_itself(store: JobStore) -> None:
    plan(store, job(1))
    rows = {"evaluations": [{"acc": float("nan"), "loss": float("inf"), "n": None}]}
    store.finish(claim_one(store), rows)
    (found,) = result_rows(store)
    assert (found["acc"], found["loss"], found["n"]) == (None, float("inf"), None)


def test_finish_many_leaves_lost_jobs_alone(store: JobStore) -> None:
    plan(store, *(job(n) for n in range(4)))
    claims = store.claim("worker", limit=4)
    store.release(claims[1], reason="preempted")
    store.cancel(Selection(job_ids=(claims[2].job_id,)))
    lost = store.finish_many([(claim, row(float(number(claim)))) for claim in claims])
    assert lost == {claims[1].job_id, claims[2].job_id}
    assert sorted(found["acc"] for found in result_rows(store)) == [0.0, 3.0]
    assert states(store) == {0: "done", 1: "ready", 2: "cancelled", 3: "done"}
    assert store.finish_many([]) == frozenset()


def test_a_released_attempt_does_not_count(store: JobStore) -> None:
    plan(store, job(1))
    for fence in range(1, 12):  # far more often than there are attempts
        claim = claim_one(store)
        assert (claim.fence, claim.attempt) == (fence, 1)
        store.release(claim, reason="preempted")
    store.release(claim, reason="preempted")  # the answer was lost; it comes again
    found = store.job(claim.job_id)
    assert (found.attempts_used, found.crashes, found.state) == (0, 0, JobState.READY)
    assert {(attempt.outcome, attempt.message) for attempt in found.attempts} == {("released", "preempted")}


def test_a_transient_failure_is_tried_again_until_attempts_are_used_up(store: JobStore) -> None:
    plan(store, job(1))
    seen = []
    for attempt in (1, 2, 3):
        claim = claim_one(store)
        assert claim.attempt == attempt
        seen.append(store.fail(claim, passing()))
        assert store.fail(claim, passing()) == seen[-1]  # again, after a lost answer
    assert seen == [JobState.READY, JobState.READY, JobState.FAILED]
    assert store.claim("worker") == []
    assert [attempt.outcome for attempt in store.job(claim.job_id).attempts] == ["retried", "retried", "failed"]


def test_a_lasting_failure_fails_at_once(store: JobStore) -> None:
    plan(store, job(1))
    assert store.fail(claim_one(store), lasting()) == JobState.FAILED


def test_a_job_that_backs_off_is_not_claimed_until_its_time(url: str) -> None:
    store = open_store(url, first_backoff_s=1000.0)
    plan(store, job(1))
    claim = claim_one(store)
    assert store.fail(claim, passing()) == JobState.READY
    found = store.job(claim.job_id)
    assert 740.0 < found.not_before - found.changed_at < 1260.0
    assert "backs off for another" in found.why
    assert store.claim("worker") == []
    workload = store.workload()
    assert (workload.ready_now, workload.ready_later) == (0, 1)
    assert workload.next_s is not None and 500.0 < workload.next_s < 1260.0
    assert store.retry(Selection()) == 1  # an impatient user
    assert claim_one(store).job_id == claim.job_id


def test_the_pause_doubles_with_each_attempt(url: str) -> None:
    store = open_store(url, first_backoff_s=10.0, max_attempts=99)
    plan(store, job(1))
    waits = []
    for _ in range(3):
        claim = claim_one(store)
        store.fail(claim, passing())
        found = store.job(claim.job_id)
        waits.append(found.not_before - found.changed_at)
        _forget_the_pause(url)
    for wait, expected in zip(waits, (10.0, 20.0, 40.0), strict=True):
        assert 0.74 * expected < wait < 1.26 * expected


def _forget_the_pause(url: str) -> None:
    engine = sqlalchemy_engine(parse_url(url))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE jobs SET not_before = 0")
    engine.dispose()


def test_an_expired_lease_goes_to_another_worker_and_fences_the_first_out(store: JobStore) -> None:
    plan(store, job(1))
    stale = claim_one(store, "first", lease_s=0.01)
    time.sleep(0.05)  # by the database's clock it is over now, however slow this machine is
    assert store.expire(grace_s=0.0) == 1
    fresh = claim_one(store, "second")
    assert fresh.fence == stale.fence + 1
    for attempt in (
        lambda: store.finish(stale, row()),
        lambda: store.release(stale, reason="late"),
        lambda: store.fail(stale, lasting()),
    ):
        with pytest.raises(LeaseLost, match=f"job {stale.job_id}.*second"):
            attempt()
    assert store.heartbeat("first", {stale: None}).lost == {stale.job_id}
    assert result_rows(store) == []
    store.finish(fresh, row())
    assert [attempt.outcome for attempt in store.job(fresh.job_id).attempts] == ["expired", "done"]


def test_a_lease_that_is_renewed_does_not_expire(store: JobStore) -> None:
    plan(store, job(1))
    claim = claim_one(store, lease_s=-1.0)  # over from the start, and nobody has looked yet
    for _ in range(3):
        assert store.heartbeat("worker", {claim: None}, lease_s=3600.0).lost == frozenset()
        assert store.expire(grace_s=0.0) == 0
    store.heartbeat("worker", {claim: None}, lease_s=-1.0)
    assert store.expire(grace_s=0.0) == 1


def test_a_server_that_just_started_expires_nothing(store: JobStore, url: str) -> None:
    plan(store, job(1))
    claim_one(store, lease_s=-10.0)
    if url.startswith("postgresql"):
        assert store.expire(grace_s=1e9) == 0
    assert store.expire(grace_s=0.0) == 1


def test_a_job_that_keeps_killing_its_workers_fails(url: str) -> None:
    store = open_store(url, max_crashes=2)
    plan(store, job(1), job(2, needs=[job(1)]))
    for crash in (1, 2, 3):
        claim = claim_one(store, lease_s=-1.0)
        assert store.expire(grace_s=0.0) == 1
        found = store.job(claim.job_id)
        assert (found.crashes, found.attempts_used) == (crash, 0)
    assert found.state == JobState.FAILED
    assert [attempt.outcome for attempt in found.attempts] == ["expired", "expired", "failed"]
    (group,) = store.failures()
    assert (group.error, group.count, group.job_ids) == ("WorkerDied", 1, (claim.job_id,))
    assert "failed" in store.job(2).why


def test_disown_ends_the_leases_of_dead_workers_only(store: JobStore) -> None:
    plan(store, job(1), job(2))
    for worker in ("alive", "dead"):
        store.register(WorkerRecord(id=worker, host="node", pid=1))
    kept, gone = claim_one(store, "alive"), claim_one(store, "dead")
    assert store.end_leases(["dead", "never seen"], "sacct says NODE_FAIL") == 1
    assert states(store) == {number(kept): "running", number(gone): "ready"}
    (attempt,) = store.job(gone.job_id).attempts
    assert (attempt.outcome, attempt.message) == ("expired", "sacct says NODE_FAIL")
    assert [worker.id for worker in store.workers(alive_within_s=60.0)] == ["alive"]
    store.finish(kept, {})


def test_heartbeats_carry_progress_and_bring_orders(store: JobStore) -> None:
    plan(store, *(job(n) for n in range(4)))
    claims = store.claim("worker", limit=4)
    kept, lost, cancelled, paused = claims
    store.release(lost, reason="by hand")
    store.cancel(Selection(job_ids=(cancelled.job_id,)))
    store.pause(Selection(job_ids=(paused.job_id,)))
    reply = store.heartbeat("worker", {claim: Progress(epoch=2, epochs=20, note="x") for claim in claims})
    assert reply.lost == {lost.job_id, cancelled.job_id}
    assert reply.cancelled == {cancelled.job_id}
    assert reply.paused == {paused.job_id}
    assert store.job(kept.job_id).progress == Progress(epoch=2, epochs=20, note="x")
    assert store.job(lost.job_id).progress is None
    store.heartbeat("worker", {kept: None})  # nothing new to say
    assert store.job(kept.job_id).progress == Progress(epoch=2, epochs=20, note="x")
    assert store.heartbeat("worker", []).lost == frozenset()


def test_a_finished_attempt_keeps_its_last_progress(store: JobStore) -> None:
    plan(store, job(1))
    claim = claim_one(store)
    store.heartbeat("worker", {claim: Progress(epoch=7)})
    store.release(claim, reason="pause")
    again = claim_one(store)
    assert store.job(again.job_id).progress is None
    first, second = store.job(again.job_id).attempts
    assert (first.progress, first.outcome, second.progress, second.outcome) == (
        Progress(epoch=7),
        "released",
        None,
        None,
    )
