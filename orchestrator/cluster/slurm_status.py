"""The Slurm part of `kt-study status`: the job table joined with the queue and the accounting."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from kt_study.pilots import LaunchFiles
from kt_study.store import WorkerRow
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.nodes import nodes_to_avoid
from orchestrator.cluster.launch.records import LaunchRecord, token_of, watched
from orchestrator.cluster.launch.slurm import disown_ended
from orchestrator.cluster.slurm.endings import by_node
from orchestrator.cluster.slurm.listing import QueuedJob
from orchestrator.cluster.slurm.view import SlurmView, look
from orchestrator.terminal.spans import span

if TYPE_CHECKING:
    from kt_study.store import JobStore


class SlurmPart(msgspec.Struct, frozen=True, kw_only=True):
    """The Slurm part of a status. Times are seconds."""

    pending: dict[str, int]  # Slurm's reason -> jobs
    next_start_s: float | None  # Slurm's estimate for the first of them
    running: list[dict[str, Any]]  # job, node, seconds left
    gpu_hours_used: float
    gpu_hours_left: float | None
    trouble: dict[str, str]  # node -> the last thing that went wrong there
    left_out: dict[str, str]  # node -> why the next launch keeps away from it
    notes: list[str]  # what could not be learnt


def slurm_part(files: LaunchFiles, store: JobStore, study: str, *, eta_s: float | None) -> SlurmPart | None:
    """What Slurm has of a study; None when it was never launched there. Frees the jobs of workers that Slurm ended."""
    launches = records.launches(files, study)
    if not launches:
        return None
    names, since = watched(launches)
    view = look(files, names, since)
    if not store.why_read_only:
        disown_ended(store, view, launches)
    queue = view.queue_of([record.token for record in launches])
    pending = [job for job in queue if job.is_pending]
    troubles = _troubles(files, view, launches)
    starts = [job.starts_at - time.time() for job in pending if job.starts_at]
    return SlurmPart(
        pending=dict(Counter(job.reason for job in pending).most_common()),
        next_start_s=max(0.0, min(starts)) if starts else None,
        running=[_running(job) for job in queue if not job.is_pending],
        gpu_hours_used=round(gpu_hours(store.workers(), launches), 2),
        gpu_hours_left=None if eta_s is None else round(eta_s / 3600 * _gpus_at_work(queue, launches), 2),
        trouble=troubles.by_node,
        left_out=troubles.left_out,
        notes=view.notes,
    )


def gpu_hours(workers: Sequence[WorkerRow], launches: Sequence[LaunchRecord]) -> float:
    """GPU-hours that the launches' workers held, from the job table: from their first word to their last.

    sacct could say it too, but it is away at times and knows no start of some preempted runs.
    """
    share = {record.token: record.gpus_each / record.pilots_each for record in launches}
    total = 0.0
    for worker in workers:
        total += share.get(token_of(worker), 0.0) * _held_s(worker)
    return total / 3600


def lines(part: SlurmPart) -> list[str]:
    """For a person."""
    found = [f"\nslurm: {len(part.running)} jobs running, {sum(part.pending.values())} pending"]
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
    found += [f"  {node}: {line}" for node, line in part.trouble.items()]
    found += [f"  the next launch leaves {node} out: {line}" for node, line in part.left_out.items()]
    return found + [f"  note: {note}" for note in part.notes]


def _running(job: QueuedJob) -> dict[str, Any]:
    left = job.ends_at - time.time() if job.ends_at else None
    return {"job": job.job, "state": job.state, "node": job.node, "left_s": None if left is None else max(0.0, left)}


def _held_s(worker: WorkerRow) -> float:
    """From the first word of a worker to its last."""
    last = worker.ended_at if worker.ended_at is not None else time.time() - worker.beat_age_s
    return max(0.0, last - worker.started_at)


def _gpus_at_work(queue: Sequence[QueuedJob], launches: Sequence[LaunchRecord]) -> int:
    gpus = {record.token: record.gpus_each for record in launches}
    return sum(gpus[job.token] for job in queue if not job.is_pending)


@dataclass(frozen=True, kw_only=True)
class _Troubles:
    """What went wrong on which node."""

    by_node: dict[str, str]
    left_out: dict[str, str]


def _troubles(files: LaunchFiles, view: SlurmView, launches: Sequence[LaunchRecord]) -> _Troubles:
    said = records.unfit_nodes(records.probes(files, records.latest(launches)))
    return _Troubles(
        by_node=by_node(view.runs, said, root=str(files.root), python=sys.executable),
        left_out={bad.node: bad.reason for bad in nodes_to_avoid(files, launches, view, on_gpu=launches[-1].on_gpu)},
    )
