"""A database that stands still past the leases takes no job from a live worker, and keeps none for a dead one."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kt_study.records import Claim
from kt_study.store import open_store
from tests.postgres import Server, new_server
from tests.store.fire import FORK
from tests.store.making import claim_one, job, plan, wait_until

LEASE_S = 3.0
FREEZES = 3


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server that may be stopped."""
    started = new_server()
    yield started
    started.stop()


class Worker:
    """A worker's heartbeats, and another's look for leases that are over, each from a thread of its own."""

    def __init__(self, url: str, claim: Claim) -> None:
        self._url, self._claim = url, claim
        self._ended = threading.Event()
        self.lost: list[int] = []
        self._threads = [threading.Thread(target=each) for each in (self._beat, self._expire)]
        for thread in self._threads:
            thread.start()

    def _beat(self) -> None:
        store = open_store(self._url)
        while not self._ended.wait(LEASE_S / 3):
            self.lost += store.heartbeat("alive", {self._claim: None}, lease_s=LEASE_S).lost

    def _expire(self) -> None:
        store = open_store(self._url)
        while not self._ended.wait(0.05):
            store.expire(grace_s=0.0)

    def end(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def test_a_server_that_is_frozen_past_the_leases_costs_live_workers_nothing(own_server: Server) -> None:
    url = own_server.database()
    store = open_store(url)
    plan(store, job(1), job(2))
    alive, dead = claim_one(store, "alive", lease_s=LEASE_S), claim_one(store, "dead", lease_s=3600.0)
    worker = Worker(url, alive)
    try:
        for _ in range(FREEZES):
            time.sleep(1.2 * LEASE_S / 3)  # a heartbeat
            main = own_server.pid()
            children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
            with stopped([main, *map(int, children)]):
                time.sleep(1.5 * LEASE_S)
        store.heartbeat("dead", {dead: None}, lease_s=LEASE_S)  # its last
        wait_until(lambda: store.job(dead.job_id).state == "ready")
    finally:
        worker.end()
    assert worker.lost == []
    found = store.job(alive.job_id)
    assert (found.state, found.crashes, found.attempts_used, found.fence) == ("running", 0, 0, 1)
    assert [attempt.outcome for attempt in found.attempts] == [None]
    store.finish(alive, {})
    assert [attempt.outcome for attempt in store.job(dead.job_id).attempts] == ["expired"]


def _work(url: str, begun: Any, over: Any) -> None:
    store = open_store(url)
    claim = claim_one(store, "alive", lease_s=LEASE_S)
    worker = Worker(url, claim)
    begun.set()
    over.wait()
    worker.end()
    store.finish(claim, {})


def test_every_process_of_a_machine_stopped_past_the_leases_costs_live_workers_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'kt-study.db'}"
    store = open_store(url, create=True)
    plan(store, job(1))
    begun, over = FORK.Event(), FORK.Event()
    process = FORK.Process(target=_work, args=(url, begun, over))
    process.start()
    begun.wait()
    for _ in range(FREEZES):
        time.sleep(1.2 * LEASE_S / 3)
        with stopped([process.pid or 0]):
            time.sleep(1.5 * LEASE_S)
    over.set()
    process.join()
    assert process.exitcode == 0
    found = store.job(1)
    assert (found.state, found.fence, found.crashes) == ("done", 1, 0)
