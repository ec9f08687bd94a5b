"""Connections: reused while uses follow each other, closed after, and none open while the process forks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kt_study.store import open_store
from kt_study.store.pool import Pool
from tests.store.making import claim_one, job, plan, wait_until


class Fake:
    """A connection that knows whether it is open."""

    def __init__(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False


def test_the_last_used_connection_comes_first() -> None:
    pool = Pool(Fake, idle_s=60.0)
    one, two = pool.take(), pool.take()
    assert one is not two
    pool.give(one)
    pool.give(two)
    assert pool.take() is two
    assert pool.take() is one
    pool.give(one)
    pool.give(two)  # or every fork of this process would wait for them


def test_idle_connections_are_closed_and_busy_ones_are_not() -> None:
    pool = Pool(Fake, idle_s=0.05)
    idle, busy = pool.take(), pool.take()
    pool.give(idle)
    wait_until(lambda: not idle.is_open)
    assert busy.is_open
    pool.give(busy)
    assert pool.take() is busy
    pool.give(busy)


def test_a_broken_connection_takes_the_idle_ones_with_it() -> None:
    pool = Pool(Fake, idle_s=60.0)
    idle, broken = pool.take(), pool.take()
    pool.give(idle)
    pool.discard(broken)
    assert (idle.is_open, broken.is_open) == (False, False)


def test_a_fork_waits_for_a_connection_in_use_and_closes_the_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(Fake, idle_s=60.0)
    idle, busy = pool.take(), pool.take()
    pool.give(idle)
    forking = threading.get_ident()
    naps = []

    def nap(seconds: float) -> None:
        """The fork waits: let it see the connection in use twice, then give it back."""
        if threading.get_ident() == forking:
            naps.append(seconds)
            if len(naps) == 2:
                pool.give(busy)
        sleep(seconds)

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", nap)
    child = os.fork()
    if child == 0:
        os._exit(0 if pool.take() not in (idle, busy) else 1)
    assert len(naps) == 2
    assert os.waitpid(child, 0)[1] == 0
    assert (idle.is_open, busy.is_open) == (False, False)


@pytest.mark.parametrize("round_", range(3))
def test_a_child_that_writes_while_its_parent_writes_loses_nothing(tmp_path: Path, round_: int) -> None:  # noqa: ARG001
    """SQLite keeps its locks by process: with a connection open across the fork, commits were lost."""
    url = f"sqlite:///{tmp_path / 'kt-study.db'}"
    store = open_store(url, create=True)
    plan(store, *(job(n) for n in range(300)))
    store.finish(claim_one(store), {})
    children = []
    for name in range(3):
        child = os.fork()
        if child == 0:
            _drain(url, f"child-{name}")
            os._exit(0)
        children.append(child)
    _drain(url, "parent")
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert open_store(url).outlook().done == 300


def _drain(url: str, worker: str) -> None:
    store = open_store(url)
    while claims := store.claim(worker):
        store.finish(claims[0], {})


_WORKS_AND_ENDS = """
import sys
from kt_study.store import open_store
from tests.store.making import claim_one, job, plan
store = open_store(sys.argv[1], create=True)
plan(store, job(1))
store.finish(claim_one(store), {})
"""


def test_once_every_process_has_ended_the_file_alone_is_the_database(tmp_path: Path) -> None:
    """Who copies kt-study.db, and not SQLite's log beside it, has every result."""
    url = f"sqlite:///{tmp_path / 'kt-study.db'}"
    subprocess.run([sys.executable, "-c", _WORKS_AND_ENDS, url], cwd=Path(__file__).parents[2], check=True, timeout=300)
    assert [path.name for path in tmp_path.iterdir()] == ["kt-study.db"]
    assert open_store(url).outlook().done == 1
