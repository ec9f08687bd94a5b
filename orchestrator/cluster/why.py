"""status --why: explains in one line why a job does not run, and what to do about it.

The job table shows what a job waits for; the workers and Slurm show why no worker claims it. A job does not request a GPU or
memory: its worker has what the launch asked Slurm for. So "no worker with a GPU" means that the workers with a GPU are
still in the queue, or found no GPU on their nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kt_study.job_kinds import RESUMABLE
from kt_study.pilots import LaunchFiles, alive_within_s
from kt_study.records import JobState
from kt_study.store import JobRow, WorkerRow
from orchestrator.cluster import slurm_status
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.records import LaunchRecord
from orchestrator.cluster.slurm_status import SlurmStatus
from orchestrator.terminal.plural import counted
from orchestrator.terminal.spans import span

if TYPE_CHECKING:
    from kt_study.store import JobStore

MAX_FETCHED = 200  # jobs that are read to find a root cause
MAX_SHOWN = 4  # of the jobs on the path to it

_SEVERITY = (JobState.FAILED, JobState.CANCELLED, JobState.READY, JobState.RUNNING, JobState.BLOCKED, JobState.DONE)


def why(job_id: int, store: JobStore, study: str, files: LaunchFiles) -> str:
    """Why job `job_id` does not run, in one line.

    Raises:
        UsageError: there is no such job.
        DatabaseError: the database does not answer.
    """
    job = store.job(job_id)
    if job.state != JobState.BLOCKED:
        return _of_open_job(job, store, study, files)
    path = path_to_cause(job, store.job)
    before = "paused (`kt-study resume` resumes it); " if job.paused else ""
    if len(path) == 1:
        return before + job.why
    hops = [f"job {hop.id} ({hop.kind}, {hop.state})" for hop in path[1:]]
    if len(hops) > MAX_SHOWN:
        hops = [*hops[: MAX_SHOWN - 1], f"{len(hops) - MAX_SHOWN} more", hops[-1]]
    needed = sum(need.state != JobState.DONE for need in job.needs)
    others = f"; {counted(needed - 1, 'more job')} must be done first" if needed > 1 else ""
    cause = _of_open_job(path[-1], store, study, files)
    return f"{before}waits for {', which waits for '.join(hops)}: {cause}{others}"


def path_to_cause(job: JobRow, fetch: Callable[[int], JobRow]) -> list[JobRow]:
    """The path from a job, through the jobs that it waits for, to the most severe one that blocks it.

    A failed or cancelled job is the most severe, since it needs the user's action; then a paused one, a ready one, a
    running one. At most `MAX_FETCHED` jobs are fetched.

    Args:
        job: with its needs.
        fetch: gives a job with its needs.
    """
    seen: set[int] = set()

    def search(start: JobRow) -> list[JobRow]:
        best: list[JobRow] = []
        if start.state != JobState.BLOCKED:
            return [start]
        for need in sorted(start.needs, key=lambda need: _SEVERITY.index(need.state)):
            if need.state == JobState.DONE or need.job_id in seen or len(seen) >= MAX_FETCHED:
                continue
            seen.add(need.job_id)
            path = search(fetch(need.job_id))
            if not best or _severity(path[-1]) < _severity(best[-1]):
                best = path
            if _severity(best[-1]) == 0:
                break
        return [start, *best]

    return search(job)


def _severity(job: JobRow) -> float:
    return _SEVERITY.index(JobState.CANCELLED) + 0.5 if job.paused else _SEVERITY.index(job.state)


def _of_open_job(job: JobRow, store: JobStore, study: str, files: LaunchFiles) -> str:
    """Why a job that waits for no other does not run."""
    if job.state != JobState.READY or not job.why.startswith("ready"):
        return job.why
    return f"ready; {_why_unclaimed(job, _Workers.of(store, study, files))}"


@dataclass(frozen=True, kw_only=True)
class _Workers:
    """The active and queued workers of a study."""

    store: JobStore
    study: str
    active: list[WorkerRow]
    launches: list[LaunchRecord]
    slurm: SlurmStatus | None

    @classmethod
    def of(cls, store: JobStore, study: str, files: LaunchFiles) -> _Workers:
        slurm = slurm_status.slurm_status_of(files, store, study, eta_s=None)
        launches = records.launches(files, study)
        tokens = {record.token for record in launches}
        alive = store.workers(alive_within_s=alive_within_s(*(record.lease_s for record in launches)))
        ours = [worker for worker in alive if not worker.slurm_job or records.token_of(worker) in tokens]
        return cls(store=store, study=study, active=ours, launches=launches, slurm=slurm)

    @property
    def longest_s(self) -> float:
        """Seconds of the longest allocation that was ever requested; 0 without one."""
        return max((60.0 * record.time_min for record in self.launches), default=0.0)

    def left_s(self, worker: WorkerRow) -> float | None:
        """Seconds that a worker has left for jobs; None without a time limit."""
        for job in self.slurm.running if self.slurm else []:
            if job["job"] == worker.slurm_job and job["left_s"] is not None:
                return max(0.0, float(job["left_s"]) - self._launch(worker).warning_s)
        return None

    def takes(self, worker: WorkerRow, job: JobRow) -> bool:
        """Whether the worker has enough time for the job, by the rule of the pilot's claims."""
        left = self.left_s(worker)
        if left is None or job.estimate_s <= left:
            return True
        launch = self._launch(worker)
        return job.kind in RESUMABLE and left > (60.0 * launch.time_min - launch.warning_s) / 2

    def _launch(self, worker: WorkerRow) -> LaunchRecord:
        return next(record for record in self.launches if record.token == records.token_of(worker))


