"""Starting, stopping and inspecting a server."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kt_study.errors import DatabaseError
from kt_study.file_systems import require_local_disk
from kt_study.files import write_private
from kt_study.records import Record
from orchestrator.cluster import reader_role
from orchestrator.cluster.postgres_server import files, programs
from orchestrator.cluster.postgres_server.files import DATABASE, USER, ServerFolder

if TYPE_CHECKING:
    import psycopg

START_TIMEOUT_S = 60
REAP_TIMEOUT_S = 15


class ServerStatus(Record, frozen=True, kw_only=True):
    """Whether a server runs and accepts connections, and its address."""

    running: bool
    accepting: bool
    host: str
    port: int
    pid: int | None
    machine: str  # on which it was started
    url: str  # without the password
    log: str


def start(folder: str | Path, *, host: str | None = None, port: int = 0, settings: dict[str, str] | None = None) -> str:
    """Start the server of `folder`, creating it first if there is none; do nothing if it runs already.

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
            the one at which the server runs, or the server does not start. A new folder is not left behind.
    """
    folder = Path(folder).resolve()
    require_local_disk(folder, "the PostgreSQL folder")
    if host:
        _free_port(host)
    files.require_usable(folder)
    with files.created(folder), files.locked(folder):
        server = files.recorded(folder) or files.recovered(folder)
        if server is not None and _becomes_ready(server):
            _require_same_address(server, host, port)
            if _accepts_password(server):
                server.record()
                return server.url
            _require_this_machine(server)
            _stop(server)
            return _started(server, settings or {})
        host = host or (server.host if server else "127.0.0.1")
        server = ServerFolder(
            folder=folder,
            host=host,
            port=port or (server.port if server and server.port else _free_port(host)),
            machine=socket.gethostname(),
        )
        if not files.is_ours(server.data):
            _initialise(server)
        return _started(server, settings or {})


def stop(folder: str | Path) -> bool:
    """Stop the server, ending its connections. True if it ran, False if there was nothing to stop. Raises DatabaseError."""
    server = files.existing(folder)
    with files.locked(server.folder):
        if not _is_running(server):
            return False
        _require_this_machine(server)
        _stop(server)
        return True


def status(folder: str | Path) -> ServerStatus:
    """Whether the server of `folder` runs and answers. Raises DatabaseError if no server was ever started there."""
    server = files.existing(folder)
    pid = _pid(server) if _is_running(server) else None
    return ServerStatus(
        running=pid is not None,
        accepting=_is_accepting(server),
        host=server.host,
        port=server.port,
        pid=pid,
        machine=server.machine,
        url=server.url,
        log=str(server.log),
    )


def url(folder: str | Path) -> str:
    """The URL of the server of `folder`, without the password. Raises DatabaseError if none was ever started there."""
    return files.existing(folder).url


def _started(server: ServerFolder, settings: dict[str, str]) -> str:
    """Launch the server, with a new password if the old one is lost. Returns its URL."""
    _wait_for_end(_pid(server))
    _launch(server, settings)
    if not _accepts_password(server):
        _stop(server)
        _replace_password(server)
        _launch(server, settings)
    server.record()
    _create_database_and_reader(server)
    return server.url


def _initialise(server: ServerFolder) -> None:
    """Create the cluster with a random password, which is written to the pgpass file only. If it fails, nothing is left."""
    files.delete_unfinished(server.folder)
    unfinished = Path(tempfile.mkdtemp(dir=server.folder, prefix=files.UNFINISHED))
    (unfinished / files.MARKER).touch()
    data, secret, password = unfinished / "data", unfinished / "password", secrets.token_urlsafe(32)
    try:
        data.mkdir(mode=0o700)
        write_private(secret, f"{password}\n".encode(), below=unfinished)
        if account := programs.account():  # PostgreSQL refuses to run as root
            unfinished.chmod(0o711)
            for path in (data, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
        programs.run(
            data, "initdb", "-D", str(data), "-U", USER, "--pwfile", str(secret), "--auth=scram-sha-256",
            "--encoding=UTF8", "--locale=C", "--data-checksums",
        )  # fmt: skip
        (data / "pg_hba.conf").write_text(files.HBA_RULES)
        server.write_password(password)
        data.rename(server.data)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _replace_password(server: ServerFolder) -> None:
    """Set a new password for the URL's role while the server is down; the old one is lost."""
    password = secrets.token_urlsafe(32)
    programs.run(
        server.data, "postgres", "--single", "-D", str(server.data), "-c", "password_encryption=scram-sha-256",
        "postgres", stdin=f"ALTER ROLE {USER} PASSWORD '{password}'\n",
    )  # fmt: skip
    server.write_password(password)


