"""The pilot against a real job table, with small jobs in place of models."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from kt_study.errors import ArtefactGone
from kt_study.records import JobState, PlannedJob
from kt_study.store import JobStore, WorkerRecord
from tests.pilot.small_jobs import Kind, make, plan, states, until_stopped
from worker.job.context import JobContext
from worker.pilot import pilot as pilot_module
from worker.pilot.allocation import Allocation
from worker.pilot.pilot import Pilot


def hours(gone: float, left: float, **facts: Any) -> Allocation:
    now = time.time()
    return Allocation(node="n1", job="7_1", began_at=now - 3600 * gone, ends_at=now + 3600 * left, **facts)


def test_works_until_nothing_is_left(store: JobStore, kind: Kind, tmp_path: Path) -> None:
    plan(store, 1, 1, 1)
    assert make(store, tmp_path).run().startswith("no work is left that could run; 3 done")
    assert sorted(kind.ran) == [1, 2, 3]
    assert states(store) == [JobState.DONE] * 3


def test_a_stop_gives_the_job_back_without_using_up_an_attempt(store: JobStore, kind: Kind, tmp_path: Path) -> None:
    plan(store, 1)
    pilot = make(store, tmp_path)

    def stopped_in_the_middle(context: JobContext) -> None:
        pilot.stop.make("SIGTERM")
        until_stopped(context)

    kind.work = stopped_in_the_middle
    assert pilot.run() == "stopped by SIGTERM; 0 done, 0 failed, 1 released, 0 lost"
    job = store.job(1)
    assert (job.state, job.attempts_used, job.crashes) == (JobState.READY, 0, 0)
    assert [(attempt.outcome, attempt.message) for attempt in job.attempts] == [("released", "SIGTERM")]
    assert store.workers(alive_within_s=60) == []


def test_a_job_that_hears_nothing_is_given_back_after_the_grace(
    store: JobStore, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(store, 1)
    ended = threading.Event()
    monkeypatch.setattr(Pilot, "_exit_from_thread", lambda _pilot: ended.set())
    pilot = make(store, tmp_path, grace_s=1.0)

    def deaf(_context: JobContext) -> None:
        pilot.stop.make("SIGTERM")
        assert ended.wait(60)

    kind.work = deaf
    pilot.run()
    assert ended.is_set()
    assert "did not stop within 1 s" in (store.job(1).attempts[0].message or "")


def test_only_what_fits_the_time_left_is_claimed(store: JobStore, kind: Kind, tmp_path: Path) -> None:
    plan(store, 10_000, 1_000, kind="logits")
    pilot = make(store, tmp_path, hours(0.0, 1.0))
    assert "1 jobs are ready, and none is estimated to fit" in pilot.run()
    assert kind.ran == [2]
    assert states(store) == [JobState.READY, JobState.DONE]
    assert not pilot.stop.made, "a fresh allocation would not help: no requeue"


def test_a_transfer_that_fits_no_allocation_is_taken_by_a_fresh_one(
    store: JobStore, kind: Kind, tmp_path: Path
) -> None:
    plan(store, 10_000)
    assert make(store, tmp_path, hours(0.0, 1.0)).run().startswith("no work is left")
    assert kind.ran == [1]


def test_but_not_by_one_that_is_half_over_which_requests_another(
    store: JobStore, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    farewells: list[bool] = []
    monkeypatch.setattr(pilot_module, "leave_allocation", lambda *_args, work_left: farewells.append(work_left))
    plan(store, 10_000)
    plan(store, 100, kind="logits")
    pilot = make(store, tmp_path, hours(0.8, 0.2))
    pilot.run()
    assert kind.ran == [2]
    assert pilot.stop.reason == "the end of the allocation"
    assert farewells == [True]


def test_the_pilots_own_clock_stops_a_job_before_the_end(store: JobStore, kind: Kind, tmp_path: Path) -> None:
    plan(store, 1)
    pilot = make(store, tmp_path, hours(1.0, 1.0))

    def until_the_end(context: JobContext) -> None:
        pilot.allocation = hours(2.0, 61 / 3600)  # of which the last 60 s are no time for work
        until_stopped(context)

    kind.work = until_the_end
    pilot.allocation = hours(1.0, 1.0)
    assert pilot.run().startswith("stopped by the end of the allocation; 0 done")
    assert store.job(1).attempts[0].outcome == "released"


def test_a_pilot_that_started_without_an_answer_of_slurm_learns_its_end_later(
    store: JobStore, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Allocation] = []

    def with_times(mine: Allocation) -> Allocation:
        asked.append(mine)
        return mine if len(asked) == 1 else hours(0.0, 1.0)

    monkeypatch.setattr(Allocation, "with_times", with_times)
    monkeypatch.setattr(pilot_module, "ASK_SLURM_AGAIN_S", 0.0)
    plan(store, 10_000, kind="logits")
    kind.work = lambda _context: plan(store, 10_000, 10_001, kind="logits")
    pilot = make(store, tmp_path, Allocation(node="n1", job="7_1"))
    assert "1 jobs are ready, and none is estimated to fit" in pilot.run()
    assert (kind.ran, len(asked)) == ([1], 2)


@pytest.mark.usefixtures("kind")
def test_a_requeued_pilot_frees_what_its_earlier_run_held(store: JobStore, tmp_path: Path) -> None:
    plan(store, 1)
    first = hours(0.0, 1.0).new_worker_id()
    store.register(WorkerRecord(id=first, host="n1", pid=1, slurm_job="7_1"))
    held = store.claim(first, lease_s=3600)
    assert len(held) == 1
    make(store, tmp_path, hours(0.0, 1.0, restarts=1)).run()
    job = store.job(1)
    assert [attempt.outcome for attempt in job.attempts] == ["expired", "done"]
    assert "Slurm ended the earlier run" in (job.attempts[0].message or "")


def test_a_pilot_whose_slurm_job_runs_elsewhere_leaves_when_it_loses_its_job(
    store: JobStore, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(store, 1, 1)
    monkeypatch.setattr(Allocation, "is_over", lambda _allocation: True)
    pilot = make(store, tmp_path, hours(0.0, 1.0), lease_s=1.0)

    def disowned(_context: JobContext) -> None:
        store.end_leases([pilot.name], reason="node down")

    kind.work = disowned
    monkeypatch.setattr(pilot_module, "leave_allocation", lambda *_args, **_kwargs: None)
    assert pilot.run().startswith("stopped by the end of its Slurm job, which now runs elsewhere; 0 done")
    assert len(kind.ran) == 1
    assert states(store) == [JobState.READY] * 2


def test_pause_and_cancel_reach_a_running_job_with_the_next_heartbeat(
    store: JobStore, kind: Kind, tmp_path: Path
) -> None:
    from kt_study.store import Selection

    plan(store, 1, 1)
    kind.work = until_stopped
    pilot = make(store, tmp_path, lease_s=1.5)
    running = threading.Thread(target=pilot.run)
    running.start()
    deadline = time.monotonic() + 60
    while len(kind.ran) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    store.pause(Selection(job_ids=(kind.ran[0],)))
    while len(kind.ran) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    store.cancel(Selection(job_ids=(kind.ran[1],)))
    running.join(60)
    assert not running.is_alive()
    paused, cancelled = store.job(kind.ran[0]), store.job(kind.ran[1])
    assert (paused.state, paused.paused, paused.attempts[0].outcome) == (JobState.READY, True, "released")
    assert (cancelled.state, cancelled.attempts[0].outcome) == (JobState.CANCELLED, "cancelled")


def test_a_job_whose_input_is_gone_waits_until_it_is_made_again(store: JobStore, kind: Kind, tmp_path: Path) -> None:
    maker, reader = (
        PlannedJob(kind="transfer", spec={"n": n, "teachers": [], "student": ""}, digest=f"transfer-{n}", needs=needs)
        for n, needs in ((0, ()), (1, ("transfer-0",)))
    )
    store.plan("s", [maker, reader])
    file = tmp_path / "weights"

    def work(context: JobContext) -> None:
        if context.claim.digest == maker.digest:
            file.touch()
        elif len(kind.ran) == 2 or not file.exists():
            file.unlink()
            raise ArtefactGone(f"{file}: gone", [maker.digest])

    kind.work = work
    make(store, tmp_path).run()
    first, second = store.jobs()
    assert kind.ran == [first.id, second.id, first.id, second.id]
    assert (first.state, second.state) == (JobState.DONE, JobState.DONE)
    assert [(job.attempts_used, job.crashes) for job in (first, second)] == [(1, 0), (1, 0)]
