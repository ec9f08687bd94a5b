"""The store on PostgreSQL, through psycopg 3: many nodes, workers that never wait for each other's rows."""

from __future__ import annotations

import contextlib
import fnmatch
import functools
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import psycopg

from kt_study.database import Address, connect_postgresql, mismatch, unreachable
from kt_study.errors import SchemaMismatch
from kt_study.store.backend import Row, Staging, Transaction, Wish, as_claim
from kt_study.store.fenced import JobLost, is_done_by, lost
from kt_study.store.pool import Pool
from kt_study.store.prepared import Answer, Session, Statement, Value, array_of, statement
from kt_study.store.records import Orders, encode_progress
from kt_study.store.results import Rows, insert_postgres, plain_rows
from kt_study.words import Claim, Progress

T = TypeVar("T")
Connection = psycopg.Connection[Any]

NOW = "date_part('epoch', clock_timestamp())"
PLANNING_LOCK = 5_730_412  # key of the advisory lock that keeps two planners apart
PLANNING_MEMORY = "SET work_mem = '128MB'; SET maintenance_work_mem = '128MB'; SET temp_buffers = '64MB'; SET jit = off"
SHORTEST_NAP_S, LONGEST_NAP_S = 0.05, 1.0

# The quick statements touch a handful of rows by index and are planned once: a table that was never analysed must not
# turn them into scans, and planning them anew would cost more than running them.
_SETTINGS = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off; " \
    "SET enable_mergejoin = off; SET enable_bitmapscan = off; SET jit = off"  # fmt: skip
_FREELY = "SET LOCAL plan_cache_mode = auto; SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; " \
    "SET LOCAL enable_mergejoin = on; SET LOCAL enable_bitmapscan = on"  # fmt: skip

_READY = f"j.state = 'ready' AND NOT j.paused AND j.not_before <= {NOW}"
_ORDER = "priority DESC, estimate_s DESC, id"

_CLAIM = f"""
{{prelude}}
UPDATE jobs j SET state = 'running', worker = %(worker)s, ticket = %(ticket)s::bigint, fence = j.fence + 1,
    lease_until = {NOW} + %(lease_s)s::float8, started_at = {NOW}, changed_at = {NOW}, progress = NULL
WHERE j.id = ANY(ARRAY({{picked}}))
RETURNING j.id, j.fence, j.kind, j.digest, j.spec, j.attempts
"""
_FIRST = f"""
SELECT j.id FROM jobs j WHERE {_READY} {{filters}} ORDER BY {_ORDER} LIMIT %(limit)s::bigint FOR NO KEY UPDATE SKIP LOCKED
"""
_FIRST_OF = f"SELECT id FROM {{source}} ORDER BY {_ORDER} LIMIT %(limit)s::bigint"
# The best few of each key, through the index that begins with it.
_BEST_OF = f"""
    SELECT best.* FROM unnest(%({{column}}s)s::text[]) AS mine(key) CROSS JOIN LATERAL (
        SELECT j.id, j.priority, j.estimate_s FROM jobs j WHERE {_READY} AND j.{{column}} = mine.key {{filters}}
        ORDER BY {_ORDER} LIMIT %(limit)s::bigint FOR NO KEY UPDATE SKIP LOCKED
    ) best"""
_MINE = "WITH mine AS MATERIALIZED ({by_teacher} UNION {by_student})"
# Every (kind, priority) among the ready jobs by one index seek each, then the best few of each: the time does not grow
# with the number of jobs that do not fit.
_WITH_KINDS = "kinds(kind) AS (SELECT unnest(%(kinds)s::text[]))"
_ANY_KIND = """
kinds(kind) AS (
    SELECT min(j.kind) FROM jobs j WHERE j.state = 'ready' AND NOT j.paused
    UNION ALL
    SELECT (SELECT min(j.kind) FROM jobs j WHERE j.state = 'ready' AND NOT j.paused AND j.kind > kinds.kind)
    FROM kinds WHERE kinds.kind IS NOT NULL
)"""
_FITTING = f"""
WITH RECURSIVE {{kinds}},
levels(kind, priority) AS (
    SELECT kind, (SELECT max(j.priority) FROM jobs j WHERE j.state = 'ready' AND NOT j.paused AND j.kind = kinds.kind)
    FROM kinds WHERE kind IS NOT NULL
    UNION ALL
    SELECT kind, (SELECT max(j.priority) FROM jobs j
        WHERE j.state = 'ready' AND NOT j.paused AND j.kind = levels.kind AND j.priority < levels.priority)
    FROM levels WHERE priority IS NOT NULL
),
fitting AS MATERIALIZED (
    SELECT best.* FROM levels CROSS JOIN LATERAL (
        SELECT j.id, j.priority, j.estimate_s FROM jobs j
        WHERE {_READY} AND j.kind = levels.kind AND j.priority = levels.priority {{filters}}
        ORDER BY {_ORDER} LIMIT %(limit)s::bigint FOR NO KEY UPDATE SKIP LOCKED
    ) best WHERE levels.priority IS NOT NULL
)"""

