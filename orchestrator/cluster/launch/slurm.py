"""Pilots on Slurm: counts them and how many more are useful, and submits these within the account's limits."""

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
from orchestrator.cluster.launch.lock import only_launch
from orchestrator.cluster.launch.nodes import nodes_to_avoid
from orchestrator.cluster.launch.private import prepare_study_folder, require_reachable
from orchestrator.cluster.launch.records import LaunchRecord, token_of, watched
from orchestrator.cluster.launch.request import SlurmRequest, needs_gpu
from orchestrator.cluster.launch.submission import LostAnswer, Package
from orchestrator.cluster.slurm.cluster import Cluster, Node
from orchestrator.cluster.slurm.commands import run
from orchestrator.cluster.slurm.endings import BadNode, trouble
from orchestrator.cluster.slurm.view import FRESH_S, SlurmView, look
from orchestrator.terminal.plural import counted

if TYPE_CHECKING:
    from kt_study.store import JobStore

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 30.0, 3600.0
REFILL_EVERY_S = 60.0
FREE_TRIES = 2
"""Launches in a row that may end without one job done before the next has to wait."""


def disown_ended(store: JobStore, view: SlurmView, launches: Sequence[LaunchRecord]) -> int:
    """Free the jobs of the launches' workers that Slurm says have ended and that have missed a heartbeat.

    A queue in which a worker's job is pending proves that only if it was seen after the worker's last heartbeat.

    Returns:
        How many workers were found to have ended.
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
            last = trouble(over[-1], root="", python="") if over else ""
            gone.setdefault(f"Slurm says: {last}" if last else "Slurm says that its job has ended", []).append(
                worker.id
            )
    return sum(store.end_leases(workers, reason=reason) for reason, workers in gone.items())


@dataclass(kw_only=True)
class SlurmPilots:
    """The pilots of one study on Slurm."""

    store: JobStore
    options: PilotOptions
    request: SlurmRequest  # fitted to the cluster
    cluster: Cluster
    database_url: str
    wanted: int
    most_submitted: int
    patient: bool = True  # wait after launches that came to nothing
    wary: bool = True  # keep away from nodes on which pilots ended badly
    notes: list[str] = field(default_factory=list)
    _looked: float = -FRESH_S
    _refilled: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Whether the pilots could run and reach the database at all. Submits nothing.

        Raises:
            DatabaseError: SQLite for several nodes, or a database that listens on this machine only.
            SlurmError: slurmctld would refuse the script.
        """
        address, nodes = parse_url(self.database_url), self._nodes()
        self.store.require_single_node(min(len(nodes), -(-self.wanted // self.request.pilots_each)))
        require_reachable(address, nodes)
        submission.check(self.package(allocations=1, token="check", excluded=()))

    def package(self, *, allocations: int, token: str, excluded: Sequence[BadNode], marker: str = "") -> Package:
        """What would be sent to Slurm."""
        record = self._record(token, allocations, done=0)
        options = msgspec.structs.replace(self.options, token=token)
        return Package(
            options=options,
            request=self.request,
            name=record.name,
            allocations=allocations,
            exclude=tuple(bad.node for bad in excluded),
            marker=marker,
        )

    def left_out(self) -> list[BadNode]:
        """Nodes that the next launch would keep away from, and why."""
        return self._excluded(self.view())

    def launches(self) -> list[LaunchRecord]:
        """The study's launches so far."""
        return records.launches(self.options.files, self.options.study)

    def view(self, *, fresh_s: float = FRESH_S) -> SlurmView:
        """What Slurm says of them."""
        names, since = watched(self.launches())
        return look(self.options.files, names, since, fresh_s=fresh_s)

    def present(self, view: SlurmView | None = None) -> int:
        """Pilots at work or in the queue, here and on Slurm."""
        view = view or self.view()
        each = {record.token: record.pilots_each for record in self.launches()}
        here = [worker for worker in live_workers(self.store, self.options) if not worker.slurm_job]
        return len(here) + sum(each[job.token] for job in view.queue if job.token in each)

    def is_alone(self) -> bool:
        """Whether no pilot is at work or in the queue. Not, while Slurm does not answer: no word is not dead."""
        view = self.view()
        return not view.controller.trouble and not self.present(view)

    def tend(self) -> None:
        """While waiting: now and then free what ended pilots held, and more rarely replace those that are missing."""
        now = time.monotonic()
        if now - self._looked >= FRESH_S:
            self._looked = now
            disown_ended(self.store, self.view(), self.launches())
        if now - self._refilled >= REFILL_EVERY_S:
            self._refilled = now
            self.add()

    def add(self) -> int:
        """Send the pilots that are missing, unless another launch of the user is about to do that.

        Returns:
            How many pilots were sent; 0 when none is missing.

        Raises:
            SlurmError: as for `missing`; Slurm refuses, or another launch is at work.
        """
        with only_launch():
            view = self._without_stuck(self._answered_view())
            self._settle_open_questions(view)
            workload = self.store.workload(self.options.study)
            allocations = self._missing(workload, view)
            if allocations:
                self._send(allocations, workload.done, self._excluded(view))
        return allocations * self.request.pilots_each

    def missing(self) -> int:
        """Allocations that `add` would send: no more than wanted, than there is work, than may be in the queue.

        Raises:
            SlurmError: Slurm does not answer, the cap is reached, or the last launches came to nothing (BackingOff).
        """
        return self._missing(self.store.workload(self.options.study), self._answered_view())

    def _answered_view(self) -> SlurmView:
        view = self.view(fresh_s=0.0)
        if view.controller.trouble:
            raise SlurmError(view.controller.trouble)
        return view

    def _without_stuck(self, view: SlurmView) -> SlurmView:
        """The view once our jobs that Slurm holds for good are cancelled: nobody would release them."""
        tokens = {record.token for record in self.launches()}
        stuck = [job for job in view.queue_of(list(tokens)) if job.is_stuck]
        if not stuck:
            return view
        run("scancel", "--state=PENDING", *(job.job for job in stuck))
        self.notes.append(f"{counted(len(stuck), 'pending Slurm job')} cancelled: {stuck[0].reason}")
        return msgspec.structs.replace(view, queue=tuple(job for job in view.queue if job not in stuck))

    def _missing(self, workload: Workload, view: SlurmView) -> int:
        ready = workload.ready_now + workload.ready_later + workload.running
        missing = min(self.wanted, ready) - self.present(view)
        if missing <= 0:
            return 0
        self._wait_after_barren_launches(workload, view)
        if ready < min(self.wanted, open_jobs(workload)):
            self.notes.append(
                f"{counted(ready, 'job')} can run now, {workload.blocked:,} more wait for others; `kt-study launch` "
                "again, or --wait, adds workers as they become ready"
            )
        return self._allowed(-(-missing // self.request.pilots_each), view)

    def wait_for_first(self) -> None:
        """Until the queue has been looked at again."""
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
            bound = "an array of this cluster may have" if allowed == largest else "--max-submitted leaves room for"
            self.notes.append(f"{allowed} of {counted(allocations, 'Slurm job')} that are missing: {bound} no more")
        return allowed

    def _nodes(self) -> tuple[Node, ...]:
        return self.cluster.nodes_of(*self.cluster.chosen(self.request.partition))

    def _excluded(self, view: SlurmView) -> list[BadNode]:
        ours = {node.name for node in self._nodes()} if self.wary else set()
        on_gpu = needs_gpu(self.options.device, self.request.gpus)
        avoided = nodes_to_avoid(self.options.files, self.launches(), view, on_gpu=on_gpu)
        found = [bad for bad in avoided if bad.node in ours]
        if found and len(found) == len(ours):
            self.notes.append(f"pilots end badly on every node, last on {found[-1].node}: {found[-1].reason}")
            return []
        self.notes += [f"{bad.node} is left out: {bad.reason}" for bad in found]
        return found

    def _wait_after_barren_launches(self, workload: Workload, view: SlurmView) -> None:
        if not self.patient:
            return
        barren = 0
        for record in reversed(self._that_started(view)):
            if record.done_before != workload.done or view.queue_of([record.token]):
                break
            barren += 1
        if barren < FREE_TRIES:
            return
        pause = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** (barren - FREE_TRIES))
        left = self._ended_at(self.launches()[-1], view) + pause - time.time()
        if left > 0:
            raise BackingOff(
                f"the last {barren} launches ended without one job done; the next may start in {left:.0f} s. "
                "`kt-study status` says what went wrong, --now launches at once",
                left,
            )

    def _ended_at(self, record: LaunchRecord, view: SlurmView) -> float:
        """When a launch came to nothing: at the end of its last run, not when it was sent to a long queue."""
        return max([record.sent_at, *(run.ended_at for run in view.runs if run.token == record.token)])

    def _that_started(self, view: SlurmView) -> list[LaunchRecord]:
        """The latest launches of which a pilot began: not those that were cancelled in the queue."""
        began = {run.token for run in view.runs if run.started_at}
        return [
            record
            for record in records.latest(self.launches())
            if record.token in began or records.probes(self.options.files, [record])
        ]

    def _send(self, allocations: int, done: int, excluded: Sequence[BadNode]) -> None:
        files = self.options.files
        marker = prepare_study_folder(files, self.database_url)
        token = secrets.token_hex(4)
        record = self._record(token, allocations, done)
        package = self.package(allocations=allocations, token=token, excluded=excluded, marker=marker)
        records.write(files, record)
        try:
            slurm_id = submission.send(package)
        except LostAnswer as lost:
            slurm_id = self._search(package, lost)
        except SlurmError:
            records.write(files, msgspec.structs.replace(record, slurm_id="-"))
            raise
        records.write(files, msgspec.structs.replace(record, slurm_id=slurm_id))

    def _search(self, package: Package, lost: LostAnswer) -> str:
        after = "the next launch looks for it before it sends anything"
        self.notes.append(f"{lost}; looked for {package.name} in the queue instead of sending it again")
        try:
            slurm_id = submission.find(package)
        except SlurmError as error:
            raise SlurmError(
                f"{lost}, nor does squeue: {error}; nobody knows whether {package.name} was submitted; {after}"
            ) from error
        if not slurm_id:
            raise SlurmError(f"{lost}, and Slurm has no job {package.name}; launch again: {after}")
        return slurm_id

    def _settle_open_questions(self, view: SlurmView) -> None:
        """Launches that Slurm was not known to have taken: those that it shows all the same get their pickles."""
        for record in self.launches():
            jobs = [] if record.was_sent else view.queue_of([record.token])
            if jobs:
                slurm_id = jobs[0].job.partition("_")[0]
                package = self.package(allocations=record.allocations, token=record.token, excluded=())
                submission.hand_over(package, slurm_id)
                records.write(self.options.files, msgspec.structs.replace(record, slurm_id=slurm_id))
            elif record.is_open_question:
                records.write(self.options.files, msgspec.structs.replace(record, slurm_id="-"))

    def _record(self, token: str, allocations: int, done: int) -> LaunchRecord:
        return LaunchRecord(
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


def open_jobs(workload: Workload) -> int:
    """Jobs that are not paused and not at an end."""
    return workload.ready_now + workload.ready_later + workload.blocked + workload.running
