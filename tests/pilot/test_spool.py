"""The database gone at the moment of finishing: the result waits beside the run and counts once it is back."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from kt_study.database import parse_url
from kt_study.errors import DatabaseError, DiskError, LeaseLost
from kt_study.store import JobStore, open_store
from tests.postgres import Server, new_server
from tests.store.making import claim_one, job, plan, result_rows, row, states
from worker.pilot.spool import Spool


class Away:
    """A database that can be taken away and brought back."""

    def __init__(self, url: str, server: Server | None) -> None:
        self.url = url
        self._server = server

    def go(self) -> None:
        if self._server:
            self._server.kill()
        else:
            self._file.rename(self._file.with_suffix(".away"))

    def come_back(self) -> None:
        if self._server:
            self._server.restart()
        else:
            self._file.with_suffix(".away").rename(self._file)

    @property
    def _file(self) -> Path:
        return Path(parse_url(self.url).path)


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that may be killed."""
    started = new_server()
    yield started
    started.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Away:
    """A database of each kind, with its tables."""
    if request.param == "postgresql":
        server = request.getfixturevalue("own_server")
        return Away(server.database(), server)
    url = f"sqlite:///{tmp_path / 'kt-study.db'}"
    open_store(url, create=True).close()
    return Away(url, None)


@pytest.fixture
def impatient(database: Away) -> JobStore:
    """A store that gives up after a moment, for the time that the database is away."""
    return open_store(database.url, patience_s=0.3)


@pytest.fixture
def patient(database: Away) -> JobStore:
    """A store that does not."""
    return open_store(database.url, patience_s=300.0)


def test_the_spool_is_private_and_takes_nothing_of_others(
    database: Away, impatient: JobStore, patient: JobStore, tmp_path: Path
) -> None:
    plan(patient, job(1))
    claim = claim_one(patient)
    spool = Spool(tmp_path / "spool")
    before = os.umask(0o002)
    database.go()
    try:
        assert not spool.finish(impatient, claim, row())
    finally:
        os.umask(before)
        database.come_back()
    (waiting,) = spool.waiting()
    assert (stat.S_IMODE(spool.folder.stat().st_mode), stat.S_IMODE(waiting.stat().st_mode)) == (0o700, 0o600)
    waiting.chmod(0o666)
    assert spool.drain(patient) == 0
    assert [path.name for path in spool.rejected()] == [waiting.name]
    assert states(patient) == {1: "running"}


def test_a_result_is_spooled_and_counts_when_the_database_is_back(
    database: Away, impatient: JobStore, patient: JobStore, tmp_path: Path
) -> None:
    plan(patient, job(1), job(2, needs=[job(1)]))
    claim = claim_one(patient)
    spool = Spool(tmp_path / "spool")
    database.go()
    infinite = {"evaluations": [{"acc": 42.0, "loss": float("inf"), "dataset": "ä"}]}
    assert spool.finish(impatient, claim, infinite) is False
    assert spool.drain(impatient) == 0
    assert len(spool.waiting()) == 1
    database.come_back()
    assert spool.drain(patient) == 1
    assert (spool.waiting(), spool.rejected()) == ([], [])
    (found,) = result_rows(patient)
    assert (found["acc"], found["loss"], found["dataset"]) == (42.0, float("inf"), "ä")
    assert states(patient) == {1: "done", 2: "ready"}
    assert spool.drain(patient) == 0


def test_a_spooled_result_that_was_fenced_out_is_set_aside(
    database: Away, impatient: JobStore, patient: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan(patient, job(1), job(2))
    late, good = claim_one(patient, lease_s=-1.0), claim_one(patient)
    spool = Spool(tmp_path / "spool")
    database.go()
    assert not spool.finish(impatient, late, row(13.0))
    assert not spool.finish(impatient, good, row(7.0))
    database.come_back()
    assert patient.expire(grace_s=0.0) == 1
    patient.finish(claim_one(patient, "other"), row(99.0))
    assert spool.drain(patient) == 1
    assert [path.name for path in spool.rejected()] == ["job-000000001-1.json"]
    assert "lease of claim 1 has ended" in caplog.text
    assert sorted(found["acc"] for found in result_rows(patient)) == [7.0, 99.0]


def test_a_result_that_is_spooled_after_its_commit_counts_once(store: JobStore, tmp_path: Path) -> None:
    plan(store, job(1))
    claim = claim_one(store)
    spool = Spool(tmp_path)
    assert spool.finish(store, claim, row(1.0)) is True
    spool._keep(claim, row(1.0))  # as when the answer to the commit was lost
    assert spool.drain(store) == 1
    assert len(result_rows(store)) == 1


def test_a_lost_lease_is_not_spooled(store: JobStore, tmp_path: Path) -> None:
    plan(store, job(1))
    claim = claim_one(store)
    store.release(claim, reason="preempted")
    with pytest.raises(LeaseLost):
        Spool(tmp_path).finish(store, claim, row())
    assert Spool(tmp_path).waiting() == []


def test_a_torn_file_is_set_aside(store: JobStore, tmp_path: Path) -> None:
    (tmp_path / "job-000000001-1.json").write_text('{"claim": {"job_id"')
    spool = Spool(tmp_path)
    assert spool.drain(store) == 0
    assert len(spool.rejected()) == 1


def test_no_database_and_no_disk_is_reported(store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan(store, job(1))
    claim = claim_one(store)

    def gone(*_: object) -> None:
        raise DatabaseError("gone")

    monkeypatch.setattr(store, "finish", gone)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(DiskError, match="cannot write"):
        Spool(blocked).finish(store, claim, row())