def _why_unclaimed(job: JobRow, workers: _Workers) -> str:
    """Why no worker claims a ready job."""
    if not workers.active:
        return _no_active_workers(job, workers)
    if not any(workers.takes(worker, job) for worker in workers.active):
        best = max(workers.active, key=lambda worker: workers.left_s(worker) or 0.0)
        return (
            f"its estimate of {span(job.estimate_s)} is longer than the time left of every worker, at most "
            f"{span(workers.left_s(best) or 0.0)} on {best.host}; {_next_allocation(job, workers)}"
        )
    line, preferred = workers.store.before(job, workers.study)
    before = f"{counted(line, 'job')} {'is' if line == 1 else 'are'} before it in the queue" if line else "it is next"
    if preferred:
        before += f", {preferred} of them of higher priority"
    return f"{_busy(workers.active)}; {before}"


def _no_active_workers(job: JobRow, workers: _Workers) -> str:
    slurm = workers.slurm
    if slurm is None:
        return "no active workers: none runs or waits in a queue; `kt-study launch` starts some"
    if 0 < workers.longest_s < job.estimate_s and job.kind not in RESUMABLE:
        return _too_long(job, workers)
    if slurm.running:
        nodes = ", ".join(sorted({running["node"] or "?" for running in slurm.running}))
        return f"workers are starting on {nodes}; they have not registered yet"
    if slurm.pending:
        return _queued(slurm, workers.launches)
    if slurm.notes:
        return f"no active workers found: {slurm.notes[0]}"
    if slurm.errors:
        return _all_failed(slurm)
    return "no active workers: none runs or waits in Slurm's queue; `kt-study launch --partition ...` submits some"


def _queued(slurm: SlurmStatus, launches: Sequence[LaunchRecord]) -> str:
    count = sum(slurm.pending.values())
    gpus = launches[-1].gpus_each
    reasons = ", ".join(f"{reason} ({jobs})" for reason, jobs in slurm.pending.items())
    starts = f"; the first is expected to start in {span(slurm.next_start_s)}" if slurm.next_start_s is not None else ""
    who = f"no worker with a GPU yet: {count} Slurm jobs that request {gpus} each" if gpus else f"{count} Slurm jobs"
    return f"{who} are pending: {reasons}{starts}"


def _all_failed(slurm: SlurmStatus) -> str:
    node, line = next(reversed(slurm.errors.items()))
    who = "no worker with a GPU" if "no GPU" in line else "no worker could start"
    return f"{who}: last on {node}, {line}; fix that, then run `kt-study launch` again"


def _next_allocation(job: JobRow, workers: _Workers) -> str:
    if 0 < workers.longest_s < job.estimate_s and job.kind not in RESUMABLE:
        return _too_long(job, workers)
    pending = sum(workers.slurm.pending.values()) if workers.slurm else 0
    return "the next allocation runs it" + (
        f", {pending} are pending" if pending else ": `kt-study launch` submits one"
    )


def _too_long(job: JobRow, workers: _Workers) -> str:
    return (
        f"its estimate of {span(job.estimate_s)} is longer than an allocation of {span(workers.longest_s)}: "
        "launch with a longer --time"
    )


def _busy(workers: Sequence[WorkerRow]) -> str:
    gpus = sum(worker.device.startswith("cuda") for worker in workers)
    where = "none with a GPU" if not gpus else "all with a GPU" if gpus == len(workers) else f"{gpus} with a GPU"
    who = "1 worker is" if len(workers) == 1 else f"{len(workers)} workers are"
    return f"{who} busy with other jobs, {where}"
