"""Planning: each job once, in any order, however often, with needs anywhere."""

from __future__ import annotations

import contextlib
import multiprocessing
import re
import threading
import time
from collections import Counter
from typing import Any

import pytest
import sqlalchemy

from kt_study.errors import UsageError
from kt_study.records import JobState, PlannedJob
from kt_study.store import JobStore, Planned, Selection, open_store, planning
from tests.store.making import STUDY, claim_one, job, plan, row, states

FORK = multiprocessing.get_context("fork")


def test_planning_twice_adds_nothing(store: JobStore) -> None:
    jobs = [job(1), job(2, needs=[job(1)])]
    assert plan(store, *jobs) == Planned(new=2)
    assert plan(store, *jobs, job(1)) == Planned(existing=2)
    assert plan(store, *jobs, job(3), job(3)) == Planned(new=1, existing=2)


def test_two_studies_share_jobs(store: JobStore) -> None:
    plan(store, job(1), job(2), study="one")
    assert plan(store, job(2), job(3), study="two") == Planned(new=1, linked=1)
    assert sum(store.summary("one").counts.values()) == sum(store.summary("two").counts.values()) == 2
    assert sum(store.summary().counts.values()) == 3
    assert store.job(2).studies == ("one", "two")


def test_needs_may_come_later_or_be_there_already(store: JobStore) -> None:
    old = job(1)
    plan(store, old, study="old")
    later = job(2)
    plan(store, job(3, needs=[later, old, old]), later)
    assert store.job(_id(store, 3)).needs_open == 2
    assert {need.job_id for need in store.job(_id(store, 3)).needs} == {_id(store, 1), _id(store, 2)}


def test_a_need_that_is_done_blocks_nothing(store: JobStore) -> None:
    plan(store, job(1))
    store.finish(claim_one(store), {})
    plan(store, job(2, needs=[job(1)]), job(3, needs=[job(1), job(4)]), job(4))
    assert states(store) == {1: "done", 2: "ready", 3: "blocked", 4: "ready"}
    assert "waits for job 4 (logits, ready)" in store.job(3).why


def test_an_old_job_that_becomes_needed_still_frees_its_dependents(store: JobStore) -> None:
    plan(store, job(1))
    claim = claim_one(store)
    plan(store, job(2, needs=[job(1)]))
    store.finish(claim, {})
    assert states(store) == {1: "done", 2: "ready"}


def test_a_need_that_is_nowhere_is_refused_and_nothing_added(store: JobStore) -> None:
    with pytest.raises(UsageError, match=f"needs job {job(9).digest}, which is neither"):
        plan(store, job(1), job(2, needs=[job(9)]))
    assert store.summary().counts == {}
    with pytest.raises(UsageError, match="needs itself"):
        plan(store, PlannedJob(kind="logits", spec={}, digest="d", needs=("d",)))
    with pytest.raises(UsageError, match="no study 'absent'"):
        store.plan("absent", [job(1)])


def test_a_generator_that_fails_leaves_nothing_behind(store: JobStore) -> None:
    store.add_study(STUDY, {})

    def jobs() -> Any:
        yield from (job(n) for n in range(20_000))
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        store.plan(STUDY, jobs())
    assert store.summary().counts == {}
    assert plan(store, job(1)) == Planned(new=1)


def test_cancelled_jobs_are_opened_again(store: JobStore) -> None:
    jobs = [job(1), job(2, needs=[job(1)]), job(3)]
    plan(store, *jobs)
    claim = claim_one(store)
    store.finish(claim, row())
    store.cancel(Selection(study=STUDY))
    assert Counter(states(store).values()) == {"done": 1, "cancelled": 2}
    assert plan(store, *jobs) == Planned(existing=3)
    assert Counter(states(store).values()) == {"done": 1, "ready": 2}


def test_jobs_planned_into_a_paused_study_are_paused(store: JobStore) -> None:
    plan(store, job(1))
    store.pause(Selection(study=STUDY))
    plan(store, job(1), job(2))
    assert store.claim("worker") == []
    assert store.workload().paused == 2
    plan(store, job(2), study="another")  # wants it now
    assert claim_one(store).spec["number"] == 2
    assert store.resume(Selection(study=STUDY)) == 1
    assert claim_one(store).spec["number"] == 1


