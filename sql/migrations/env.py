"""Alembic's entry: runs the migrations on the engine that `kt_study.database.migrate` hands over, one at a time.

By hand, to write a new one: `alembic -c sql/migrations/alembic.ini -x url=sqlite:///scratch.db revision --autogenerate`.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import context

from kt_study.database import parse_url, sqlalchemy_url
from kt_study.tables import metadata

MIGRATION_LOCK = 5_730_411  # key of the PostgreSQL advisory lock that keeps two migrations apart


def _engine() -> sa.Engine:
    given = context.config.attributes.get("engine")
    if given is not None:
        return given
    return sa.create_engine(sqlalchemy_url(parse_url(context.get_x_argument(as_dictionary=True)["url"])))


def _lock(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA busy_timeout=60000")
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})


def _by_hand(connection: object, _: object) -> None:
    """Let our own BEGIN IMMEDIATE open the transaction, so that it covers the DDL too."""
    connection.isolation_level = None  # type: ignore[attr-defined]


engine = _engine()
if engine.dialect.name == "sqlite":
    sa.event.listen(engine, "connect", _by_hand)
with engine.connect() as connection, connection.begin():
    _lock(connection)
    context.configure(
        connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True, compare_type=True,
    )  # fmt: skip
    context.run_migrations()
