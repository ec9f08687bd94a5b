"""The job database: its URL, checks of its location, connections and migrations.

A URL is `sqlite:///relative.db`, `sqlite:////absolute.db` or `postgresql://user@host:port/name?passfile=FILE`, with special
characters escaped as in every URL (`#` is %23). All parameters of libpq may follow the question mark. Missing ones come from
libpq's own sources, such as PGHOST or a service file. `passfile` names the file, mode 0600, with the password. Several hosts,
`host1:port,host2:port`, are tried in turn.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shlex
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from kt_study.errors import DatabaseError, NothingPlanned, SchemaMismatch
from kt_study.nearest import nearest
from kt_study.records import Record
from kt_study.shared_files import missing, shared_folder
from kt_study.trust import owner, require_own

if TYPE_CHECKING:
    import psycopg
    import sqlalchemy as sa

CONNECT_TIMEOUT_S = 10
OLDEST_SQLITE = (3, 35, 0)  # UPDATE ... RETURNING

_WHOLE_NUMBERS = (
    "connect_timeout",
    "keepalives",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_count",
    "tcp_user_timeout",
)
SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
"""Options of a URL that no log, argument list, script or pickle may hold."""
_OUR_TABLES = frozenset(["studies", "models", "jobs"])  # in every version of the schema

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
    """Take a database URL apart. Raises DatabaseError for anything but SQLite and PostgreSQL, and for unknown options."""
    try:
        if not url.isprintable():  # the parser would leave them out, and the URL would be another one
            raise ValueError(url)
        parts = urlsplit(url)
        scheme = parts.scheme.split("+")[0]
        if scheme == "sqlite" and not parts.netloc and len(parts.path) > 1:
            return _sqlite_address(parts)
        if scheme in ("postgresql", "postgres"):
            conninfo = _conninfo(parts)
            _require_known(conninfo)
            return Address(url=_without_secrets(parts), conninfo=conninfo)
    except ValueError:  # which quotes what it stumbled over: it may be a piece of the password
        raise DatabaseError(
            f"cannot read the database URL {without_password(url)!r}: after the host may come a port number and the "
            "database's name; in a password, write / as %2F, @ as %40, and so on"
        ) from None
    raise DatabaseError(
        f"cannot read the database URL {without_password(url)!r}; "
        "it is sqlite:///FILE or postgresql://USER@HOST:PORT/NAME?passfile=FILE"
    )


def sqlite_url(path: str | Path) -> str:
    """The URL of an SQLite file, whatever characters its name has."""
    return f"sqlite:///{quote(str(path))}"


def without_password(url: str) -> str:
    """The URL with every password taken out, fit for logs, also where it cannot be read.

    Of such a URL rather too much goes than too little: a password that is not percent-encoded may hold any sign.
    """
    if not re.match(r"\w[\w+.-]*:/", url):  # libpq's other form, `host=... password=...`
        return re.sub(r"=.*", "=...", url, flags=re.DOTALL)
    url = re.sub(r"(//[^/:?]*):.*@", r"\1@", url, flags=re.DOTALL)
    secret = r"(?!passfile=)[^=&]*(?:pass|pwd|secret|scram)[^=&]*=[^&]*&?"
    return re.sub(rf"(?<=[?&]){secret}", "", url, flags=re.IGNORECASE | re.DOTALL).rstrip("?&")


def _sqlite_address(parts: SplitResult) -> Address:
    path = str(Path(unquote(parts.path)[1:]).absolute())
    if parts.query or parts.fragment:
        raise DatabaseError(
            f"cannot read the database URL {parts.geturl()!r}: in the name of an SQLite file, write ? as %3F and # as %23"
        )
    if "\0" in path:
        raise ValueError(path)
    return Address(url=sqlite_url(path), path=path)


def _without_secrets(parts: SplitResult) -> str:
    user, at, server = parts.netloc.rpartition("@")
    kept = "&".join(field for field in parts.query.split("&") if unquote(field.partition("=")[0]) not in SECRETS)
    return f"{parts.scheme}://{user.partition(':')[0]}{at}{server}{parts.path}{'?' if kept else ''}{kept}"


def _conninfo(parts: SplitResult) -> dict[str, str]:
    """libpq's parameters. Raises ValueError where a password that is not percent-encoded has moved the host."""
    if parts.fragment or "@" in parts.path + parts.query.partition("=")[0]:
        raise ValueError(parts.path)
    user, at, servers = parts.netloc.rpartition("@")
    name, _, password = user.partition(":") if at else ("", "", "")
    hosts, ports = zip(*map(_host_and_port, servers.split(",")), strict=True)
    given = {"host": ",".join(hosts), "port": ",".join(ports) if any(ports) else "", "user": name, "password": password}
    given["dbname"] = parts.path.lstrip("/")
    known = {key: unquote(value) for key, value in given.items() if value.strip(",")}
    for field in filter(None, parts.query.split("&")):
        key, equals, value = field.partition("=")
        if not equals:
            raise DatabaseError(
                "cannot read the database URL: in what follows its question mark, a part has no `=`; "
                "in a password, write & as %26"
            )
        if (key, value) == ("ssl", "true"):  # as libpq reads it, for what JDBC writes
            key, value = "sslmode", "require"
        known[unquote(key)] = unquote(value)
    if any("\0" in value for value in known.values()):
        raise ValueError(parts.path)
    return known