def test_ids_follow_the_plan(store: JobStore) -> None:
    plan(store, *(job(n) for n in range(500)))
    assert [found.spec["number"] for found in store.jobs(limit=500)] == list(range(500))


def _plan_in_process(url: str, first: int, gate: Any, answers: Any) -> None:
    store = open_store(url)
    store.add_study(STUDY, {})
    gate.wait()
    needs = [job(n) for n in range(first, first + 300)]
    users = [job(n, kind="transfer", needs=[job(n), job(n + 1)]) for n in range(first, first + 299)]
    answers.put(store.plan(STUDY, (*reversed(users), *needs)))


def test_two_planners_at_once_add_each_job_once(store: JobStore, url: str) -> None:
    """Their jobs overlap by half, given in opposite orders of ids."""
    gate, answers = FORK.Barrier(4), FORK.SimpleQueue()
    planners = [FORK.Process(target=_plan_in_process, args=(url, first, gate, answers)) for first in (0, 150, 0, 150)]
    for planner in planners:
        planner.start()
    planned = [answers.get() for _ in planners]
    for planner in planners:
        planner.join()
    assert sum(each.new for each in planned) == 450 + 449 == sum(store.summary().counts.values())
    assert all(each.new + each.existing + each.linked == 599 for each in planned)
    assert all(found.needs_open == 2 for found in store.jobs(Selection(kind="transfer"), limit=1000))


def test_jobs_that_are_done_while_they_are_planned_upon_free_their_dependents(store: JobStore, url: str) -> None:
    """The race that a count of open needs can lose: a need ends between being counted and the plan's commit."""
    needs = [job(n) for n in range(400)]
    plan(store, *needs)
    stop = threading.Event()

    def work() -> None:
        mine = open_store(url, patience_s=30.0)
        while not stop.is_set() or mine.summary().counts.get(("logits", JobState.READY)):
            for claim in mine.claim("worker", kinds=["logits"], limit=2):
                mine.finish(claim, {})

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for batch in range(12):
        users = [job(1000 * batch + n, kind="transfer", needs=[needs[n], needs[-1 - n]]) for n in range(200)]
        plan(store, *users)
        time.sleep(0.02)
        if not store.summary().counts.get(("logits", JobState.READY)):
            break
    stop.set()
    for worker in workers:
        worker.join()
    found = store.summary().counts
    assert found.pop(("logits", JobState.DONE)) == 400
    assert set(found) == {("transfer", JobState.READY)}  # none is blocked for good
    assert all(each.needs_open == 0 for each in store.jobs(Selection(kind="transfer"), limit=5000))


def _id(store: JobStore, number: int) -> int:
    (found,) = (each.id for each in store.jobs() if each.spec["number"] == number)
    return found


def test_no_statement_of_a_large_plan_reads_a_whole_set_for_each_row(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """PostgreSQL turns NOT IN and an IN among the columns into that as soon as the set outgrows its working memory."""
    monkeypatch.setitem(planning.PREPARE, "postgresql", ["SET work_mem = '64kB'"])
    explained: list[str] = []

    def explain(_: Any, cursor: Any, statement: str, given: Any, *__: Any) -> None:
        if " planned" in statement and statement.startswith(("INSERT", "SELECT", "UPDATE")):
            explained.append("\n".join(line for (line,) in cursor.execute(f"EXPLAIN {statement}", given).fetchall()))

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", explain)
    request.addfinalizer(lambda: sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", explain))
    first = job(0)
    with contextlib.closing(open_store(postgres_url)) as store:
        planned = plan(store, first, *(job(number, needs=[first]) for number in range(1, 5_000)))
    assert planned == Planned(new=5_000)
    assert len(explained) >= 6
    whole_sets = [lines for lines in explained if re.search(r"SubPlan \d", lines)]
    assert not whole_sets, whole_sets[0]
