"""The schema of the job database: migrations, and checks of its version and owner."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from kt_study.database.address import Address, place
from kt_study.database.connections import connect_sqlite, reason, sqlalchemy_engine, unreachable
from kt_study.errors import DatabaseError, NothingPlanned
from kt_study.file_systems import require_local_disk
from kt_study.shared_files import missing, shared_folder

if TYPE_CHECKING:
    import sqlalchemy as sa

_OUR_TABLES = frozenset(["studies", "models", "jobs"])  # in every version of the schema


def migrations_folder() -> Path:
    """The folder of the alembic migrations. Raises DatabaseError if the installation lacks them."""
    if folder := shared_folder("sql/migrations", "versions/*.py"):
        return folder
    raise DatabaseError(missing("the migrations"))


@functools.cache
def newest_revision() -> str:
    """The schema version of this program: that of its newest migration."""
    return max(path.name.partition("_")[0] for path in (migrations_folder() / "versions").glob("[0-9]*.py"))


def migrate(address: Address, revision: str = "head") -> None:
    """Upgrade the database to `revision`, from an empty one or any older one. Several processes may do it at once.

    Raises:
        DatabaseError: it is unreachable, newer than this program, another program's, or on a network file system.
    """
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config

    if address.is_sqlite:
        prepare_sqlite(address.path)
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    engine = sqlalchemy_engine(address)
    config.attributes["engine"] = engine
    try:
        _require_ours(address, engine)
        command.upgrade(config, revision)
    except sa.exc.OperationalError as error:
        raise unreachable(address, error.orig or error) from None
    except sa.exc.DBAPIError as error:
        raise DatabaseError(
            f"database {place(address)}: cannot create the tables: {reason(address, error.orig or error)}; "
            "the role of the URL must be allowed to create them"
        ) from None
    finally:
        engine.dispose()


def _require_ours(address: Address, engine: sa.Engine) -> None:
    """Refuse a database that has another program's tables of the same names, or its migrations. Raises DatabaseError."""
    import sqlalchemy as sa

    from kt_study.tables import metadata

    with engine.connect() as connection:
        tables = set(sa.inspect(connection).get_table_names())  # before the version, which appears together with them
        found_versions = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all() \
            if "alembic_version" in tables else []  # fmt: skip
    versions = list(map(str, found_versions))  # another program may keep numbers, or nothing, in that column
    if versions and not (len(versions) == 1 and re.fullmatch(r"[0-9]{4}", versions[0]) and tables >= _OUR_TABLES):
        found = f"its alembic_version says {', '.join(versions)[:60]!r}"
    elif not versions and (taken := sorted(tables.intersection(metadata.tables))):
        found = f"it has a table {taken[0]!r} that kt-study did not create"
    else:
        return
    raise DatabaseError(
        f"database {place(address)} belongs to another program: {found}; give another database with --db"
    )


def prepare_sqlite(path: str) -> None:
    """Create the file if it is missing and switch it to WAL, which the file remembers. Raises DatabaseError."""
    require_local_disk(path, "the SQLite database")
    if not Path(path).parent.is_dir():
        raise DatabaseError(
            f"cannot create the database {path}: there is no folder {Path(path).parent}; correct the URL"
        )
    with contextlib.suppress(OSError):  # sqlite3 reports it. Under umask 002 sqlite3 would let a group write
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o644))
    connection = connect_sqlite(path, create=True)
    try:
        connection.execute("PRAGMA busy_timeout=10000")
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.DatabaseError as error:
        raise DatabaseError(f"{path} is not a usable SQLite database: {error}") from error
    finally:
        connection.close()


def create_if_needed(address: Address) -> None:
    """Create the SQLite file if there is none; a PostgreSQL database must exist. Raises DatabaseError."""
    if address.is_sqlite and not Path(address.path).exists():
        prepare_sqlite(address.path)


def check_revision(address: Address, found: str | None) -> None:
    """Refuse a database that is newer or older than this program, or another program's. Raises DatabaseError."""
    if found is None:
        raise NothingPlanned(
            f"nothing is planned here yet: database {place(address)} has no kt-study tables; `kt-study plan` creates them"
        )
    ours, found = newest_revision(), str(found)
    if found != ours:
        _require_ours(address, sqlalchemy_engine(address))
    if found > ours:
        raise DatabaseError(
            f"database {place(address)} has schema {found}, newer than this program's {ours}; upgrade kt-study"
        )
    if found < ours:
        raise DatabaseError(
            f"database {place(address)} has schema {found}, older than this program's {ours}; "
            "stop its workers and run `kt-study plan`, which upgrades it"
        )
