"""The store on SQLite: one file, one machine, one writer at a time."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, TypeVarTuple

from kt_study.database import Address, connect_sqlite, mismatch, require_local_disk, unreachable
from kt_study.errors import DatabaseError
from kt_study.store.backend import Row, Staging, Transaction, Wish, as_claim
from kt_study.store.fenced import JobLost, is_done_by, lost
from kt_study.store.pool import Pool
from kt_study.store.records import Orders, encode_progress
from kt_study.store.results import Rows, insert_sqlite, plain_rows
from kt_study.words import Claim, Progress

T = TypeVar("T")
Given = TypeVarTuple("Given")

# Seconds since 1970, to the millisecond. `unixepoch('subsec')` would be plainer and needs SQLite 3.42.
NOW = "((julianday('now') - 2440587.5) * 86400.0)"
# Who finds the file busy naps for long, so that whoever writes goes on with its pages in memory; who has waited for a while
# naps briefly, so that it does not starve.
LONG_NAPS_S, SHORT_NAPS_S, LONG_WAIT_S = (0.008, 0.050), (0.0005, 0.002), 0.06

# `listed` is the fencing number under which a job was last made ready, so that it is another one from the claim on; -1 for
# a job that was swept while it runs; NULL for the rest. Triggers hold that, whatever statement makes a job ready (migration
# 0009). Claiming and finishing leave it, for the sake of speed: each index that they need not follow is a page less to write.
# So what is claimed stays in the indexes by kind, teacher and student, and what is done in jobs_queue too, until a sweep.
SWEEP_AFTER = 2048  # claims of a process for which any job would do: sweeping fewer at a time takes longer for each
MOST_STALE = 64  # jobs that a claim by kind, teacher or student passes over before it would rather sweep
SWEEP_AT_MOST = 2 * SWEEP_AFTER  # a few hundredths of a second

# The words of the index jobs_queue: 2 for what is ready, 1 for what is stale or runs, 0 for what is swept.
_QUEUED = "listed IS NOT NULL AND ((listed = fence) + (listed >= 0))"
_DUE = f"not_before <= {NOW}"
_READY = "listed >= 0 AND state = 'ready' AND NOT paused"
_READY_NOW = f"{_READY} AND {_DUE}"
_READY_IN_QUEUE = f"{_QUEUED} = 2 AND state = 'ready' AND NOT paused AND {_DUE}"
_STALE = f"SELECT 1 FROM jobs WHERE {_QUEUED} = 1 LIMIT 1 OFFSET ?"
_SWEEP = f"""
    UPDATE jobs SET listed = CASE state WHEN 'running' THEN -1 END
    WHERE id IN (SELECT id FROM jobs WHERE {_QUEUED} < 2 AND (listed >= 0 OR state <> 'running') LIMIT ?)
"""
_ORDER = "ORDER BY priority DESC, estimate_s DESC, id"
_OF_STUDY = " AND EXISTS (SELECT 1 FROM study_jobs sj JOIN studies s ON s.id = sj.study_id WHERE sj.job_id = jobs.id AND s.name = :study)"
# Within one statement SQLite's clock stands still.
_START = f"""
    UPDATE jobs SET state = 'running', worker = ?, fence = fence + 1, lease_until = {NOW} + ?,
        started_at = {NOW}, changed_at = {NOW}, progress = NULL
    WHERE id {{picked}} RETURNING id, fence, kind, digest, spec, attempts
"""
_FIRST = f"(SELECT id FROM jobs WHERE {_READY_IN_QUEUE} {_ORDER} LIMIT"
_START_CHOSEN = _START.format(picked="IN (SELECT value FROM json_each(?))")
_START_ONE = _START.format(picked=f"= {_FIRST} 1)")
_START_SEVERAL = _START.format(picked=f"IN {_FIRST} ?)")
_RENEW = f"""
    UPDATE jobs SET lease_until = {NOW} + ?, progress = coalesce(?, progress) WHERE id = ? AND fence = ? AND state = 'running'
    RETURNING paused
"""
_END = f"""
    UPDATE jobs SET state = 'done', attempts = attempts + 1, lease_until = NULL, changed_at = {NOW}
    WHERE id = ? AND fence = ? AND state = 'running'
