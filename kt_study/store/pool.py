"""Connections that are opened for use, kept while uses follow each other closely, and closed after that.

A worker that trains for hours holds no connection, so that hundreds of them do not exhaust the server.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, TypeVar


class Closable(Protocol):
    """Anything with a close method."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)

FORK_WAITS_S = 10.0


class Pool(Generic[C]):
    """Idle connections of one process. Each belongs to one thread between `take` and `give` or `discard`.

    None is open while the process forks: SQLite's bookkeeping of locks would be copied into the child, which would then
    write over its parent's commits (seen), and PostgreSQL would have two processes talking on one socket.

    Args:
        connect: opens a connection.
        idle_s: seconds after which an idle connection is closed.
    """

    def __init__(self, connect: Callable[[], C], idle_s: float) -> None:
        self._connect = connect
        self._idle_s = idle_s
        self._idle: list[C] = []
        self._untouched = 0  # so many of them, from the first on, have lain there since the reaper last looked
        self._in_use = 0
        self._lock = threading.Lock()
        self._reaper: threading.Thread | None = None
        _pools.add(self)

    def take(self) -> C:
        """An idle connection, the last one used first, or a new one."""
        with self._lock:
            self._in_use += 1
            if self._idle:
                connection = self._idle.pop()
                self._untouched = min(self._untouched, len(self._idle))
                return connection
        try:
            return self._connect()
        except BaseException:
            self._put_down()
            raise

    def give(self, connection: C) -> None:
        """Take back a connection that works and is in no transaction."""
        with self._lock:
            self._in_use -= 1
            self._idle.append(connection)
            if self._reaper is None:
                self._reaper = threading.Thread(target=self._reap, name="kt-study-connections", daemon=True)
                self._reaper.start()

    def discard(self, connection: C) -> None:
        """Close a connection that may be broken, and the idle ones, which are likely to be broken as well."""
        with contextlib.suppress(Exception):
            connection.close()
        self.close()
        self._put_down()

    def close(self) -> None:
        """Close every idle connection."""
        with self._lock:
            idle, self._idle, self._untouched = self._idle, [], 0
        _close_all(idle)

    def _put_down(self) -> None:
        with self._lock:
            self._in_use -= 1

    def _reap(self) -> None:
        while True:
            time.sleep(self._idle_s)
            with self._lock:
                old, self._idle = self._idle[: self._untouched], self._idle[self._untouched :]
                self._untouched = len(self._idle)
                if not self._idle:
                    self._reaper = None
            _close_all(old)
            if self._reaper is not threading.current_thread():
                return

    def before_fork(self) -> None:
        """Wait until no connection is in use, close the idle ones, and let nobody open another."""
        deadline = time.monotonic() + FORK_WAITS_S
        self._lock.acquire()
        while self._in_use and time.monotonic() < deadline:
            self._lock.release()
            time.sleep(0.001)
            self._lock.acquire()
        _close_all(self._idle)
        self._idle, self._untouched = [], 0

    def after_fork_in_parent(self) -> None:
        """Go on as before."""
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Begin anew, without the threads that the child does not have."""
        self._idle, self._untouched, self._in_use, self._reaper, self._lock = [], 0, 0, None, threading.Lock()


def _close_all(connections: Iterable[Closable]) -> None:
    for connection in connections:
        with contextlib.suppress(Exception):
            connection.close()


_pools: weakref.WeakSet[Pool[Any]] = weakref.WeakSet()


def _all(step: Callable[[Pool[Any]], None]) -> Callable[[], None]:
    def run() -> None:
        for pool in list(_pools):
            step(pool)

    return run


os.register_at_fork(
    before=_all(Pool.before_fork),
    after_in_parent=_all(Pool.after_fork_in_parent),
    after_in_child=_all(Pool.after_fork_in_child),
)
# Python leaves them open at its end, and only the last connection that is closed brings SQLite's log back into the file.
atexit.register(_all(Pool.close))
