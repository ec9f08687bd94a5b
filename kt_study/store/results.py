"""Result rows on their way into the database: checked against `kt_study.schema`, turned into columns of plain values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kt_study.errors import UsageError
from kt_study.schema import RESULT_TABLES

Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # table name -> rows, each a mapping of column name to value

_POSTGRES_TYPES = {"int": "bigint", "float": "double precision", "text": "text", "bool": "boolean"}


def _real(value: Any) -> float | None:
    number = float(value)
    return None if number != number else number  # NaN is stored as missing, on both databases


_PLAIN: dict[str, Callable[[Any], Any]] = {"int": int, "float": _real, "text": str, "bool": bool}


@functools.cache
def _converters(table: str) -> dict[str, Callable[[Any], Any]]:
    if table not in RESULT_TABLES:
        raise UsageError(f"no result table {table!r}; there are {', '.join(RESULT_TABLES)}")
    return {column.name: _PLAIN[column.type] for column in RESULT_TABLES[table].columns}


def columns_of(table: str) -> tuple[str, ...]:
    """Names of a result table's columns, without id and job_id. Raises UsageError for an unknown table."""
    return tuple(_converters(table))


def plain_rows(table: str, job_id: int, rows: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """Each row as (job_id, value of every column in order); absent columns are None, numpy scalars become builtins.

    Raises:
        UsageError: a column that the schema does not have, or a value that is not of its type.
    """
    converters = _converters(table)
    found = []
    for row in rows:
        if unknown := row.keys() - converters.keys():
            raise UsageError(f"table {table} has no column {', '.join(sorted(unknown))}; kt_study/schema.py lists them")
        found.append((job_id, *(_plain(table, name, row.get(name), to) for name, to in converters.items())))
    return found


def _plain(table: str, name: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    if value is None:
        return None
    try:
        return convert(value)
    except (TypeError, ValueError) as error:
        raise UsageError(f"column {table}.{name} cannot hold {value!r}: {error}") from error


def insert_sqlite(table: str) -> str:
    """INSERT of one row as `plain_rows` gives it."""
    names = ("job_id", *columns_of(table))
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


@functools.cache
def insert_postgres(table: str, source: str) -> str:
    """INSERT of many rows given as one array a column (`{table}_0` job ids, `{table}_1`, ...), for the jobs in `source` only."""
    columns = RESULT_TABLES[table].columns
    types = ["bigint", *(_POSTGRES_TYPES[column.type] for column in columns)]
    arrays = ", ".join(f"%({table}_{at})s::{kind}[]" for at, kind in enumerate(types))
    names = ", ".join(f'"{name}"' for name in ("job_id", *(column.name for column in columns)))
    return (
        f"INSERT INTO {table} ({names}) SELECT given.* FROM unnest({arrays}) AS given({names}) "
        f"WHERE given.job_id IN (SELECT id FROM {source})"
    )
