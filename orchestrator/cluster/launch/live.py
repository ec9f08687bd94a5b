"""Counts active workers, and how many more are useful: from the job table, and for workers that have not registered yet, from
this machine's processes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kt_study.pilots import PilotOptions, alive_within_s
from kt_study.store import WorkerRow

if TYPE_CHECKING:
    from kt_study.store import JobStore


def live_workers(store: JobStore, options: PilotOptions) -> list[WorkerRow]:
    """Workers of a study that have not left and still beat; of those here whose process is gone, the jobs are freed.

    Studies may share a database: whose log is in another study's folder works for that one.
    """
    working = store.workers(alive_within_s=alive_within_s(options.lease_s))
    here = [worker for worker in working if worker.host == socket.gethostname() and not worker.slurm_job]
    gone = [worker for worker in here if not _runs(worker.pid)]
    if gone:
        store.end_leases([worker.id for worker in gone], reason="its process is gone")
    return [worker for worker in working if worker not in gone and _is_of(worker, options)]


@dataclass(frozen=True, kw_only=True)
class Started:
    """A process of this machine that a launch has started, and that waits for the worker it runs."""

    pid: int
    log: str  # the worker's


def started_here(logs: Path) -> list[Started]:
    """What launches have started on this machine, for the study whose logs lie in `logs`, and has not ended."""
    return [
        Started(pid=pid, log=str(Path(arguments[-1]) / f"{pid}_0_log.out"))
        for pid, arguments in _processes()
        if _CONTROLLER in arguments and Path(arguments[-1]).is_relative_to(logs) and _runs(pid)
    ]


def starting_workers(store: JobStore, options: PilotOptions) -> list[Started]:
    """Those of `started_here` whose worker has not registered yet: it takes seconds to import torch."""
    started = started_here(options.paths.logs)
    known = {worker.log for worker in store.workers()} if started else set()
    return [one for one in started if one.log not in known]


def missing_workers(store: JobStore, study: str, wanted: int, present: int) -> int:
    """How many workers to add to the `present` ones: no more than wanted in all, and no more than there are open jobs."""
    workload = store.workload(study)
    if not (workload.ready_now or workload.ready_later or workload.running):
        return 0  # the blocked ones wait for jobs that no worker runs
    work = workload.ready_now + workload.ready_later + workload.blocked + workload.running
    return max(0, min(wanted, work) - present)


def _is_of(worker: WorkerRow, options: PilotOptions) -> bool:
    return not worker.log or Path(worker.log).is_relative_to(options.paths.logs)


_CONTROLLER = "submitit.local._local"  # the module that submitit runs to start a worker and wait for it


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Number and arguments of every process here that we may look at."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        except OSError:
            continue
        if arguments:
            yield int(folder.name), arguments


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
