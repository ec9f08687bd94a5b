"""Worker processes for the tests under fire, and what must hold when the smoke has cleared."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from math import inf
from multiprocessing.process import BaseProcess
from typing import Any

from kt_study.errors import LeaseLost
from kt_study.records import Claim, JobState
from kt_study.store import JobStore, open_store
from tests.store.making import job, plan, result_rows

FORK = multiprocessing.get_context("fork")
NO_BOUND = 1_000_000  # a machine that is busy with something else ends leases too: here no job fails for that
ENOUGH_S = 300.0  # for anything here on the slowest of machines; only a hanging program reaches it


def plan_layers(store: JobStore, number: int) -> None:
    """`number` jobs: half of them logits, half transfers that need two of those each."""
    half = number // 2
    draw = random.Random(0)
    logits = [job(n) for n in range(half)]
    transfers = [job(half + n, kind="transfer", needs=draw.sample(logits, 2), priority=1) for n in range(half)]
    plan(store, *transfers, *logits)


def result_of(claim: Claim, worker: str) -> dict[str, list[dict[str, Any]]]:
    """One row that says under which claim it was written."""
    return {"evaluations": [{"n": claim.fence, "device": worker, "acc": float(claim.job_id)}]}


def work(url: str, worker: str, lease_s: float, grace_s: float, pace_s: float, clock_off_s: float = 0.0) -> None:
    """Work until every job is done. Expires leases of others when there is nothing to claim, as pilots do."""
    if clock_off_s:
        right = time.time
        time.time = lambda: right() + clock_off_s  # type: ignore[assignment]
    store = open_store(url, patience_s=300.0, wait_s=300.0, max_crashes=NO_BOUND)
    draw = random.Random(worker)
    while True:
        claims = store.claim(worker, lease_s=lease_s, limit=draw.choice([1, 1, 1, 4]))
        time.sleep(draw.uniform(0.0, pace_s))
        if len(claims) > 1:
            store.finish_many([(claim, result_of(claim, worker)) for claim in claims])
        for claim in claims[:1] if len(claims) == 1 else []:
            _finish(store, claim, worker)
        if not claims:
            store.expire(grace_s=grace_s)
            if _is_over(store):
                return
            time.sleep(draw.uniform(0.01, 0.05))


def _finish(store: JobStore, claim: Claim, worker: str) -> None:
    try:
        store.finish(claim, result_of(claim, worker))
    except LeaseLost:
        return  # as a pilot does: drop it and go on


def _is_over(store: JobStore) -> bool:
    workload = store.workload()
    return not (workload.ready_now or workload.ready_later or workload.blocked or workload.running)


class Pilots:
    """Worker processes that can be killed and replaced."""

    def __init__(
        self, url: str, size: int, *, lease_s: float, grace_s: float, pace_s: float = 0.002, clocks_off_s: float = 0.0
    ) -> None:
        self._settings = (url, lease_s, grace_s, pace_s)
        self._clocks_off_s = clocks_off_s
        self._names = 0
        self.processes = [self._start() for _ in range(size)]

    def _start(self) -> BaseProcess:
        url, lease_s, grace_s, pace_s = self._settings
        self._names += 1
        off = self._clocks_off_s * (self._names % 3 - 1)
        process = FORK.Process(target=work, args=(url, f"w{self._names}", lease_s, grace_s, pace_s, off))
        process.start()
        return process

    def signal_one(self, number: int) -> BaseProcess | None:
        """Send a signal to one that still works; None when none does."""
        alive = [process for process in self.processes if process.is_alive()]
        if not alive:
            return None
        process = random.choice(alive)
        os.kill(process.pid or 0, number)
        return process

    def replace_one(self) -> bool:
        """Kill one without a word and start another. False when there was none to kill."""
        killed = self.signal_one(signal.SIGKILL)
        if killed is None:
            return False
        killed.join()
        self.processes.remove(killed)
        self.processes.append(self._start())
        return True

    def working(self) -> bool:
        """Whether all are still at it."""
        return all(process.is_alive() for process in self.processes)

    def wait(self) -> None:
        """Until all have found that nothing is left. Each must have ended well."""
        deadline = time.monotonic() + ENOUGH_S
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        self.stop()
        assert codes == [0] * len(codes)

    def stop(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill()
            process.join()


def assert_each_done_once(store: JobStore, number: int) -> None:
    """Every job done, one row each, written under its last claim, and no job begun before its needs were done."""
    jobs = {found.id: found for found in store.jobs(limit=number + 1)}
    assert len(jobs) == number
    assert Counter(found.state for found in jobs.values()) == {JobState.DONE: number}
    rows = result_rows(store)
    assert sorted(row["job_id"] for row in rows) == sorted(jobs)
    assert all(row["n"] == jobs[row["job_id"]].fence for row in rows)
    assert all(row["device"] == jobs[row["job_id"]].worker for row in rows)
    attempts: dict[int, list[tuple[int, str | None, float, float | None]]] = {job_id: [] for job_id in jobs}
    for job_id, *attempt in _everything(store, "SELECT job_id, fence, outcome, started_at, ended_at FROM attempts"):
        attempts[job_id].append(tuple(attempt))
    for job_id, tries in attempts.items():
        tries.sort()
        assert [fence for fence, *_ in tries] == list(range(1, jobs[job_id].fence + 1))
        assert [outcome for _, outcome, *_ in tries].count("done") == 1
    needs = _everything(store, "SELECT job_id, needs_id FROM job_needs")
    assert all(attempts[job_id][0][2] >= (attempts[needed][-1][3] or inf) for job_id, needed in needs)


def _everything(store: JobStore, statement: str) -> list[tuple[Any, ...]]:
    """Rows of the database as they are, all at once: 2,000 questions about one job each take longer than the fire."""
    return store._database.read(lambda connection: [tuple(row) for row in connection.exec_driver_sql(statement)])
