"""The folder of a server: its files, whether they are kt-study's, and creating it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from kt_study.errors import DatabaseError
from kt_study.files import write_private, write_text
from kt_study.records import Record
from orchestrator.cluster.postgres_server import programs

USER = DATABASE = "kt_study"
HBA_RULES = "host all all 0.0.0.0/0 scram-sha-256\nhost all all ::/0 scram-sha-256\n"
"""The content of pg_hba.conf, which also identifies our clusters."""
_NAMES = ("data", "pgpass", "server.json", ".lock")
UNFINISHED, MARKER = ".new-", "made-by-kt-study"
_USE_ANOTHER = "give another folder with --dir"


class ServerFolder(Record, frozen=True, kw_only=True):
    """The files of one server, and its address."""

    folder: Path
    host: str
    port: int
    machine: str  # on which it was started

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

    def write_password(self, password: str) -> None:
        write_private(self.passfile, f"*:*:*:{USER}:{password}\n".encode(), below=self.folder)

    def record(self) -> None:
        """Write server.json, unless it is up to date."""
        if recorded(self.folder) != self:
            address = {"host": self.host, "port": self.port, "machine": self.machine}
            write_text(self.folder / "server.json", json.dumps(address) + "\n")


def recorded(folder: Path) -> ServerFolder | None:
    """The content of server.json; None if there is none. Raises DatabaseError if it is not ours."""
    file = folder / "server.json"
    try:
        known = json.loads(file.read_text())
        return ServerFolder(
            folder=folder, host=str(known["host"]), port=int(known["port"]), machine=str(known["machine"])
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise DatabaseError(
            f"{file} cannot be read, or is not one of kt-study's; move it away and run `kt-study db start` again, "
            f"which reuses a server of kt-study's without it, or {_USE_ANOTHER}"
        ) from None


def recovered(folder: Path) -> ServerFolder | None:
    """A cluster of ours whose server.json is lost, with the address of its last start; port 0 if that is lost too."""
    data = folder / "data"
    if not is_ours(data):
        return None
    try:
        options = (data / "postmaster.opts").read_text()
    except (OSError, UnicodeDecodeError):
        options = ""
    host = re.search(r'"listen_addresses=([^",]+)"', options)
    port = re.search(r'"port=([0-9]+)"', options)
    return ServerFolder(
        folder=folder,
        host=host[1] if host else "127.0.0.1",
        port=int(port[1]) if port else 0,
        machine=socket.gethostname(),
    )


def existing(folder: str | Path) -> ServerFolder:
    """The server of a folder. Raises DatabaseError if none was ever started there."""
    server = recorded(Path(folder).resolve())
    if server is None:
        command = f"kt-study db start --dir {shlex.quote(str(folder))}"
        raise DatabaseError(f"no PostgreSQL server was ever started in {folder}; `{command}` starts one")
    return server


def is_ours(data: Path) -> bool:
    """Whether kt-study created this cluster: by its pg_hba.conf, or by our files beside it. Raises DatabaseError."""
    try:
        if not (data / "PG_VERSION").is_file():
            return False
        beside = (data.parent / "server.json").is_file() or _is_passfile(data.parent / "pgpass")
        return beside or HBA_RULES in (data / "pg_hba.conf").read_text()
    except PermissionError:
        raise DatabaseError(f"{data} is another user's; {_USE_ANOTHER}") from None
    except (OSError, UnicodeDecodeError):
        return False


def require_usable(folder: Path) -> None:
    """Refuse, before anything is created, a folder with other files, or one in which PostgreSQL could not work."""
    if folder.exists() and not folder.is_dir():
        raise DatabaseError(f"{folder} is not a folder; {_USE_ANOTHER}")
    data, passfile = folder / "data", folder / "pgpass"
    ours = is_ours(data)
    if not ours and os.path.lexists(data) and (not data.is_dir() or data.is_symlink() or any(_listed(data))):
        raise DatabaseError(f"{data} holds something that kt-study did not make; {_USE_ANOTHER}")
    if os.path.lexists(passfile) and not _is_passfile(passfile):
        raise DatabaseError(f"{passfile} is not one of kt-study's; {_USE_ANOTHER}")
    recorded(folder)
    programs.binaries(data if ours else None)
    if account := programs.account():
        if folder.is_dir() and all(path.name in _NAMES or path.name.startswith(UNFINISHED) for path in _listed(folder)):
            folder.chmod(folder.stat().st_mode | 0o011)
        _require_access(account, folder, data if ours else None)


@contextlib.contextmanager
def created(folder: Path) -> Iterator[None]:
    """Create the folder. If what follows fails, remove the folders that were created here. Raises DatabaseError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    mode = 0o711 if programs.account() else 0o777  # the account must be able to enter root's folders
    try:
        for path in reversed(missing):
            path.mkdir(mode=mode, exist_ok=True)
            if programs.account():
                path.chmod(mode)
    except OSError as error:
        raise DatabaseError(f"cannot create {folder}: {error.strerror}; {_USE_ANOTHER}") from None
    try:
        yield
    except BaseException:
        if missing:
            with contextlib.suppress(OSError):
                (folder / ".lock").unlink(missing_ok=True)
                for path in missing:
                    path.rmdir()
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let one process at a time start or stop the server. Raises DatabaseError."""
    try:
        stream = (folder / ".lock").open("a")
    except OSError as error:
        raise DatabaseError(f"cannot write in {folder}: {error.strerror}; {_USE_ANOTHER}") from None
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def delete_unfinished(folder: Path) -> None:
    """Delete what killed starts left behind."""
    for unfinished in folder.glob(f"{UNFINISHED}*"):
        if (unfinished / MARKER).is_file() and not unfinished.is_symlink():
            shutil.rmtree(unfinished, ignore_errors=True)


def _is_passfile(path: Path) -> bool:
    try:
        return f":{USER}:" in path.read_text()
    except (OSError, UnicodeDecodeError):
        return False


def _listed(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError as error:
        raise DatabaseError(f"{folder} cannot be read: {error.strerror}; {_USE_ANOTHER}") from None


def _require_access(account: pwd.struct_passwd, folder: Path, data: Path | None) -> None:
    """Refuse a folder or programs that the account cannot enter or run. Raises DatabaseError."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    for path in (*reversed(nearest.parents), nearest):
        if not programs.succeeds(account, "test", "-x", str(path)):
            raise DatabaseError(
                f"PostgreSQL does not run as root but as {account.pw_name}, which cannot enter {path}; "
                "give a folder that it can with --dir, for instance /var/lib/kt-study/postgresql"
            )
    program = programs.binaries(data) / "initdb"
    if not programs.succeeds(account, str(program), "--version"):
        raise DatabaseError(
            f"PostgreSQL does not run as root but as {account.pw_name}, which cannot run {program}: "
            "a folder above it is closed; run as an ordinary user"
        )
