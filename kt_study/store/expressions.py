"""SQLAlchemy expressions that differ between the two databases, and conditions that several modules use."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from kt_study.tables import jobs, studies, study_jobs

T = TypeVar("T")

MOST_VALUES = 10_000  # in one statement: SQLite takes 32,766 and PostgreSQL 65,535


class now(FunctionElement[float]):
    """The database's clock, seconds since 1970."""

    type = sa.Double()
    inherit_cache = True


class server_started(FunctionElement[float]):
    """When the database server was started, by its clock; 0 for SQLite, which has no server."""

    type = sa.Double()
    inherit_cache = True


# PostgreSQL's now() does not advance within a transaction; SQLite's unixepoch('subsec') needs version 3.42.
_SQL = {
    (now, "postgresql"): "date_part('epoch', clock_timestamp())",
    (now, "sqlite"): "((julianday('now') - 2440587.5) * 86400.0)",  # to the millisecond
    (server_started, "postgresql"): "date_part('epoch', pg_postmaster_start_time())",
    (server_started, "sqlite"): "0.0",
}
for (_clock, _dialect), _sql in _SQL.items():
    compiles(_clock, _dialect)(lambda *_, sql=_sql, **__: sql)


def larger(one: Any, other: Any) -> sa.Case[Any]:
    """The larger of two values: SQLite's max is PostgreSQL's greatest."""
    return sa.case((one > other, one), else_=other)


def chunks(items: Iterable[T], size: int = MOST_VALUES) -> Iterator[list[T]]:
    """Lists of up to `size` items, in order."""
    rest = iter(items)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk


def of_study(name: sa.ColumnElement[str] | str) -> sa.ColumnElement[bool]:
    """Whether the job belongs to the study."""
    study_id = sa.select(studies.c.id).where(studies.c.name == name).scalar_subquery()  # found once, not per job
    held = sa.select(study_jobs.c.job_id).where(study_jobs.c.study_id == study_id, study_jobs.c.job_id == jobs.c.id)
    return held.correlate(jobs).exists()


def fits_glob(column: sa.ColumnElement[str], pattern: str) -> sa.ColumnElement[bool]:
    """Whether a text fits a shell pattern with `*`, `?`, `[...]` and `[!...]`."""
    pieces = re.split(r"(\*|\?|\[!?[^\]]+\])", pattern)
    spelled = {"*": ".*", "?": "."}
    regex = "".join(
        spelled.get(piece) or (piece.replace("[!", "[^") if piece.startswith("[") else re.escape(piece))
        for piece in pieces
    )
    return column.regexp_match(f"^(?:{regex})$")
