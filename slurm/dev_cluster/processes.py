"""Processes identified by pid and start time, so that a reused pid is never mistaken for one of the cluster."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Process:
    """A daemon that we started. Its pid may be reused, so its start time is part of its identity."""

    pid: int
    started: str

    @property
    def alive(self) -> bool:
        return started_at(self.pid) == self.started


def started_at(pid: int) -> str | None:
    """Boot and clock tick at which the process started (proc(5): /proc/PID/stat); None if it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None if fields[0] == "Z" else f"{boot} {fields[19]}"


def end(processes: list[Process], patience_s: float = STOP_TIMEOUT_S) -> None:
    """SIGTERM to all of them, then SIGKILL to those still alive; a reused pid gets no signal."""
    for step in (signal.SIGTERM, signal.SIGKILL):
        for process in (process for process in processes if process.alive):
            with suppress(ProcessLookupError):
                os.kill(process.pid, step)
        deadline = time.monotonic() + patience_s
        while any(process.alive for process in processes) and time.monotonic() < deadline:
            time.sleep(0.05)


def parents() -> dict[int, int]:
    """Process id -> its parent's, for every process of the machine."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    return found
