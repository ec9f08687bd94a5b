"""Real processes, killed, stopped, cut off and misled: nothing is lost and nothing is done twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kt_study.errors import LeaseLost
from kt_study.store import JobStore, open_store
from tests.postgres import Server, new_server
from tests.store.fire import ENOUGH_S, FORK, Pilots, assert_each_done_once, plan_layers, result_of
from tests.store.making import claim_one, job, plan, result_rows, wait_until

JOBS, WORKERS = 2_000, 8
RACE = 4_000  # long enough that a worker which is late for some milliseconds has not lost its share


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that may be killed."""
    started = new_server()
    yield started
    started.stop()


def test_workers_killed_every_half_second(store: JobStore, url: str) -> None:
    plan_layers(store, JOBS)
    pilots = Pilots(url, WORKERS, lease_s=1.5, grace_s=0.0, pace_s=0.04)
    kills = 0
    try:
        while pilots.working():
            time.sleep(0.5)
            kills += pilots.working() and pilots.replace_one()
        pilots.wait()
    finally:
        pilots.stop()
    assert kills >= 3  # the pace makes it last three seconds on any machine
    assert_each_done_once(store, JOBS)


def test_the_server_killed_and_restarted_in_the_middle(own_server: Server) -> None:
    """With the server dead and no worker: each claim and each finish whose answer was lost is found again, so that no
    attempt is ever given up."""
    url = own_server.database()
    store = open_store(url)
    plan_layers(store, JOBS)
    pilots = Pilots(url, WORKERS, lease_s=3600.0, grace_s=3600.0, pace_s=0.01)
    try:
        for kill in (1, 2, 3):
            wait_until(lambda kill=kill: store.workload().done >= kill * JOBS // 5)  # type: ignore[misc]
            own_server.kill()
            own_server.restart()
        assert store.workload().done < JOBS  # it was the middle
        pilots.wait()
    finally:
        pilots.stop()
    assert_each_done_once(store, JOBS)
    assert {found.fence for found in store.jobs(limit=JOBS)} == {1}


def test_workers_and_server_killed_together(own_server: Server) -> None:
    url = own_server.database()
    store = open_store(url)
    plan_layers(store, JOBS)
    pilots = Pilots(url, WORKERS, lease_s=2.0, grace_s=1.0, pace_s=0.04)
    try:
        for kill in (1, 2, 3, 4):
            wait_until(lambda kill=kill: store.workload().done >= kill * JOBS // 10)  # type: ignore[misc]
            assert pilots.replace_one()
        own_server.kill()
        assert pilots.replace_one()
        own_server.restart()
        assert store.workload().done < JOBS
        pilots.wait()
    finally:
        pilots.stop()
    assert_each_done_once(store, JOBS)


def test_workers_stopped_past_their_leases_and_continued(store: JobStore, url: str) -> None:
    """Stopped anywhere: between statements, in the middle of one, with SQLite's only write lock in the hand."""
    plan_layers(store, 600)
    pilots = Pilots(url, 4, lease_s=0.5, grace_s=0.0, pace_s=0.08)
    stops = 0
    try:
        while stops < 4 and (stopped := pilots.signal_one(signal.SIGSTOP)):
            time.sleep(0.7)
            os.kill(stopped.pid or 0, signal.SIGCONT)
            time.sleep(random.uniform(0.05, 0.2))
            stops += 1
        pilots.wait()
    finally:
        pilots.stop()
    assert stops >= 2  # the pace makes it last three seconds on any machine
    assert_each_done_once(store, 600)


def _hold_and_finish(url: str, claimed: Any, answer: Any) -> None:
    store = open_store(url)
    claim = claim_one(store, "stopped", lease_s=0.3)
    claimed.put(claim.job_id)
    os.kill(os.getpid(), signal.SIGSTOP)
    heard = store.heartbeat("stopped", {claim: None}).lost
    try:
        store.finish(claim, result_of(claim, "stopped"))
        answer.put((heard, "finished"))
    except LeaseLost as error:
        answer.put((heard, str(error)))


def test_a_worker_stopped_past_its_lease_writes_nothing(store: JobStore, url: str) -> None:
    plan(store, job(1))
    claimed, answer = FORK.SimpleQueue(), FORK.SimpleQueue()
    stopped = FORK.Process(target=_hold_and_finish, args=(url, claimed, answer))
    stopped.start()
    job_id = claimed.get()
    os.waitid(os.P_PID, stopped.pid or 0, os.WSTOPPED | os.WNOWAIT)
    wait_until(lambda: store.expire(grace_s=0.0) == 1)
    other = claim_one(store, "other")
    os.kill(stopped.pid or 0, signal.SIGCONT)
    heard, said = answer.get()
    stopped.join()
    assert heard == {job_id}
    assert "lease of claim 1 has ended; the job is running under claim 2 (last worker other)" in said
    assert result_rows(store) == []
    store.finish(other, result_of(other, "other"))
    assert [found["device"] for found in result_rows(store)] == ["other"]


def test_wrong_clocks_do_not_matter(store: JobStore, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers a day early, right, and a day late, and in another time zone; none loses a lease to another's clock."""
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    plan_layers(store, 400)
    pilots = Pilots(url, 6, lease_s=3600.0, grace_s=0.0, clocks_off_s=86_400.0)
    pilots.wait()
    assert_each_done_once(store, 400)
    assert {found.fence for found in store.jobs(limit=400)} == {1}  # nothing expired


def test_a_wrong_clock_neither_keeps_nor_takes_a_lease(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(store, job(1), job(2))
    right = time.time
    monkeypatch.setattr(time, "time", lambda: right() - 1e6)
    kept = claim_one(store, lease_s=3600.0)
    monkeypatch.setattr(time, "time", lambda: right() + 1e6)
    assert store.expire(grace_s=0.0) == 0
    assert abs(store.job(kept.job_id).changed_at - right()) < 3600.0
    claim_one(store, lease_s=0.1)
    monkeypatch.setattr(time, "time", lambda: right() - 1e6)
    wait_until(lambda: store.expire(grace_s=0.0) == 1)


def _race(url: str, worker: str, gate: Any, answer: Any) -> None:
    store = open_store(url, patience_s=ENOUGH_S)
    gate.wait()
    count = 0
    while claims := store.claim(worker):
        store.finish(claims[0], {})
        count += 1
    answer.put((worker, count))


def test_of_eight_on_one_file_none_starves(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'kt-study.db'}"
    store = open_store(url, create=True)
    plan(store, *(job(n) for n in range(RACE)))
    gate, answer = FORK.Barrier(WORKERS), FORK.SimpleQueue()
    racers = [FORK.Process(target=_race, args=(url, f"w{n}", gate, answer)) for n in range(WORKERS)]
    for racer in racers:
        racer.start()
    counts = Counter(dict(answer.get() for _ in racers))
    for racer in racers:
        racer.join()
    assert counts.total() == store.workload().done == RACE
    assert min(counts.values()) >= 0.25 * counts.total() / WORKERS, counts
