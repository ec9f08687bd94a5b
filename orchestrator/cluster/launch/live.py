"""Counts active workers, from the job table and this machine's processes, and how many more are useful."""

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
    """Active workers of a study. Local workers without a process are ended, which frees their jobs.

    Studies may share a database: a worker belongs to the study whose folder contains its log.
    """
    alive = store.workers(alive_within_s=alive_within_s(options.lease_s))
    local = [worker for worker in alive if worker.host == socket.gethostname() and not worker.slurm_job]
    gone = [worker for worker in local if not _runs(worker.pid)]
    if gone:
        store.end_leases([worker.id for worker in gone], reason="its process is gone")
    return [worker for worker in alive if worker not in gone and _is_of(worker, options)]


@dataclass(frozen=True, kw_only=True)
class LocalProcess:
    """A local process of submitit, started by a launch, that runs a worker and waits for it."""

    pid: int
    log: str  # the worker's


def local_processes(logs: Path) -> list[LocalProcess]:
    """Running processes that launches have started on this machine for the study with these logs."""
    return [
        LocalProcess(pid=pid, log=str(Path(arguments[-1]) / f"{pid}_0_log.out"))
        for pid, arguments in _processes()
        if _CONTROLLER in arguments and Path(arguments[-1]).is_relative_to(logs) and _runs(pid)
    ]


def starting_workers(store: JobStore, options: PilotOptions) -> list[LocalProcess]:
    """Local processes whose worker has not registered yet: importing torch takes seconds."""
    processes = local_processes(options.paths.logs)
    known = {worker.log for worker in store.workers()} if processes else set()
    return [process for process in processes if process.log not in known]


def missing_workers(store: JobStore, study: str, wanted: int, present: int) -> int:
    """How many workers to add to the `present` ones: at most `wanted` in total, and at most one per open job."""
    workload = store.workload(study)
    if not (workload.ready_now or workload.ready_later or workload.running):
        return 0  # blocked jobs wait for jobs that no worker runs
    useful = workload.ready_now + workload.ready_later + workload.blocked + workload.running
    return max(0, min(wanted, useful) - present)


def _is_of(worker: WorkerRow, options: PilotOptions) -> bool:
    return not worker.log or Path(worker.log).is_relative_to(options.paths.logs)


_CONTROLLER = "submitit.local._local"  # the module that submitit runs to start a worker and wait for it


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Pid and arguments of every local process that we may inspect."""
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
