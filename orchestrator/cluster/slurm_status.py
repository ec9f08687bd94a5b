"""The Slurm part of `kt-study status`: the job table joined with the queue and accounting."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import field

from kt_study.pilots import LaunchFiles
from kt_study.store import WorkerRow
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.nodes import nodes_to_exclude
from orchestrator.cluster.launch.records import LaunchRecord, token_of
from orchestrator.cluster.launch.slurm import free_jobs_of_ended_workers
from orchestrator.cluster.slurm.endings import errors_by_node
from orchestrator.cluster.slurm.listing import QueuedJob
from orchestrator.terminal.spans import span

if TYPE_CHECKING:
    from kt_study.store import JobStore


class SlurmStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A study's pilots on Slurm. Times are seconds."""

    pending: dict[str, int]  # Slurm's reason -> jobs
    next_start_s: float | None  # Slurm's estimate for the first pending job
    running: list[dict[str, Any]]  # job, node, seconds left
    gpu_hours_used: float
    gpu_hours_left: float | None
    errors: dict[str, str] = field(name="trouble")  # node -> its last error
    excluded: dict[str, str] = field(name="left_out")  # node -> why the next launch excludes it
    notes: list[str]  # what is out of date


def slurm_status_of(files: LaunchFiles, store: JobStore, study: str, *, eta_s: float | None) -> SlurmStatus | None:
    """A study's pilots on Slurm; None if it was never launched there. Frees the jobs of workers that Slurm ended."""
    launches = records.launches(files, study)
    if not launches:
        return None
    view = records.view(files, launches)
    if not store.why_read_only:
        free_jobs_of_ended_workers(store, view, launches)
    queue = view.queue_of([record.token for record in launches])
    pending = [job for job in queue if job.is_pending]
    probe_errors = records.failed_nodes(records.probes(files, records.recent(launches)))
    excluded = nodes_to_exclude(files, launches, view, on_gpu=launches[-1].on_gpu)
    starts = [job.starts_at - time.time() for job in pending if job.starts_at]
    return SlurmStatus(
        pending=dict(Counter(job.reason for job in pending).most_common()),
        next_start_s=max(0.0, min(starts)) if starts else None,
        running=[_running(job) for job in queue if not job.is_pending],
        gpu_hours_used=round(gpu_hours(store.workers(), launches), 2),
        gpu_hours_left=None if eta_s is None else round(eta_s / 3600 * _gpus_at_work(queue, launches), 2),
        errors=errors_by_node(view.runs, probe_errors, root=str(files.root), python=sys.executable),
        excluded={bad.node: bad.reason for bad in excluded},
        notes=view.notes,
    )


def gpu_hours(workers: Sequence[WorkerRow], launches: Sequence[LaunchRecord]) -> float:
    """GPU-hours of the launches' workers, from the job table: from their registration to their last heartbeat.

    Not from sacct, which may be down and lacks the start of some preempted runs.
    """
    share = {record.token: record.gpus_each / record.pilots_each for record in launches}
    total = 0.0
    for worker in workers:
        total += share.get(token_of(worker), 0.0) * _held_s(worker)
    return total / 3600


def lines(part: SlurmStatus) -> list[str]:
    """The lines of `kt-study status`."""
    found = [f"slurm: {len(part.running)} jobs running, {sum(part.pending.values())} pending"]
    for reason, count in part.pending.items():
        found.append(f"  {count} pending: {reason}")
    if part.next_start_s is not None:
        found.append(f"  the next is expected to start in {span(part.next_start_s)}")
    for job in part.running:
        left = f", {span(job['left_s'])} left" if job["left_s"] else ""
        found.append(f"  {job['job']} on {job['node'] or '?'}: {job['state'].lower()}{left}")
    left = "" if part.gpu_hours_left is None else f", about {part.gpu_hours_left:.2f} to go"
    if part.gpu_hours_used or left:
        found.append(f"  {part.gpu_hours_used:.2f} GPU-hours used{left}")
    found += [f"  {node}: {line}" for node, line in part.errors.items()]
    found += [f"  the next launch excludes {node}: {line}" for node, line in part.excluded.items()]
    return found + [f"  note: {note}" for note in part.notes]


def _running(job: QueuedJob) -> dict[str, Any]:
    left = job.ends_at - time.time() if job.ends_at else None
    return {"job": job.job, "state": job.state, "node": job.node, "left_s": None if left is None else max(0.0, left)}


def _held_s(worker: WorkerRow) -> float:
    """Seconds from a worker's registration to its end or last heartbeat."""
    last = worker.ended_at if worker.ended_at is not None else time.time() - worker.beat_age_s
    return max(0.0, last - worker.started_at)


def _gpus_at_work(queue: Sequence[QueuedJob], launches: Sequence[LaunchRecord]) -> int:
    gpus = {record.token: record.gpus_each for record in launches}
    return sum(gpus[job.token] for job in queue if not job.is_pending)
