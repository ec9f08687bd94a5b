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

BUSY_S = 60.0  # a reader's wait for SQLite's lock
_FETCH = 1024  # rows fetched as Python objects in one batch: few enough for the processor's cache


class Reader(Protocol):
    """Reads one consistent snapshot of the database."""

    def rows(self, select: Select) -> list[tuple[Any, ...]]:
        """All rows of a small result."""
        ...

    def batches(self, select: Select, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """A large result in batches. `schema` has the selected columns in their order."""
        ...


@contextlib.contextmanager
def reading(url: str) -> Iterator[Reader]:
    """Open a snapshot of the job database.

    Raises:
        DatabaseError: no such file, no response from the server, or tables that are missing, older or newer.
    """
    address = parse_url(url)
    try:
        connection: Any = open_read_only(address) if address.is_sqlite else connect_postgresql(address)
        with contextlib.closing(connection):
            connection.execute("BEGIN" if address.is_sqlite else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            reader: Reader = SqliteReader(connection) if address.is_sqlite else PostgresqlReader(connection)
            _check_version(address, reader)
            yield reader
    except _driver_errors() as error:
        raise unreachable(address, error) from error


def _check_version(address: Address, reader: Reader) -> None:
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


def open_read_only(address: Address) -> sqlite3.Connection:
    """A read-only autocommit connection to an SQLite file. Raises DatabaseError if there is none."""
    try:
        connection = sqlite3.connect(sqlite_uri(address.path, "ro"), uri=True, timeout=BUSY_S, isolation_level=None)
    except sqlite3.OperationalError as error:
        raise cannot_open(address.path, error) from error
    connection.execute("PRAGMA query_only=ON")
    return connection


class SqliteReader:
    """Reads in one transaction; in WAL mode writers are not blocked."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, select: Select) -> list[tuple[Any, ...]]:
        return self._connection.execute(_text(select, _SQLITE)).fetchall()

    def batches(self, select: Select, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        cursor = self._connection.execute(_text(select, _SQLITE))
        while rows := cursor.fetchmany(_FETCH):
            yield batch_of(rows, schema)


class PostgresqlReader:
    """Reads in one read-only transaction at isolation level REPEATABLE READ."""

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
    """The output of COPY as a readable file."""

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

    if pa.types.is_boolean(field.type):  # SQLite stores 0 and 1
        return pa.array(values, pa.int8()).cast(pa.bool_())
    return pa.array(values, field.type)


def _text(select: Select, dialect: sa.Dialect) -> str:
    """The statement with its values inline, since COPY takes no parameters."""
    return str(select.compile(dialect=dialect, compile_kwargs={"literal_binds": True}))
