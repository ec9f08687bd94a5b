"""Where the job database is and whether it may be there: URLs, connections, file systems, migrations.

A URL is `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user@host:port/name?passfile=FILE`. Everything
that libpq takes as a parameter may follow the question mark; `passfile` names the file, mode 0600, that holds the password.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from kt_study.errors import DatabaseError, NothingPlanned, SchemaMismatch
from kt_study.words import Record

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy as sa

REVISION = "0009"  # the newest migration under sql/migrations; a test compares the two
CONNECT_TIMEOUT_S = 10
OLDEST_SQLITE = (3, 35, 0)  # UPDATE ... RETURNING

_THIS_MACHINE = ("", "localhost", "ip6-localhost", "::1", "::", "0.0.0.0")

# Names of file systems, as the kernel spells them, on which SQLite's locks or its shared memory cannot be trusted.
NETWORK_FILE_SYSTEMS = frozenset(
    [
        "nfs",
        "nfs4",
        "lustre",
        "gpfs",
        "beegfs",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "glusterfs",
        "pvfs2",
        "orangefs",
        "panfs",
        "davfs",
        "wekafs",
        "ocfs2",
        "gfs2",
        "mmfs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "fuse.ceph",
        "fuse.cephfs",
        "fuse.s3fs",
        "fuse.rclone",
        "fuse.juicefs",
        "fuse.beegfs",
        "fuse.gcsfuse",
        "fuse.davfs2",
        "fuse.orangefs",
        "fuse.weed",
    ]
)


class Address(Record, frozen=True, kw_only=True):
    """A database URL taken apart. `path` is set for SQLite, `conninfo` (libpq's parameters) for PostgreSQL."""

    url: str  # without the password
    path: str = ""
    conninfo: dict[str, str] = {}  # noqa: RUF012 -- msgspec copies it for each record

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a file on this machine."""
        return bool(self.path)


def parse_url(url: str) -> Address:
    """Take a database URL apart. Raises DatabaseError for anything but SQLite and PostgreSQL."""
    try:
        parts = urlsplit(url)
        scheme = parts.scheme.split("+")[0]
        if scheme == "sqlite" and not parts.netloc and len(parts.path) > 1:
            path = str(Path(unquote(parts.path)[1:]).absolute())
            return Address(url=f"sqlite:///{path}", path=path)
        if scheme in ("postgresql", "postgres"):
            return Address(url=_without_secrets(parts), conninfo=_conninfo(parts))
    except ValueError:  # which quotes what it stumbled over: it may be a piece of the password
        raise DatabaseError(
            f"cannot read the database URL {without_password(url)!r}: after the host may come a port number and the "
            "database's name; in a password, write / as %2F, @ as %40, and so on"
        ) from None
    raise DatabaseError(
        f"cannot read the database URL {without_password(url)!r}; "
        "it is sqlite:///FILE or postgresql://USER@HOST:PORT/NAME?passfile=FILE"
    )


def without_password(url: str) -> str:
    """The URL with every password taken out, fit for logs, also where it cannot be read.

    Of such a URL rather too much goes than too little: a password that is not percent-encoded may hold any sign.
    """
    url = re.sub(r"(//[^/:?]*):.*@", r"\1@", url)
    return re.sub(r"([?&])password=[^&]*&?", r"\1", url).rstrip("?&")


def _without_secrets(parts: SplitResult) -> str:
    user, at, server = parts.netloc.rpartition("@")
    kept = "&".join(field for field in parts.query.split("&") if unquote(field.partition("=")[0]) != "password")
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{server}{parts.path}{'?' if kept else ''}{kept}"


def _conninfo(parts: SplitResult) -> dict[str, str]:
    """libpq's parameters. Raises ValueError where a password that is not percent-encoded has moved the host."""
    if "@" in parts.path + parts.query.partition("=")[0] + parts.fragment:
        raise ValueError(parts.path)
    given = {"host": parts.hostname, "port": parts.port, "user": parts.username, "password": parts.password}
    given["dbname"] = parts.path.lstrip("/")
    known = {key: unquote(str(value)) for key, value in given.items() if value}
    return known | dict(parse_qsl(parts.query))


def is_this_machine(host: str) -> bool:
    """Whether a host, as libpq takes it, means whichever machine asks: a loopback, any address, or a Unix socket."""
    return host in _THIS_MACHINE or host.startswith(("127.", "/", "@"))


def place(address: Address) -> str:
    """The database in words: its file, or its name, host and port."""
    if address.is_sqlite:
        return address.path
    info = address.conninfo
    return f"{info.get('dbname', '')} on {info.get('host', 'localhost')}:{info.get('port', '5432')}"


def sqlalchemy_url(address: Address) -> sa.URL:
    """The address for SQLAlchemy's engines, through psycopg 3."""
    import sqlalchemy as sa

    if address.is_sqlite:
        return sa.URL.create("sqlite", database=address.path)
    info = dict(address.conninfo)
    return sa.URL.create(
        "postgresql+psycopg",
        username=info.pop("user", None),
        password=info.pop("password", None),
        host=info.pop("host", None),
        port=int(info.pop("port", "5432")),
        database=info.pop("dbname", None),
        query=info,
    )


def connect_sqlite(path: str, *, create: bool = False) -> sqlite3.Connection:
    """A connection in autocommit, WAL with synchronous FULL: what is committed survives a power cut.

    Waiting for other writers is left to the caller (busy timeout 0), since SQLite's own waiting starves some of eight.

    Raises:
        DatabaseError: no such file (unless `create`), a network file system, or a SQLite that is too old.
    """
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        raise DatabaseError(
            f"SQLite {sqlite3.sqlite_version} is too old for the job table; use a Python with 3.35 or newer"
        )
    mode = "rwc" if create else "rw"
    try:
        connection = sqlite3.connect(
            f"file:{quote(path)}?mode={mode}",
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


def cannot_open(path: str, error: sqlite3.OperationalError) -> DatabaseError:
    """The error for a SQLite file that cannot be opened: most often there is none."""
    if not Path(path).exists():
        return NothingPlanned(f"nothing is planned here yet: there is no database {path}; `kt-study plan` makes one")
    return DatabaseError(f"cannot open the database {path}: {error}; check its permissions and those of its folder")


def connect_postgresql(address: Address) -> psycopg.Connection[Any]:
    """A psycopg connection in autocommit that notices a dead peer. Raises psycopg.OperationalError."""
    import psycopg

    defaults: dict[str, Any] = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "kt-study",
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 60_000,  # milliseconds
    }
    return psycopg.connect("", autocommit=True, **(defaults | address.conninfo))


def unreachable(address: Address, error: BaseException) -> DatabaseError:
    """The error for a database that does not answer: which one, where, and what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0].removeprefix("connection failed: ") if lines else type(error).__name__
    if address.is_sqlite:
        return DatabaseError(f"database {place(address)}: {reason}")
    return DatabaseError(
        f"database {place(address)} does not answer: {_scrubbed(reason, address)}; "
        "`kt-study db status` says whether the server runs, `kt-study db start` starts it"
    )


def mismatch(address: Address, error: BaseException) -> SchemaMismatch:
    """The error of a statement that the database understands but cannot carry out as it is made."""
    said = _scrubbed(str(error).strip().splitlines()[0], address)
    return SchemaMismatch(
        f"database {place(address)}: {said}; another version of kt-study made it: run kt-study plan with this one"
    )


def _scrubbed(text: str, address: Address) -> str:
    password = address.conninfo.get("password")
    return text.replace(password, "***") if password else text


def file_system(path: str | Path) -> str:
    """The kernel's name of the file system on which `path` lies or would lie; empty where the kernel does not say."""
    target = os.path.realpath(path)
    best, kind = "", ""
    for line in mount_table().splitlines():
        left, _, right = line.partition(" - ")
        mount = left.split()[4].encode().decode("unicode_escape")
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind


def mount_table() -> str:
    """The kernel's list of mounts; empty where there is none."""
    table = Path("/proc/self/mountinfo")
    return table.read_text() if table.exists() else ""


def require_local_disk(path: str | Path, what: str) -> None:
    """Refuse a network file system, where a database's locks are not reliable. Raises DatabaseError."""
    kind = file_system(path)
    if kind in NETWORK_FILE_SYSTEMS:
        raise DatabaseError(
            f"{what} {path} lies on a network file system ({kind}), where file locks are not reliable; put it on a local disk "
            "of one machine, or run `kt-study db start` on a local disk and use the PostgreSQL URL it prints"
        )


def require_single_node(address: Address, nodes: int) -> None:
    """Refuse SQLite when workers would sit on more than one node. Raises DatabaseError."""
    if address.is_sqlite and nodes > 1:
        raise DatabaseError(
            f"{nodes} nodes cannot share the SQLite database {address.path}: its locks hold on one machine only; "
            "run `kt-study db start` and give the PostgreSQL URL that it prints with --db"
        )


def migrations_folder() -> Path:
    """Where the alembic migrations are: the checkout's sql/, else where the installation put them."""
    candidates = [
        Path(__file__).resolve().parent.parent / "sql" / "migrations",
        Path(sys.prefix) / "share" / "kt-study" / "sql" / "migrations",
        Path(sys.base_prefix) / "share" / "kt-study" / "sql" / "migrations",
    ]
    for folder in candidates:
        if (folder / "env.py").is_file():
            return folder
    raise DatabaseError(f"the migrations are missing from {candidates[1]}; install kt-study again")


def migrate(address: Address, revision: str = "head") -> None:
    """Bring the database to `revision`, from an empty one or any older one. Safe when several do it at once.

    Raises:
        DatabaseError: unreachable, newer than this program, or on a network file system.
    """
    import sqlalchemy as sa
    from alembic import command
    from alembic.config import Config

    if address.is_sqlite:
        prepare_sqlite(address.path)
    config = Config()
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    engine = sa.create_engine(sqlalchemy_url(address), poolclass=sa.NullPool)
    config.attributes["engine"] = engine
    try:
        command.upgrade(config, revision)
    except sa.exc.OperationalError as error:
        raise unreachable(address, error.orig or error) from None
    finally:
        engine.dispose()


def prepare_sqlite(path: str) -> None:
    """Make the file where it is missing and switch it to WAL, which stays with the file. Raises DatabaseError."""
    require_local_disk(path, "the SQLite database")
    if not Path(path).parent.is_dir():
        raise DatabaseError(f"cannot make the database {path}: there is no folder {Path(path).parent}; correct the URL")
    with contextlib.suppress(OSError):  # which sqlite3 explains; under umask 002 it would let a group write
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
    """Make the SQLite file where there is none; a PostgreSQL database must exist. Raises DatabaseError."""
    if address.is_sqlite and not Path(address.path).exists():
        prepare_sqlite(address.path)


def check_revision(address: Address, found: str | None) -> None:
    """Refuse a database that is newer or older than this program, or none of ours. Raises DatabaseError."""
    if found is None:
        raise NothingPlanned(
            f"nothing is planned here yet: database {place(address)} holds no kt-study tables; `kt-study plan` makes them"
        )
    if found > REVISION:
        raise DatabaseError(
            f"database {place(address)} has schema {found}, newer than this program's {REVISION}; upgrade kt-study"
        )
    if found < REVISION:
        raise DatabaseError(
            f"database {place(address)} has schema {found}, older than this program's {REVISION}; "
            "stop its workers and run `kt-study plan`, which upgrades it"
        )
