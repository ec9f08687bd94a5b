"""Small disks of the run's own, which can be full or read-only without anybody else noticing. They need root."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BALLAST = ".ballast"


def trouble() -> str:
    """Why no disk can be mounted here; empty when one can."""
    if os.geteuid() != 0:
        return "mounting a small disk needs root"
    with tempfile.TemporaryDirectory(prefix="kt-faults-probe-") as folder:
        try:
            with small_disk(Path(folder), mebibytes=1):
                return ""
        except OSError as error:
            return str(error)


@contextmanager
def small_disk(folder: Path, *, mebibytes: int) -> Iterator[None]:
    """A file system in memory at `folder`, which is made. Raises OSError where it cannot be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m,mode=0755", "kt-faults", str(folder))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(folder))


@contextmanager
def full(folder: Path) -> Iterator[None]:
    """The disk of `folder` without a free byte."""
    ballast = folder / _BALLAST
    try:
        with ballast.open("wb", buffering=0) as stream:
            try:
                while stream.write(b"\0" * 65536):
                    pass
            except OSError:
                pass  # full, which is what is wanted
        yield
    finally:
        ballast.unlink(missing_ok=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nobody can open a file of `folder` for writing, root neither; what is open for writing already stays so."""
    _run("mount", "--rbind", str(folder), str(folder))
    try:
        _run("mount", "--make-rprivate", str(folder))
        _run("mount", "-o", "remount,bind,ro", str(folder))
        yield
    finally:
        _run("umount", "--lazy", str(folder))


def _run(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(argv)}: {done.stderr.strip()}")
