"""A database that goes away under a pilot, and a disk that fills up: the pilot waits, and no attempt is used up."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kt_study.records import JobState
from kt_study.store import JobStore, open_store
from tests.pilot.small_jobs import Kind, make, plan, states
from tests.postgres import Server, new_server
from tests.require import require
from worker.job.context import JobContext
from worker.pilot import pilot as pilot_module
from worker.pilot.allocation import Allocation

AWAY_S = 0.7


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that the tests of this module stop and start."""
    started = new_server()
    yield started
    started.stop()


@pytest.fixture
def store(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> JobStore:
    monkeypatch.setattr(pilot_module, "TRY_AGAIN_S", 0.2)
    made = open_store(own_server.database(), first_backoff_s=0.0, patience_s=0.2)
    made.add_study("s", {})
    return made


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    require("root", os.geteuid() == 0 and shutil.which("mount") is not None, "mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", folder], capture_output=True)
    require("root", done.returncode == 0, "this system does not let root mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> None:
    """Leave not one byte on it, for a while."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            threading.Timer(AWAY_S, filler.unlink).start()


def go_away(server: Server) -> None:
    """As in a power cut, for a while."""
    server.kill()
    threading.Timer(AWAY_S, server.restart).start()


def once(call: Callable[[], None]) -> Callable[[], None]:
    """Only the first time."""
    calls = [call]
    return lambda: calls.pop()() if calls else None


@pytest.mark.parametrize("method", ["register", "workers", "claim", "workload", "expire"])
def test_a_pilot_waits_for_the_database_whatever_it_was_about_to_ask(
    own_server: Server, store: JobStore, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    plan(store, 1)
    (theirs,) = store.claim("somebody", lease_s=60.0)
    strike, ask = once(lambda: go_away(own_server)), getattr(store, method)

    def struck(*args: object, **kwargs: object) -> object:
        strike()
        return ask(*args, **kwargs)

    pilot = make(store, tmp_path)
    if method == "workers":  # asked after a requeue
        pilot.allocation = Allocation(node="n1", job="7_1", restarts=1, began_at=1.0)
    monkeypatch.setattr(store, method, struck)
    ended: list[str] = []
    running = threading.Thread(target=lambda: ended.append(pilot.run()))
    running.start()
    time.sleep(AWAY_S / 2)
    other = open_store(store.url, patience_s=60.0, wait_s=60.0)
    other.release(theirs, reason="for the pilot to take")
    running.join(60)
    assert ended == ["no work is left that could run; 1 done, 0 failed, 0 released, 0 lost"]
    assert kind.ran == [1]


def test_a_failure_is_reported_once_the_database_is_back(
    own_server: Server, store: JobStore, kind: Kind, tmp_path: Path
) -> None:
    plan(store, 1)

    def fails(_context: JobContext) -> None:
        go_away(own_server)
        raise ValueError("of the job")

    kind.work = fails
    assert "1 failed" in make(store, tmp_path).run()
    job = store.job(1)
    assert (job.state, job.crashes, job.attempts[0].message) == (JobState.FAILED, 0, "of the job")


def test_an_unreachable_database_is_no_failure_of_the_job(
    own_server: Server, store: JobStore, kind: Kind, tmp_path: Path
) -> None:
    plan(store, 1)
    strike = once(lambda: go_away(own_server))

    def looks_up(_context: JobContext) -> None:
        strike()
        store.studies()

    kind.work = looks_up
    assert "1 done" in make(store, tmp_path).run()
    job = store.job(1)
    assert [attempt.outcome for attempt in job.attempts] == ["released", "done"]
    assert (job.attempts_used, job.crashes) == (1, 0)


def test_a_result_that_neither_the_database_nor_the_spool_takes_waits_in_memory(
    own_server: Server, store: JobStore, kind: Kind, disk: Path
) -> None:
    plan(store, 1, 1)
    (disk / "spool").mkdir()

    def strikes(_context: JobContext) -> None:
        fill(disk)
        go_away(own_server)

    kind.work = once_given(strikes)
    assert "2 done" in make(store, disk).run()
    assert sorted(kind.ran) == [1, 2], "each once"
    assert [(job.state, job.attempts_used, job.crashes) for job in store.jobs()] == [(JobState.DONE, 1, 0)] * 2


def test_a_sqlite_database_on_a_full_disk_is_waited_for(
    kind: Kind, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pilot_module, "TRY_AGAIN_S", 0.2)
    store = open_store(f"sqlite:///{disk / 'kt-study.db'}", create=True, patience_s=0.2)
    store.add_study("s", {})
    plan(store, *[1] * 40)  # more than the pages that the log has taken from the disk before
    kind.work = once_given(lambda _context: fill(disk))
    assert "40 done" in make(store, disk).run()
    assert len(kind.ran) == 40
    assert {(job.state, job.attempts_used, job.crashes) for job in store.jobs()} == {(JobState.DONE, 1, 0)}
    store.close()


def test_a_full_disk_fails_one_job_and_not_the_queue(store: JobStore, kind: Kind, disk: Path) -> None:
    """Each of the others would fail on it too, three times within the second."""
    plan(store, *[1] * 5)
    strike = once(lambda: fill(disk))

    def writes(context: JobContext) -> None:
        strike()
        (disk / f"{context.claim.job_id}").write_bytes(bytes(100_000))

    kind.work = writes
    assert "5 done, 1 failed" in make(store, disk).run()
    assert states(store) == [JobState.DONE] * 5
    assert sorted(job.attempts_used for job in store.jobs()) == [1, 1, 1, 1, 2]
    assert not list((disk / "cache").iterdir())


def once_given(call: Callable[[JobContext], None]) -> Callable[[JobContext], None]:
    """Only the first time."""
    calls = [call]
    return lambda context: calls.pop()(context) if calls else None
