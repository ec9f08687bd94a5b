"""Pilots on Slurm: counts them and how many more are useful, and submits these within the limits."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from kt_study.database import parse_url
from kt_study.errors import SlurmError
from kt_study.pilots import PilotOptions
from kt_study.store import Workload
from orchestrator.cluster.launch import records, submission
from orchestrator.cluster.launch.follow import BackingOff
from orchestrator.cluster.launch.live import live_workers
from orchestrator.cluster.launch.lock import launch_lock
from orchestrator.cluster.launch.nodes import nodes_to_exclude
from orchestrator.cluster.launch.private import prepare_study_folder, require_reachable
from orchestrator.cluster.launch.records import LaunchRecord, token_of
from orchestrator.cluster.launch.request import SlurmRequest, needs_gpu
from orchestrator.cluster.launch.submission import Package, UnknownSubmission
from orchestrator.cluster.slurm.cluster import Cluster, Node
from orchestrator.cluster.slurm.commands import run
from orchestrator.cluster.slurm.endings import BadNode, failure
from orchestrator.cluster.slurm.view import FRESH_S, SlurmView
from orchestrator.terminal.plural import counted

if TYPE_CHECKING:
    from kt_study.store import JobStore

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 30.0, 3600.0
REFILL_EVERY_S = 60.0
FREE_TRIES = 2
"""Launches in a row that may end without a finished job before the next must wait."""


def free_jobs_of_ended_workers(store: JobStore, view: SlurmView, launches: Sequence[LaunchRecord]) -> int:
    """Free the jobs of workers of these launches that have ended according to Slurm and have missed a heartbeat.

    A pending job proves that its worker has ended only if the queue was read after the worker's last heartbeat.

    Returns:
        The number of workers that have ended.
    """
    leases = {record.token: record.lease_s for record in launches}
    queued = {job.job for job in view.queue if job.is_pending}
    gone: dict[str, list[str]] = {}
    for worker in store.workers():
        lease_s = leases.get(token_of(worker), 0.0)
        if not worker.slurm_job or not lease_s or worker.ended_at is not None or worker.beat_age_s < 0.4 * lease_s:
            continue
        is_queued = worker.slurm_job in queued and time.time() - worker.beat_age_s < view.controller.answered_at
        over = [run for run in view.runs if run.job == worker.slurm_job and run.is_over]
        over = [run for run in over if run.ended_at >= worker.started_at + 2.0]
        if is_queued or over:
            last = failure(over[-1], root="", python="") if over else ""
            gone.setdefault(f"Slurm says: {last}" if last else "Slurm says that its job has ended", []).append(
                worker.id
            )
    return sum(store.end_leases(workers, reason=reason) for reason, workers in gone.items())


@dataclass(kw_only=True)
class SlurmPilots:
    """The pilots of one study on Slurm."""

    store: JobStore
    options: PilotOptions
    request: SlurmRequest  # by `completed_request`
    cluster: Cluster
    database_url: str
    wanted: int
    most_submitted: int
    backs_off: bool = True  # waits after launches without a finished job
    excludes_nodes: bool = True  # on which pilots failed
    notes: list[str] = field(default_factory=list)
    _checked_at: float = -FRESH_S
    _refilled_at: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Check that the pilots could run and reach the database. Submits nothing.

        Raises:
            DatabaseError: SQLite for several nodes, or a database that listens on this machine only.
            SlurmError: slurmctld would refuse the script.
        """
        address, nodes = parse_url(self.database_url), self._nodes()
        self.store.require_single_node(min(len(nodes), -(-self.wanted // self.request.pilots_each)))
        require_reachable(address, nodes)
        submission.check(self.package(allocations=1, token="check", excluded=()))

    def package(self, *, allocations: int, token: str, excluded: Sequence[BadNode], marker: str = "") -> Package:
        """The request for `allocations` allocations."""
        options = msgspec.structs.replace(self.options, token=token)
        return Package(
            options=options,
            request=self.request,
            name=records.job_name(self.options.study, token),
            allocations=allocations,
            exclude=tuple(bad.node for bad in excluded),
            marker=marker,
        )

    def launches(self) -> list[LaunchRecord]:
        """The study's launches so far."""
        return records.launches(self.options.files, self.options.study)

    def view(self, *, fresh_s: float = FRESH_S) -> SlurmView:
        """Their jobs in Slurm."""
        return records.view(self.options.files, self.launches(), fresh_s=fresh_s)

    def present(self, view: SlurmView | None = None) -> int:
        """Number of active and queued pilots, here and on Slurm."""
        view = view or self.view()
        each = {record.token: record.pilots_each for record in self.launches()}
        local = [worker for worker in live_workers(self.store, self.options) if not worker.slurm_job]
        return len(local) + sum(each[job.token] for job in view.queue if job.token in each)

    def all_gone(self) -> bool:
        """Whether no pilot is active or queued; false while Slurm does not answer."""
        view = self.view()
        return not view.controller.error and not self.present(view)

    def maintain(self) -> None:
        """While waiting: now and then free the jobs of ended pilots, and less often replace missing pilots."""
        now = time.monotonic()
        if now - self._checked_at >= FRESH_S:
            self._checked_at = now
            free_jobs_of_ended_workers(self.store, self.view(), self.launches())
        if now - self._refilled_at >= REFILL_EVERY_S:
            self._refilled_at = now
            self.start_missing()

    def start_missing(self) -> int:
        """Submit the missing pilots, unless another launch of the user is about to do that. Returns how many.

        Raises:
            SlurmError: as for `missing`, or Slurm refuses.
            AnotherLaunch: another launch is running.
        """
        with launch_lock():
            view = self._without_held(self._fresh_view())
            self._resolve_unconfirmed(view)
            workload = self.store.workload(self.options.study)
            allocations = self._missing(workload, view)
            if allocations:
                self._submit(allocations, workload.done, self.excluded(view))
        return allocations * self.request.pilots_each

    def missing(self) -> int:
        """Allocations that `start_missing` would submit, limited by `wanted`, the open jobs and the limit of the queue.

        Raises:
            SlurmError: Slurm does not answer, the limit is reached, or the last launches finished no job (BackingOff).
        """
        return self._missing(self.store.workload(self.options.study), self._fresh_view())

    def _fresh_view(self) -> SlurmView:
        view = self.view(fresh_s=0.0)
        if view.controller.error:
            raise SlurmError(view.controller.error)
        return view

    def _without_held(self, view: SlurmView) -> SlurmView:
        """Cancel our jobs that Slurm holds for good, since nobody would release them. Returns the view without them."""
        tokens = {record.token for record in self.launches()}
        held = [job for job in view.queue_of(list(tokens)) if job.is_held]
        if not held:
            return view
        run("scancel", "--state=PENDING", *(job.job for job in held))
        self.notes.append(f"{counted(len(held), 'pending Slurm job')} cancelled: {held[0].reason}")
        return msgspec.structs.replace(view, queue=tuple(job for job in view.queue if job not in held))

    def _missing(self, workload: Workload, view: SlurmView) -> int:
        ready = workload.ready_now + workload.ready_later + workload.running
        missing = min(self.wanted, ready) - self.present(view)
        if missing <= 0:
            return 0
        self._require_backoff_over(workload, view)
        if ready < min(self.wanted, open_jobs(workload)):
            self.notes.append(
                f"{counted(ready, 'job')} can run now, {workload.blocked:,} more wait for others; run `kt-study launch` "
                "again later, or use --wait, to add workers as they become ready"
            )
        return self._allowed(-(-missing // self.request.pilots_each), view)

    def wait_for_first(self) -> None:
        """Query the queue again."""
        self.view(fresh_s=0.0)

    def _allowed(self, allocations: int, view: SlurmView) -> int:
        room = self.most_submitted - len(view.queue)
        if room <= 0:
            raise SlurmError(
                f"{len(view.queue)} of your kt-study jobs are in the queue, and no more than {self.most_submitted} "
                "may be; wait, or raise --max-submitted"
            )
        largest = max(1, self.cluster.largest_array)  # 0 where there are no arrays
        allowed = min(allocations, room, largest)
        if allowed < allocations:
            limit = "the largest array of this cluster" if allowed == largest else "--max-submitted"
            self.notes.append(f"{allowed} of {counted(allocations, 'missing Slurm job')}: limited by {limit}")
        return allowed

    def _nodes(self) -> tuple[Node, ...]:
        return self.cluster.nodes_of(*self.cluster.partitions_of(self.request.partition))

    def excluded(self, view: SlurmView) -> list[BadNode]:
        """Nodes that the next launch excludes, and why."""
        ours = {node.name for node in self._nodes()} if self.excludes_nodes else set()
        on_gpu = needs_gpu(self.options.device, self.request.gpus)
        found = nodes_to_exclude(self.options.files, self.launches(), view, on_gpu=on_gpu)
        found = [bad for bad in found if bad.node in ours]
        if found and len(found) == len(ours):
            self.notes.append(f"pilots fail on every node, last on {found[-1].node}: {found[-1].reason}")
            return []
        self.notes += [f"{bad.node} is excluded: {bad.reason}" for bad in found]
        return found

    def _require_backoff_over(self, workload: Workload, view: SlurmView) -> None:
        """Raises BackingOff if the last launches finished no job and it is too early for the next."""
        if not self.backs_off:
            return
        failed = 0
        for record in reversed(self._started_launches(view)):
            if record.done_before != workload.done or view.queue_of([record.token]):
                break
            failed += 1
        if failed < FREE_TRIES:
            return
        pause = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (failed - FREE_TRIES))
        left = self._ended_at(self.launches()[-1], view) + pause - time.time()
        if left > 0:
            raise BackingOff(
                f"the last {failed} launches ended without finishing a job; the next may start in {left:.0f} s. "
                "`kt-study status` shows the errors, --now launches at once",
                left,
            )

    def _ended_at(self, record: LaunchRecord, view: SlurmView) -> float:
        """When a launch ended: at the end of its last run, not when it was submitted to a long queue."""
        return max([record.sent_at, *(run.ended_at for run in view.runs if run.token == record.token)])

    def _started_launches(self, view: SlurmView) -> list[LaunchRecord]:
        """The recent launches of which a pilot started, so not those that were cancelled in the queue."""
        started = {run.token for run in view.runs if run.started_at}
        return [
            record
            for record in records.recent(self.launches())
            if record.token in started or records.probes(self.options.files, [record])
        ]

    def _submit(self, allocations: int, done: int, excluded: Sequence[BadNode]) -> None:
        files = self.options.files
        marker = prepare_study_folder(files, self.database_url)
        token = secrets.token_hex(4)
        record = LaunchRecord(
            token=token,
            study=self.options.study,
            sent_at=time.time(),
            allocations=allocations,
            pilots_each=self.request.pilots_each,
            gpus_each=self.request.gpus,
            time_min=self.request.time_min,
            done_before=done,
            lease_s=self.options.lease_s,
            device=self.options.device,
        )
        package = self.package(allocations=allocations, token=token, excluded=excluded, marker=marker)
        records.write(files, record)
        try:
            slurm_id = submission.send(package)
        except UnknownSubmission as error:
            slurm_id = self._search(package, error)
        except SlurmError:
            records.write(files, msgspec.structs.replace(record, slurm_id="-"))
            raise
        records.write(files, msgspec.structs.replace(record, slurm_id=slurm_id))

    def _search(self, package: Package, unknown: UnknownSubmission) -> str:
        later = "the next launch searches for it before it submits anything"
        self.notes.append(f"{unknown}; searched for {package.name} in the queue instead of submitting it again")
        try:
            slurm_id = submission.find(package)
        except SlurmError as error:
            raise SlurmError(
                f"{unknown}, nor does squeue: {error}; it is unknown whether {package.name} was submitted; {later}"
            ) from error
        if not slurm_id:
            raise SlurmError(f"{unknown}, and Slurm has no job {package.name}; launch again: {later}")
        return slurm_id

    def _resolve_unconfirmed(self, view: SlurmView) -> None:
        """Look for unconfirmed launches in the queue; name the pickles of those that are there."""
        for record in self.launches():
            jobs = [] if record.was_accepted else view.queue_of([record.token])
            if jobs:
                slurm_id = jobs[0].job.partition("_")[0]
                package = self.package(allocations=record.allocations, token=record.token, excluded=())
                submission.name_pickles(package, slurm_id)
                records.write(self.options.files, msgspec.structs.replace(record, slurm_id=slurm_id))
            elif record.is_unconfirmed:
                records.write(self.options.files, msgspec.structs.replace(record, slurm_id="-"))


def open_jobs(workload: Workload) -> int:
    """Number of jobs that are neither paused nor finished."""
    return workload.ready_now + workload.ready_later + workload.blocked + workload.running
