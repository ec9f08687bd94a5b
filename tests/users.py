"""A second user and a member of the first one's group, for tests that root runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.require import require

LAB = 28_100
"""A group that several users are in."""


@dataclass(frozen=True)
class User:
    """Somebody without an entry in /etc/passwd: an account is its number."""

    uid: int
    gid: int = LAB

    def start(self, folder: Path, *argv: str, umask: int = 0o022) -> subprocess.Popen[str]:
        """A command of this user's. It may read what only root may, such as a Python under /root, and no more."""
        caller = [f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups"]
        reading = ["--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search"] if self.uid else []
        return subprocess.Popen(
            ["setpriv", *caller, *reading, *argv],
            cwd=folder,
            umask=umask,
            env={**os.environ, "HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, *argv: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
        """A command of this user's, to its end."""
        with self.start(folder, *argv, umask=umask) as process:
            out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(argv, process.returncode, out, err)

    def kt_study(self, folder: Path, *arguments: str, umask: int = 0o022) -> subprocess.CompletedProcess[str]:
        """`kt-study ARGUMENTS` in `folder`."""
        return self.run(folder, sys.executable, "-m", "kt_study", *arguments, umask=umask)

    def kt_study_in_each(self, folders: Sequence[Path], *arguments: str) -> list[tuple[int, str]]:
        """Exit code and standard error of `kt-study ARGUMENTS` in each folder, by one process that may read what the user
        may, and no more: root runs the command once before, in a copy of the first folder, so that Python has by then
        imported what only root may read."""
        done = subprocess.run(
            [sys.executable, "-P", "-c", _IN_EACH, str(self.uid), str(self.gid), *map(str, folders), "--", *arguments],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        )
        return [(code, said) for code, said in json.loads(done.stdout)]

    def owns(self, *paths: Path) -> None:
        """Give the user some files and folders."""
        for path in paths:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)


_IN_EACH = """
import contextlib, io, json, os, shutil, sys, tempfile
from orchestrator.cli import main

uid, gid, *words = sys.argv[1:]
folders, arguments = words[: words.index("--")], words[words.index("--") + 1 :]

def run(folder):
    os.chdir(folder)
    sys.argv = ["kt-study", *arguments]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            main()
        except SystemExit as ended:
            return ended.code, said.getvalue()

with tempfile.TemporaryDirectory() as copy:
    shutil.copytree(folders[0], copy, dirs_exist_ok=True)
    run(copy)
    os.chdir("/")
os.setgroups([])
os.setgid(int(gid))
os.setuid(int(uid))
print(json.dumps([run(folder) for folder in folders]))
"""


ALICE, BOB, STRANGER = User(28_001), User(28_002), User(28_003, gid=28_003)


@contextmanager
def folder_of(user: User) -> Iterator[Path]:
    """A folder of the user's that others may look into; pytest's own are closed to everybody but root."""
    require(
        "root", os.geteuid() == 0 and bool(shutil.which("setpriv")), "only root with setpriv can act as another user"
    )
    folder = Path(tempfile.mkdtemp(prefix="kt-study-users-"))
    try:
        folder.chmod(0o755)
        user.owns(folder)
        yield folder
    finally:
        shutil.rmtree(folder)
