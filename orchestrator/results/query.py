"""`kt-study query`: named queries from sql/queries, and free SELECTs, on a connection that cannot write.

SQLite opens the file read-only, with an authorizer that lets nothing but reading through. PostgreSQL runs one statement
as a cursor in a read-only transaction that is always rolled back; see `_as_reader` for a URL whose role is a superuser.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.database import Address, connect_postgresql, parse_url, unreachable
from kt_study.errors import UsageError
from kt_study.nearest import nearest
from kt_study.tables import attempts, metadata
from orchestrator.results.streaming import open_read_only

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

FORMATS = ("table", "csv", "json", "parquet")

_QUOTED = r"""--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"(?:[^"]|"")*\""""
_PARAMETER = re.compile(r"(?<![:\w]):(?P<name>[a-z_]\w*)")
_WORDS = re.compile(rf"(?P<quoted>{_QUOTED})|{_PARAMETER.pattern}|%", re.DOTALL)
_PART = re.compile(r"\{(?P<name>[a-z]+)\}")  # stands for a file of sql/queries/parts
_NAME = re.compile(r"^[a-z][a-z0-9-]*$")

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
    """Where the named queries are: the checkout's sql/, else where the installation put them. Raises UsageError."""
    home = Path(__file__).resolve().parents[2]
    for folder in (home, Path(sys.prefix) / "share" / "kt-study", Path(sys.base_prefix) / "share" / "kt-study"):
        if any((folder / "sql" / "queries").glob("*.sql")):
            return folder / "sql" / "queries"
    raise UsageError(f"the named queries are missing from {sys.prefix}/share/kt-study/sql; install kt-study again")


def run_query(url: str, name_or_sql: str, parameters: Mapping[str, Any] | None = None) -> Answer:
    """Run a named query or a SELECT of the user's own. Nothing it does can change the database.

    Args:
        url: URL of the job database.
        name_or_sql: a name of `named_queries`, or SQL.
        parameters: values for the `:name` in it; those of a named query that are not given are NULL.

    Raises:
        UsageError: no query of that name, an unknown parameter, or SQL that the database refuses.
        DatabaseError: the database cannot be reached.
    """
    sql, values = _statement(name_or_sql, dict(parameters or {}))
    address = parse_url(url)
    if address.is_sqlite:
        return _query_sqlite(address, sql, values)
    return _query_postgresql(address, sql, values)


def pairs_in_files(url: str, name_or_sql: str) -> int:
    """Ordered pairs that a query of `complementarity` misses: `all_pairs` jobs leave theirs in files. 0 for others."""
    named = named_queries().get(name_or_sql)
    if "complementarity" not in _uncommented(named.sql if named else name_or_sql):
        return 0
    return int(run_query(url, "SELECT COALESCE(SUM(n_pairs), 0) FROM all_pairs").rows[0][0])


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
    sql = _PART.sub(lambda part: _part(path.parent, part["name"]), path.read_text(encoding="utf-8"))
    return NamedQuery(name=path.stem, title=sql.splitlines()[0].removeprefix("--").strip(), sql=sql)


def _part(queries: Path, name: str) -> str:
    """What several named queries have in common, without the line that says what it is."""
    return (queries / "parts" / f"{name}.sql").read_text(encoding="utf-8").partition("\n")[2].rstrip()


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


def _query_sqlite(address: Address, sql: str, values: Mapping[str, Any]) -> Answer:
    with contextlib.closing(open_read_only(address)) as connection:
        connection.set_authorizer(_reads_only)
        try:
            cursor = connection.execute(sql, values)
            return _answer(cursor.description, cursor.fetchall())
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise _refused(error) from error


def _reads_only(action: int, *_: object) -> int:
    """SQLite's authorizer: SELECT, columns and functions pass. Loading of code is off in sqlite3 as it comes."""
    return sqlite3.SQLITE_OK if action in _SQLITE_READS else sqlite3.SQLITE_DENY


def _query_postgresql(address: Address, sql: str, values: Mapping[str, Any]) -> Answer:
    import psycopg

    try:
        connection = connect_postgresql(address)
    except psycopg.Error as error:
        raise unreachable(address, error) from error
    with contextlib.closing(connection):
        try:
            with _as_reader(connection):
                return _through_cursor(connection, sql, values)
        except psycopg.Error as error:
            raise _refused(error) from error


_POWERS = b"""
SELECT rolsuper, CASE WHEN pg_has_role('pg_read_server_files', 'member') THEN 'read files'
                      WHEN pg_has_role('pg_write_server_files', 'member') THEN 'write files'
                      WHEN pg_has_role('pg_execute_server_program', 'member') THEN 'run programs' END
FROM pg_roles WHERE rolname = session_user
"""

_READABLE = frozenset([*metadata.tables, attempts.name, "alembic_version"])
_TABLES = b"""
SELECT relname, nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'v') AND pg_table_is_visible(pg_class.oid)
"""


@contextlib.contextmanager
def _as_reader(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """A read-only transaction that is rolled back whatever happens.

    A superuser may read the server's files and run its programs from within a SELECT, and may take back any role that
    it gave up. For one, a role is made that may read the job tables only, in this same transaction, so that it never
    exists for anyone else and is gone with the rollback; and `set_config`, the one function that could return to the
    superuser, is taken from it. Any other role is held by PostgreSQL itself: a read-only transaction cannot be made
    writable once it has begun to read, and files need a membership, with which a role is refused here.
    """
    connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    try:
        superuser, files = connection.execute(_POWERS).fetchall()[0]
        if superuser:
            for command in _restrict(connection):
                connection.execute(command.encode())
        elif files:
            raise UsageError(f"the role of this URL may {files} on the server; give --db a role that may not")
        connection.execute("SET TRANSACTION READ ONLY")
        yield
    finally:
        connection.execute("ROLLBACK")


def _restrict(connection: psycopg.Connection[Any]) -> Iterator[str]:
    """The commands that leave this transaction with the rights of a reader of the job tables."""
    import secrets

    role = f"kt_study_reader_{secrets.token_hex(8)}"
    found = connection.execute(_TABLES).fetchall()
    yield f"CREATE ROLE {role} NOLOGIN"
    for schema in sorted({schema for table, schema in found if table in _READABLE}):
        yield f'GRANT USAGE ON SCHEMA "{schema}" TO {role}'
    for table, schema in sorted(found):
        if table in _READABLE:
            yield f'GRANT SELECT ON "{schema}"."{table}" TO {role}'
    yield "REVOKE EXECUTE ON FUNCTION pg_catalog.set_config(text, text, boolean) FROM PUBLIC"
    yield f"SET LOCAL ROLE {role}"


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
    cells = [[_cell(value) for value in row] for row in answer.rows]
    widths = [max(map(len, column)) for column in zip(answer.columns, *cells, strict=True)]
    numeric = [all(isinstance(row[i], int | float | None) for row in answer.rows) for i in range(len(widths))]

    rule = ["-" * width for width in widths]
    lines = [
        "  ".join(
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)
        )
        for row in [answer.columns, rule, *cells]
    ]
    return "".join(f"{line.rstrip()}\n" for line in lines).encode()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = str(value)
    if isinstance(value, float):
        text = f"{value:.2f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"
    return " ".join(text.split())


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
