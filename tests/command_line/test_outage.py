"""A PostgreSQL that goes away under commands that run for long: they say so, wait, and go on."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from kt_study.errors import DatabaseError
from kt_study.paths import StudyPaths
from kt_study.store import JobStore, Selection, Workload, open_store
from orchestrator.cli.commands import launch, status
from orchestrator.cluster.launch.follow import Follower
from orchestrator.cluster.launch.live import local_processes
from orchestrator.cluster.launch.local import LocalPilots, stop_local_workers
from orchestrator.results.collect import collect
from orchestrator.terminal import outage
from orchestrator.terminal.study_context import StudyContext
from tests.cli import refused, succeeds
from tests.command_line.tiny import STUDY_FILE
from tests.faults import disk
from tests.postgres import Server, new_server
from tests.require import require
from tests.store.making import claim_one, job, plan, row
from tests.terminal import Terminal

PATIENCE_S = 120.0
AWAY = "the database has been away since "


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server that the tests of this module stop and start."""
    started = new_server()
    yield started
    started.stop()


@pytest.fixture
def store(own_server: Server) -> JobStore:
    """A study of two jobs, neither of which a worker can do."""
    made = open_store(own_server.database())
    plan(made, *(job(number, kind="no-such-kind") for number in range(2)), study="tiny")
    return made


@pytest.fixture
def folder(tmp_path: Path, store: JobStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("KT_STUDY_DB", store.url)
    (tmp_path / "study.toml").write_text(STUDY_FILE)
    yield tmp_path
    stop_local_workers(StudyPaths(root=tmp_path).logs)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "PATIENCE_S", 0.3)
    monkeypatch.setattr(outage, "RETRY_EVERY_S", 0.3)


def until(condition: Callable[[], object]) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)


def meanwhile(*steps: Callable[[], object]) -> threading.Thread:
    """Do the steps in a thread, one after the other."""

    def run() -> None:
        for step in steps:
            step()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("how", ["--watch", "--watch --json"])
def test_status_watch_goes_on_when_the_database_is_back(
    folder: Path, own_server: Server, store: JobStore, capfd: pytest.CaptureFixture[str], how: str
) -> None:
    def finish() -> None:
        back = open_store(store.url, wait_s=PATIENCE_S)
        for _ in range(2):
            back.finish(claim_one(back), row())

    other = meanwhile(lambda: time.sleep(3.0), own_server.kill, lambda: time.sleep(2.0), own_server.restart, finish)
    said = CliRunner().invoke(status.command, ["--study", str(folder / "study.toml"), *how.split()])
    other.join()
    assert said.exit_code == 0, said.output
    assert said.stderr.count(AWAY) == 1
    assert "the database is back after " in said.stderr
    assert '"done": 2' in said.stdout or "2" in said.stdout.split("done")[-1]
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("impatient")
def test_launch_wait_goes_on_and_replaces_workers_that_died_meanwhile(
    folder: Path, own_server: Server, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    follows, follow = threading.Event(), Follower.until_done

    def until_done(follower: Follower) -> Workload:
        follows.set()
        return follow(follower)

    monkeypatch.setattr(Follower, "until_done", until_done)
    held = claim_one(store, "somebody", lease_s=3600.0)
    logs = StudyPaths(root=folder).logs

    def kill_the_worker() -> None:
        for started in local_processes(logs):
            (child,) = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
            os.kill(int(child), signal.SIGKILL)
        until(lambda: not local_processes(logs))

    other = meanwhile(
        lambda: until(lambda: store.workload("tiny").failed),  # a worker is there
        lambda: follows.wait(PATIENCE_S),
        own_server.kill,
        lambda: time.sleep(2.0),
        kill_the_worker,
        own_server.restart,
        lambda: open_store(store.url, wait_s=PATIENCE_S).release(held, reason="for the next worker"),
    )
    said = CliRunner().invoke(launch.command, ["--study", str(folder / "study.toml"), "--workers", "1", "--wait"])
    other.join()
    assert said.exit_code == 1, said.output  # jobs failed
    assert AWAY in said.stderr and "the database is back after " in said.stderr
    assert (store.workload("tiny").failed, len(store.workers())) == (2, 2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("owner", "method", "call"),
    [
        (StudyContext, "require_planned_here", 1), (JobStore, "expire", 1), (JobStore, "workload", 1),
        (LocalPilots, "start_missing", 1), (JobStore, "workload", 2), (LocalPilots, "wait_for_first", 1),
        (JobStore, "expire", 2), (JobStore, "workload", 3),
    ],
)  # fmt: skip
def test_launch_wait_survives_an_outage_at_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int
) -> None:
    """The steps before workers start, the wait for the first of them, and the first look at the jobs."""
    (tmp_path / "study.toml").write_text(STUDY_FILE)
    monkeypatch.setenv("KT_STUDY_DB", f"sqlite:///{tmp_path}/kt-study.db")
    made = open_store(os.environ["KT_STUDY_DB"], create=True)
    plan(made, job(1), study="tiny")
    made.finish(claim_one(made), row())
    monkeypatch.setattr(LocalPilots, "start_missing", lambda _pilots: 1)
    monkeypatch.setattr(LocalPilots, "wait_for_first", lambda _pilots: None)
    calls, real = itertools.count(1), getattr(owner, method)

    def once_away(*arguments: object) -> object:
        if next(calls) == call:
            raise DatabaseError("it is away")
        return real(*arguments)

    monkeypatch.setattr(owner, method, once_away)
    said = CliRunner().invoke(launch.command, ["--study", str(tmp_path / "study.toml"), "--workers", "1", "--wait"])
    assert (said.exit_code, next(calls) > call + 1) == (0, True), said.output
    assert AWAY in said.stderr and "the database is back after " in said.stderr


