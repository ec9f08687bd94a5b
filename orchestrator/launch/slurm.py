"""Pilots on Slurm: how many there are, how many more would be of use, and sending those with care for the account."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from kt_study.database import parse_url
from kt_study.errors import SlurmError
from kt_study.pilots import PilotOptions
from kt_study.store import JobStore, Outlook
from orchestrator.launch import records, submission
from orchestrator.launch.live import live_workers
from orchestrator.launch.private import prepare_study_folder, require_reachable
from orchestrator.launch.records import LaunchRecord
from orchestrator.launch.request import SlurmRequest
from orchestrator.launch.submission import LostAnswer, Package
from orchestrator.slurm.cluster import Cluster
from orchestrator.slurm.endings import BadNode, bad_nodes, trouble
from orchestrator.slurm.view import FRESH_S, SlurmView, look

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 30.0, 3600.0
REFILL_EVERY_S = 60.0
FREE_TRIES = 2
"""Launches in a row that may end without one job done before the next has to wait."""


def watched(records_: Sequence[LaunchRecord]) -> tuple[tuple[str, ...], float]:
    """Names of the Slurm jobs of these launches, and the moment since when accounting is to be asked about them."""
    since = min((record.sent_at for record in records_), default=time.time()) - 60.0
    return tuple(record.name for record in records_), since


def disown_ended(store: JobStore, view: SlurmView, *, lease_s: float) -> int:
    """Free the jobs of workers that Slurm says have ended and that have missed a heartbeat. Returns how many."""
    queued = {job.job for job in view.queue if job.is_pending}
    gone: dict[str, list[str]] = {}
    for worker in store.workers():
        if not worker.slurm_job or worker.ended_at is not None or worker.beat_age_s < 0.4 * lease_s:
            continue
        over = [run for run in view.runs if run.job == worker.slurm_job and run.is_over]
        over = [run for run in over if run.ended_at >= worker.started_at + 2.0]
        if worker.slurm_job in queued or over:
            last = trouble(over[-1], root="", python="") if over else ""
            gone.setdefault(f"Slurm says: {last}" if last else "Slurm says that its job has ended", []).append(
                worker.id
            )
    return sum(store.disown(workers, reason=reason) for reason, workers in gone.items())


@dataclass(kw_only=True)
class SlurmCrew:
    """The pilots of one study on Slurm."""

    store: JobStore
    options: PilotOptions
    request: SlurmRequest  # fitted to the cluster
    cluster: Cluster
    database_url: str
    wanted: int
    most_submitted: int
    patient: bool = True  # wait after launches that came to nothing
    notes: list[str] = field(default_factory=list)
    _looked: float = -FRESH_S
    _refilled: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Whether the pilots could run and reach the database at all. Submits nothing.

        Raises:
            DatabaseError: SQLite for several nodes, or a database that listens on this machine only.
            SlurmError: slurmctld would refuse the script.
        """
        partition = self.cluster.partition(self.request.partition)
        address = parse_url(self.database_url)
        nodes = min(partition.nodes, -(-self.wanted // self.request.pilots_each))
        self.store.require_single_node(nodes)
        require_reachable(address, self.cluster.nodes_of(partition))
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
        here = [w for w in live_workers(self.store, beat_within_s=2 * self.options.lease_s) if not w.slurm_job]
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
            disown_ended(self.store, self.view(), lease_s=self.options.lease_s)
        if now - self._refilled >= REFILL_EVERY_S:
            self._refilled = now
            self.add()

    def add(self) -> int:
        """Send the pilots that are missing: no more than wanted, than there is work, than may be in the queue.

        Returns:
            How many pilots were sent; 0 when none is missing.

        Raises:
            SlurmError: Slurm refuses or does not answer, the cap is reached, or the last launches came to nothing.
        """
        view = self.view(fresh_s=0.0)
        if view.controller.trouble:
            raise SlurmError(view.controller.trouble)
        self._settle_open_questions()
        outlook = self.store.outlook(self.options.study)
        missing = min(self.wanted, open_jobs(outlook)) - self.present(view)
        if missing <= 0:
            return 0
        self._wait_after_barren_launches(outlook, view)
        allocations = self._allowed(-(-missing // self.request.pilots_each), view)
        self._send(allocations, outlook.done, self._excluded(view))
        return allocations * self.request.pilots_each

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
        return min(allocations, room, self.cluster.largest_array)

    def _excluded(self, view: SlurmView) -> list[BadNode]:
        said = records.unfit_nodes(records.probes(self.options.files, self.launches()))
        found = bad_nodes(view.runs, said, root=self.options.root, python=sys.executable)
        partition = self.cluster.partition(self.request.partition)
        if len(found) >= partition.nodes:
            self.notes.append(f"pilots end badly on every node, last on {found[-1].node}: {found[-1].reason}")
            return []
        self.notes += [f"{bad.node} is left out: {bad.reason}" for bad in found]
        return found

    def _wait_after_barren_launches(self, outlook: Outlook, view: SlurmView) -> None:
        if not self.patient:
            return
        barren = 0
        for record in reversed(self._that_started(view)):
            if record.done_before != outlook.done or view.queue_of([record.token]):
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
        """Launches of which a pilot began: not those that were cancelled in the queue."""
        began = {run.token for run in view.runs if run.started_at}
        return [
            record
            for record in self.launches()
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
        records.write(files, msgspec.structs.replace(record, slurm_id=slurm_id or "-"))
        if not slurm_id:
            raise SlurmError("sbatch gave no answer, and Slurm has no such job; nothing was submitted, launch again")

    def _search(self, package: Package, lost: LostAnswer) -> str:
        self.notes.append(f"{lost}; looked for {package.name} in the queue instead of sending it again")
        try:
            return submission.find(package)
        except SlurmError as error:
            raise SlurmError(
                f"{lost}, nor does squeue: {error}; nobody knows whether {package.name} was submitted. The next launch "
                "looks for it before it sends anything"
            ) from error

    def _settle_open_questions(self) -> None:
        """Launches of which nobody knew whether Slurm took them: it answers now."""
        for record in self.launches():
            if record.is_open_question:
                package = self.package(allocations=record.allocations, token=record.token, excluded=())
                slurm_id = submission.find(package, patience_s=0.0)
                records.write(self.options.files, msgspec.structs.replace(record, slurm_id=slurm_id or "-"))

    def _record(self, token: str, allocations: int, done: int) -> LaunchRecord:
        return LaunchRecord(
            token=token,
            study=self.options.study,
            sent_at=time.time(),
            allocations=allocations,
            pilots_each=self.request.pilots_each,
            gpus_each=self.request.gpus_per_node or 0,
            time_min=self.request.time_min,
            done_before=done,
        )


class BackingOff(SlurmError):
    """Launches came to nothing; the next has to wait `left_s` seconds."""

    def __init__(self, line: str, left_s: float) -> None:
        super().__init__(line)
        self.left_s = left_s


def open_jobs(outlook: Outlook) -> int:
    """Jobs that are not paused and not at an end."""
    return outlook.ready_now + outlook.ready_later + outlook.blocked + outlook.running
