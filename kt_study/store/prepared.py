"""Statements that a PostgreSQL connection prepares once and runs again and again, without psycopg's cursors.

A cursor finds out with every call how to turn parameters and rows into Python's types. For a statement that is known
that costs more than sending it and waiting for its answer (65 against 20 microseconds here), and claiming and finishing
consist of little else.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psycopg import generators
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

from kt_study.database import Address, connect_postgresql
from kt_study.errors import UsageError
from kt_study.words import Record

Value = str | int | float | None  # a parameter; arrays are strings as `array_of` writes them
Answer = tuple[bytes | None, ...]  # one row as PostgreSQL writes it

_FINE = (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


class Statement(Record, frozen=True):
    """SQL with `$1`, `$2`, and the name of the parameter that each stands for."""

    text: bytes
    names: tuple[str, ...]


@functools.lru_cache(maxsize=512)
def statement(sql: str) -> Statement:
    """The statement of SQL that has `%(name)s` where its parameters go."""
    names = tuple(dict.fromkeys(re.findall(r"%\((\w+)\)s", sql)))
    numbers = {name: f"${at}" for at, name in enumerate(names, 1)}
    return Statement(re.sub(r"%\((\w+)\)s", lambda found: numbers[found[1]], sql).encode(), names)


class Session:
    """A connection in autocommit and the names of what it has prepared."""

    def __init__(self, address: Address, settings: str) -> None:
        self.connection = connect_postgresql(address)
        self.connection.execute(settings.encode())
        self._prepared: dict[Statement, bytes] = {}

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def run(self, wanted: Statement, parameters: Mapping[str, Value]) -> list[Answer]:
        """Run a statement as a transaction of its own and fetch what it returns. Raises psycopg.Error."""
        name = self._prepared.get(wanted)
        if name is None:
            name = self._prepare(wanted)
        values = [_text(parameters[each]) for each in wanted.names]
        self.connection.pgconn.send_query_prepared(name, values)
        found = self._answer()
        columns = range(found.nfields)
        return [tuple(found.get_value(row, column) for column in columns) for row in range(found.ntuples)]

    def _prepare(self, wanted: Statement) -> bytes:
        name = b"kt_%d" % len(self._prepared)
        self.connection.pgconn.send_prepare(name, wanted.text)
        self._answer()
        self._prepared[wanted] = name
        return name

    def _answer(self) -> PGresult:
        """Wait as psycopg does: signals are handled meanwhile, and an interrupt cancels the statement."""
        results: Sequence[PGresult] = self.connection.wait(generators.execute(self.connection.pgconn))
        for result in results:
            if result.status not in _FINE:
                raise error_from_result(result)
        return results[-1]


def _text(value: Value) -> bytes | None:
    return None if value is None else str(value).encode()


def array_of(values: Iterable[Any]) -> str:
    """An array as PostgreSQL writes it, of numbers, truth values, texts and None.

    Raises:
        UsageError: a text with a NUL character, which PostgreSQL cannot store.
    """
    return f"{{{','.join(map(_element, values))}}}"


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if not isinstance(value, str):
        return str(value)
    if "\0" in value:
        raise UsageError(f"PostgreSQL cannot store a text with a NUL character: {value[:60]!r}")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
