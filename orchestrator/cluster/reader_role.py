"""The PostgreSQL role kt_study_reader, which may only read job tables: queries run under it if the URL's role may become it.

A superuser may, and so may a member of the role. `kt-study db start` creates the role; on another server the first query of a
superuser or of a role with CREATEROLE does, or an administrator. The owner of the job tables grants it SELECT on them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from kt_study.errors import UsageError

if TYPE_CHECKING:
    import psycopg

NAME = "kt_study_reader"
_LOCK = 5_730_413  # key of the advisory lock for granting its rights

# SET ROLE depends on the memberships of the session's role. From PostgreSQL 16 on a membership may exclude it.
_STATE = """
SELECT me.rolsuper, me.rolcreaterole, reader.oid IS NOT NULL, pg_has_role(session_user, reader.oid, '{right}'),
       reader.rolsuper OR reader.rolcanlogin OR reader.rolcreaterole OR reader.rolreplication OR reader.rolbypassrls
       OR EXISTS (SELECT FROM pg_auth_members WHERE member = reader.oid)
FROM pg_roles me LEFT JOIN pg_roles reader ON reader.rolname = %s
WHERE me.rolname = session_user
"""
_UNREADABLE = b"""
SELECT quote_ident(nspname), quote_ident(relname) FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'v') AND pg_table_is_visible(pg_class.oid) AND relname = ANY(%(tables)s)
  AND NOT (has_table_privilege(%(reader)s, pg_class.oid, 'SELECT')
           AND has_schema_privilege(%(reader)s, relnamespace, 'USAGE'))
"""


def create(connection: psycopg.Connection[Any]) -> None:
    """Create the role, unless it exists. The connection is in autocommit mode and may create roles."""
    import psycopg

    if connection.execute("SELECT FROM pg_roles WHERE rolname = %s", [NAME]).fetchone() is None:
        with contextlib.suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):  # by another query
            connection.execute(f"CREATE ROLE {NAME} NOLOGIN".encode())


def prepare(connection: psycopg.Connection[Any]) -> bool:
    """Create the reader and grant it the job tables, as far as the connection's role may do that; it is in autocommit mode.

    Returns:
        Whether the connection may `SET ROLE` to the reader, and the reader may read the job tables.

    Raises:
        UsageError: the caller is a superuser, and the server's role of this name may do more than read.
    """
    superuser, creates_roles, exists, member, more = _state(connection)
    if not exists and (superuser or creates_roles):
        create(connection)
    if creates_roles and not (member or superuser):
        _join(connection)
        superuser, _, _, member, more = _state(connection)
    if more and superuser:
        raise UsageError(f"the server's role {NAME} may do more than read; drop it, and kt-study creates it again")
    if more or not (member or superuser):
        return False
    _grant(connection)
    return superuser or not _unreadable(connection)


def _state(connection: psycopg.Connection[Any]) -> tuple[Any, ...]:
    """Whether the session's role is a superuser and may create roles, whether the reader exists, whether the one may become
    the other (None if it does not exist), and whether the reader may do more than read."""
    right = "SET" if connection.info.server_version >= 160000 else "MEMBER"
    return tuple(connection.execute(_STATE.format(right=right).encode(), [NAME]).fetchall()[0])


def _join(connection: psycopg.Connection[Any]) -> None:
    """Grant the reader to the session's role, if that may do so: from PostgreSQL 16 on only if it created the reader."""
    import psycopg

    with _where_allowed(), contextlib.suppress(psycopg.errors.UniqueViolation):  # by another query
        connection.execute(f"GRANT {NAME} TO SESSION_USER".encode())


def _grant(connection: psycopg.Connection[Any]) -> None:
    """Grant the reader the job tables that it cannot read yet, usually none, if the session's role may do so."""
    if not _unreadable(connection):
        return
    with _where_allowed(), connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        for schema, table in _unreadable(connection):
            connection.execute(f"GRANT USAGE ON SCHEMA {schema} TO {NAME}".encode())
            connection.execute(f"GRANT SELECT ON {schema}.{table} TO {NAME}".encode())


def _where_allowed() -> contextlib.suppress:
    """Suppresses the error for a missing right, or for a role whose transactions are read-only."""
    import psycopg

    return contextlib.suppress(psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction)


def _unreadable(connection: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """Schema and name, quoted, of each job table that the reader cannot read."""
    from kt_study.tables import attempts, metadata  # here, since `kt-study db` need not wait for SQLAlchemy

    tables = [*metadata.tables, attempts.name, "alembic_version"]
    found = connection.execute(_UNREADABLE, {"reader": NAME, "tables": tables}).fetchall()
    return [(schema, table) for schema, table in found]
