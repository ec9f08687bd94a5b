"""Prepares result rows for the database: checks them against `kt_study.schema` and converts them to plain values."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kt_study.errors import UsageError
from kt_study.schema import RESULT_TABLES

Rows = Mapping[str, Sequence[Mapping[str, Any]]]  # table name -> rows, each a mapping of column name to value


def _real(value: Any) -> float | None:
    number = float(value)
    return None if number != number else number  # NaN is stored as missing, on both databases


_PLAIN: dict[str, Callable[[Any], Any]] = {"int": int, "float": _real, "text": str, "bool": bool}


@functools.cache
def converters(table: str) -> dict[str, Callable[[Any], Any]]:
    """What makes a plain value of each column of a result table. Raises UsageError for an unknown table."""
    if table not in RESULT_TABLES:
        raise UsageError(f"no result table {table!r}; there are {', '.join(RESULT_TABLES)}")
    return {column.name: _PLAIN[column.type] for column in RESULT_TABLES[table].columns}


def plain_rows(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Each row with every column of its table; absent columns are None, numpy scalars become builtins.

    Raises:
        UsageError: a table or column that the schema does not have, or a value that is not of its type.
    """
    return {table: [_plain_row(table, row) for row in given] for table, given in rows.items()}


def _plain_row(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    columns = converters(table)
    if unknown := row.keys() - columns.keys():
        raise UsageError(f"table {table} has no column {', '.join(sorted(unknown))}; kt_study/schema.py lists them")
    plain: dict[str, Any] = dict.fromkeys(columns)
    for name, value in row.items():
        try:
            plain[name] = None if value is None else columns[name](value)
        except (TypeError, ValueError) as error:
            raise UsageError(f"column {table}.{name} cannot hold {value!r}: {error}") from error
    return plain
