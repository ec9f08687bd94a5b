"""Connections that are opened for use, kept while uses follow each other closely, and closed after that.

A worker that trains for hours holds no connection, so that hundreds of them do not exhaust the server.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """Anything with a close method."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)

_inherited: list[object] = []  # connections of a parent process: closing them here would break them there


class Pool(Generic[C]):
    """Idle connections of one process. Each belongs to one thread between `take` and `give`.

    Args:
        connect: opens a connection.
        idle_s: seconds after which an idle connection is closed.
    """

    def __init__(self, connect: Callable[[], C], idle_s: float) -> None:
        self._connect = connect
        self._idle_s = idle_s
        self._idle: list[tuple[C, float]] = []
        self._lock = threading.Lock()
        self._reaper: threading.Thread | None = None
        self._pid = os.getpid()

    def take(self) -> C:
        """An idle connection, the last one used first, or a new one."""
        if self._pid != os.getpid():
            self._leave_to_parent()
        with self._lock:
            if self._idle:
                return self._idle.pop()[0]
        return self._connect()

    def give(self, connection: C) -> None:
        """Take back a connection that works and is in no transaction."""
        with self._lock:
            self._idle.append((connection, time.monotonic()))
            if self._reaper is None:
                self._reaper = threading.Thread(target=self._reap, name="kt-study-connections", daemon=True)
                self._reaper.start()

    def discard(self, connection: C) -> None:
        """Close a connection that may be broken, and the idle ones, which are likely to be broken as well."""
        with contextlib.suppress(Exception):
            connection.close()
        self.close()

    def close(self) -> None:
        """Close every idle connection."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection, _ in idle:
            with contextlib.suppress(Exception):
                connection.close()

    def _reap(self) -> None:
        while True:
            time.sleep(self._idle_s)
            oldest = time.monotonic() - self._idle_s
            with self._lock:
                old = [connection for connection, since in self._idle if since <= oldest]
                self._idle = [(connection, since) for connection, since in self._idle if since > oldest]
                if not self._idle:
                    self._reaper = None
            for connection in old:
                with contextlib.suppress(Exception):
                    connection.close()
            if self._reaper is not threading.current_thread():
                return

    def _leave_to_parent(self) -> None:
        _inherited.append(self._idle)
        self._idle, self._lock, self._reaper, self._pid = [], threading.Lock(), None, os.getpid()
