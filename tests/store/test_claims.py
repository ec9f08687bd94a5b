"""Which job a claim takes: affinity, then priority, then longest first; within kinds, time left and study."""

from __future__ import annotations

import random

import pytest

from kt_study.records import Claim, PlannedJob
from kt_study.store import JobStore, Selection
from tests.store.making import STUDY, job, number, plan


def numbers(claims: list[Claim]) -> list[int]:
    return [number(claim) for claim in claims]


def drained(store: JobStore, **wish: object) -> list[int]:
    """Numbers of the jobs in the order in which they are claimed, one at a time."""
    found = []
    while claims := store.claim("worker", **wish):  # type: ignore[arg-type]
        found += numbers(claims)
    return found


def test_by_priority_then_longest_then_oldest(store: JobStore) -> None:
    jobs = [
        job(1, priority=0, estimate_s=10.0),
        job(2, priority=5, estimate_s=1.0),
        job(3, priority=0, estimate_s=99.0),
        job(4, priority=0, estimate_s=10.0),
        job(5, priority=-3, estimate_s=1e6),
    ]
    plan(store, *jobs)
    assert drained(store) == [2, 3, 1, 4, 5]


def test_affinity_comes_before_priority(store: JobStore) -> None:
    plan(
        store,
        job(1, priority=9),
        job(2, teacher="a", student="x", priority=1),
        job(3, teacher="b", student="y", priority=2),
        job(4, teacher="c", student="x", priority=3),
    )
    assert drained(store, teachers=["a"], students=["x"])[0] == 4
    assert numbers(store.claim("worker")) == []


def test_affinity_falls_back_to_any_job(store: JobStore) -> None:
    plan(store, job(1, teacher="a"), job(2, teacher="b"))
    assert drained(store, teachers=["b"], students=["nowhere"]) == [2, 1]


def test_a_batch_is_filled_up_beyond_the_affine_jobs_and_holds_no_job_twice(store: JobStore) -> None:
    plan(store, *(job(n, teacher="a" if n < 3 else "b", student="x") for n in range(10)))
    claims = store.claim("worker", teachers=["a", "b"], students=["x"], limit=6)
    assert len(set(numbers(claims))) == len(claims) == 6
    assert len(store.claim("worker", teachers=["a"], limit=6)) == 4
    assert store.claim("worker", limit=6) == []


def test_only_jobs_of_the_wanted_kinds(store: JobStore) -> None:
    plan(store, job(1, kind="transfer", priority=9), job(2, kind="logits"), job(3, kind="train", priority=1))
    assert drained(store, kinds=["logits", "train", "none such"]) == [3, 2]
    assert drained(store, kinds=["logits"]) == []
    assert drained(store) == [1]


def test_only_jobs_that_fit_the_time_left(store: JobStore) -> None:
    plan(store, *(job(n, estimate_s=float(n), priority=n % 2, kind="ab"[n % 3 == 0]) for n in range(1, 8)))
    assert drained(store, time_left_s=4.0) == [3, 1, 4, 2]
    assert drained(store, time_left_s=6.0, kinds=["b"]) == [6]
    assert drained(store, time_left_s=6.5) == [5]
    assert drained(store) == [7]


def test_only_jobs_of_the_wanted_study(store: JobStore) -> None:
    plan(store, job(1), job(2, priority=9), study="other")
    plan(store, job(2), job(3))
    assert drained(store, study=STUDY) == [2, 3]
    assert drained(store, study="none") == []


def test_paused_jobs_are_not_claimed(store: JobStore) -> None:
    plan(store, job(1, teacher="a"), job(2, teacher="a"))
    first = store.jobs(Selection())[0]
    store.pause(Selection(job_ids=(first.id,)))
    assert drained(store, teachers=["a"]) == [2]
    store.resume(Selection(job_ids=(first.id,)))
    assert drained(store) == [1]


def test_a_claim_has_the_specification(store: JobStore) -> None:
    planned = PlannedJob(kind="transfer", spec={"lr": 1e-4, "names": ["ä", "b"], "deep": {"x": None}}, digest="d1")
    plan(store, planned)
    (claim,) = store.claim("worker")
    assert (claim.kind, claim.spec, claim.digest) == (planned.kind, planned.spec, planned.digest)
    assert (claim.fence, claim.attempt) == (1, 1)


@pytest.mark.parametrize("seed", range(4))
def test_against_sorting_by_hand(store: JobStore, seed: int) -> None:
    draw = random.Random(seed)
    jobs = {
        n: job(
            n,
            kind=draw.choice(["logits", "transfer"]),
            priority=draw.randint(-2, 2),
            estimate_s=float(draw.randint(1, 5)),
            teacher=draw.choice(["a", "b", "c", None]),
            student=draw.choice(["x", "y", None]),
        )
        for n in range(60)
    }
    plan(store, *jobs.values())
    left = dict(jobs)
    while left:
        teachers, students = draw.choice([[], ["a"], ["b", "c"]]), draw.choice([[], ["x"]])
        kinds, time_left = draw.choice([None, ["transfer"]]), draw.choice([None, 3.0])
        limit = draw.randint(1, 4)
        fitting = {
            n: each
            for n, each in left.items()
            if (kinds is None or each.kind in kinds) and (time_left is None or each.estimate_s <= time_left)
        }

        def preference(n: int, teachers: list[str] = teachers, students: list[str] = students) -> tuple[object, ...]:
            each = jobs[n]
            affine = each.teacher in teachers or each.student in students
            return (not affine, -each.priority, -each.estimate_s, n)

        expected = set(sorted(fitting, key=preference)[:limit])
        found = store.claim(
            "worker", kinds=kinds, teachers=teachers, students=students, time_left_s=time_left, limit=limit
        )
        assert set(numbers(found)) == expected
        for claim in found:
            del left[number(claim)]
        if not fitting and not draw.randrange(5):
            return