"""


class SqliteTransaction:
    """An open transaction on one connection."""

    now = NOW
    skip_locked = ""  # the one writer needs no row locks
    ready = _READY
    running = f"{_QUEUED} < 2 AND state = 'running'"
    for_update = ""
    server_started = "0.0"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def rows(self, statement: str, **parameters: Any) -> list[Row]:
        return self.connection.execute(statement, _bound(parameters)).fetchall()

    def change(self, statement: str, **parameters: Any) -> int:
        return self.connection.execute(statement, _bound(parameters)).rowcount

    def many(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        self.connection.executemany(statement, [_bound(each) for each in parameters])

    def among(self, column: str, parameter: str) -> str:
        return f"{column} IN (SELECT value FROM json_each(:{parameter}))"

    def like_glob(self, column: str, parameter: str) -> str:
        return f"{column} GLOB :{parameter}"

    def glob(self, pattern: str) -> str:
        return pattern.replace("[!", "[^")


def _bound(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in parameters.items()}


class SqliteBackend:
    """A store in one file. Writers take turns: each tries again after a short nap of random length, so that none starves."""

    def __init__(self, address: Address, *, patience_s: float, idle_s: float) -> None:
        require_local_disk(address.path, "the SQLite database")
        self.address = address
        self._patience_s = patience_s
        self._until_sweep = random.randrange(SWEEP_AFTER)  # so that processes that live briefly do their share
        self._pool: Pool[_Connection] = Pool(lambda: _Connection(address.path), idle_s)

    def close(self) -> None:
        self._pool.close()

    def transact(self, work: Callable[[Transaction], T]) -> T:
        return self._run("BEGIN IMMEDIATE", lambda connection: work(SqliteTransaction(connection)))

    def read(self, work: Callable[[Transaction], T]) -> T:
        return self._run("BEGIN", lambda connection: work(SqliteTransaction(connection)))

    def _run(self, begin: str, work: Callable[[sqlite3.Connection, *Given], T], *given: *Given) -> T:
        """See `within`."""
        deadline = time.monotonic() + self._patience_s
        while True:
            held = self._take()
            try:
                result = within(held.connection, begin, work, deadline, *given)
            except sqlite3.DatabaseError as error:
                self._pool.discard(held)
                if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_ERROR:
                    raise mismatch(self.address, error) from error
                if not is_busy(error) or time.monotonic() > deadline:
                    raise unreachable(self.address, error) from error
                continue
            except BaseException:
                self._pool.discard(held)
                raise
            self._pool.give(held)
            return result

    def _take(self) -> _Connection:
        """A connection to the file that has the name now, which may not be the file it had a moment ago."""
        held = self._pool.take()
        while not held.is_current():
            self._pool.discard(held)
            held = self._pool.take()
        return held

    def revision(self, wait_s: float) -> str | None:  # noqa: ARG002 -- a file is there or not
        try:
            found = self.read(lambda tx: tx.rows("SELECT version_num FROM alembic_version"))
        except DatabaseError as error:
            if "no such table" in str(error):
                return None
            raise
        return found[0][0] if found else None

    def claim(self, wish: Wish) -> list[Claim]:
        if not wish.is_plain:
            return self._run("BEGIN IMMEDIATE", _claim, wish)
        self._until_sweep -= wish.limit
        if self._until_sweep <= 0:
            self._run("", sweep)  # before the claim, so that a sweep that fails keeps no claim from its worker
            self._until_sweep = SWEEP_AFTER
        return self._run("", _claim_first, wish)

    def beat(self, worker: str, held: Sequence[tuple[Claim, Progress | None]], lease_s: float) -> Orders:
        return self._run("BEGIN IMMEDIATE", _beat, worker, held, lease_s)

    def finish(self, finished: Sequence[tuple[Claim, Rows]]) -> list[JobLost]:
        ready = [
            (claim, {table: plain_rows(table, claim.job_id, rows) for table, rows in tables.items() if rows})
            for claim, tables in finished
        ]
        begin = "" if len(ready) == 1 and not ready[0][1] else "BEGIN IMMEDIATE"
        return self._run(begin, _finish, ready)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Staging]:
        held = _Connection(self.address.path)
        try:
            yield SqliteStaging(held.connection, self.address, self._patience_s)
        finally:
            held.close()


class _Connection:
    """A connection and the identity of the file it was opened on."""

    def __init__(self, path: str) -> None:
        self._look = functools.partial(os.stat, path)  # through a Path it takes three times as long
        self.connection = connect_sqlite(path)
        self._device = self._inode = -1  # of no file
        with contextlib.suppress(OSError):
            found = self._look()
            self._device, self._inode = found.st_dev, found.st_ino

    def is_current(self) -> bool:
        """Whether the name still is that of the file. Asked with every use, so in as few steps as there can be."""
        try:
            found = self._look()
        except OSError:
            return False
        return found.st_ino == self._inode and found.st_dev == self._device

    def close(self) -> None:
        self.connection.close()


class SqliteStaging:
    """Temporary tables beside the database, filled before the one write lock is taken."""

    def __init__(self, connection: sqlite3.Connection, address: Address, patience_s: float) -> None:
        self._connection = connection
        self._address = address
        self._patience_s = patience_s
        connection.execute("PRAGMA temp_store=FILE")
        connection.execute("PRAGMA cache_size=-65536")  # KiB

    def make(self, table: str, columns: str) -> None:
        self._connection.execute(f"CREATE TEMP TABLE {table} ({columns})")

    def load(self, table: str, rows: Sequence[Row]) -> None:
        if rows:
            self._connection.execute("BEGIN")
            self._connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
            self._connection.execute("COMMIT")

    def ready(self, *indexed: tuple[str, str]) -> None:
        for table, column in indexed:
            self._connection.execute(f"CREATE INDEX temp.{table}_{column} ON {table} ({column})")

    def transact(self, work: Callable[[Transaction], T]) -> T:
        deadline = time.monotonic() + self._patience_s
        try:
            return within(self._connection, "BEGIN IMMEDIATE", lambda c: work(SqliteTransaction(c)), deadline)
        except sqlite3.DatabaseError as error:
            raise unreachable(self._address, error) from error

    def analyse(self) -> None:
        """Nothing: our indexes serve every statement, and figures about them could only turn SQLite away from them."""


def within(
    connection: sqlite3.Connection,
    begin: str,
    work: Callable[[sqlite3.Connection, *Given], T],
    deadline: float,
    *given: *Given,
) -> T:
    """Run `work` between `begin` and COMMIT; as it is where `begin` is empty, if one of its statements writes.

    Waits for other writers until `deadline` (time.monotonic).
    """
    if not begin:
        return _patiently(deadline, work, connection, *given)
    _patiently(deadline, connection.execute, begin)
    try:
        result = work(connection, *given)
        connection.execute("COMMIT")
        return result
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _patiently(deadline: float, step: Callable[[*Given], T], *given: *Given) -> T:
    begun: float | None = None
    while True:
        try:
            return step(*given)
        except sqlite3.OperationalError as error:
            now = time.monotonic()
            if not is_busy(error) or now > deadline:
                raise
        begun = now if begun is None else begun
        time.sleep(random.uniform(*(LONG_NAPS_S if now - begun < LONG_WAIT_S else SHORT_NAPS_S)))


def is_busy(error: sqlite3.DatabaseError) -> bool:
    """Whether the error means that another process was at work, and not that something is wrong."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _claim_first(connection: sqlite3.Connection, wish: Wish) -> list[Claim]:
    if wish.limit == 1:
        return _started(connection, _START_ONE, wish.worker, wish.lease_s)
    return _started(connection, _START_SEVERAL, wish.worker, wish.lease_s, wish.limit)


