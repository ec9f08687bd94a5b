"""`kt-study query`: named queries from sql/queries, and free SELECTs, on a connection that cannot write.

SQLite opens the file read-only, with an authorizer that allows only reads. PostgreSQL runs one statement as a cursor in a
read-only transaction that is always rolled back, and refuses functions whose effects a rollback does not undo: those that
terminate or lock other sessions, write files, or run SQL from an argument. A superuser's query runs under the role
kt_study_reader, which may only read the job tables; it is created once per server. Any other role is used as it is, since it
usually may not create roles.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.database import Address, connect_postgresql, parse_url, unreachable
from kt_study.errors import UsageError
from kt_study.nearest import nearest
from kt_study.printable import printable
from kt_study.settings import named
from kt_study.shared_files import missing, shared_folder
from kt_study.tables import attempts, metadata
from orchestrator.results.streaming import open_read_only, reading

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

FORMATS = ("table", "csv", "json", "parquet")
TIMEOUT_S = 60.0

_QUOTED = r"""--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"(?:[^"]|"")*\""""
_PARAMETER = re.compile(r"(?<![:\w]):(?P<name>[a-z_]\w*)")
_WORDS = re.compile(rf"(?P<quoted>{_QUOTED})|{_PARAMETER.pattern}|%", re.DOTALL)
_PART = re.compile(r"\{(?P<name>[a-z]+)\}")  # a file of sql/queries/parts, or the settings that tell results apart
_NAME = re.compile(r"^[a-z][a-z0-9-]*$")

_STEPS = 10_000  # of SQLite's virtual machine, between two checks of the clock: less than a millisecond
_SQLITE_READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


@dataclass(frozen=True, kw_only=True)
class NamedQuery:
    """One file of sql/queries with the parts named in it: its first line says what it answers; `:name` in it is a
    parameter, NULL if not given."""

    name: str
    title: str
    sql: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters' names, in the order in which they first appear."""
        return tuple(dict.fromkeys(_PARAMETER.findall(_uncommented(self.sql))))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Columns and rows of a query, values as plain Python numbers and strings."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def named_queries() -> dict[str, NamedQuery]:
    """Every named query, by name."""
    return {path.stem: _read(path) for path in sorted(queries_folder().glob("*.sql"))}


def queries_folder() -> Path:
    """Where the named queries are. Raises UsageError where the installation lacks them."""
    if folder := shared_folder("sql/queries", "*.sql"):
        return folder
    raise UsageError(missing("the named queries"))