_ADOPT = statement("""
SELECT id, fence, kind, digest, spec, attempts FROM jobs
WHERE state = 'running' AND worker = %(worker)s AND ticket = %(ticket)s::bigint ORDER BY id
""")
# A job has a lease exactly while it runs. Asking for `state = 'running'` here would let PostgreSQL take the index of the
# running jobs, which looks short to it and is full of dead rows, where it should take the job by its id.
_BEAT = statement(f"""
WITH given AS (
    SELECT * FROM unnest(%(ids)s::bigint[], %(fences)s::int[], %(progress)s::text[]) AS g(id, fence, progress)
),
held AS MATERIALIZED (
    SELECT j.id FROM given g JOIN jobs j ON j.id = g.id
    WHERE j.fence = g.fence AND j.lease_until IS NOT NULL ORDER BY j.id FOR NO KEY UPDATE OF j
),
renewed AS (
    UPDATE jobs j SET lease_until = {NOW} + %(lease_s)s::float8, progress = coalesce(g.progress, j.progress)
    FROM held JOIN given g ON g.id = held.id WHERE j.id = held.id RETURNING j.id, j.paused
),
seen AS (UPDATE workers SET beat_at = {NOW} WHERE id = %(worker)s)
SELECT g.id, r.paused, (SELECT j.state = 'cancelled' FROM jobs j WHERE j.id = g.id AND j.fence = g.fence)
FROM given g LEFT JOIN renewed r ON r.id = g.id
""")
_END = f"""
UPDATE jobs j SET state = 'done', attempts = j.attempts + 1, lease_until = NULL, changed_at = {NOW}
{{which}} AND j.lease_until IS NOT NULL RETURNING j.id
"""
_END_WITH_ROWS = "WITH done AS ({end}){rows} SELECT id FROM done"
_ONE = "WHERE j.id = %(id)s::bigint AND j.fence = %(fence)s::int"
_MANY = """
    FROM (SELECT * FROM unnest(%(ids)s::bigint[], %(fences)s::int[]) AS g(id, fence) ORDER BY id) given
    WHERE j.id = given.id AND j.fence = given.fence"""


