"""Which workers are at work, and how many more could be of use. Known from the job table alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kt_study.pilots import PilotOptions
from kt_study.store import WorkerRow

if TYPE_CHECKING:
    from kt_study.store import JobStore


def live_workers(store: JobStore, options: PilotOptions) -> list[WorkerRow]:
    """Workers of a study that have not left and still beat; of those here whose process is gone, the jobs are freed.

    Studies may share a database: whose log lies in another study's folder works for that one.
    """
    working = store.workers(alive_within_s=2 * options.lease_s)
    here = [worker for worker in working if worker.host == socket.gethostname() and not worker.slurm_job]
    gone = [worker for worker in here if not _runs(worker.pid)]
    if gone:
        store.end_leases([worker.id for worker in gone], reason="its process is gone")
    return [worker for worker in working if worker not in gone and _is_of(worker, options)]


def missing_workers(store: JobStore, study: str, wanted: int, live: Sequence[WorkerRow]) -> int:
    """How many workers to add: no more than wanted in all, and no more than there are open jobs."""
    outlook = store.outlook(study)
    if not (outlook.ready_now or outlook.ready_later or outlook.running):
        return 0  # the blocked ones wait for what nobody runs
    work = outlook.ready_now + outlook.ready_later + outlook.blocked + outlook.running
    return max(0, min(wanted, work) - len(live))


def _is_of(worker: WorkerRow, options: PilotOptions) -> bool:
    return not worker.log or Path(worker.log).is_relative_to(options.paths.logs)


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
