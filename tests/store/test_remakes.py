"""A remake is the one kind of job that may be done twice: when it is planned again, its student's file is gone again."""

from __future__ import annotations

import pytest

from kt_study.records import JobState
from kt_study.store import JobStore, Planned, Selection
from tests.store.making import STUDY, claim_one, job, lasting, number, plan, states

REMAKE = job(1, kind="remake")


def do_next(store: JobStore) -> int:
    """Finish the one job that can be claimed. Returns its number."""
    claim = claim_one(store)
    store.finish(claim, {})
    return number(claim)


def test_a_remake_that_is_done_is_done_again_when_it_is_planned_again(store: JobStore) -> None:
    other = job(2, kind="transfer")
    plan(store, REMAKE, other)
    assert {do_next(store), do_next(store)} == {1, 2}
    assert plan(store, REMAKE, other) == Planned(existing=2)
    assert states(store) == {1: "ready", 2: "done"}
    assert do_next(store) == 1
    assert states(store) == {1: "done", 2: "done"}
    (remake,) = (row.id for row in store.jobs() if row.kind == "remake")
    assert [(attempt.fence, attempt.outcome) for attempt in store.job(remake).attempts] == [(1, "undone"), (2, "done")]


@pytest.mark.parametrize("state", [JobState.READY, JobState.RUNNING, JobState.FAILED])
def test_a_remake_that_is_not_done_stays_as_it_is(store: JobStore, state: JobState) -> None:
    plan(store, REMAKE)
    if state != JobState.READY:
        claim = claim_one(store)
    if state == JobState.FAILED:
        store.fail(claim, lasting())
    plan(store, REMAKE)
    assert states(store) == {1: state}


def test_a_job_planned_with_a_remake_that_is_opened_again_waits_for_it(store: JobStore) -> None:
    plan(store, REMAKE)
    do_next(store)
    plan(store, REMAKE, job(2, kind="soup", needs=[REMAKE]))
    assert states(store) == {1: "ready", 2: "blocked"}
    assert [do_next(store), do_next(store)] == [1, 2]


def test_who_needed_it_before_waits_again(store: JobStore) -> None:
    waiting, failed = job(2, kind="soup", needs=[REMAKE]), job(3, kind="soup", needs=[REMAKE])
    plan(store, REMAKE, waiting, failed)
    do_next(store)
    claims = {number(claim): claim for claim in store.claim("worker", limit=2)}
    store.release(claims[2], reason="stopped")
    store.fail(claims[3], lasting())
    plan(store, REMAKE, waiting, failed)
    assert states(store) == {1: "ready", 2: "blocked", 3: "failed"}
    store.retry(Selection(study=STUDY))
    assert states(store)[3] == "blocked"
    assert do_next(store) == 1
    assert {do_next(store), do_next(store)} == {2, 3}


def test_a_job_planned_before_waits_for_a_remake_that_it_needs_only_now(store: JobStore) -> None:
    part = job(4, kind="transfer")
    plan(store, part, job(2, kind="soup", needs=[part]))
    do_next(store)
    assert states(store) == {4: "done", 2: "ready"}
    again = [part, REMAKE, job(2, kind="soup", needs=[part, REMAKE])]
    for _ in range(2):
        plan(store, *again)
        assert states(store) == {4: "done", 1: "ready", 2: "blocked"}
    assert [do_next(store), do_next(store)] == [1, 2]
    assert all(row.needs_open == 0 for row in store.jobs())


def test_remakes_of_a_chain_are_done_in_its_order(store: JobStore) -> None:
    """Only the second stage's file was gone the first time; the second time both are."""
    second = job(2, kind="remake")
    plan(store, second)
    do_next(store)
    plan(store, REMAKE, job(2, kind="remake", needs=[REMAKE]))
    assert states(store) == {1: "ready", 2: "blocked"}
    assert [do_next(store), do_next(store)] == [1, 2]
    plan(store, REMAKE, job(2, kind="remake", needs=[REMAKE]))
    assert states(store) == {1: "ready", 2: "blocked"}
    assert [do_next(store), do_next(store)] == [1, 2]


def test_it_is_opened_for_the_study_that_plans_it(store: JobStore) -> None:
    plan(store, REMAKE)
    do_next(store)
    store.pause(Selection(study=STUDY))
    plan(store, REMAKE)
    assert store.claim("worker") == []
    store.resume(Selection(study=STUDY))
    assert do_next(store) == 1
