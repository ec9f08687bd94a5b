"""A real PostgreSQL for the tests, started once for each session, with a fresh database for each test that asks."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from kt_study.database import migrate, parse_url
from kt_study.errors import DatabaseError
from kt_study.store import open_store
from orchestrator.cluster import postgres_server as server
from tests.require import require

TEMPLATE = "kt_template"
# A killed server loses nothing that the system has taken: only a power cut would need the disk to be waited for.
FAST = {"fsync": "off", "max_connections": "200", "shared_buffers": "64MB"}
_numbers = itertools.count(1)


class Server:
    """A PostgreSQL server in a folder of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self._settings = {**FAST, **settings}
        self.url = server.start(folder, settings=self._settings)

    def restart(self) -> None:
        """Start it again after it was stopped or killed, at the same address."""
        assert server.start(self.folder, settings=self._settings) == self.url

    def kill(self) -> None:
        """As in a power cut: the server and every process that serves a connection, at once."""
        everyone = self.processes()
        self.signal(signal.SIGKILL)
        while any(_is_alive(pid) for pid in everyone):
            time.sleep(0.01)

    def processes(self) -> list[int]:
        """The main process, and after it those that serve it and its connections."""
        main = self.pid()
        return [main, *map(int, Path(f"/proc/{main}/task/{main}/children").read_text().split())]

    def signal(self, number: int) -> None:
        """Send a signal to each of its processes, the main one first."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pid(self) -> int:
        """The server's main process."""
        pid = server.status(self.folder).pid
        assert pid is not None
        return pid

    def stop(self) -> None:
        """Stop it and remove what it wrote."""
        self.end()
        self.remove(self.folder)

    def end(self) -> None:
        """Stop it."""
        server.stop(self.folder)

    @staticmethod
    def remove(folder: Path) -> None:
        """Remove the folder of a server that does not run."""
        shutil.rmtree(folder)

    def database(self, template: str = TEMPLATE) -> str:
        """URL of a new database, with the present tables, or empty from `template0`."""
        name = f"test_{next(_numbers)}"
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy".encode())
        return self.named(name)

    def named(self, name: str) -> str:
        """URL of the database with this name."""
        return self.url.replace(f"/{server.DATABASE}?", f"/{name}?")

    def make_template(self) -> None:
        """A database with the present tables, from which the tests' own are copied."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {TEMPLATE}".encode())
        migrate(parse_url(self.named(TEMPLATE)))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def new_server() -> Server:
    """A server of the caller's own, to be stopped by it. Skips, or fails where it is required, without PostgreSQL."""
    try:
        server.binaries()
    except DatabaseError as error:
        require("postgres", False, str(error))
    started = Server(Path(tempfile.mkdtemp(prefix="kt-study-pg-")))
    started.make_template()
    return started


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    """The session's server."""
    started = new_server()
    yield started
    started.stop()


@pytest.fixture
def postgres_url(postgres_server: Server) -> str:
    """URL of a database that nothing else uses, with the present tables."""
    return postgres_server.database()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with the present tables: a copy takes a tenth of the time of the migrations."""
    path = tmp_path_factory.mktemp("template") / "kt-study.db"
    open_store(f"sqlite:///{path}", create=True).close()
    assert [found.name for found in path.parent.iterdir()] == [path.name], "something is left in the log"
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def either_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of a database that nothing else uses, with the present tables: the test runs on SQLite and on PostgreSQL."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    shutil.copyfile(request.getfixturevalue("sqlite_template"), tmp_path / "kt-study.db")
    return f"sqlite:///{tmp_path / 'kt-study.db'}"