def _host_and_port(server: str) -> tuple[str, str]:
    """One of the servers of a URL. Raises ValueError."""
    found = re.fullmatch(r"(?:\[(?P<v6>[0-9a-fA-F:.%]*)\]|(?P<name>[^:\[\]]*))(?::(?P<port>[0-9]*))?", server)
    if found is None or int(found["port"] or 1) not in range(1, 65536):
        raise ValueError(server)
    return found["v6"] or found["name"] or "", found["port"] or ""


def _require_known(conninfo: dict[str, str]) -> None:
    """Refuse options that libpq does not know, and numbers that are none. Raises DatabaseError, which repeats no value
    that may be a piece of a password."""
    for key, value in conninfo.items():
        if key not in _options():
            hint = nearest(key, _options())
            if "password" in conninfo and not hint:
                raise DatabaseError(
                    "the database URL has an option that PostgreSQL does not know beside its password; "
                    "in a password, write & as %26"
                )
            raise DatabaseError(f"the database URL has the option {key!r}, which PostgreSQL does not know{hint}")
        if key in _WHOLE_NUMBERS and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
            raise DatabaseError(f"the database URL has {key}={value!r}, which is no whole number; correct it")


@functools.cache
def _options() -> frozenset[str]:
    """The names of libpq's parameters."""
    from psycopg import pq

    return frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())


def files_of(address: Address) -> list[str]:
    """The files that a database goes by: SQLite's own, and the password file of a URL."""
    return [file for file in (address.path, address.conninfo.get("passfile", "")) if file]


def is_this_machine(host: str) -> bool:
    """Whether a host, as libpq takes it, means whichever machine asks: a loopback, any address, or a Unix socket."""
    return host in _THIS_MACHINE or host.startswith(("127.", "/", "@"))


def hosts(address: Address) -> tuple[str, ...]:
    """The hosts that the address leads to, "" for libpq's own Unix socket; none where only a service file knows them."""
    info = address.conninfo
    for given in (info.get("hostaddr"), info.get("host")):
        if given:
            return tuple(given.split(","))
    if _service(address):
        return ()
    return tuple((os.environ.get("PGHOSTADDR") or os.environ.get("PGHOST") or "").split(","))


def _service(address: Address) -> str:
    return address.conninfo.get("service") or os.environ.get("PGSERVICE", "")


def place(address: Address) -> str:
    """The database in words: its file, or its name, hosts and ports."""
    if address.is_sqlite:
        return address.path
    info = address.conninfo
    name = info.get("dbname") or ("" if _service(address) else os.environ.get("PGDATABASE", ""))
    if not (servers := hosts(address)):
        return f"{name or 'database'} of service {_service(address)}"
    ports = (info.get("port") or os.environ.get("PGPORT") or "5432").split(",")
    ports = ports if len(ports) == len(servers) else ports * len(servers)
    where = ",".join(f"{host or 'localhost'}:{port or '5432'}" for host, port in zip(servers, ports, strict=False))
    return f"{name} on {where}"


