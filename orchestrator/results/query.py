"""`kt-study query`: named queries from sql/queries, and the user's own SELECTs, on a connection that cannot write.

SQLite opens the file read-only, with an authorizer that allows only reads. PostgreSQL runs one statement as a cursor in a
read-only transaction that is always rolled back, and refuses functions whose effects a rollback does not undo: those that
terminate or lock other sessions, write files, or run SQL from an argument. The query runs under the role kt_study_reader,
which may only read the job tables, if the URL's role may become it (see `orchestrator.cluster.reader_role`).
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
from kt_study.printable import printable, printable_json
from kt_study.settings import named
from kt_study.shared_files import missing, shared_folder
from orchestrator.cluster import reader_role
from orchestrator.results.streaming import open_read_only, reading

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

FORMATS = ("table", "csv", "json", "parquet")
TIMEOUT_S = 60.0

_QUOTED = r"""--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"(?:[^"]|"")*\""""
_PARAMETER = re.compile(r"(?<![:\w]):(?P<name>[a-z_]\w*)")
_TOKENS = re.compile(rf"(?P<quoted>{_QUOTED})|{_PARAMETER.pattern}|%", re.DOTALL)
_PART = re.compile(r"\{(?P<name>[a-z]+)\}")  # a file of sql/queries/parts, or the settings by which rows are grouped
_NAME = re.compile(r"^[a-z][a-z0-9-]*$")

_STEPS = 10_000  # of SQLite's virtual machine between two checks of the clock, less than a millisecond
_SQLITE_READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}


@dataclass(frozen=True, kw_only=True)
class NamedQuery:
    """A file of sql/queries with its parts inserted. Its first line is the title; `:name` is a parameter, NULL if not given."""

    name: str
    title: str
    sql: str

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters' names, in the order in which they first appear."""
        return tuple(dict.fromkeys(_PARAMETER.findall(_uncommented(self.sql))))


@dataclass(frozen=True, kw_only=True)
class QueryResult:
    """Columns and rows of a query, values as plain Python numbers and strings."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]


def named_queries() -> dict[str, NamedQuery]:
    """Every named query, by name."""
    return {path.stem: _read(path) for path in sorted(queries_folder().glob("*.sql"))}


def queries_folder() -> Path:
    """The folder of the named queries. Raises UsageError if the installation lacks them."""
    if folder := shared_folder("sql/queries", "*.sql"):
        return folder
    raise UsageError(missing("the named queries"))


def run_query(
    url: str, name_or_sql: str, parameters: Mapping[str, Any] | None = None, *, timeout_s: float = TIMEOUT_S
) -> QueryResult:
    """Run a named query or the user's own SELECT. It cannot change the database or block workers.

    Args:
        url: URL of the job database.
        name_or_sql: a name of `named_queries`, or SQL.
        parameters: values for each `:name`; NULL in a named query if not given.
        timeout_s: time limit, enforced by the database.

    Raises:
        UsageError: no query of that name, an unknown parameter, SQL that the database refuses, or a timeout.
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
    """Pairs of `all_pairs` jobs, which are in files and which a query of `complementarity` misses; 0 for other queries."""
    named = named_queries().get(name_or_sql)
    if "complementarity" not in _uncommented(named.sql if named else name_or_sql):
        return 0
    return int(run_query(url, "SELECT COALESCE(SUM(n_pairs), 0) FROM all_pairs", timeout_s=timeout_s).rows[0][0])


