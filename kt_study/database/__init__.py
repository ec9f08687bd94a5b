"""The job database: its URL, connections to it, and its schema.

A URL is `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user@host:port/name?passfile=FILE`, with special
characters escaped as in every URL (`#` is %23). All parameters of libpq may follow the question mark. Missing ones come from
libpq's own sources, such as PGHOST or a service file. `passfile` names the file, mode 0600, with the password. Several hosts,
`host1:port,host2:port`, are tried in turn.
"""

from __future__ import annotations

from kt_study.database.address import (
    SECRETS,
    Address,
    files_of,
    hosts,
    is_this_machine,
    parse_url,
    place,
    require_single_node,
    sqlite_url,
    without_password,
)
from kt_study.database.connections import (
    cannot_open,
    connect_postgresql,
    connect_sqlite,
    is_at_rest,
    may_write,
    mismatch,
    read_only,
    sqlalchemy_engine,
    sqlite_uri,
    unreachable,
)
from kt_study.database.schema import (
    check_revision,
    create_if_needed,
    migrate,
    migrations_folder,
    newest_revision,
    prepare_sqlite,
)

__all__ = [
    "SECRETS", "Address", "cannot_open", "check_revision", "connect_postgresql", "connect_sqlite", "create_if_needed",
    "files_of", "hosts", "is_at_rest", "is_this_machine", "may_write", "migrate", "migrations_folder",
    "mismatch", "newest_revision", "parse_url",
    "place", "prepare_sqlite", "read_only", "require_single_node", "sqlalchemy_engine", "sqlite_uri", "sqlite_url",
    "unreachable",
    "without_password",
]  # fmt: skip
