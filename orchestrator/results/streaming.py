"""Rows of the job database as Arrow batches, in bounded memory, from one consistent snapshot.

SQLite's rows come through the plain sqlite3 cursor. PostgreSQL's rows come through COPY, which Arrow's CSV reader parses
without a Python object for each value.
"""

from __future__ import annotations

import contextlib
import io
import sqlite3
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from kt_study.database import (
    Address,
    cannot_open,
    check_revision,
    connect_postgresql,
    parse_url,
    sqlite_uri,
    unreachable,
)

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

Select = sa.Select[Any]

_SQLITE: sa.Dialect = sqlite.dialect()
_POSTGRESQL: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]

BUSY_S = 60.0  # how long a reader waits for SQLite's lock
_FETCH = 1024  # rows held as Python objects at a time: few enough to stay in the processor's cache


class Reader(Protocol):
    """One reading of the database: everything it returns is of one moment."""

    def rows(self, select: Select) -> list[tuple[Any, ...]]:
        """The answer to a small question."""
        ...

    def batches(self, select: Select, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """A large answer, a batch at a time. `schema` names the selected columns in their order."""
        ...


@contextlib.contextmanager
def reading(url: str) -> Iterator[Reader]:
    """Open the job database for one reading.

    Raises:
        DatabaseError: no such file, a server that does not answer, or tables that are missing, older or newer.
    """
    address = parse_url(url)
    try:
        with _sqlite(address) if address.is_sqlite else _postgresql(address) as reader:
            _check(address, reader)
            yield reader
    except _driver_errors() as error:
        raise unreachable(address, error) from error


def _check(address: Address, reader: Reader) -> None:
    try:
        found = reader.rows(sa.select(sa.column("version_num")).select_from(sa.table("alembic_version")))
    except _driver_errors():
        found = []
    check_revision(address, found[0][0] if found else None)


def _driver_errors() -> tuple[type[Exception], ...]:
    with contextlib.suppress(ImportError):
        import psycopg

        return (sqlite3.Error, psycopg.Error)
    return (sqlite3.Error,)


@contextlib.contextmanager
def _sqlite(address: Address) -> Iterator[Reader]:
    with contextlib.closing(open_read_only(address)) as connection:
        connection.execute("BEGIN")
        yield SqliteReader(connection)


@contextlib.contextmanager
def _postgresql(address: Address) -> Iterator[Reader]:
    with contextlib.closing(connect_postgresql(address)) as connection:
        connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield PostgresqlReader(connection)


def open_read_only(address: Address) -> sqlite3.Connection:
    """A connection in autocommit to an SQLite file, which it cannot write. Raises DatabaseError where there is none."""
    try:
        connection = sqlite3.connect(sqlite_uri(address.path, "ro"), uri=True, timeout=BUSY_S, isolation_level=None)
    except sqlite3.OperationalError as error:
        raise cannot_open(address.path, error) from error
    connection.execute("PRAGMA query_only=ON")
    return connection


class SqliteReader:
    """Reads through one read transaction; in WAL mode writers go on meanwhile."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, select: Select) -> list[tuple[Any, ...]]:
        return self._connection.execute(_text(select, _SQLITE)).fetchall()

    def batches(self, select: Select, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        cursor = self._connection.execute(_text(select, _SQLITE))
        while rows := cursor.fetchmany(_FETCH):
            yield batch_of(rows, schema)


class PostgresqlReader:
    """Reads through one read-only transaction at isolation level REPEATABLE READ."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def rows(self, select: Select) -> list[tuple[Any, ...]]:
        return self._connection.execute(_text(select, _POSTGRESQL).encode()).fetchall()

    def batches(self, select: Select, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        from pyarrow import csv

        command = f"COPY ({_text(select, _POSTGRESQL)}) TO STDOUT (FORMAT csv, HEADER)"
        with self._connection.cursor() as cursor, cursor.copy(command.encode()) as copy:
            options = csv.ConvertOptions(
                column_types=schema,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                true_values=["t"],
                false_values=["f"],
            )
            yield from csv.open_csv(
                io.BufferedReader(_CopyStream(copy), 1 << 20),
                read_options=csv.ReadOptions(column_names=schema.names, skip_rows=1, block_size=1 << 22),
                parse_options=csv.ParseOptions(newlines_in_values=True),
                convert_options=options,
            )


class _CopyStream(io.RawIOBase):
    """What COPY sends, as a file to read."""

    def __init__(self, copy: psycopg.Copy) -> None:
        self._blocks = iter(copy)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        while filled < len(buffer):
            if not self._rest:
                self._rest = memoryview(next(self._blocks, b""))
                if not self._rest:
                    break
            taken = min(len(self._rest), len(buffer) - filled)
            buffer[filled : filled + taken] = self._rest[:taken]
            self._rest = self._rest[taken:]
            filled += taken
        return filled


def batch_of(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows of plain values, in the order of the schema, as Arrow columns."""
    import pyarrow as pa

    columns = zip(*rows, strict=True)
    return pa.record_batch([_array(c, field) for c, field in zip(columns, schema, strict=True)], schema=schema)


def _array(values: tuple[Any, ...], field: pa.Field) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_boolean(field.type):  # SQLite keeps flags as 0 and 1
        return pa.array(values, pa.int8()).cast(pa.bool_())
    return pa.array(values, field.type)


def _text(select: Select, dialect: sa.Dialect) -> str:
    """The statement with its numbers and names written in, as COPY takes no parameters."""
    return str(select.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