def sqlalchemy_url(address: Address) -> sa.URL:
    """The address for SQLAlchemy, through psycopg 3; what it leaves out, libpq finds as for every other connection."""
    import sqlalchemy as sa

    if address.is_sqlite:
        return sa.URL.create("sqlite", database=address.path)
    info = dict(address.conninfo)
    port = info.pop("port") if info.get("port", "").isdigit() else None  # a list of ports stays among the parameters
    return sa.URL.create(
        "postgresql+psycopg",
        username=info.pop("user", None),
        password=info.pop("password", None),
        host=info.pop("host") if port and "," not in info.get("host", ",") else None,
        port=int(port) if port else None,
        database=info.pop("dbname", None),
        query=info,
    )


def sqlalchemy_engine(address: Address) -> sa.Engine:
    """An engine that keeps no connection; those to PostgreSQL are `connect_postgresql`'s, with all that it sees to."""
    import sqlalchemy as sa

    if address.is_sqlite:
        return sa.create_engine(sqlalchemy_url(address), poolclass=sa.NullPool)
    return sa.create_engine(
        "postgresql+psycopg://", creator=lambda: connect_postgresql(address, autocommit=False), poolclass=sa.NullPool
    )


def connect_sqlite(path: str, *, create: bool = False) -> sqlite3.Connection:
    """A connection in autocommit, WAL with synchronous FULL: what is committed survives a power cut.

    Who may not write the file gets one that reads it.

    Waiting for other writers is left to the caller (busy timeout 0), since SQLite's own waiting starves some of eight.

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
    """The error for a SQLite file that cannot be opened: most often there is none."""
    if not os.path.exists(path) and not _is_loop(path):  # noqa: PTH110 -- which raises none of its errors
        return NothingPlanned(f"nothing is planned here yet: there is no database {path}; `kt-study plan` makes one")
    return DatabaseError(f"cannot open the database {path}: {error}; check its permissions and those of its folder")


def _is_loop(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def connect_postgresql(address: Address, *, autocommit: bool = True) -> psycopg.Connection[Any]:
    """A psycopg connection that notices a dead peer.

    Raises:
        DatabaseError: an option of the URL that no waiting puts right.
        UntrustedFile: another account may have written the password file.
        psycopg.OperationalError: the server does not answer, or does not let us in.
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
        reason = _reason(address, error)
        if isinstance(error, psycopg.OperationalError) and not _WRONG_OPTION.search(reason):
            raise
        raise DatabaseError(f"the URL of database {place(address)} cannot be used: {reason}; correct it") from None


_WRONG_OPTION = re.compile(
    r"invalid .*\bvalue\b|invalid port number|service .* not found|could not parse network address"
)


def _reason(address: Address, error: BaseException) -> str:
    """The line of an error of libpq that says why, without the password."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = re.sub(r"^connection (failed|is bad): ", "", lines[0]) if lines else type(error).__name__
    return _scrubbed(said, address)


def unreachable(address: Address, error: BaseException) -> DatabaseError:
    """The error for a database that does not answer: which one, where, and what to do."""
    reason = _reason(address, error)
    if address.is_sqlite:
        return DatabaseError(f"database {place(address)}: {reason}{read_only(address)}")
    return DatabaseError(f"database {place(address)} does not answer: {reason}; {_how_to_start(address)}")


def read_only(address: Address) -> str:
    """What to know about a SQLite file that this account may read and not write, to end an error with; else empty."""
    if not address.is_sqlite or may_write(address.path):
        return ""
    return (
        f"; you may not write it (owner {owner(Path(address.path))}), or its disk is read-only: only status, query, "
        "collect --out and report --out work"
    )


def _how_to_start(address: Address) -> str:
    """What starts the server: for one of `kt-study db`, which its password file tells, the command and the machine."""
    folder = Path(address.conninfo.get("passfile", "")).parent
    try:
        machine = json.loads((folder / "server.json").read_text())["machine"]
    except (OSError, ValueError, KeyError, TypeError):
        return "is the server up, and the URL right? (`kt-study db start` starts one of kt-study's own)"
    return f"`kt-study db start --dir {shlex.quote(str(folder))}` on {machine} starts it"


def mismatch(address: Address, error: BaseException) -> SchemaMismatch:
    """The error of a statement that the database understands but cannot carry out as it is made."""
    said = _scrubbed(str(error).strip().splitlines()[0], address)
    return SchemaMismatch(
        f"database {place(address)}: {said}; another version of kt-study made it: run kt-study plan with this one"
    )


def _scrubbed(text: str, address: Address) -> str:
    for secret in filter(None, map(address.conninfo.get, SECRETS)):
        text = text.replace(secret, "***")
    return text


def file_system(path: str | Path) -> str:
    """The kernel's name of the file system on which `path` lies or would lie; empty where the kernel does not say."""
    target = os.path.realpath(path)
    best, kind = "", ""
    for line in mount_table().splitlines():
        left, _, right = line.partition(" - ")
        mount = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split()[4])  # of blanks and the like
        inside = target == mount or target.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind


