"""A lock for launches: between counting workers and starting the missing ones, no other launch of the user starts any.

The lock is per user, not per study, since the limit on submitted jobs counts all studies.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from kt_study.errors import DiskError, EnvironmentUnusable
from kt_study.files import NO_LOCKS, locked

TIMEOUT_S = 60.0
_RETRY_EVERY_S = 0.2


class AnotherLaunch(EnvironmentUnusable):
    """Another launch of this user holds the lock for longer than the timeout."""


def lock_file() -> Path:
    """The lock file, in the user's state folder, which the login nodes of a cluster share."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "kt-study" / "launch.lock"


@contextlib.contextmanager
def launch_lock(*, timeout_s: float | None = None) -> Iterator[None]:
    """Hold the lock; wait for it up to `timeout_s` seconds, a minute by default.

    Raises:
        AnotherLaunch: another launch holds it for longer.
        DiskError: its file cannot be written.
    """
    file = lock_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = _wait_for(file, time.monotonic() + (TIMEOUT_S if timeout_s is None else timeout_s))
    except OSError as error:
        raise DiskError(f"{file}: {error.strerror}; set XDG_STATE_HOME to a folder that can be written") from error
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _wait_for(file: Path, deadline: float) -> int | None:
    """The lock's descriptor; None on a file system without locks, where launches do not wait for each other."""
    while True:
        try:
            with contextlib.suppress(BlockingIOError):
                return locked(file)
        except OSError as error:
            if error.errno in NO_LOCKS:
                return None
            raise
        if time.monotonic() > deadline:
            raise AnotherLaunch("another launch of yours is running; nothing was started, launch again")
        time.sleep(_RETRY_EVERY_S)
