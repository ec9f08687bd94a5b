"""`kt-study db`: a PostgreSQL without root, with passwords over TCP, that comes back with its data after a kill."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kt_study.errors import DatabaseError
from kt_study.store import open_store
from orchestrator.cluster import postgres_server as server
from orchestrator.cluster.postgres_server import programs
from tests.postgres import FAST, TEMPLATE, Server, new_server
from tests.require import require
from tests.store.making import job, plan


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    """A server that may be stopped and killed."""
    started = new_server()
    yield started
    started.stop()


def test_the_password_is_in_a_file_for_its_owner_only(own: Server) -> None:
    passfile = own.folder / "pgpass"
    password = passfile.read_text().strip().split(":")[-1]
    assert stat.S_IMODE(passfile.stat().st_mode) == 0o600
    assert passfile.stat().st_uid == os.geteuid()
    assert len(password) >= 32
    assert password not in own.url and f"passfile={passfile}" in own.url
    arguments = Path(f"/proc/{own.pid()}/cmdline").read_bytes()
    assert password.encode() not in arguments
    texts = [
        path for path in own.folder.rglob("*") if path.is_file() and path != passfile and path.stat().st_size < 1e6
    ]
    assert not [path for path in texts if password.encode() in path.read_bytes()]


def test_nobody_comes_in_without_the_password(own: Server, tmp_path: Path) -> None:
    bare = own.url.split("?")[0]
    with pytest.raises(psycopg.OperationalError, match="no password supplied"):
        psycopg.connect(f"{bare}?passfile={tmp_path}/none")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(bare.replace("kt_study@", "kt_study:guess@"))
    with psycopg.connect(own.url) as connection:
        stored = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = 'kt_study'").fetchone()
        rules = connection.execute("SELECT DISTINCT type, auth_method FROM pg_hba_file_rules").fetchall()
        sockets = connection.execute("SHOW unix_socket_directories").fetchone()
    assert stored is not None and stored[0].startswith("SCRAM-SHA-256$")
    assert rules == [("host", "scram-sha-256")]
    assert sockets == ("",)


def test_the_server_does_not_run_as_root(own: Server) -> None:
    owner = Path(f"/proc/{own.pid()}").stat().st_uid
    assert owner != 0
    assert owner == os.geteuid() or os.geteuid() == 0


def test_starting_again_does_nothing(own: Server) -> None:
    pid = own.pid()
    assert server.start(own.folder) == own.url == server.url(own.folder)
    assert own.pid() == pid


def test_stop_and_start_keep_address_and_data(own: Server) -> None:
    with psycopg.connect(own.url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS x")
    assert server.stop(own.folder) is True
    assert server.stop(own.folder) is False
    found = server.status(own.folder)
    assert (found.running, found.accepting, found.pid, found.url) == (False, False, None, own.url)
    own.restart()
    assert server.status(own.folder).accepting
    with psycopg.connect(own.url) as connection:
        assert connection.execute("SELECT x FROM kept").fetchone() == (7,)


def test_a_killed_server_is_seen_and_started_again(own: Server) -> None:
    os.kill(own.pid(), signal.SIGKILL)
    own.restart()
    with psycopg.connect(own.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_what_cannot_be_done_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for ask in (server.stop, server.status, server.url):
        with pytest.raises(DatabaseError, match="no PostgreSQL server was ever started in"):
            ask(tmp_path / "none")
    with pytest.raises(DatabaseError, match=r"cannot listen on 203\.0\.113\.7"):
        server.start(tmp_path / "new", host="203.0.113.7")
    monkeypatch.setattr("kt_study.file_systems.file_system", lambda _: "lustre")
    with pytest.raises(DatabaseError, match=r"network file system \(lustre\)"):
        server.start(tmp_path / "new")


def test_a_port_that_is_taken_is_said(own: Server) -> None:
    folder = own.folder.parent / f"{own.folder.name}-second"
    try:
        with pytest.raises(DatabaseError, match=r"pg_ctl failed.*says:.*could not create any TCP/IP sockets"):
            server.start(folder, port=server.status(own.folder).port)
    finally:
        Server.remove(folder)


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder that the account which runs PostgreSQL in root's place can enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="kt-study-place-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def tree(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() if path.is_file() else "" for path in folder.rglob("*")}


FOREIGN = {
    "images": {"data/imagenet/train/n01440764/1.jpg": "pixels", "data/notes.txt": "dear diary"},
    "a file": {"data": "numbers"},
    "another's cluster": {
        "data/PG_VERSION": "18\n",
        "data/pg_hba.conf": "local all all trust\n",
        "data/base/1": "rows",
    },
    "another's passwords": {"pgpass": "db.example:5432:*:me:secret\n"},
    "another server.json": {"server.json": '{"listen": 8080}'},
    "no folder": {"": "text"},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_others_put_there_is_left_alone_and_said(kind: str, place: Path) -> None:
    folder = place / "X"
    for name, text in FOREIGN[kind].items():
        path = folder / name if name else folder
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = tree(place)
    with pytest.raises(DatabaseError, match=r"give another folder with --dir") as caught:
        server.start(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert tree(place) == before


def test_what_others_put_beside_is_left_alone(place: Path) -> None:
    """Also what only looks like an unfinished start of ours; a real one of a killed start is cleared away."""
    theirs = {"notes.txt": "dear diary", ".lock": "theirs", ".new-house/plan.txt": "walls", ".initdb-password": "x"}
    for name, text in theirs.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text)
    (place / ".new-killed" / "data").mkdir(parents=True)
    (place / ".new-killed" / "made-by-kt-study").touch()
    server.start(place, settings=FAST)
    try:
        assert {name: (place / name).read_text() for name in theirs} == theirs
        assert sorted(path.name for path in place.iterdir()) == sorted(
            ["notes.txt", ".lock", ".new-house", ".initdb-password", "data", "pgpass", "server.json"]
        )
    finally:
        server.stop(place)


@pytest.mark.parametrize("lost", [["server.json"], ["server.json", "pgpass"]], ids=["address", "address and password"])
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_server_whose_files_are_lost_is_taken_up_again(own: Server, lost: list[str], running: bool) -> None:
    with psycopg.connect(own.url, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS twelve")
        connection.execute(f"CREATE DATABASE twelve TEMPLATE {TEMPLATE}".encode())
    store = open_store(own.named("twelve"))
    plan(store, *(job(number) for number in range(12)))
    store.close()
    if not running:
        server.stop(own.folder)
    for name in lost:
        (own.folder / name).unlink()
    own.restart()  # at the same address
    assert stat.S_IMODE((own.folder / "pgpass").stat().st_mode) == 0o600
    assert open_store(own.named("twelve")).workload().ready_now == 12
    assert server.status(own.folder).accepting


def test_a_wrong_password_file_is_put_right(own: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    right = (own.folder / "pgpass").read_text()
    (own.folder / "pgpass").write_text("*:*:*:kt_study:guess\n")
    own.restart()
    with psycopg.connect(own.url) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    again = (own.folder / "pgpass").read_text()
    assert again != right
    monkeypatch.setenv("PGPASSWORD", "of another server")
    own.restart()
    assert (own.folder / "pgpass").read_text() == again


def test_the_address_is_kept_and_another_one_is_not_pretended(own: Server) -> None:
    with pytest.raises(DatabaseError, match=r"runs already, on 127\.0\.0\.1:.*`kt-study db stop --dir .*` first"):
        server.start(own.folder, host="127.0.0.2")
    server.stop(own.folder)
    try:
        assert "@127.0.0.2:" in server.start(own.folder, host="127.0.0.2", settings=FAST)
        server.stop(own.folder)
        assert "@127.0.0.2:" in server.start(own.folder, settings=FAST)
        server.stop(own.folder)
    finally:
        assert server.start(own.folder, host="127.0.0.1", settings=FAST) == own.url


def test_a_start_that_fails_leaves_no_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatabaseError, match="cannot listen on"):
        server.start(place / "a" / "b", host="203.0.113.7")
    monkeypatch.setattr(programs, "run", lambda *_, **__: (_ for _ in ()).throw(DatabaseError("initdb failed")))
    with pytest.raises(DatabaseError, match="initdb failed"):
        server.start(place / "a" / "b")
    assert list(place.iterdir()) == []


def test_root_is_told_which_folder_is_closed_and_nothing_is_left(place: Path) -> None:
    require("root", os.geteuid() == 0, "root alone starts PostgreSQL as another account")
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    (closed / "notes.txt").write_text("mine")
    for folder in (closed, closed / "deeper" / "down"):
        with pytest.raises(DatabaseError, match=rf"cannot enter {closed}; give a folder that it can with --dir"):
            server.start(folder)
    assert tree(place) == {"closed": "", "closed/notes.txt": "mine"}
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
