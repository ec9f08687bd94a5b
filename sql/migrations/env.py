"""Alembic's entry: runs the migrations on the engine that `kt_study.database.migrate` passes, one at a time.

`make migration` writes a new one.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from kt_study.tables import metadata

MIGRATION_LOCK = 5_730_411  # key of the PostgreSQL advisory lock that keeps two migrations apart


def _lock(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA busy_timeout=60000")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})


def _by_hand(connection: object, _: object) -> None:
    """Let our own BEGIN IMMEDIATE open the transaction, so that it covers the DDL too."""
    connection.isolation_level = None  # type: ignore[attr-defined]


def _is_ours(item: object, *_: object) -> bool:
    """Whether autogeneration compares it: no index of a table that is there, since alembic cannot read those with
    expressions back from SQLite."""
    return not isinstance(item, sa.Index) or (item.table is not None and item.table.name not in tables)


engine: sa.Engine = context.config.attributes["engine"]
if engine.dialect.name == "sqlite":
    sa.event.listen(engine, "connect", _by_hand)
with engine.connect() as connection, connection.begin():
    _lock(connection)
    tables = sa.inspect(connection).get_table_names()
    context.configure(
        connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True, compare_type=True,
        include_object=_is_ours,
    )  # fmt: skip
    context.run_migrations()