def mount_table() -> str:
    """The kernel's list of mounts; empty where there is none."""
    table = Path("/proc/self/mountinfo")
    return table.read_text(encoding="utf-8", errors="surrogateescape") if table.exists() else ""


def require_local_disk(path: str | Path, what: str) -> None:
    """Refuse a network file system, where a database's locks are not reliable. Raises DatabaseError."""
    kind = file_system(path)
    if kind in NETWORK_FILE_SYSTEMS:
        raise DatabaseError(
            f"{what} {path} lies on a network file system ({kind}), where file locks are not reliable; put it on a local disk "
            "of one machine, or run `kt-study db start --dir FOLDER` with a folder on such a disk and use the URL it prints"
        )


def require_single_node(address: Address, nodes: int) -> None:
    """Refuse SQLite when workers would sit on more than one node. Raises DatabaseError."""
    if address.is_sqlite and nodes > 1:
        raise DatabaseError(
            f"{nodes} nodes cannot share the SQLite database {address.path}: its locks hold on one machine only; "
            "run `kt-study db start` and give the PostgreSQL URL that it prints with --db"
        )


def migrations_folder() -> Path:
    """Where the alembic migrations are. Raises DatabaseError where the installation lacks them."""
    if folder := shared_folder("sql/migrations", "versions/*.py"):
        return folder
    raise DatabaseError(missing("the migrations"))


@functools.cache
def newest_revision() -> str:
    """The schema that this program works with: that of its newest migration."""
    return max(path.name.partition("_")[0] for path in (migrations_folder() / "versions").glob("[0-9]*.py"))


def migrate(address: Address, revision: str = "head") -> None:
    """Bring the database to `revision`, from an empty one or any older one. Safe when several do it at once.

    Raises:
        DatabaseError: unreachable, newer than this program, another program's, or on a network file system.
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
            f"database {place(address)}: cannot make the tables: {_reason(address, error.orig or error)}; "
            "the role of the URL must be allowed to create them"
        ) from None
    finally:
        engine.dispose()


def _require_ours(address: Address, engine: sa.Engine) -> None:
    """Refuse a database in which another program keeps tables of our names, or its own migrations. Raises DatabaseError."""
    import sqlalchemy as sa

    from kt_study.tables import metadata

    with engine.connect() as connection:
        there = set(sa.inspect(connection).get_table_names())  # before the version, which appears together with them
        found_versions = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().all() \
            if "alembic_version" in there else []  # fmt: skip
    versions = list(map(str, found_versions))  # another program may keep numbers, or nothing, in that column
    if versions and not (len(versions) == 1 and re.fullmatch(r"[0-9]{4}", versions[0]) and there >= _OUR_TABLES):
        found = f"its alembic_version says {', '.join(versions)[:60]!r}"
    elif not versions and (taken := sorted(there.intersection(metadata.tables))):
        found = f"it has a table {taken[0]!r} that kt-study did not make"
    else:
        return
    raise DatabaseError(
        f"database {place(address)} belongs to another program: {found}; give kt-study a database of its own with --db"
    )


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
