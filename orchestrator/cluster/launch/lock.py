"""One launch of a user at a time: between counting what is in the queue and sending what is missing nobody else sends.

The lock is the user's, not the study's, since the cap on submitted jobs counts all studies.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from kt_study.errors import DiskError, SlurmError

PATIENCE_S = 60.0
_LOOK_EVERY_S = 0.2


def lock_file() -> Path:
    """Where the lock lies: with the user's own state, which the login nodes of a cluster share."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "kt-study" / "launch.lock"


@contextlib.contextmanager
def only_launch(*, patience_s: float | None = None) -> Iterator[None]:
    """Hold the lock; wait for it up to `patience_s` seconds, a minute by default.

    Raises:
        SlurmError: another launch holds it for longer.
        DiskError: its file cannot be written.
    """
    file = lock_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("a")
    except OSError as error:
        raise DiskError(f"{file}: {error.strerror}; name a folder that can be written with XDG_STATE_HOME") from error
    with stream:
        _wait_for(stream, time.monotonic() + (PATIENCE_S if patience_s is None else patience_s))
        yield


def _wait_for(stream: IO[str], deadline: float) -> None:
    while True:
        try:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
        except OSError:
            return  # a file system without locks keeps nobody from launching
        if time.monotonic() > deadline:
            raise SlurmError("another launch of yours is at work; nothing was sent, launch again")
        time.sleep(_LOOK_EVERY_S)