def render(result: QueryResult, style: str, *, on_terminal: bool = False) -> bytes:
    """The result as `table` (for people), `csv`, `json` (a list of objects) or `parquet`.

    Infinite numbers are null in JSON. A parquet column with values of several types is text. CSV has control characters as
    they are, except on a terminal.

    Raises:
        UsageError: no such format, two columns with one name, which json and parquet cannot have, or parquet on a terminal.
    """
    if style not in FORMATS:
        raise UsageError(f"no format {style!r}; there are {', '.join(FORMATS)}")
    twice = [name for name, count in Counter(result.columns).items() if count > 1]
    if twice and style in ("json", "parquet"):
        raise UsageError(f"two columns of the query are named {twice[0]!r}; rename one with AS for {style}")
    if on_terminal and style == "parquet":
        raise UsageError("parquet is no text for a terminal; redirect it to a file, with > rows.parquet")
    if on_terminal and style == "csv":
        result = _printable(result)
    writers = {"table": _as_table, "csv": _as_csv, "json": _as_json, "parquet": _as_parquet}
    return writers[style](result)


def _read(path: Path) -> NamedQuery:
    sql = _with_parts(path.read_text(encoding="utf-8"), path.parent / "parts")
    return NamedQuery(name=path.stem, title=sql.splitlines()[0].removeprefix("--").strip(), sql=sql)


def _with_parts(sql: str, parts: Path) -> str:
    """The text with `{settings}` replaced by their columns, and each `{NAME}` by that file of `parts` without its first line."""

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
    """The statement without its comments and quoted strings, which have no parameters."""
    return re.sub(_QUOTED, "", sql, flags=re.DOTALL)


def _query_sqlite(address: Address, sql: str, values: Mapping[str, Any], timeout_s: float) -> QueryResult:
    with contextlib.closing(open_read_only(address)) as connection:
        connection.set_authorizer(_reads_only)
        deadline = time.monotonic() + timeout_s
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
        try:
            cursor = connection.execute(sql, values)
            return _query_result(cursor.description, cursor.fetchall())
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise _too_long(timeout_s) if time.monotonic() > deadline else _refused(error) from error


def _reads_only(action: int, *_: object) -> int:
    """SQLite's authorizer: allows SELECT, columns and functions. sqlite3 disables loading of extensions by default."""
    return sqlite3.SQLITE_OK if action in _SQLITE_READS else sqlite3.SQLITE_DENY


def _query_postgresql(address: Address, sql: str, values: Mapping[str, Any], timeout_s: float) -> QueryResult:
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


# Volatile functions may have side effects. PostgreSQL records this for each function, those of extensions and users
# included. A function that takes or returns internal values cannot be called from SQL.
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
    """Refuse a query that names a function with possible side effects. Raises UsageError.

    Every identifier counts, even in strings and comments, since the server may parse these differently.
    """
    if re.search(r"\bu&[\"']", sql, re.IGNORECASE):
        raise UsageError(
            'the query is refused: it has U&"..." escapes, which may hide a name; write the characters instead'
        )
    names = {name.lower() for name in re.findall(r"[^\W\d][\w$]*", sql)}
    volatile = {name for (name,) in connection.execute(_VOLATILE)} - _HARMLESS
    if found := sorted(names & volatile):
        raise UsageError(
            f"the query is refused: {found[0]} may have effects beyond the query; one SELECT over the job tables may run here"
        )


_FILES = b"""
SELECT CASE WHEN pg_has_role('pg_read_server_files', 'member') THEN 'read files'
            WHEN pg_has_role('pg_write_server_files', 'member') THEN 'write files'
            WHEN pg_has_role('pg_execute_server_program', 'member') THEN 'run programs' END
"""


@contextlib.contextmanager
def _as_reader(connection: psycopg.Connection[Any], timeout_s: float) -> Iterator[None]:
    """A read-only transaction with a timeout on the server, which is always rolled back.

    A read-only transaction cannot be made writable once it has begun to read. The reader lacks the other rights of the URL's
    role, such as ending its sessions, or reading the server's files. It could become that role again only by `set_config`,
    which has been refused by then. Raises UsageError for a role that may use the server's files or programs, and cannot
    become the reader.
    """
    as_reader = reader_role.prepare(connection)
    if not as_reader and (files := connection.execute(_FILES).fetchall()[0][0]):
        raise UsageError(f"the role of this URL may {files} on the server; give --db a role that may not")
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
            connection.execute("SELECT set_config(%s, %s, true)", [setting, f"{max(1, round(1000 * timeout_s))}ms"])
        if as_reader:
            connection.execute(f"SET LOCAL ROLE {reader_role.NAME}")
        yield
    finally:
        connection.execute("ROLLBACK")


