"""A job that finds another job's file gone waits until that job has been done again."""

from __future__ import annotations

import pytest

from kt_study.errors import DataError, LeaseLost
from kt_study.hashing import job_digest
from kt_study.store import JobStore, Selection
from kt_study.store.leases import MOST_WAITS
from tests.store.making import claim_one, job, lasting, number, plan, result_rows, row, states

MAKER = job(1, kind="train")
READER = job(2, kind="logits", needs=[MAKER])


def make(store: JobStore, acc: float = 1.0) -> None:
    claim = claim_one(store)
    assert number(claim) == 1
    store.finish(claim, row(acc))


def outcomes(store: JobStore, of: int) -> list[str | None]:
    (found,) = (each for each in store.jobs() if each.spec["number"] == of)
    return [attempt.outcome for attempt in store.job(found.id).attempts]


def test_the_reader_waits_for_its_maker_and_nothing_counts(store: JobStore) -> None:
    plan(store, MAKER, READER, job(3, kind="logits", needs=[MAKER]))
    make(store)
    reader, other = sorted(store.claim("worker", limit=2), key=number)
    store.release(other, reason="stopped")
    store.make_again(reader, [MAKER.digest], reason="weights are gone")
    assert states(store) == {1: "ready", 2: "blocked", 3: "blocked"}
    assert result_rows(store) == [], "the row comes again"
    make(store, acc=2.0)
    assert states(store) == {1: "done", 2: "ready", 3: "ready"}
    assert [found["acc"] for found in result_rows(store)] == [2.0]
    for claim in store.claim("worker", limit=2):
        store.finish(claim, {})
    assert outcomes(store, 1) == ["undone", "done"]
    assert outcomes(store, 2) == ["blocked", "done"]
    assert [(each.attempts_used, each.crashes) for each in store.jobs()] == [(1, 0)] * 3


def test_two_readers_open_the_maker_once(store: JobStore) -> None:
    plan(store, MAKER, READER, job(3, kind="logits", needs=[MAKER]))
    make(store)
    first, second = store.claim("worker", limit=2)
    store.make_again(first, [MAKER.digest], reason="gone")
    store.make_again(second, [MAKER.digest], reason="gone")
    store.make_again(second, [MAKER.digest], reason="gone")  # the answer had got lost
    assert outcomes(store, 1) == ["undone"]
    make(store)
    assert states(store) == {1: "done", 2: "ready", 3: "ready"}


def test_a_maker_that_the_reader_was_not_planned_with_is_waited_for_too(store: JobStore) -> None:
    middle = job(2, kind="logits", needs=[MAKER])
    plan(store, MAKER, middle, job(3, kind="transfer", needs=[middle]))
    make(store)
    store.finish(claim_one(store), {})
    store.make_again(claim_one(store), [MAKER.digest], reason="gone")
    assert states(store) == {1: "ready", 2: "done", 3: "blocked"}
    make(store)
    assert states(store) == {1: "done", 2: "done", 3: "ready"}
    assert number(claim_one(store)) == 3


def test_a_student_is_made_again_by_its_remake_where_there_is_one(store: JobStore) -> None:
    transfer = job(1, kind="transfer")
    remake = job(1, kind="remake")
    plan(store, transfer, remake, job(2, kind="soup", needs=[transfer, remake]))
    for claim in store.claim("worker", limit=2):
        store.finish(claim, {})
    store.make_again(claim_one(store), [transfer.digest], reason="gone")
    assert {found.kind: str(found.state) for found in store.jobs()} == {
        "transfer": "done",
        "remake": "ready",
        "soup": "blocked",
    }


def test_nothing_is_changed_without_a_maker_or_without_the_lease(store: JobStore) -> None:
    plan(store, MAKER, READER)
    make(store)
    claim = claim_one(store)
    with pytest.raises(DataError, match=r"no job .* plan the study again"):
        store.make_again(claim, [job_digest("train", {"number": 9})], reason="gone")
    assert states(store) == {1: "done", 2: "running"}
    store.end_leases(["worker"], reason="dead")
    with pytest.raises(LeaseLost):
        store.make_again(claim, [MAKER.digest], reason="gone")
    assert states(store) == {1: "done", 2: "ready"}
    assert len(result_rows(store)) == 1


def test_a_disk_that_loses_every_file_does_not_keep_workers_busy_for_ever(store: JobStore) -> None:
    plan(store, MAKER, READER)
    make(store)
    for _ in range(MOST_WAITS):
        store.make_again(claim_one(store), [MAKER.digest], reason="w.safetensors: gone")
        make(store)
    claim = claim_one(store)
    with pytest.raises(DataError, match=r"w\.safetensors: gone; made again 10 times already: check the disk"):
        store.make_again(claim, [MAKER.digest], reason="w.safetensors: gone")
    assert states(store) == {1: "done", 2: "running"}
    store.fail(claim, lasting())
    store.retry(Selection())
    store.make_again(claim_one(store), [MAKER.digest], reason="w.safetensors: gone")
    assert states(store) == {1: "ready", 2: "blocked"}, "as the message says, after a retry it goes on"
