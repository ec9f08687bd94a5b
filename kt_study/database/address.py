"""Database URLs: parsing, hiding secrets, hosts."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from kt_study.errors import DatabaseError
from kt_study.nearest import nearest
from kt_study.records import Record

SECRETS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")
"""Options of a URL that no log, argument list, script or pickle may contain."""

_INTEGER_OPTIONS = ("connect_timeout", "keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count",
                    "tcp_user_timeout")  # fmt: skip
_THIS_MACHINE = ("", "localhost", "ip6-localhost", "::1", "::", "0.0.0.0")


class Address(Record, frozen=True, kw_only=True):
    """A parsed database URL. `path` is set for SQLite, `conninfo` (libpq's parameters) for PostgreSQL."""

    url: str  # without the password
    path: str = ""
    conninfo: dict[str, str] = {}  # noqa: RUF012 -- msgspec copies it for each record

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a file on this machine."""
        return bool(self.path)


def parse_url(url: str) -> Address:
    """Parse a database URL. Raises DatabaseError for anything but SQLite and PostgreSQL, and for unknown options."""
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
    except ValueError:  # its text may contain a part of the password
        raise DatabaseError(
            f"cannot read the database URL {without_password(url)!r}: a port number and the database's "
            "name may follow the host; in a password, write / as %2F, @ as %40, and so on"
        ) from None
    raise DatabaseError(
        f"cannot read the database URL {without_password(url)!r}; "
        "it is sqlite:///FILE or postgresql://USER@HOST:PORT/NAME?passfile=FILE"
    )


def sqlite_url(path: str | Path) -> str:
    """The URL of an SQLite file, whatever characters its name has."""
    return f"sqlite:///{quote(str(path))}"


def without_password(url: str) -> str:
    """The URL without passwords, for logs and errors, even if it cannot be parsed.

    Then too much is removed rather than too little: a password that is not percent-encoded may contain any character.
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
    """libpq's parameters. Raises ValueError if a password that is not percent-encoded has moved the host."""
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
                "cannot read the database URL: an option after its question mark has no `=`; "
                "in a password, write & as %26"
            )
        if (key, value) == ("ssl", "true"):  # JDBC's spelling, which libpq accepts too
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
    """Refuse options that libpq does not know, and text where it wants a number.

    Raises:
        DatabaseError: without any value that may be a part of a password.
    """
    for key, value in conninfo.items():
        if key not in _options():
            hint = nearest(key, _options())
            if "password" in conninfo and not hint:
                raise DatabaseError(
                    "the database URL has a password and an option that PostgreSQL does not know; "
                    "in a password, write & as %26"
                )
            raise DatabaseError(f"the database URL has the option {key!r}, which PostgreSQL does not know{hint}")
        if key in _INTEGER_OPTIONS and not re.fullmatch(r"\s*[+-]?[0-9]+\s*", value):
            raise DatabaseError(f"the database URL has {key}={value!r}, which is not an integer; correct it")


@functools.cache
def _options() -> frozenset[str]:
    """The names of libpq's parameters."""
    from psycopg import pq

    return frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())


def files_of(address: Address) -> list[str]:
    """The files that a database URL names: the SQLite file, or the password file."""
    return [file for file in (address.path, address.conninfo.get("passfile", "")) if file]


def is_this_machine(host: str) -> bool:
    """Whether a host, as libpq takes it, means whichever machine asks: a loopback, any address, or a Unix socket."""
    return host in _THIS_MACHINE or host.startswith(("127.", "/", "@"))


def hosts(address: Address) -> tuple[str, ...]:
    """The hosts that the address means, "" for libpq's own Unix socket; none if only a service file names them."""
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
    """The database for messages: its file, or its name, hosts and ports."""
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


def require_single_node(address: Address, nodes: int) -> None:
    """Refuse SQLite if workers would run on more than one node. Raises DatabaseError."""
    if address.is_sqlite and nodes > 1:
        raise DatabaseError(
            f"{nodes} nodes cannot share the SQLite database {address.path}: its locks work on one machine only; "
            "run `kt-study db start` and give the PostgreSQL URL that it prints with --db"
        )
