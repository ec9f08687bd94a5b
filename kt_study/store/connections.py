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

# A process that finds the SQLite file busy sleeps long at first, so that the writer can continue with its pages in memory.
# One that has waited for a while sleeps briefly, so that it does not starve.
LONG_NAPS_S, SHORT_NAPS_S, LONG_WAIT_S = (0.008, 0.050), (0.0005, 0.002), 0.06
QUEUE_S = 0.25  # the longest wait for SQLite's write lock on one connection: a fork waits for it
SERVER_NAPS_S = (0.05, 1.0)  # the first pause while a server is away, and the longest
FORK_WAITS_S = 10.0

# A worker that is stopped within a transaction must not keep the rows locked that it holds.
_SESSION = "SET idle_in_transaction_session_timeout = '60s'; SET jit = off"
_PASSING = ("08", "40", "53", "57")  # classes of SQLSTATE: no connection, rolled back, no resources, shut down
_LASTING = ("53100", "57014")  # disk full, cancelled by the user
_IDLE_TOO_LONG = "25P03"


class Database:
    """A database and its connections. It may be used from several threads, and after a fork.

    No connection is open while the process forks: SQLite keeps its locks by process, so that a child would write over its
    parent's commits (seen), and two processes would talk on one socket to PostgreSQL.
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
        """Run `work` in one transaction. It runs again when the database was busy, went away or chose another.

        Raises:
            DatabaseError: the database stayed away longer than the store's patience.
            SchemaMismatch: it lacks a table or column.
        """
        return self._patiently(lambda: self._once(work, "BEGIN IMMEDIATE"))

    def read(self, work: Callable[[sa.Connection], T]) -> T:
        """Run `work`, which only reads, on one consistent state of the database. Raises as `write` does."""
        return self._patiently(lambda: self._once(work, "BEGIN", isolation_level="REPEATABLE READ"))

    def revision(self, wait_s: float) -> str | None:
        """The migration at which the database stands, None without our tables; waits for a server that is away.

        Raises:
            DatabaseError: it stayed away.
        """
        version = sa.select(sa.column("version_num", sa.Text)).select_from(sa.table("alembic_version"))
        patience_s = self._patience_s if self.address.is_sqlite else wait_s  # a file is there or not
        try:
            return self._patiently(
                lambda: self._once(lambda connection: connection.scalar(version), "BEGIN"), patience_s
            )
        except SchemaMismatch:
            return None

    @contextlib.contextmanager
    def private(self) -> Iterator[sa.Connection]:
        """A connection for one long piece of work with temporary tables, closed after it. Raises DatabaseError."""
        with self._told(), self._engine.connect() as connection:
            connection.detach()
            yield connection

    def write_on(self, connection: sa.Connection, work: Callable[[sa.Connection], T]) -> T:
        """`write` on a connection of one's own."""
        return self._patiently(lambda: _within(connection, work, "BEGIN IMMEDIATE"))

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

    def _patiently(self, step: Callable[[], T], patience_s: float | None = None) -> T:
        began = time.monotonic()
        patience_s = self._patience_s if patience_s is None else patience_s
        longest = SERVER_NAPS_S[0]
        while True:
            with self._told():
                try:
                    return step()
                except sa.exc.DBAPIError as error:
                    waited = time.monotonic() - began
                    if not _is_passing(error) or waited > patience_s:
                        raise
            if self.address.is_sqlite:
                _nap(waited)
            else:
                time.sleep(longest * random.uniform(0.5, 1.5))
                longest = min(2 * longest, SERVER_NAPS_S[1])

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The drivers' errors as ours."""
        try:
            yield
        except (sa.exc.IntegrityError, sa.exc.DataError):
            raise
        except sa.exc.DBAPIError as error:
            cause = error.orig or error
            if _is_mismatch(cause):
                raise mismatch(self.address, cause) from error
            raise unreachable(self.address, cause) from error

    def _close_when_idle(self) -> None:
        while (left := self._used_at + self._idle_s - time.monotonic()) > 0 or self._in_use:
            time.sleep(max(left, 0.1))
        self._closer = None
        self._engine.dispose()

    def before_fork(self) -> None:
        """Wait until no connection is in use, close the idle ones, and prevent new ones."""
        deadline = time.monotonic() + FORK_WAITS_S
        self._gate.acquire()
        while self._in_use and time.monotonic() < deadline:
            self._gate.release()
            time.sleep(0.001)
            self._gate.acquire()
        self._engine.dispose()

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        self._gate.release()

    def after_fork_in_child(self) -> None:
        """Begin again, without the threads that the child does not have."""
        self._engine.dispose(close=False)
        self._gate, self._in_use, self._closer = threading.Lock(), 0, None


class Store:
    """What the parts of a `JobStore` share: the database."""

    _database: Database

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
    """A method that reads: it runs in a transaction on a connection, which its callers do not give."""

    @functools.wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._database.read(lambda connection: method(self, connection, *args, **kwargs))

    return run


def writes(method: Callable[Concatenate[S, sa.Connection, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method that writes, whole or not at all; it may run several times before it succeeds."""

    @functools.wraps(method)
    def run(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._database.write(lambda connection: method(self, connection, *args, **kwargs))

    return run


def _engine(address: Address) -> sa.Engine:
    # Idle connections are closed by `Database`; a moment's need for more than these is met.
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
        """The file that has the name now may not be the one that had it a moment ago, nor one that nobody writes."""
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
        found = os.stat(path)  # noqa: PTH116 -- with every use; through a Path it takes three times as long
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _within(connection: sa.Connection, work: Callable[[sa.Connection], T], begin: str) -> T:
    """Run `work` in a transaction. `begin` is how SQLite begins it, whose driver is told to leave that to us."""
    with connection.begin():
        if connection.dialect.name == "sqlite":
            _begin(connection, begin)
        return work(connection)


def _begin(connection: sa.Connection, begin: str) -> None:
    """Begin, waiting up to `QUEUE_S` for other writers.

    The tries are the driver's: through SQLAlchemy each takes as long as a whole claim, and with eight workers on a busy
    machine the tries of seven kept the one that held the lock from the processor.
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
        _nap(waited)
    connection.exec_driver_sql(begin)  # whose error is one of SQLAlchemy's


def _nap(waited: float) -> None:
    time.sleep(random.uniform(*(LONG_NAPS_S if waited < LONG_WAIT_S else SHORT_NAPS_S)))


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _is_passing(error: sa.exc.DBAPIError) -> bool:
    """Whether the same call may succeed a little later: busy, away, starting, or a deadlock that was broken up."""
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        return _is_busy(cause)
    state = getattr(cause, "sqlstate", None)
    if state is None:  # no answer at all
        return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError)
    return state == _IDLE_TOO_LONG or (state[:2] in _PASSING and state not in _LASTING)


def _is_mismatch(cause: BaseException) -> bool:
    """Whether the statement names a table or column that is not there."""
    if isinstance(cause, sqlite3.OperationalError):
        return getattr(cause, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR
    return getattr(cause, "sqlstate", None) in ("42P01", "42703")


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
# Python leaves them open at its end, and only the last connection that is closed brings SQLite's log back into the file.
atexit.register(_all(Database.close))