def test_ctrl_c_works_at_once_while_the_database_is_away(folder: Path, own_server: Server, store: JobStore) -> None:
    for _ in range(2):  # both, so that no worker fails one before the server is killed
        claim_one(store, "somebody", lease_s=3600.0)
    with (
        Terminal(folder, "status", "--watch", size=(30, 200)) as watch,
        Terminal(folder, "launch", "--workers", "1", "--wait", size=(30, 200)) as launched,
    ):
        launched.wait_for("/2 [")
        watch.wait_for("no-such-kind")
        own_server.kill()
        try:
            for terminal in (watch, launched):
                terminal.wait_for(AWAY)
                terminal.press_ctrl_c()
            assert (watch.ends(), launched.ends()) == (0, 130)
            assert "Traceback" not in watch.text + launched.text
            assert "1 worker asked to release their jobs" in launched.text
        finally:
            own_server.restart()
        until(lambda: not local_processes(StudyPaths(root=folder).logs))


def test_a_command_typed_by_hand_fails_at_once(folder: Path, own_server: Server) -> None:
    own_server.kill()
    try:
        for arguments in (["status"], ["status", "--watch"], ["collect"], ["launch", "--wait"]):
            assert "does not answer" in refused(folder, *arguments, code=3)
    finally:
        own_server.restart()


@pytest.mark.usefixtures("impatient")
def test_a_sqlite_file_that_cannot_be_opened_at_first_is_waited_for(tmp_path: Path) -> None:
    require("root", disk.trouble() == "", disk.trouble())
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.toml").write_text(STUDY_FILE)
    made = open_store(f"sqlite:///{folder}/kt-study.db", create=True)
    plan(made, job(1), study="tiny")
    made.finish(claim_one(made), row())
    made.close()
    with disk.read_only(folder):
        assert "done" in succeeds(
            tmp_path, "status", "--watch", "--study", "study/study.toml"
        )  # nobody writes: it is read
        waiting = subprocess.Popen(
            [sys.executable, "-m", "kt_study", "launch", "--wait", "--study", "study/study.toml"], cwd=tmp_path,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert waiting.stderr is not None
        assert waiting.stderr.readline().startswith(AWAY)
    said, told = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == 0, told
    assert "the database is back after " in told and "done" in said


@pytest.mark.usefixtures("impatient")
def test_collect_goes_on_when_the_database_is_back(
    tmp_path: Path, own_server: Server, store: JobStore, capsys: pytest.CaptureFixture[str]
) -> None:
    plan(store, *(job(number) for number in range(3)), study="tiny")
    store.cancel(Selection(study="tiny", kind="no-such-kind"))
    for _ in range(3):
        store.finish(claim_one(store), row())
    unbroken = collect(store.url, tmp_path / "unbroken", "tiny")
    strikes = [own_server.kill]

    def progress(_table: str, _rows: int) -> None:
        if strikes:
            strikes.pop()()
            threading.Timer(1.0, own_server.restart).start()

    assert collect(store.url, tmp_path / "broken", "tiny", progress=progress).rows == unbroken.rows
    assert AWAY in capsys.readouterr().err
    for part in (tmp_path / "unbroken").rglob("*.parquet"):
        assert (tmp_path / "broken" / part.relative_to(tmp_path / "unbroken")).read_bytes() == part.read_bytes()