def run_query(
    url: str, name_or_sql: str, parameters: Mapping[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
) -> Answer:
    """Run a named query or a SELECT of the user's own. Nothing it does can change the database or hold up its workers.

    Args:
        url: URL of the job database.
        name_or_sql: a name of `named_queries`, or SQL.
        parameters: values for the `:name` in it; those of a named query that are not given are NULL.
        timeout_s: after so many seconds the database stops it.

    Raises:
        UsageError: no query of that name, an unknown parameter, SQL that the database refuses, or the time is up.
        DatabaseError: the database cannot be reached.
    """
    sql, values = _statement(name_or_sql, dict(parameters or {}))
    address = parse_url(url)
    query = _query_sqlite if address.is_sqlite else _query_postgresql
    try:
        return query(address, sql, values, timeout_s)
    except UsageError:
        with reading(url):  # which says where the tables are not there, or another program's
            raise


def pairs_in_files(url: str, name_or_sql: str, *, timeout_s: float = TIMEOUT_S) -> int:
    """Ordered pairs that a query of `complementarity` misses: `all_pairs` jobs leave theirs in files. 0 for others."""
    named = named_queries().get(name_or_sql)
    if "complementarity" not in _uncommented(named.sql if named else name_or_sql):
        return 0
    return int(run_query(url, "SELECT COALESCE(SUM(n_pairs), 0) FROM all_pairs", timeout_s=timeout_s).rows[0][0])


def render(answer: Answer, style: str) -> bytes:
    """The answer as `table` (for people), `csv`, `json` (a list of objects) or `parquet`.

    JSON knows no infinite numbers: they are null there. A parquet column of values of several types is one of text.

    Raises:
        UsageError: no such format, or two columns of one name, which json and parquet cannot hold.
    """
    if style not in FORMATS:
        raise UsageError(f"no format {style!r}; there are {', '.join(FORMATS)}")
    twice = [name for name, count in Counter(answer.columns).items() if count > 1]
    if twice and style in ("json", "parquet"):
        raise UsageError(f"two columns of the query are called {twice[0]!r}; name them apart with AS for {style}")
    writers = {"table": _as_table, "csv": _as_csv, "json": _as_json, "parquet": _as_parquet}
    return writers[style](answer)


def _read(path: Path) -> NamedQuery:
    sql = _with_parts(path.read_text(encoding="utf-8"), path.parent / "parts")
    return NamedQuery(name=path.stem, title=sql.splitlines()[0].removeprefix("--").strip(), sql=sql)


def _with_parts(sql: str, parts: Path) -> str:
    """The text with its `{settings}`, and each `{NAME}` replaced by that file of `parts` without its first line."""

    def part(name: str) -> str:
        if name == "settings":
            return ", ".join(f"t.{column}" for column in named("objective", "training"))
        text = (parts / f"{name}.sql").read_text(encoding="utf-8")
        return _with_parts(text.partition("\n")[2].rstrip(), parts)

    return _PART.sub(lambda match: part(match["name"]), sql)


def _statement(name_or_sql: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The SQL to run, and a value for each of its parameters."""
    sql = name_or_sql
    if _NAME.match(name_or_sql):
        queries = named_queries()
        if name_or_sql not in queries:
            hint = nearest(name_or_sql, queries)
            raise UsageError(f"no query {name_or_sql!r}{hint} (there are {', '.join(queries)}; or write a SELECT)")
        sql = queries[name_or_sql].sql
        values = dict.fromkeys(queries[name_or_sql].parameters) | values
    wanted = set(_PARAMETER.findall(_uncommented(sql)))
    if unknown := sorted(set(values) - wanted):
        hint = nearest(unknown[0], wanted)
        raise UsageError(
            f"the query has no parameter {unknown[0]!r}{hint} (it has {', '.join(sorted(wanted)) or 'none'})"
        )
    if missing := sorted(wanted - set(values)):
        raise UsageError(f"the query needs a value for the parameter {missing[0]!r}")
    return sql.strip().rstrip(";"), values


def _uncommented(sql: str) -> str:
    """The statement without its comments and quoted strings, in which no parameter stands."""
    return re.sub(_QUOTED, "", sql, flags=re.DOTALL)


def _query_sqlite(address: Address, sql: str, values: Mapping[str, Any], timeout_s: float) -> Answer:
    with contextlib.closing(open_read_only(address)) as connection:
        connection.set_authorizer(_reads_only)
        deadline = time.monotonic() + timeout_s
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
        try:
            cursor = connection.execute(sql, values)
            return _answer(cursor.description, cursor.fetchall())
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise _too_long(timeout_s) if time.monotonic() > deadline else _refused(error) from error


def _reads_only(action: int, *_: object) -> int:
    """SQLite's authorizer: SELECT, columns and functions pass. Loading of code is off in sqlite3 as it comes."""
    return sqlite3.SQLITE_OK if action in _SQLITE_READS else sqlite3.SQLITE_DENY


def _query_postgresql(address: Address, sql: str, values: Mapping[str, Any], timeout_s: float) -> Answer:
    import psycopg

    try:
        connection = connect_postgresql(address)
    except psycopg.Error as error:
        raise unreachable(address, error) from error
    with contextlib.closing(connection):
        try:
            _refuse_effects(connection, sql)
            with _as_reader(connection, timeout_s):
                return _through_cursor(connection, sql, values)
        except psycopg.errors.QueryCanceled as error:
            raise _too_long(timeout_s) from error
        except psycopg.Error as error:
            raise _refused(error) from error


# Volatile functions are those that may do more than compute their result, as PostgreSQL knows of each, also of those that
# extensions and users bring. One that takes or returns internal values cannot be called from SQL.
_VOLATILE = b"""
SELECT DISTINCT lower(proname) FROM pg_proc
WHERE provolatile = 'v' AND prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype)
  AND NOT 'internal'::regtype::oid = ANY(proargtypes)
"""
_HARMLESS = frozenset(
    [
        "clock_timestamp", "timeofday", "random", "random_normal", "setseed", "gen_random_uuid", "uuidv4", "uuidv7",
        "array_sample", "array_shuffle", "pg_sleep", "pg_sleep_for", "pg_sleep_until", "current_query",
        "pg_is_in_recovery", "pg_relation_size", "pg_table_size", "pg_indexes_size", "pg_total_relation_size",
        "pg_database_size",
    ]
)  # fmt: skip


def _refuse_effects(connection: psycopg.Connection[Any], sql: str) -> None:
    """Refuse a query in which a function stands that may have effects beyond it. Raises UsageError.

    Every word counts, wherever it stands: what is a string or a comment to a scanner need not be one to the server.
    """
    if re.search(r"\bu&[\"']", sql, re.IGNORECASE):
        raise UsageError('the query is refused: it has U&"..." escapes, which may hide a name; write the characters')
    words = {word.lower() for word in re.findall(r"[^\W\d][\w$]*", sql)}
    volatile = {name for (name,) in connection.execute(_VOLATILE)} - _HARMLESS
    if found := sorted(words & volatile):
        raise UsageError(
            f"the query is refused: {found[0]} may have effects beyond the query; one SELECT over the job tables may run here"
        )


_READER = "kt_study_reader"
_READER_LOCK = 5_730_413  # key of the advisory lock under which it gets its rights
_READABLE = sorted([*metadata.tables, attempts.name, "alembic_version"])

_POWERS = b"""
SELECT rolsuper, CASE WHEN pg_has_role('pg_read_server_files', 'member') THEN 'read files'
                      WHEN pg_has_role('pg_write_server_files', 'member') THEN 'write files'
                      WHEN pg_has_role('pg_execute_server_program', 'member') THEN 'run programs' END
FROM pg_roles WHERE rolname = session_user
"""
_READER_KNOWN = b"""
SELECT rolsuper OR rolcanlogin OR EXISTS (SELECT FROM pg_auth_members WHERE member = pg_roles.oid)
FROM pg_roles WHERE rolname = %s
"""
_UNREADABLE = b"""
SELECT quote_ident(nspname), quote_ident(relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'v') AND pg_table_is_visible(pg_class.oid) AND relname = ANY(%(tables)s)
  AND NOT (has_table_privilege(%(reader)s, pg_class.oid, 'SELECT')
           AND has_schema_privilege(%(reader)s, relnamespace, 'USAGE'))
"""


@contextlib.contextmanager
def _as_reader(connection: psycopg.Connection[Any], timeout_s: float) -> Iterator[None]:
    """A read-only transaction that the server ends after a time and that is rolled back whatever happens.

    A read-only transaction cannot be made writable once it has begun to read. What a superuser may do besides, such as
    reading the server's files, the reader may not; it could go back to the superuser by `set_config` alone, which is
    refused before. Raises UsageError for another role that may use the server's files or programs.
    """
    superuser, files = connection.execute(_POWERS).fetchall()[0]
    if superuser:
        _prepare_reader(connection)
    elif files:
        raise UsageError(f"the role of this URL may {files} on the server; give --db a role that may not")
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
            connection.execute("SELECT set_config(%s, %s, true)", [setting, f"{max(1, round(1000 * timeout_s))}ms"])
        if superuser:
            connection.execute(f"SET LOCAL ROLE {_READER}")
        yield
    finally:
        connection.execute("ROLLBACK")


def _prepare_reader(connection: psycopg.Connection[Any]) -> None:
    """Make the role that may read the job tables, and give it the tables that it cannot read yet. Mostly it has them all."""
    import psycopg

    wanted = {"reader": _READER, "tables": _READABLE}
    known = connection.execute(_READER_KNOWN, [_READER]).fetchone()
    if known is None:
        with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):  # another query's
            connection.execute(f"CREATE ROLE {_READER} NOLOGIN")
    elif known[0]:
        raise UsageError(f"the server's role {_READER} may more than read; drop it, and kt-study makes it anew")
    if not connection.execute(_UNREADABLE, wanted).fetchall():
        return
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_READER_LOCK])
        for schema, table in connection.execute(_UNREADABLE, wanted).fetchall():
            connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {_READER}".encode())
            connection.execute(f"GRANT SELECT ON {schema}.{table} TO {_READER}".encode())