def _claim(connection: sqlite3.Connection, wish: Wish) -> list[Claim]:
    if connection.execute(_STALE, [MOST_STALE]).fetchone():
        sweep(connection)
    ids = _choose(connection, wish)
    claims = _started(connection, _START_CHOSEN, wish.worker, wish.lease_s, json.dumps(ids))
    return sorted(claims, key=lambda claim: ids.index(claim.job_id))


def _started(connection: sqlite3.Connection, start: str, *given: object) -> list[Claim]:
    return [as_claim(row) for row in connection.execute(start, given).fetchall()]


def sweep(connection: sqlite3.Connection) -> int:
    """Take claimed jobs out of the indexes, and count them. Those that run stay where `SqliteTransaction.running` looks."""
    return connection.execute(_SWEEP, [SWEEP_AT_MOST]).rowcount


def _choose(connection: sqlite3.Connection, wish: Wish) -> list[int]:
    """Jobs whose student or teacher the worker has, then any, both by priority and longest first."""
    chosen = _choose_by(connection, wish, "teacher", wish.teachers)
    chosen += _choose_by(connection, wish, "student", wish.students)
    found = [job_id for _, _, job_id in sorted(set(chosen))][: wish.limit]
    if len(found) < wish.limit:
        others = _choose_any(connection, wish, wish.limit + len(found))
        found += [job_id for job_id in others if job_id not in found]
    return found[: wish.limit]


