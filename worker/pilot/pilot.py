"""The pilot: claims jobs one after another, runs them and records the outcome, until none is left for it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kt_study import notify
from kt_study.errors import ArtefactGone, DatabaseError, DataError, DiskError, LeaseLost, SchemaMismatch, UsageError
from kt_study.failures import describe, is_disk_full, is_transient
from kt_study.files import write_bytes
from kt_study.job_kinds import BATCHED, RESUMABLE
from kt_study.pilots import PilotOptions, time_left_s
from kt_study.records import Claim, Failure
from kt_study.store import JobStore, WorkerRecord, Workload
from worker.job.context import JobContext, Rows, Stopped, WorkerOptions
from worker.kinds import job_kind
from worker.pilot.allocation import Allocation, leave_allocation, this_allocation
from worker.pilot.heartbeat import Heartbeat, ReleaseDeadline
from worker.pilot.probe import GpuLost, check_gpu
from worker.pilot.signals import END_OF_ALLOCATION, StopRequest
from worker.pilot.spool import Spool
from worker.pilot.study_watch import StudyWatch

if TYPE_CHECKING:
    import torch

log = logging.getLogger("kt-study.worker")

BATCH_SIZE = 16

NO_FIT_PATIENCE_S = 10.0
ASK_SLURM_AGAIN_S = 120.0
TRY_AGAIN_S = 5.0
"""Pause before a retry while the database is unreachable or the disk is full."""
DISK_SPACE_BYTES = 1 << 20
"""Bytes that must be writable after a full disk before the next job is claimed."""


@dataclass(kw_only=True)
class Tally:
    """How the jobs of one pilot ended."""

    done: int = 0
    failed: int = 0
    released: int = 0
    lost: int = 0

    def __str__(self) -> str:
        return f"{self.done} done, {self.failed} failed, {self.released} released, {self.lost} lost"


@dataclass(kw_only=True)
class Pilot:
    """One worker process. `run` returns when no work is left that it could do, or it was asked to stop."""

    options: PilotOptions
    store: JobStore
    device: torch.device
    stop: StopRequest = field(default_factory=StopRequest)
    allocation: Allocation = field(default_factory=this_allocation)
    tally: Tally = field(default_factory=Tally)
    worker_cache: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.allocation.new_worker_id()
        self.spool = Spool(self.options.paths.spool)
        self._held: list[Claim] = []
        self._release_deadline = ReleaseDeadline(self.store, grace_s=self.options.grace_s, end=self._exit_from_thread)
        self.heartbeat = Heartbeat(self.store, self.name, lease_s=self.options.lease_s, on_tick=self._on_tick)
        self._study_watch = StudyWatch(self.options, self.store.url, self._stop_for_good)
        self._last: Claim | None = None
        self._spooled: list[Claim] = []
        # Jobs that have ended, and how to report it: neither the database nor the spool could be written.
        self._unreported: dict[Claim, Callable[[], None]] = {}
        self._is_registered = False
        self._stops_for_good = False
        self._made_progress = False
        self._asked_slurm_at = time.monotonic()
        self._gpu_lost: GpuLost | None = None

    def run(self) -> str:
        """Work until done or stopped. Returns the reason why it ended, one line. Raises GpuLost."""
        self.heartbeat.start()
        self._study_watch.start()
        log.info("worker %s on %s: start", self.name, self.device)
        try:
            reason = self._work()
        finally:
            self._study_watch.end()
            self.heartbeat.end()
            self._unregister()
        log.info("worker %s: %s; %s", self.name, reason, self.tally)
        if self._gpu_lost is not None:
            raise self._gpu_lost
        if not self._stops_for_good:
            leave_allocation(self.allocation, self.stop, self.options, work_left=self._has_work_left())
        return f"{reason}; {self.tally}"

    def _work(self) -> str:
        idle_since = time.monotonic()
        while not self.stop.made:
            try:
                self._register()
                claims = self._claim()
                reason = "" if claims else self._reason_to_leave(idle_since)
            except DatabaseError as error:
                if time.monotonic() - idle_since > self.options.idle_s:
                    return f"the database has been unreachable for {self.options.idle_s:.0f} s: {error}"
                log.warning("%s; retrying", error)
                self.stop.wait(TRY_AGAIN_S)
                continue
            if claims:
                self._run_all(claims)
                idle_since = time.monotonic()
            elif reason:
                return reason
        return f"stopped by {self.stop.reason}"

    def _register(self) -> None:
        """Register this worker once, and end the leases that earlier runs of its Slurm job left."""
        if self._is_registered:
            return
        allocation = self.allocation
        self.store.register(
            WorkerRecord(
                id=self.name, host=allocation.node, pid=os.getpid(), slurm_job=allocation.job, log=log_file(),
                device=str(self.device),
            )
        )  # fmt: skip
        if allocation.restarts and (ended := allocation.earlier_runs(self.store.workers())):
            self.store.end_leases(ended, reason=f"Slurm ended the earlier run of its job {allocation.job}")
        self._is_registered = True

    def _claim(self) -> list[Claim]:
        self._report_ended_jobs()
        if self.allocation.lacks_times and time.monotonic() - self._asked_slurm_at >= ASK_SLURM_AGAIN_S:
            self.allocation = self.allocation.with_times()  # seldom, since slurmctld may take long to answer
            self._asked_slurm_at = time.monotonic()
        left = self._time_left_s()
        if left is not None and left <= 0:
            self.stop.make(END_OF_ALLOCATION)
            return []
        loaded: dict[str, Any] = {}
        if self._last is not None and self._last.kind == "transfer":  # their logits and weights are still in memory
            loaded = {"teachers": self._last.spec["teachers"], "students": [self._last.spec["student"]]}
        claims = self._claim_some(left, **loaded)
        if claims and claims[0].kind in BATCHED:
            claims += self._claim_some(left, kinds=(claims[0].kind,), limit=BATCH_SIZE - 1)
        if not claims and left is not None and left > self._longest_s() / 2:
            claims = self._claim_some(None, kinds=RESUMABLE)  # no allocation may be long enough for it
        return claims

    def _claim_some(self, left: float | None, **conditions: Any) -> list[Claim]:
        study, lease_s = self.options.study or None, self.options.lease_s
        return self.store.claim(self.name, study=study, time_left_s=left, lease_s=lease_s, **conditions)

    def _time_left_s(self) -> float | None:
        return time_left_s(self.allocation.ends_at, self.options.margin_s)

    def _longest_s(self) -> float:
        """The time for work in a whole allocation like this one."""
        return self.allocation.length_s - self.options.margin_s

    def _reason_to_leave(self, idle_since: float) -> str:
        """Why to leave now; empty, after a short sleep, if work may come."""
        workload = self.store.workload(self.options.study or None)
        if not workload.running and not workload.ready_now and not workload.ready_later:
            return "no work is left that could run"
        if reason := self._reason_that_none_fits(workload, time.monotonic() - idle_since):
            return reason
        if time.monotonic() - idle_since > self.options.idle_s:
            return f"no work for {self.options.idle_s:.0f} s"
        self.store.expire()
        self.stop.wait(min(2.0, self.options.idle_s / 10))
        return ""

    def _reason_that_none_fits(self, workload: Workload, idle_s: float) -> str:
        """Why to leave although jobs are ready: none fits the time left, and no running job will make another ready."""
        left = self._time_left_s()
        if left is None or not workload.ready_now or workload.running or idle_s < NO_FIT_PATIENCE_S:
            return ""
        if left <= self._longest_s() / 2:
            self.stop.make(END_OF_ALLOCATION)
        return (
            f"{workload.ready_now} jobs are ready, and none is estimated to fit the {left / 60:.0f} min that are left"
        )

    def _run_all(self, claims: list[Claim]) -> None:
        self._held += claims
        self.heartbeat.hold(claims)
        finished: list[tuple[Claim, Rows]] = []
        for claim in claims:
            if self.stop.made:
                self._release(claim)
            elif (rows := self._run(claim)) is not None:
                finished.append((claim, rows))
        for claim, rows in finished:
            self._finish(claim, rows)
        if self.device.type == "cuda" and self._gpu_lost is None:
            import torch

            torch.cuda.empty_cache()  # for the other workers of this GPU

    def _run(self, claim: Claim) -> Rows | None:
        """Run one job. Returns its rows, or None if it ended otherwise and that is reported."""
        log.info("job %d (%s), attempt %d: start", claim.job_id, claim.kind, claim.attempt)
        began = time.monotonic()
        try:
            rows = job_kind(claim.kind).run(claim.spec, self._context(claim))
        except Stopped:
            self._release(claim)
            return None
        except LeaseLost as error:
            self._lose(claim, error)
            return None
        except ArtefactGone as error:
            self._wait_for_input(claim, error)
            return None
        except Exception as error:
            if self.stop.made and is_transient(error):  # such as a child process that the same signal ended
                log.warning("job %d: stopped with %s: %s", claim.job_id, type(error).__name__, error)
                self._release(claim)
            elif isinstance(error, DatabaseError) and not isinstance(error, SchemaMismatch):
                log.warning("job %d: %s", claim.job_id, error)
                self._release(claim, "the job database was unreachable")
                self.stop.wait(TRY_AGAIN_S)
            else:
                self._fail(claim, error)
            return None
        log.info("job %d (%s): computed in %.1f s", claim.job_id, claim.kind, time.monotonic() - began)
        self._last = claim
        return rows

    def _context(self, claim: Claim) -> JobContext:
        return JobContext(
            claim=claim,
            records=self.store,
            paths=self.options.paths,
            device=self.device,
            report=lambda progress: self.heartbeat.report(claim, progress),
            stopping=lambda: self.stop.made or self.heartbeat.recalled(claim),
            options=WorkerOptions(
                eval_batch_size=self.options.eval_batch_size,
                loader_workers=self._loader_workers(),
                checkpoint_every_s=self.options.checkpoint_every_s,
                cuda_graphs=self.options.cuda_graphs,
            ),
            worker_cache=self.worker_cache,
        )

    def _loader_workers(self) -> int:
        """As in the options; by default all cores but one beside a GPU, and none where the cores compute."""
        import torch

        if self.options.loader_workers is not None:
            return self.options.loader_workers
        return max(1, torch.get_num_threads() - 1) if self.device.type == "cuda" else 0

    def _finish(self, claim: Claim, rows: Rows) -> None:
        try:
            written = self.spool.finish(self.store, claim, rows)
        except LeaseLost as error:
            self._lose(claim, error)
            return
        except (SchemaMismatch, UsageError) as error:  # another version's tables, or rows that fit none
            self._fail(claim, error)
            return
        except DiskError as error:  # the spool cannot be written either: the result waits in memory, under its lease
            log.warning("job %d: %s", claim.job_id, error)
            self._unreported[claim] = lambda: self._finish(claim, rows)
            return
        self.tally.done += 1
        self._made_progress = True
        if written:
            self._drop(claim)
        else:
            self._unreported.pop(claim, None)
            log.warning("job %d: the database is unreachable; its result is in %s", claim.job_id, self.spool.folder)
            self._spooled.append(claim)  # its lease is kept, so that no other worker runs it again

    def _report_ended_jobs(self) -> None:
        """Report the jobs that ended while the database was unreachable."""
        for claim, report in list(self._unreported.items()):
            report()
            if claim in self._unreported:  # still unreachable
                break
        self.spool.drain(self.store)
        if self._spooled and not self.spool.waiting():
            for claim in self._spooled:
                self._drop(claim)
            self._spooled.clear()

    def _release(self, claim: Claim, reason: str = "paused") -> None:
        """Back to ready, through no fault of the job, unless its lease is lost."""
        if not self.heartbeat.lost(claim):
            try:
                self.store.release(claim, reason=self.stop.reason or reason)
                self.tally.released += 1
                self._made_progress |= claim.kind in RESUMABLE
            except LeaseLost as error:
                log.warning("job %d: %s", claim.job_id, error)
            except DatabaseError as error:
                log.warning("job %d: %s", claim.job_id, error)
                if not self.stop.made:
                    self._unreported[claim] = lambda: self._release(claim, reason)
                    return
        self._drop(claim)

    def _wait_for_input(self, claim: Claim, error: ArtefactGone) -> None:
        """A file of another job is missing: that job runs again, and this one waits for it."""
        try:
            self.store.make_again(claim, error.makers, reason=str(error))
        except LeaseLost as lost:
            self._lose(claim, lost)
        except DataError as final:
            self._fail(claim, final)
        except DatabaseError as unreachable:
            log.warning("job %d: %s", claim.job_id, unreachable)
            self._unreported[claim] = lambda: self._wait_for_input(claim, error)
        else:
            log.warning("job %d: %s", claim.job_id, error)
            self.tally.released += 1
            self._drop(claim)

    def _lose(self, claim: Claim, error: LeaseLost) -> None:
        log.warning("job %d: %s", claim.job_id, error)
        self.tally.lost += 1
        self._drop(claim)
        if self.allocation.is_over():
            self.stop.make("the end of its Slurm job, which now runs elsewhere")

    def _fail(self, claim: Claim, error: Exception) -> None:
        failure = describe(error)
        log.error("job %d (%s): %s: %s", claim.job_id, claim.kind, failure.error, failure.message)
        log.debug("%s", failure.traceback)
        self.worker_cache.clear()  # it may be what broke the job
        self._report_failure(claim, failure)
        try:
            check_gpu(self.device)
        except GpuLost as lost:  # every further job would fail at once, and so would the whole queue
            log.error("%s", lost)
            self._gpu_lost = lost
            self.stop.make("the loss of its GPU")
        if is_disk_full(error):
            self._wait_for_disk_space()

    def _report_failure(self, claim: Claim, failure: Failure) -> None:
        """Record that a job has failed; while the database is unreachable, later, under its lease."""
        try:
            self.store.fail(claim, failure)
        except LeaseLost as lost:
            self._lose(claim, lost)
            return
        except DatabaseError as unreachable:
            log.warning("job %d: %s", claim.job_id, unreachable)
            self._unreported[claim] = lambda: self._report_failure(claim, failure)
            return
        self.tally.failed += 1
        self._drop(claim)
        self._notify()

    def _wait_for_disk_space(self) -> None:
        """Until the disk can be written again: every further job would fail at once, and so would the whole queue."""
        since = time.monotonic()
        probe = self.options.paths.cache / f".room-{self.name}"
        while not self.stop.made:
            try:
                write_bytes(probe, bytes(DISK_SPACE_BYTES))
                probe.unlink(missing_ok=True)
                return
            except (DiskError, OSError) as error:
                log.warning("%s; waiting for free space", error)
            if time.monotonic() - since > self.options.idle_s:
                self._stop_for_good(f"a disk that has been full for {self.options.idle_s:.0f} s")
            self.stop.wait(TRY_AGAIN_S)

    def _stop_for_good(self, reason: str) -> None:
        """Stop as on a signal, and do not let Slurm start this pilot again. Called from any thread."""
        log.error("stopping: %s", reason)
        self._stops_for_good = True
        self.stop.make(reason)

    def _notify(self) -> None:
        """Send notifications of the study's first failure or its end; not after a signal, which leaves only seconds."""
        if self.options.study and not self.stop.made:
            notify.send_due(self.store, self.options.study, self.options.files)

    def _drop(self, claim: Claim) -> None:
        self.heartbeat.drop(claim)
        self._unreported.pop(claim, None)
        if claim in self._held:
            self._held.remove(claim)

    def _on_tick(self) -> None:
        left = self._time_left_s()
        if left is not None and left <= 0:
            self.stop.make(END_OF_ALLOCATION)
        if self.stop.made:
            unfinished = [claim for claim in self._held if claim not in self._spooled and claim not in self._unreported]
            self._release_deadline.release_if_due(self.stop.since, unfinished, self.stop.reason)

    def _has_work_left(self) -> bool:
        """Whether another run of this pilot would find work, if this one made progress."""
        if not self._made_progress:
            return False
        try:
            workload = self.store.workload(self.options.study or None)
        except DatabaseError:
            return True
        return bool(workload.ready_now or workload.ready_later or workload.blocked)

    def _exit_from_thread(self) -> None:
        """From the heartbeat thread: the main thread hangs in a job."""
        logging.shutdown()
        if not self._stops_for_good:
            resumable = any(claim.kind in RESUMABLE for claim in self._held)
            leave_allocation(self.allocation, self.stop, self.options, work_left=resumable or self._made_progress)
        os._exit(75)

    def _unregister(self) -> None:
        try:
            self._report_ended_jobs()
            for claim in list(self._unreported):  # they have to run again
                self.store.release(claim, reason="its end could not be reported to the job database")
            self.store.leave(self.name)
        except (LeaseLost, DatabaseError) as error:
            log.warning("%s", error)
        self._notify()


def log_file() -> str:
    """Where submitit sends this process's output; empty when it was not started by submitit."""
    if "SUBMITIT_FOLDER" not in os.environ:
        return ""
    import submitit

    return str(submitit.JobEnvironment().paths.stdout)
