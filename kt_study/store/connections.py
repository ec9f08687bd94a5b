"""Transactions on one database: retried while it is busy or unreachable; connections are closed when idle."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

import sqlalchemy as sa

from kt_study.database import (
    Address,
    connect_postgresql,
    connect_sqlite,
    is_at_rest,
    may_write,
    mismatch,
    read_only,
    unreachable,
)
from kt_study.errors import SchemaMismatch
from kt_study.file_systems import require_local_disk

T = TypeVar("T")

# A process that finds the SQLite file busy sleeps long at first, so that the writer can continue with its pages in memory,
# and briefly after a while, so that it does not starve.
LONG_PAUSES_S, SHORT_PAUSES_S, LONG_WAIT_S = (0.008, 0.050), (0.0005, 0.002), 0.06
QUEUE_S = 0.25  # the longest wait for SQLite's write lock on one connection: a fork waits for it
SERVER_PAUSES_S = (0.05, 1.0)  # the first pause while a server is away, and the longest
FORK_WAITS_S = 10.0

# A worker that is stopped within a transaction must not keep the rows locked that it holds.
_SESSION = "SET idle_in_transaction_session_timeout = '60s'; SET jit = off"
_TRANSIENT = ("08", "40", "53", "57")  # classes of SQLSTATE: no connection, rolled back, no resources, shut down
_FINAL = ("53100", "57014")  # disk full, cancelled by the user
_IDLE_TOO_LONG = "25P03"


class Database:
    """A database and its connections. It may be used from several threads, and after a fork.

    No connection is open while the process forks: SQLite keeps its locks per process, so a child would overwrite its
    parent's commits (observed), and two processes would share one socket to PostgreSQL.
    """

    def __init__(self, address: Address, *, patience_s: float, idle_s: float) -> None:
        if address.is_sqlite:
            require_local_disk(address.path, "the SQLite database")
        self.address = address
        self._patience_s = patience_s
        self._idle_s = idle_s
        self._engine = _engine(address)
        self._gate = threading.Lock()
        self._in_use = 0
        self._used_at = 0.0
        self._closer: threading.Thread | None = None
        _databases.add(self)

    def close(self) -> None:
        """Close idle connections."""
        self._engine.dispose()

    def write(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work` in one transaction. It runs again if the database was busy or unreachable, or broke up a deadlock.

        Raises:
            DatabaseError: the database was unreachable for longer than `patience_s`.
            SchemaMismatch: it lacks a table or column.
        """
        return self._with_retries(lambda: self._once(work, "BEGIN IMMEDIATE"))

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work`, which only reads, on one consistent state of the database. Raises as `write` does."""
        return self._with_retries(lambda: self._once(work, "BEGIN", isolation_level="REPEATABLE READ"))

    def revision(self, wait_s: float) -> str | None:
        """The migration of the database, None without our tables; waits for a server that does not answer.

        Raises:
            DatabaseError: it is unreachable.
        """
        version = sa.select(sa.column("version_num", sa.Text)).select_from(sa.table("alembic_version"))
        patience_s = self._patience_s if self.address.is_sqlite else wait_s  # a file exists or not
        try:
            return self._with_retries(
                lambda: self._once(lambda connection: connection.scalar(version), "BEGIN"), patience_s
            )
        except SchemaMismatch:
            return None

    @contextlib.contextmanager
    def private(self) -> Iterator[sa.Connection]:
        """A connection for a long task with temporary tables, closed after it. Raises DatabaseError."""
        with self._own_errors(), self._engine.connect() as connection:
            connection.detach()
            yield connection

    def write_on(self, connection: sa.Connection, work: Callable[[sa.Connection], T]) -> T:
        """`write` on a connection of `private`."""
        return self._with_retries(lambda: _within(connection, work, "BEGIN IMMEDIATE"))

    def _once(self, work: Callable[[sa.Connection], T], begin: str, isolation_level: str | None = None) -> T:
        with self._gate:
            self._in_use += 1
        try:
            with self._engine.connect() as connection:
                if isolation_level and not self.address.is_sqlite:
                    connection.execution_options(isolation_level=isolation_level, postgresql_readonly=True)
                return _within(connection, work, begin)
        finally:
            with self._gate:
                self._in_use -= 1
                self._used_at = time.monotonic()
                if self._closer is None:
                    self._closer = threading.Thread(target=self._close_when_idle, name="kt-study-idle", daemon=True)
                    self._closer.start()

    def _with_retries(self, step: Callable[[], T], patience_s: float | None = None) -> T:
        began = time.monotonic()
        patience_s = self._patience_s if patience_s is None else patience_s
        longest = SERVER_PAUSES_S[0]
        while True:
            with self._own_errors():
                try:
                    return step()
                except sa.exc.DBAPIError as error:
                    waited = time.monotonic() - began
                    if not _is_transient(error) or waited > patience_s:
                        raise
            if self.address.is_sqlite:
                _pause(waited)
            else:
                time.sleep(longest * random.uniform(0.5, 1.5))
                longest = min(2 * longest, SERVER_PAUSES_S[1])

    @contextlib.contextmanager
    def _own_errors(self) -> Iterator[None]:
        """Turn the drivers' errors into ours."""
        try:
            yield
        except (sa.exc.IntegrityError, sa.exc.DataError):
            raise
        except sa.exc.DBAPIError as error:
            cause = error.orig or error
            no_such_column = getattr(cause, "sqlstate", None) in ("42P01", "42703")  # or table
            if getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR or no_such_column:
                raise mismatch(self.address, cause) from error
            raise unreachable(self.address, cause) from error

    def _close_when_idle(self) -> None:
        while (left := self._used_at + self._idle_s - time.monotonic()) > 0 or self._in_use:
            time.sleep(max(left, 0.1))
        self._closer = None
        self._engine.dispose()

    def before_fork(self) -> None:
        """Wait until no connection is in use, close the idle ones, and block new ones."""
        deadline = time.monotonic() + FORK_WAITS_S
        self._gate.acquire()
        while self._in_use and time.monotonic() < deadline:
            self._gate.release()
            time.sleep(0.001)
            self._gate.acquire()
        self._engine.dispose()

    def after_fork_in_parent(self) -> None:
        """Allow new connections again."""
        self._gate.release()

    def after_fork_in_child(self) -> None:
        """Start anew: the child has none of the parent's threads."""
        self._engine.dispose(close=False)
        self._gate, self._in_use, self._closer = threading.Lock(), 0, None


class Store:
    """Base of the parts of a `JobStore`: its database and limits."""

    _database: Database
    _max_attempts: int
    _max_crashes: int
    _first_backoff_s: float

    @property
    def url(self) -> str:
        """The database's URL, without a password."""
        return self._database.address.url

    @property
    def why_read_only(self) -> str:
        """Why this account cannot write the database, as far as can be told beforehand; empty where it may."""
        return read_only(self._database.address)


S = TypeVar("S", bound=Store)
P = ParamSpec("P")


def reads(method: Callable[Concatenate[S, sa.Connection, P], T]) -> Callable[Concatenate[S, P], T]:
    """Run a method in a transaction that reads, on a connection that its callers do not pass."""

    @functools.wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._database.read(lambda connection: method(self, connection, *args, **kwargs))

    return run


def writes(method: Callable[Concatenate[S, sa.Connection, P], T]) -> Callable[Concatenate[S, P], T]:
    """Run a method in a transaction that writes; it may run several times before it succeeds."""

    @functools.wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._database.write(lambda connection: method(self, connection, *args, **kwargs))

    return run


def _engine(address: Address) -> sa.Engine:
    # `Database` closes idle connections; more than these are opened on demand.
    pool: dict[str, Any] = {"pool_size": 4, "max_overflow": -1, "pool_use_lifo": True, "poolclass": sa.QueuePool}
    if not address.is_sqlite:
        return sa.create_engine("postgresql+psycopg://", creator=lambda: _to_server(address), **pool)
    engine = sa.create_engine("sqlite://", creator=lambda: connect_sqlite(address.path), **pool)

    @sa.event.listens_for(engine, "connect")
    def remember_file(_: object, record: sa.pool.ConnectionPoolEntry) -> None:
        record.info["file"] = _identity(address.path)
        record.info["unchanging"] = not may_write(address.path) and is_at_rest(address.path)

    @sa.event.listens_for(engine, "checkout")
    def require_same_file(_: object, record: sa.pool.ConnectionPoolEntry, __: object) -> None:
        """The file may have been replaced by another of the same name, or be written by now."""
        if record.info["file"] != _identity(address.path) or (
            record.info["unchanging"] and not is_at_rest(address.path)
        ):
            raise sa.exc.DisconnectionError

    return engine


def _to_server(address: Address) -> Any:
    connection = connect_postgresql(address)
    connection.execute(_SESSION)
    connection.autocommit = False
    return connection


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 -- with every use; through a Path it takes three times as long
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _within(connection: sa.Connection, work: Callable[[sa.Connection], T], begin: str) -> T:
    """Run `work` in a transaction. `begin` is SQLite's statement: its driver is in autocommit."""
    with connection.begin():
        if connection.dialect.name == "sqlite":
            _begin(connection, begin)
        return work(connection)


def _begin(connection: sa.Connection, begin: str) -> None:
    """Begin, waiting up to `QUEUE_S` for other writers.

    By the driver, not by SQLAlchemy, where each try takes as long as a whole claim: with eight workers on a busy machine,
    the tries of seven took the processor from the one with the lock.
    """
    driver: Any = connection.connection.dbapi_connection
    began = time.monotonic()
    while (waited := time.monotonic() - began) < QUEUE_S:
        try:
            driver.execute(begin)
            return
        except sqlite3.Error as error:
            if not _is_busy(error):
                break
        _pause(waited)
    connection.exec_driver_sql(begin)  # raises SQLAlchemy's error


def _pause(waited: float) -> None:
    time.sleep(random.uniform(*(LONG_PAUSES_S if waited < LONG_WAIT_S else SHORT_PAUSES_S)))


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _is_transient(error: sa.exc.DBAPIError) -> bool:
    """Whether the same call may succeed later: busy, unreachable, starting, or a deadlock that was broken up."""
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return _is_busy(cause)
    state = getattr(cause, "sqlstate", None)
    if state is None:  # no reply
        return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    return state == _IDLE_TOO_LONG or (state[:2] in _TRANSIENT and state not in _FINAL)


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _all(step: Callable[[Database], None]) -> Callable[[], None]:
    def run() -> None:
        for each in list(_databases):
            step(each)

    return run


os.register_at_fork(
    before=_all(Database.before_fork),
    after_in_parent=_all(Database.after_fork_in_parent),
    after_in_child=_all(Database.after_fork_in_child),
)
# Python does not close them at exit, and only closing the last connection moves SQLite's log into the file.
atexit.register(_all(Database.close))