def _choose_by(
    connection: sqlite3.Connection, wish: Wish, column: str, keys: Sequence[str], limit: int | None = None
) -> list[tuple[int, float, int]]:
    """(-priority, -estimate, id) of the best jobs of each key, in ascending order of preference within a key."""
    where, parameters = _filters(wish)
    statement = f"SELECT -priority, -estimate_s, id FROM jobs WHERE {where} AND {column} = :key {_ORDER} LIMIT :limit"
    found: list[tuple[int, float, int]] = []
    for key in keys:
        found += connection.execute(statement, parameters | {"key": key, "limit": limit or wish.limit}).fetchall()
    return found


def _choose_any(connection: sqlite3.Connection, wish: Wish, limit: int) -> list[int]:
    if not wish.kinds and wish.time_left_s is None:
        where, parameters = _filters(wish, _READY_IN_QUEUE)
        rows = connection.execute(
            f"SELECT id FROM jobs WHERE {where} {_ORDER} LIMIT :limit", parameters | {"limit": limit}
        )
        return [job_id for (job_id,) in rows]
    where, parameters = _filters(wish)
    statement = (
        f"SELECT -priority, -estimate_s, id FROM jobs WHERE {where} AND kind = :kind AND priority = :priority "
        f"{_ORDER} LIMIT :limit"
    )
    found: list[tuple[int, float, int]] = []
    for kind, priority in _levels(connection, wish.kinds):
        level = {"kind": kind, "priority": priority, "limit": limit}
        found += connection.execute(statement, parameters | level).fetchall()
    return [job_id for _, _, job_id in sorted(found)][:limit]


def _filters(wish: Wish, where: str = _READY_NOW) -> tuple[str, dict[str, Any]]:
    parameters: dict[str, Any] = {}
    if wish.kinds:
        where += " AND kind IN (SELECT value FROM json_each(:kinds))"
        parameters["kinds"] = json.dumps(wish.kinds)
    if wish.time_left_s is not None:
        where += " AND estimate_s <= :time_left"
        parameters["time_left"] = wish.time_left_s
    if wish.study is not None:
        where += _OF_STUDY
        parameters["study"] = wish.study
    return where, parameters


def _levels(connection: sqlite3.Connection, kinds: Sequence[str]) -> list[tuple[str, int]]:
    """Every (kind, priority) among the ready jobs, by one index seek each: time does not grow with the table."""
    ready = f"FROM jobs WHERE {_READY}"
    if not kinds:
        kinds, last = [], ""
        while (last := connection.execute(f"SELECT min(kind) {ready} AND kind > ?", [last]).fetchone()[0]) is not None:
            kinds.append(last)
    found = []
    for kind in kinds:
        level = 2**62
        statement = f"SELECT max(priority) {ready} AND kind = ? AND priority < ?"
        while (level := connection.execute(statement, [kind, level]).fetchone()[0]) is not None:
            found.append((kind, level))
    return found


def _beat(
    connection: sqlite3.Connection, worker: str, held: Sequence[tuple[Claim, Progress | None]], lease_s: float
) -> Orders:
    connection.execute(f"UPDATE workers SET beat_at = {NOW} WHERE id = ?", [worker])
    gone, cancelled, paused = set(), set(), set()
    for claim, progress in held:
        stored = encode_progress(progress)
        renewed = connection.execute(_RENEW, [lease_s, stored, claim.job_id, claim.fence]).fetchone()
        if renewed is None:
            gone.add(claim.job_id)
            if _is_cancelled(connection, claim):
                cancelled.add(claim.job_id)
        elif renewed[0]:
            paused.add(claim.job_id)
    return Orders(lost=frozenset(gone), cancelled=frozenset(cancelled), paused=frozenset(paused))


def _is_cancelled(connection: sqlite3.Connection, claim: Claim) -> bool:
    found = connection.execute("SELECT state, fence FROM jobs WHERE id = ?", [claim.job_id]).fetchone()
    return bool(found == ("cancelled", claim.fence))


def _finish(connection: sqlite3.Connection, finished: Sequence[tuple[Claim, dict[str, list[Row]]]]) -> list[JobLost]:
    gone = []
    for claim, tables in finished:
        if not connection.execute(_END, [claim.job_id, claim.fence]).rowcount:
            found = connection.execute("SELECT state, fence, worker FROM jobs WHERE id = ?", [claim.job_id]).fetchone()
            if not is_done_by(claim, found):
                gone.append(lost(claim, found))
            continue
        for table, rows in tables.items():
            connection.executemany(insert_sqlite(table), rows)
    return gone