class PostgresTransaction:
    """An open transaction on one connection."""

    now = NOW
    skip_locked = "FOR UPDATE SKIP LOCKED"
    ready = "state = 'ready' AND NOT paused"
    running = "state = 'running'"
    for_update = "FOR UPDATE"
    server_started = "date_part('epoch', pg_postmaster_start_time())"

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def rows(self, statement: str, **parameters: Any) -> list[Row]:
        return self.connection.execute(_translated(statement), parameters).fetchall()

    def change(self, statement: str, **parameters: Any) -> int:
        return self.connection.execute(_translated(statement), parameters).rowcount

    def many(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        with self.connection.cursor() as cursor:
            cursor.executemany(_translated(statement), parameters)

    def among(self, column: str, parameter: str) -> str:
        return f"{column} = ANY(:{parameter})"

    def like_glob(self, column: str, parameter: str) -> str:
        return f"{column} ~ :{parameter}"

    def glob(self, pattern: str) -> str:
        return "^" + fnmatch.translate(pattern).removeprefix("(?s:").removesuffix(r")\Z") + "$"


@functools.lru_cache(maxsize=512)
def _translated(statement: str) -> bytes:
    return re.sub(r"(?<!:):([a-z]\w*)", r"%(\1)s", statement.replace("%", "%%")).encode()


class PostgresBackend:
    """A store on a server. What the server loses track of when it restarts is found again by ticket or fencing number."""

    def __init__(self, address: Address, *, patience_s: float, idle_s: float) -> None:
        self.address = address
        self._patience_s = patience_s
        self._pool: Pool[Session] = Pool(lambda: Session(address, _SETTINGS), idle_s)

    def close(self) -> None:
        self._pool.close()

    def _run(self, work: Callable[[Session], T], patience_s: float | None = None) -> T:
        """Run `work`, again after a short nap when the server went away or ended a deadlock, until patience ends."""
        deadline = time.monotonic() + (self._patience_s if patience_s is None else patience_s)
        nap = SHORTEST_NAP_S
        while True:
            try:
                return self._once(work)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if not _is_passing(error) or time.monotonic() + nap > deadline:
                    raise unreachable(self.address, error) from error
            except (psycopg.errors.UndefinedColumn, psycopg.errors.UndefinedTable) as error:
                raise mismatch(self.address, error) from error
            time.sleep(nap * random.uniform(0.5, 1.5))
            nap = min(2 * nap, LONGEST_NAP_S)

    def _once(self, work: Callable[[Session], T]) -> T:
        session = self._pool.take()
        try:
            result = work(session)
        except BaseException:
            self._pool.discard(session)
            raise
        self._pool.give(session)
        return result

    def transact(self, work: Callable[[Transaction], T]) -> T:
        return self._run(lambda session: _within(session.connection, work))

    def read(self, work: Callable[[Transaction], T]) -> T:
        return self._run(
            lambda session: _within(session.connection, work, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        )

    def revision(self, wait_s: float) -> str | None:
        try:
            found = self._run(
                lambda session: session.connection.execute("SELECT version_num FROM alembic_version").fetchone(), wait_s
            )
        except SchemaMismatch:
            return None
        return found[0] if found else None

    def claim(self, wish: Wish) -> list[Claim]:
        steps = [_statement(wish, mine=True)] if wish.teachers or wish.students else []
        claims: list[Claim] = []
        for claiming in [*steps, _statement(wish, mine=False)]:
            if len(claims) < wish.limit:
                claims += self._claim_by(claiming, wish, wish.limit - len(claims))
        return claims

    def _claim_by(self, claiming: Statement, wish: Wish, limit: int) -> list[Claim]:
        """One claiming statement. If its answer is lost, the next try looks first for what it had claimed."""
        parameters = _parameters(wish, limit)
        tries = 0

        def claim(session: Session) -> list[Answer]:
            nonlocal tries
            tries += 1
            if tries > 1 and (adopted := session.run(_ADOPT, parameters)):
                return adopted
            return session.run(claiming, parameters)

        return [_as_claim(answer) for answer in self._run(claim)]

    def beat(self, worker: str, held: Sequence[tuple[Claim, Progress | None]], lease_s: float) -> Orders:
        parameters: dict[str, Value] = {
            "worker": worker,
            "lease_s": lease_s,
            "ids": array_of(claim.job_id for claim, _ in held),
            "fences": array_of(claim.fence for claim, _ in held),
            "progress": array_of(encode_progress(progress) for _, progress in held),
        }
        answers = self._run(lambda session: session.run(_BEAT, parameters))
        told = [(int(job_id or 0), paused, cancelled) for job_id, paused, cancelled in answers]
        gone = frozenset(job_id for job_id, paused, _ in told if paused is None)
        return Orders(
            lost=gone,
            cancelled=frozenset(job_id for job_id, _, cancelled in told if cancelled == b"t" and job_id in gone),
            paused=frozenset(job_id for job_id, paused, _ in told if paused == b"t"),
        )

    def finish(self, finished: Sequence[tuple[Claim, Rows]]) -> list[JobLost]:
        ending, parameters = _finishing(finished)
        return self._run(lambda session: _finish(session, finished, ending, parameters))

    @contextlib.contextmanager
    def staging(self) -> Iterator[Staging]:
        try:
            connection = connect_postgresql(self.address)
        except psycopg.OperationalError as error:
            raise unreachable(self.address, error) from error
        try:
            yield PostgresStaging(connection)
        except psycopg.OperationalError as error:
            raise unreachable(self.address, error) from error
        finally:
            connection.close()


class PostgresStaging:
    """Temporary tables of one connection, filled with COPY."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._tables: list[str] = []
        connection.execute(PLANNING_MEMORY)

    def make(self, table: str, columns: str) -> None:
        self._connection.execute(f"CREATE TEMP TABLE {table} ({columns})".encode())
        self._tables.append(table)

    def load(self, table: str, rows: Sequence[Row]) -> None:
        with self._connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
            for row in rows:
                copy.write_row(row)

    def ready(self, *indexed: tuple[str, str]) -> None:
        for table, column in indexed:
            self._connection.execute(f"CREATE INDEX ON {table} ({column})".encode())
        for table in self._tables:
            self._connection.execute(f"ANALYZE {table}".encode())

    def transact(self, work: Callable[[Transaction], T]) -> T:
        def alone(tx: Transaction) -> T:
            tx.rows("SELECT pg_advisory_xact_lock(:key)", key=PLANNING_LOCK)
            return work(tx)

        while True:
            try:
                return _within(self._connection, alone)
            except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure):
                time.sleep(random.uniform(SHORTEST_NAP_S, LONGEST_NAP_S))

    def analyse(self) -> None:
        self._connection.execute("ANALYZE jobs, job_needs, study_jobs")


def _within(connection: Connection, work: Callable[[Transaction], T], begin: str = "BEGIN") -> T:
    connection.execute(f"{begin}; {_FREELY}".encode())
    try:
        result = work(PostgresTransaction(connection))
        connection.execute("COMMIT")
        return result
    except BaseException:
        with contextlib.suppress(psycopg.Error):
            connection.execute("ROLLBACK")
        raise


def _is_passing(error: psycopg.Error) -> bool:
    """Whether the same call may succeed a little later: the server is away or starting, or broke up a deadlock."""
    if error.sqlstate is None:
        return True  # no answer at all
    return error.sqlstate[:2] in ("08", "40", "53", "57") and error.sqlstate not in (
        "53100",
        "57014",
    )  # disk full, cancelled


@functools.lru_cache(maxsize=64)
def _claiming(mine: bool, kinds: bool, time_left: bool, study: bool) -> Statement:
    filters = ""
    if study:
        filters += " AND EXISTS (SELECT 1 FROM study_jobs sj JOIN studies s ON s.id = sj.study_id " \
            "WHERE sj.job_id = j.id AND s.name = %(study)s)"  # fmt: skip
    if time_left:
        filters += " AND j.estimate_s <= %(time_left_s)s::float8"
    if mine:
        filters += " AND j.kind = ANY(%(kinds)s::text[])" if kinds else ""
        by = {f"by_{column}": _BEST_OF.format(column=column, filters=filters) for column in ("teacher", "student")}
        prelude, picked = _MINE.format(**by), _FIRST_OF.format(source="mine")
    elif kinds or time_left:
        prelude = _FITTING.format(kinds=_WITH_KINDS if kinds else _ANY_KIND, filters=filters)
        picked = _FIRST_OF.format(source="fitting")
    else:
        prelude, picked = "", _FIRST.format(filters=filters)
    return statement(_CLAIM.format(prelude=prelude, picked=picked))


def _statement(wish: Wish, *, mine: bool) -> Statement:
    return _claiming(mine, bool(wish.kinds), wish.time_left_s is not None, wish.study is not None)


def _parameters(wish: Wish, limit: int) -> dict[str, Value]:
    return {
        "worker": wish.worker,
        "ticket": random.getrandbits(62),
        "lease_s": wish.lease_s,
        "limit": limit,
        "kinds": array_of(wish.kinds),
        "teachers": array_of(wish.teachers),
        "students": array_of(wish.students),
        "time_left_s": wish.time_left_s,
        "study": wish.study,
    }


def _as_claim(answer: Answer) -> Claim:
    job_id, fence, kind, digest, spec, attempts = (value or b"" for value in answer)
    return as_claim((int(job_id), int(fence), kind.decode(), digest.decode(), spec, int(attempts)))


def _finishing(finished: Sequence[tuple[Claim, Rows]]) -> tuple[Statement, dict[str, Value]]:
    """One statement that ends the jobs and writes the rows of those that were still held."""
    tables = sorted({table for _, rows in finished for table, given in rows.items() if given})
    if len(finished) == 1:
        claim = finished[0][0]
        parameters: dict[str, Value] = {"id": claim.job_id, "fence": claim.fence}
    else:
        ids, fences = array_of(claim.job_id for claim, _ in finished), array_of(claim.fence for claim, _ in finished)
        parameters = {"ids": ids, "fences": fences}
    for table in tables:
        rows = [row for claim, given in finished for row in plain_rows(table, claim.job_id, given.get(table, ()))]
        parameters |= {f"{table}_{at}": array_of(column) for at, column in enumerate(zip(*rows, strict=True))}
    return _ending(len(finished) == 1, tuple(tables)), parameters


@functools.cache
def _ending(one: bool, tables: tuple[str, ...]) -> Statement:
    end = _END.format(which=_ONE if one else _MANY)
    rows = "".join(f",\nrows_{table} AS ({insert_postgres(table, 'done')})" for table in tables)
    return statement(_END_WITH_ROWS.format(end=end, rows=rows) if rows else end)


def _finish(
    session: Session, finished: Sequence[tuple[Claim, Rows]], ending: Statement, parameters: dict[str, Value]
) -> list[JobLost]:
    ended = {int(job_id or 0) for (job_id,) in session.run(ending, parameters)}
    gone: list[JobLost] = []
    for claim, _ in finished:
        if claim.job_id not in ended:
            where = session.connection.execute(
                "SELECT state, fence, worker FROM jobs WHERE id = %s", [claim.job_id]
            ).fetchone()
            if not is_done_by(claim, where):
                gone.append(lost(claim, where))
    return gone