def _through_cursor(connection: psycopg.Connection[Any], sql: str, values: Mapping[str, Any]) -> Answer:
    """Run the statement as a cursor, which only a SELECT without data-changing parts can be.

    It is prepared first: the extended protocol takes one statement, so nothing can end the transaction and go on.
    """
    statement = _WORDS.sub(_psycopg_word, sql) if values else sql
    cursor = connection.cursor()
    cursor.execute(f"DECLARE answer NO SCROLL CURSOR FOR {statement}".encode(), values or None, prepare=True)
    cursor.execute("FETCH ALL FROM answer")
    return _answer(cursor.description, cursor.fetchall())


def _psycopg_word(match: re.Match[str]) -> str:
    """`:name` as psycopg's `%(name)s`, and a literal % doubled."""
    return f"%({match['name']})s" if match["name"] else match[0].replace("%", "%%")


def _too_long(timeout_s: float) -> UsageError:
    return UsageError(
        f"the query took longer than {timeout_s:g} s and was stopped; ask for less, or give --timeout more"
    )


def _refused(error: Exception) -> UsageError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return UsageError(f"the database refuses the query: {reason}; one SELECT over the job tables may run here")


def _answer(description: Sequence[Sequence[Any]] | None, rows: Sequence[Sequence[Any]]) -> Answer:
    if description is None:
        raise UsageError("the query returns no rows; write a SELECT")
    return Answer(columns=tuple(column[0] for column in description), rows=[tuple(map(_plain, row)) for row in rows])


