"""Connections to the job database, and their errors in one line."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kt_study.database.address import SECRETS, Address, place
from kt_study.errors import DatabaseError, NothingPlanned, SchemaMismatch
from kt_study.trust import owner, require_own

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy as sa

CONNECT_TIMEOUT_S = 10
OLDEST_SQLITE = (3, 35, 0)  # UPDATE ... RETURNING

_WRONG_OPTION = re.compile(
    r"invalid .*\bvalue\b|invalid port number|service .* not found|could not parse network address"
)


def sqlalchemy_engine(address: Address) -> sa.Engine:
    """An engine without a pool. Its connections to PostgreSQL come from `connect_postgresql`."""
    import sqlalchemy as sa

    if address.is_sqlite:
        return sa.create_engine(sa.URL.create("sqlite", database=address.path), poolclass=sa.NullPool)
    return sa.create_engine(
        "postgresql+psycopg://", creator=lambda: connect_postgresql(address, autocommit=False), poolclass=sa.NullPool
    )


def connect_sqlite(path: str, *, create: bool = False) -> sqlite3.Connection:
    """A connection in autocommit, WAL with synchronous FULL: what is committed survives a power cut.

    Who may not write the file gets one that reads it.

    The caller waits for other writers (busy timeout 0), since SQLite's own waiting starves some of eight processes.

    Raises:
        DatabaseError: no such file (unless `create`), a network file system, or a SQLite that is too old.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise DatabaseError(
            f"SQLite {sqlite3.sqlite_version} is too old for the job table; use a Python with 3.35 or newer"
        )
    try:
        connection = sqlite3.connect(
            sqlite_uri(path, "rwc" if create else "rw" if may_write(path) else "ro"),
            uri=True,
            timeout=CONNECT_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA busy_timeout=0")
    except sqlite3.OperationalError as error:
        raise cannot_open(path, error) from error
    except sqlite3.DatabaseError as error:
        raise DatabaseError(f"{path} is not a usable SQLite database: {error}") from error
    return connection


def may_write(path: str) -> bool:
    """Whether this account may write an SQLite file, and the files beside it; True where there is none yet."""
    return not os.path.exists(path) or (os.access(path, os.W_OK) and os.access(os.path.dirname(path), os.W_OK))  # noqa: PTH110, PTH120 -- asked with every connection


def sqlite_uri(path: str, mode: str) -> str:
    """What `sqlite3.connect` takes for a file, to be opened as `mode` says: rwc, rw or ro.

    To read, a file that nobody has open and that we may not write is opened as one that does not change: any other way
    would make two files beside it, which its owner could not write.

    Raises:
        DatabaseError: it is there and no file. SQLite would wait for the writer of a pipe.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 -- with every connection
        raise DatabaseError(f"{path} is not a file, so it is no SQLite database; correct --db, or move it away")
    still = "&immutable=1" if mode == "ro" and is_at_rest(path) and not may_write(path) else ""
    return f"file:{quote(path)}?mode={mode}{still}"


def is_at_rest(path: str) -> bool:
    """Whether nobody has an SQLite file open, as far as its write-ahead log tells."""
    return not os.path.exists(f"{path}-wal")  # noqa: PTH110 -- asked with every use of a connection


def cannot_open(path: str, error: sqlite3.OperationalError) -> DatabaseError:
    """The error for a SQLite file that cannot be opened, usually because there is none."""
    if not os.path.exists(path) and not _is_loop(path):  # noqa: PTH110 -- which raises none of its errors
        return NothingPlanned(f"nothing is planned here yet: there is no database {path}; `kt-study plan` creates it")
    return DatabaseError(f"cannot open the database {path}: {error}; check its permissions and those of its folder")


def _is_loop(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def connect_postgresql(address: Address, *, autocommit: bool = True) -> psycopg.Connection[Any]:
    """A psycopg connection that detects a dead peer.

    Raises:
        DatabaseError: an option of the URL is wrong, so that waiting does not help.
        UntrustedFile: another account may have written the password file.
        psycopg.OperationalError: the server does not answer, or refuses the connection.
    """
    import psycopg

    if os.path.lexists(passfile := address.conninfo.get("passfile", "")):
        require_own(Path(passfile))
    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "kt-study",
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,  # milliseconds
    }
    try:
        return psycopg.connect("", autocommit=autocommit, **(defaults | address.conninfo))
    except (psycopg.ProgrammingError, psycopg.OperationalError) as error:
        why = reason(address, error)
        if isinstance(error, psycopg.OperationalError) and not _WRONG_OPTION.search(why):
            raise
        raise DatabaseError(f"the URL of database {place(address)} cannot be used: {why}; correct it") from None


def reason(address: Address, error: BaseException) -> str:
    """The line of a libpq error with the reason, without the password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"^connection (failed|is bad): ", "", lines[0]) if lines else type(error).__name__
    return _without_secrets(text, address)


def unreachable(address: Address, error: BaseException) -> DatabaseError:
    """The error for a database that does not answer: which one, where, and what to do."""
    why = reason(address, error)
    if address.is_sqlite:
        return DatabaseError(f"database {place(address)}: {why}{read_only(address)}")
    return DatabaseError(f"database {place(address)} does not answer: {why}; {_how_to_start(address)}")


def read_only(address: Address) -> str:
    """What to know about a SQLite file that this account may read and not write, to end an error with; else empty."""
    if not address.is_sqlite or may_write(address.path):
        return ""
    return (
        f"; you may not write it (owner {owner(Path(address.path))}), or its disk is read-only: only status, query, "
        "collect --out and report --out work"
    )


def _how_to_start(address: Address) -> str:
    """How to start the server: the command and the machine if its password file is that of a `kt-study db` server."""
    folder = Path(address.conninfo.get("passfile", "")).parent
    try:
        machine = json.loads((folder / "server.json").read_text())["machine"]
    except (OSError, ValueError, KeyError, TypeError):
        return "check the server and the URL (`kt-study db start` starts a server of kt-study's own)"
    return f"`kt-study db start --dir {shlex.quote(str(folder))}` on {machine} starts it"


def mismatch(address: Address, error: BaseException) -> SchemaMismatch:
    """The error of a statement that does not fit the database's schema."""
    text = _without_secrets(str(error).strip().splitlines()[0], address)
    return SchemaMismatch(
        f"database {place(address)}: {text}; another version of kt-study created it: run kt-study plan with this one"
    )


def _without_secrets(text: str, address: Address) -> str:
    for secret in filter(None, map(address.conninfo.get, SECRETS)):
        text = text.replace(secret, "***")
    return text
