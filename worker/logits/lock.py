"""A lock per entry, across processes, so that one process makes it; best effort on file systems without locks."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kt_study.errors import DiskError
from kt_study.files import NO_LOCKS, make_folder

POLL_S = 0.2
"""Seconds between two checks of a lock that another process holds."""


@contextmanager
def held(path: Path, waiting: Callable[[], None]) -> Iterator[bool]:
    """Hold the lock file `path`; `waiting` is called at each check while another process holds it and may raise to give up.

    Yields:
        whether the file system has locks; without them two processes may make the same entry, and one wins.

    Raises:
        DiskError: the lock file cannot be made.
    """
    handle = _locked(path, waiting)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with suppress(OSError):  # it stays on a disk that has become read-only, and the next holder uses it
                path.unlink()
            os.close(handle)


def _locked(path: Path, waiting: Callable[[], None]) -> int | None:
    while True:
        handle = _opened(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _has_name(handle, path):
                return handle
        except BlockingIOError:
            pass
        except OSError as error:
            os.close(handle)
            if error.errno in NO_LOCKS:
                return None
            raise DiskError(f"cannot lock {path}: {error.strerror}") from error
        os.close(handle)
        waiting()
        time.sleep(POLL_S)


def _opened(path: Path) -> int:
    try:
        make_folder(path.parent)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise DiskError(f"cannot write {path}: {error.strerror}; free space or choose another folder") from error


def _has_name(handle: int, path: Path) -> bool:
    """Whether the locked file still has that name: its last holder removes it."""
    try:
        return os.fstat(handle).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False