def _through_cursor(connection: psycopg.Connection[Any], sql: str, values: Mapping[str, Any]) -> QueryResult:
    """Run the statement as a cursor, which only a SELECT without data-changing parts can be.

    It is prepared first: the extended protocol takes a single statement, so that none can end the transaction and continue.
    """
    statement = _TOKENS.sub(_psycopg_token, sql) if values else sql
    cursor = connection.cursor()
    cursor.execute(f"DECLARE answer NO SCROLL CURSOR FOR {statement}".encode(), values or None, prepare=True)
    cursor.execute("FETCH ALL FROM answer")
    return _query_result(cursor.description, cursor.fetchall())


def _psycopg_token(match: re.Match[str]) -> str:
    """`:name` as psycopg's `%(name)s`, and a literal % doubled."""
    return f"%({match['name']})s" if match["name"] else match[0].replace("%", "%%")


def _too_long(timeout_s: float) -> UsageError:
    return UsageError(f"the query took longer than {timeout_s:g} s and was stopped; narrow it, or raise --timeout")


def _refused(error: Exception) -> UsageError:
    lines = [line for line in str(error).splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    return UsageError(f"the database refuses the query: {reason}; one SELECT over the job tables may run here")


def _query_result(description: Sequence[Sequence[Any]] | None, rows: Sequence[Sequence[Any]]) -> QueryResult:
    if description is None:
        raise UsageError("the query returns no rows; write a SELECT")
    return QueryResult(
        columns=tuple(column[0] for column in description), rows=[tuple(map(_plain, row)) for row in rows]
    )


def _plain(value: Any) -> Any:
    """PostgreSQL's decimals as int or float; NaN as missing; bytes as hexadecimal digits."""
    if isinstance(value, bytes | memoryview):
        return value.hex()
    if isinstance(value, Decimal):
        value = int(value) if value == value.to_integral_value() and value.as_tuple().exponent == 0 else float(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    return value if isinstance(value, int | float | str | None) else str(value)


def _as_table(result: QueryResult) -> bytes:
    """Columns aligned, numbers to the right."""
    headings = list(map(printable, result.columns))
    cells = [[_cell(value) for value in row] for row in result.rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    numeric = [all(isinstance(row[i], int | float | None) for row in result.rows) for i in range(len(widths))]

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


def _printable(result: QueryResult) -> QueryResult:
    rows = [tuple(printable(value) if isinstance(value, str) else value for value in row) for row in result.rows]
    return QueryResult(columns=tuple(map(printable, result.columns)), rows=rows)


def _as_csv(result: QueryResult) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(result.columns)
    writer.writerows(result.rows)
    return text.getvalue().encode()


def _as_json(result: QueryResult) -> bytes:
    rows = [dict(zip(result.columns, map(_finite, row), strict=True)) for row in result.rows]
    return (printable_json(json.dumps(rows, indent=1, ensure_ascii=False, default=str)) + "\n").encode()


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_parquet(result: QueryResult) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(zip(*result.rows, strict=True)) or [()] * len(result.columns)
    target = io.BytesIO()
    table = pa.table([_as_array(column) for column in columns], names=list(result.columns))
    pq.write_table(table, target, compression="zstd")
    return target.getvalue()


def _as_array(column: Sequence[Any]) -> pa.Array[Any]:
    """An array of the values' common type; text if types are mixed, as SQLite allows, or numbers exceed 64 bits."""
    import pyarrow as pa

    try:
        return pa.array(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else str(value) for value in column])
