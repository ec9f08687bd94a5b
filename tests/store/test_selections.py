"""Cancel, pause, resume and retry by study, kind, pair, ids and error group."""

from __future__ import annotations

import pytest

from kt_study.errors import LeaseLost
from kt_study.records import JobState
from kt_study.store import JobStore, Selection
from tests.store.making import STUDY, claim_one, job, lasting, model, number, passing, plan, result_rows, row, states


def _pairs(store: JobStore) -> None:
    store.add_models([model("k1", "resnet18"), model("k2", "resnet50"), model("k3", "vit_tiny")])
    pairs = [("k1", "k2"), ("k1", "k3"), ("k2", "k3"), ("k3", "k1")]
    plan(store, *(job(n, kind="transfer", teacher=t, student=s) for n, (t, s) in enumerate(pairs)), job(9))


def selected(store: JobStore, **fields: object) -> set[int]:
    return {found.spec["number"] for found in store.jobs(Selection(**fields))}  # type: ignore[arg-type]


def test_pairs_are_globs_over_names_and_keys(store: JobStore) -> None:
    _pairs(store)
    assert selected(store, pair=("resnet*", "*")) == {0, 1, 2}
    assert selected(store, pair=("resnet*", "vit_tiny")) == {1, 2}
    assert selected(store, pair=("k3", "resnet1[89]")) == {3}
    assert selected(store, pair=("k3", "resnet1[!89]")) == set()
    assert selected(store, pair=("*", "resnet?0")) == {0}
    assert selected(store, pair=("RESNET*", "*")) == set()
    assert selected(store, pair=("*", "*")) == {0, 1, 2, 3, 9}


def test_fields_of_a_selection_all_hold(store: JobStore) -> None:
    _pairs(store)
    assert selected(store, kind="logits") == {9}
    assert selected(store, study="none") == set()
    assert selected(store, study=STUDY, kind="transfer", job_ids=(1, 2, 5)) == {0, 1}
    assert selected(store, state=JobState.DONE) == set()
    assert selected(store, job_ids=()) == set()


def test_cancel_stops_open_jobs_and_fences_running_ones_out(store: JobStore) -> None:
    plan(store, job(1), job(2), job(3, needs=[job(2)]), job(4))
    done, running = claim_one(store), claim_one(store)
    store.finish(done, row())
    assert store.cancel(Selection(study=STUDY)) == 3
    assert states(store) == {1: "done", 2: "cancelled", 3: "cancelled", 4: "cancelled"}
    with pytest.raises(LeaseLost, match="was cancelled"):
        store.finish(running, row())
    assert len(result_rows(store)) == 1
    (attempt,) = store.job(running.job_id).attempts
    assert attempt.outcome == "cancelled"
    assert store.cancel(Selection(study=STUDY)) == 0


def test_cancel_takes_failed_jobs_out_and_planning_opens_them_again(store: JobStore) -> None:
    plan(store, job(1), job(2), job(3, needs=[job(1)]))
    claims = store.claim("worker", limit=2)
    for claim in claims:
        store.fail(claim, lasting(group=f"cause {number(claim)}"))
    assert store.cancel(Selection(study=STUDY, error_group="cause 2")) == 1
    assert states(store) == {1: "failed", 2: "cancelled", 3: "blocked"}
    assert store.cancel(Selection(study=STUDY)) == 2
    assert set(states(store).values()) == {"cancelled"}
    assert (store.failures(STUDY), store.workload(STUDY).failed) == ([], 0)
    assert store.retry(Selection(study=STUDY)) == 0
    assert [attempt.outcome for attempt in store.job(claims[0].job_id).attempts] == ["failed"]
    plan(store, job(1), job(3, needs=[job(1)]))
    assert states(store) == {1: "ready", 2: "cancelled", 3: "blocked"}
    assert store.job(claims[0].job_id).attempts_used == 0


