"""The pilot owns its signals: Slurm's preemption, its time limit and a user's Ctrl-C all mean "stop soon"."""

from __future__ import annotations

import signal
import time
from types import FrameType

from worker.job.context import STOP_SIGNALS

END_OF_ALLOCATION = "the end of the allocation"
"""The reason of a pilot that stops itself shortly before Slurm would end it."""

CHECK_EVERY_S = 0.05


class StopRequest:
    """Remembers the first stop signal; those that follow change nothing.

    Holds no lock: a signal handler runs between two instructions of the main thread, so an Event that the handler sets
    while that same thread is inside its `wait` would deadlock.
    """

    def __init__(self) -> None:
        self._made = False
        self.reason = ""
        self.since = 0.0  # time.monotonic() of the request

    @property
    def made(self) -> bool:
        """Whether a stop was requested."""
        return self._made

    def make(self, reason: str) -> None:
        """Request a stop; only the first reason is kept."""
        if not self._made:
            self.reason, self.since = reason, time.monotonic()
            self._made = True

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until the request. Returns whether it was made."""
        until = time.monotonic() + seconds
        while not self._made and (left := until - time.monotonic()) > 0:
            time.sleep(min(CHECK_EVERY_S, left))
        return self._made

    def listen(self) -> None:
        """Take over the stop signals from earlier handlers, such as submitit's. Main thread only.

        SIGCONT is ignored: Slurm sends it together with SIGTERM, and alone it means nothing.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number != signal.SIGCONT:
            self.make(signal.Signals(number).name)