def _launch(server: ServerFolder, settings: dict[str, str]) -> None:
    chosen = {
        "listen_addresses": server.host,
        "port": str(server.port),
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
        "max_connections": "1000",
        "autovacuum_naptime": "10s",  # the rows of the job table change often
    } | settings
    options = " ".join(f"-c {name}='{value}'" for name, value in chosen.items())
    command = ("-D", str(server.data), "-l", str(server.log), "-w", "-t", str(START_TIMEOUT_S), "-o", options, "start")
    try:
        programs.run(server.data, "pg_ctl", *command)
    except DatabaseError as error:
        raise DatabaseError(f"{error}; {server.log} says: {_reason_in(server.log)}") from None


def _reason_in(log: Path) -> str:
    """The line of a server's log with the reason why it stopped."""
    lines = log.read_text().strip().splitlines() if log.exists() else []
    fatal = [line for line in lines if "FATAL" in line]
    return (fatal or lines or ["nothing"])[-1]


def _accepts_password(server: ServerFolder) -> bool:
    """Whether the server accepts the password of the password file."""
    import psycopg

    try:
        _connect(server).close()
    except OSError:
        return False
    except psycopg.OperationalError as error:
        return "password" not in str(error)
    return True


def _connect(server: ServerFolder) -> psycopg.Connection[Any]:
    """A connection to the server's first database. Raises OSError without a password file, psycopg.OperationalError."""
    import psycopg

    password = server.passfile.read_text().strip().rpartition(":")[2]  # explicit: libpq would prefer PGPASSWORD
    return psycopg.connect(
        host=server.host, port=server.port, user=USER, dbname="postgres", password=password, autocommit=True
    )


def _create_database_and_reader(server: ServerFolder) -> None:
    import psycopg

    try:
        with _connect(server) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
                connection.execute(f"CREATE DATABASE {DATABASE}")
            reader_role.create(connection)
    except psycopg.OperationalError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DatabaseError(
            f"the server on {server.host}:{server.port} started but does not answer: {reason}"
        ) from None


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
        except OSError as error:
            raise DatabaseError(f"cannot listen on {host}: {error.strerror}; give an address of this machine") from None
        return int(probe.getsockname()[1])


def _pid(server: ServerFolder) -> int | None:
    try:
        return int((server.data / "postmaster.pid").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return None


def _becomes_ready(server: ServerFolder) -> bool:
    """Whether a running server accepts connections within the time of a start; False as soon as it does not run."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while _is_running(server) and time.monotonic() < deadline:
        if _is_accepting(server):
            return True
        time.sleep(0.1)
    return False


def _wait_for_end(pid: int | None) -> None:
    """Wait until the system has removed a killed server, which PostgreSQL takes for running until then."""
    deadline = time.monotonic() + REAP_TIMEOUT_S
    while pid and Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def _is_running(server: ServerFolder) -> bool:
    """By its process on this machine, by its answer on another."""
    if server.machine != socket.gethostname():
        return _is_accepting(server)
    pid = _pid(server)
    if pid is None:
        return False
    try:
        return b"postgres" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return _is_accepting(server)


def _is_accepting(server: ServerFolder) -> bool:
    command = [str(programs.binaries() / "pg_isready"), "-h", server.host, "-p", str(server.port), "-t", "5"]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def _stop(server: ServerFolder) -> None:
    programs.run(server.data, "pg_ctl", "-D", str(server.data), "-m", "fast", "-w", "stop")


def _require_same_address(server: ServerFolder, host: str | None, port: int) -> None:
    """Refuse another address than that of a running server. Raises DatabaseError."""
    if (host or server.host, port or server.port) != (server.host, server.port):
        raise DatabaseError(
            f"the server of {server.folder} runs already, on {server.host}:{server.port}; "
            f"`kt-study db stop --dir {shlex.quote(str(server.folder))}` first, then start it again"
        )


def _require_this_machine(server: ServerFolder) -> None:
    if server.machine != socket.gethostname():
        raise DatabaseError(f"the server of {server.folder} runs on {server.machine}; stop it there")