def test_unfinished_jobs_are_those_that_cancel_would_take(store: JobStore) -> None:
    jobs = [job(n) for n in range(4)]
    plan(store, *jobs, study="one")
    plan(store, jobs[3], job(9), study="two")
    finished, failed = store.claim("worker", limit=2)
    store.finish(finished, {})
    store.fail(failed, lasting())
    expected = [(found.id, found.digest) for found in store.jobs() if found.spec["number"] in (1, 2)]
    assert store.unfinished("one") == expected
    assert store.cancel(Selection(study="one")) == 2
    assert store.unfinished("one") == []
    assert len(store.unfinished("two")) == 2  # nobody else wants job 3 any more


def test_cancelling_a_study_spares_jobs_that_another_study_wants(store: JobStore) -> None:
    plan(store, job(1), job(2), study="one")
    plan(store, job(2), job(3), study="two")
    assert store.cancel(Selection(study="one")) == 1
    assert states(store) == {1: "cancelled", 2: "ready", 3: "ready"}
    assert store.cancel(Selection(study="two")) == 2  # nobody wants job 2 any more
    plan(store, job(1), study="one")
    assert states(store) == {1: "ready", 2: "cancelled", 3: "cancelled"}


def test_pausing_a_study_spares_jobs_that_another_study_wants(store: JobStore) -> None:
    plan(store, job(1), job(2), study="one")
    plan(store, job(2), study="two")
    assert store.pause(Selection(study="one")) == 1
    assert number(claim_one(store)) == 2
    assert store.pause(Selection(study="two")) == 1
    assert store.resume(Selection(study="two")) == 1


def test_pause_and_resume_by_kind(store: JobStore) -> None:
    _pairs(store)
    assert store.pause(Selection(kind="transfer")) == 4
    assert store.pause(Selection(kind="transfer")) == 0
    assert number(claim_one(store)) == 9
    assert store.workload().paused == 4
    assert "paused" in store.job(1).why
    assert store.resume(Selection(kind="transfer")) == 4
    assert len(store.claim("worker", limit=9)) == 4


def test_retry_by_error_group(store: JobStore) -> None:
    plan(store, *(job(n) for n in range(4)))
    for claim in store.claim("worker", limit=4):
        store.fail(claim, lasting(group="odd" if number(claim) % 2 else "even"))
    assert store.retry(Selection(error_group="odd")) == 2
    assert states(store) == {0: "failed", 1: "ready", 2: "failed", 3: "ready"}
    assert store.retry(Selection(study=STUDY, kind="logits")) == 2
    assert store.job(1).attempts_used == 0


def test_retry_cancel_and_pause_by_pair(store: JobStore) -> None:
    _pairs(store)
    for claim in store.claim("worker", kinds=["transfer"], limit=4):
        store.fail(claim, lasting())
    assert store.retry(Selection(pair=("resnet*", "vit_tiny"))) == 2
    assert states(store) == {0: "failed", 1: "ready", 2: "ready", 3: "failed", 9: "ready"}
    assert store.pause(Selection(pair=("resnet18", "*"))) == 1
    assert store.cancel(Selection(pair=("k2", "*"))) == 1
    assert states(store) == {0: "failed", 1: "ready", 2: "cancelled", 3: "failed", 9: "ready"}
    assert [number(claim) for claim in store.claim("worker", limit=9)] == [9]


def test_an_error_group_means_the_last_failure(store: JobStore) -> None:
    plan(store, job(1))
    store.fail(claim_one(store), passing())
    store.fail(claim_one(store), lasting(group="new"))
    assert store.retry(Selection(error_group=passing().group)) == 0
    assert store.retry(Selection(error_group="new")) == 1


def test_retry_opens_cancelled_jobs_only_by_id(store: JobStore) -> None:
    plan(store, job(1), job(2, needs=[job(1)]))
    store.cancel(Selection())
    assert store.retry(Selection(study=STUDY)) == 0
    assert store.retry(Selection(job_ids=(1, 2))) == 2
    assert states(store) == {1: "ready", 2: "blocked"}


def test_a_cancelled_need_that_comes_back_still_unblocks(store: JobStore) -> None:
    plan(store, job(1), job(2, needs=[job(1)]))
    store.cancel(Selection(job_ids=(2,)))
    store.finish(claim_one(store), {})
    assert states(store) == {1: "done", 2: "cancelled"}
    assert store.job(2).needs_open == 0
    store.retry(Selection(job_ids=(2,)))
    assert states(store)[2] == "ready"