def _plain(value: Any) -> Any:
    """PostgreSQL's exact decimals as int or float; not-a-number as missing; bytes as hexadecimal digits."""
    if isinstance(value, bytes | memoryview):
        return value.hex()
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() and value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    return value if isinstance(value, int | float | str | None) else str(value)


def _as_table(answer: Answer) -> bytes:
    """Columns aligned, numbers to the right."""
    headings = list(map(printable, answer.columns))
    cells = [[_cell(value) for value in row] for row in answer.rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    numeric = [all(isinstance(row[i], int | float | None) for row in answer.rows) for i in range(len(widths))]

    rule = ["-" * width for width in widths]
    lines = [
        "  ".join(
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)
        )
        for row in [headings, rule, *cells]
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines).encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = str(value)
    if isinstance(value, float):
        text = f"{value:.2f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"
    return printable(" ".join(text.split()))


def _as_csv(answer: Answer) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(answer.columns)
    writer.writerows(answer.rows)
    return text.getvalue().encode()


def _as_json(answer: Answer) -> bytes:
    rows = [dict(zip(answer.columns, map(_finite, row), strict=True)) for row in answer.rows]
    return (json.dumps(rows, indent=1, ensure_ascii=False, default=str) + "\n").encode()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_parquet(answer: Answer) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(zip(*answer.rows, strict=True)) or [()] * len(answer.columns)
    target = io.BytesIO()
    table = pa.table([_as_array(column) for column in columns], names=list(answer.columns))
    pq.write_table(table, target, compression="zstd")
    return target.getvalue()


def _as_array(column: Sequence[Any]) -> pa.Array[Any]:
    """Of the type that all values have; SQLite lets a column mix them, and counts may be beyond 64 bits: then text."""
    import pyarrow as pa

    try:
        return pa.array(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else str(value) for value in column])
