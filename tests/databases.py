"""A database for each study folder of a test, which then runs on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import re
import sqlite3
import tomllib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from kt_study.database import connect_postgresql, parse_url, place, sqlalchemy_engine
from tests.postgres import Server, postgres_server

__all__ = ["Databases", "ask", "databases", "postgres_server", "url_of"]


class Databases:
    """Tells a study folder's file which database to use: the file beside it, or one of the server's."""

    def __init__(self, server: Server | None) -> None:
        self._server = server
        self._urls: dict[Path, str] = {}

    @property
    def kind(self) -> str:
        """sqlite or postgresql."""
        return "sqlite" if self._server is None else "postgresql"

    def url(self, folder: Path) -> str:
        """The folder's database; on the server an empty one, made with the first call."""
        if self._server is None:
            return _beside(folder)
        if folder not in self._urls:
            self._urls[folder] = self._server.database(template="template0")
        return self._urls[folder]

    def settle(self, folder: Path) -> None:
        """Write the database into the folder's study.toml, where it is not the one that would be taken anyway."""
        if self._server is None:
            return
        study = folder / "study.toml"
        text = re.sub(r"^database = .*\n", "", study.read_text(), flags=re.MULTILINE)
        before, head, after = text.partition("[study]\n")
        assert head, f"{study} has no [study]"
        study.write_text(f'{before}{head}database = "{self.url(folder)}"\n{after}')

    def copy(self, source: Path, target: Path) -> None:
        """Give `target` a copy of the database of `source`, which workers on their way out may still write to.

        A source that was made on SQLite, before there was a server, gets onto the server row by row.
        """
        if self._server is None:
            with (
                closing(sqlite3.connect(source / "kt-study.db")) as old,
                closing(sqlite3.connect(target / "kt-study.db")) as new,
            ):
                old.backup(new)
            return
        if source not in self._urls:
            self._urls[target] = self._server.database()
            _move_rows(source / "kt-study.db", self._urls[target])
        else:
            name = parse_url(self.url(source)).conninfo["dbname"]
            with _unused(self._server.url, name):
                self._urls[target] = self._server.database(template=name)
        with psycopg.connect(self._urls[target]) as connection:
            connection.execute("UPDATE studies SET spec = replace(spec, %s, %s)", [str(source), str(target)])

    def is_empty(self, folder: Path) -> bool:
        """Whether there is no table in the folder's database, nor a file for it."""
        address = parse_url(self.url(folder))
        if address.is_sqlite:
            return not Path(address.path).exists()
        return ask(folder, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def _move_rows(file: Path, url: str) -> None:
    """Copy the rows of every table of a SQLite file into the tables of that name, which are empty, of a server."""
    tables = sa.MetaData()
    source, target = sa.create_engine(f"sqlite:///{file}"), sqlalchemy_engine(parse_url(url))
    tables.reflect(target)
    known = sa.inspect(source)
    with source.connect() as reading, target.begin() as writing:
        for table in tables.sorted_tables:
            if table.name in ("alembic_version", "lease_checks"):  # the migration has filled these
                continue
            names = {column["name"] for column in known.get_columns(table.name)}
            columns = [column for column in table.c if column.name in names]
            if rows := reading.execute(sa.select(*columns)).mappings().all():
                writing.execute(table.insert(), [dict(row) for row in rows])
            if "id" in table.c and isinstance(table.c.id.type, sa.Integer):
                last = sa.select(sa.func.coalesce(sa.func.max(table.c.id), 1)).scalar_subquery()
                writing.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(table.name, "id"), last)))
    source.dispose()
    target.dispose()


@contextmanager
def _unused(server: str, name: str) -> Iterator[None]:
    """PostgreSQL copies a database only while nobody is connected to it."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false".encode())
        connection.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name])
        yield
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true".encode())


def _beside(folder: Path) -> str:
    return f"sqlite:///{folder / 'kt-study.db'}"


def url_of(folder: Path) -> str:
    """The URL of the database that the folder's study uses."""
    study = tomllib.loads((folder / "study.toml").read_text())["study"]
    return str(study.get("database") or _beside(folder))


def ask(folder: Path, sql: str) -> list[Any]:
    """The rows of a statement on the database that the folder's study uses; changes are committed."""
    return ask_at(url_of(folder), sql)


def ask_at(url: str, sql: str) -> list[Any]:
    """The same of the database with that URL."""
    address = parse_url(url)
    if address.is_sqlite:
        assert Path(address.path).exists(), f"no database {place(address)}"
        with closing(sqlite3.connect(address.path)) as connection, connection:
            return connection.execute(sql).fetchall()
    with connect_postgresql(address) as server:
        answer = server.execute(sql.encode())
        return answer.fetchall() if answer.description else []


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Databases:
    """Both kinds, one after the other."""
    if request.param == "sqlite":
        return Databases(None)
    return Databases(request.getfixturevalue("postgres_server"))
