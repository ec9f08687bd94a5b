"""`kt-study db`: a PostgreSQL without root, with passwords over TCP, that comes back with its data after a kill."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kt_study.errors import DatabaseError
from orchestrator.cluster import postgres_server as server
from tests.postgres import Server, new_server


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
    monkeypatch.setattr("kt_study.database.file_system", lambda _: "lustre")
    with pytest.raises(DatabaseError, match=r"network file system \(lustre\)"):
        server.start(tmp_path / "new")


def test_a_port_that_is_taken_is_said(own: Server) -> None:
    folder = own.folder.parent / f"{own.folder.name}-second"
    try:
        with pytest.raises(DatabaseError, match=r"pg_ctl failed.*says:.*could not create any TCP/IP sockets"):
            server.start(folder, port=server.status(own.folder).port)
    finally:
        Server.remove(folder)
