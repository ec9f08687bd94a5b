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
from kt_study.store.spool import Spool
from worker.job.context import JobContext, Rows, Stopped, WorkerOptions
from worker.kinds import job_kind
from worker.pilot.allocation import Allocation, leave_allocation, this_allocation
from worker.pilot.heartbeat import Heartbeat, ReleaseDeadline
from worker.pilot.probe import GpuLost, check_gpu
from worker.pilot.signals import END_OF_ALLOCATION, StopRequest
from worker.pilot.study_watch import StudyWatch

if TYPE_CHECKING:
    import torch

log = logging.getLogger("kt-study.worker")

BATCH_SIZE = 16

NO_FIT_PATIENCE_S = 10.0
ASK_SLURM_AGAIN_S = 120.0
TRY_AGAIN_S = 5.0
"""Pause before the next try when the database is away or the disk is full."""
ROOM_BYTES = 1 << 20
"""What a disk must take before a job that a full one ended is followed by the next."""


@dataclass(kw_only=True)
class Tally:
    """How the jobs of one pilot ended."""

    done: int = 0
    failed: int = 0
    released: int = 0
    lost: int = 0

    def __str__(self) -> str:
        return f"{self.done} done, {self.failed} failed, {self.released} given back, {self.lost} lost"


@dataclass(kw_only=True)
class Pilot:
    """One worker process. `run` returns when there is no work left that it could do, or it was asked to stop."""

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
        self._in_hand: list[Claim] = []
        self._last_word = ReleaseDeadline(self.store, grace_s=self.options.grace_s, end=self._end_abruptly)
        self.heartbeat = Heartbeat(self.store, self.name, lease_s=self.options.lease_s, on_tick=self._on_tick)
        self._study_watch = StudyWatch(self.options, self.store.url, self._leave_for_good)
        self._last: Claim | None = None
        self._spooled: list[Claim] = []
        # jobs that have ended, and how to tell so: neither the database nor the spool has taken it
        self._untold: dict[Claim, Callable[[], None]] = {}
        self._is_registered = False
        self._leaves_for_good = False
        self._got_somewhere = False
        self._asked_slurm_at = time.monotonic()
        self._gpu_lost: GpuLost | None = None

    def run(self) -> str:
        """Work until done or stopped. Returns one line that says why it ended. Raises GpuLost."""
        self.heartbeat.start()
        self._study_watch.start()
        log.info("worker %s on %s: start", self.name, self.device)
        try:
            reason = self._work()
        finally:
            self._study_watch.end()
            self.heartbeat.end()
            self._leave()
        log.info("worker %s: %s; %s", self.name, reason, self.tally)
        if self._gpu_lost is not None:
            raise self._gpu_lost
        if not self._leaves_for_good:
            leave_allocation(self.allocation, self.stop, self.options, work_left=self._is_of_use())
        return f"{reason}; {self.tally}"

    def _register(self) -> None:
        if not self._is_registered:
            self.store.register(self._record())
            self._disown_earlier_runs()
            self._is_registered = True

    def _disown_earlier_runs(self) -> None:
        """Slurm has requeued this job: whatever its earlier runs held and did not give back is free."""
        if self.allocation.restarts and (gone := self.allocation.earlier_runs(self.store.workers())):
            self.store.end_leases(gone, reason=f"Slurm ended the earlier run of its job {self.allocation.job}")

    def _work(self) -> str:
        idle_since = time.monotonic()
        while not self.stop.made:
            try:
                self._register()
                claims = self._claim()
                reason = "" if claims else self._nothing_to_wait_for(idle_since)
            except DatabaseError as error:
                if time.monotonic() - idle_since > self.options.idle_s:
                    return f"the database has been away for {self.options.idle_s:.0f} s: {error}"
                log.warning("%s; trying again", error)
                self.stop.wait(TRY_AGAIN_S)
                continue
            if claims:
                self._do_all(claims)
                idle_since = time.monotonic()
            elif reason:
                return reason
        return f"stopped by {self.stop.reason}"

    def _claim(self) -> list[Claim]:
        self._deliver()
        self._look_for_the_end()
        left = self._time_left_s()
        if left is not None and left <= 0:
            self.stop.make(END_OF_ALLOCATION)
            return []
        held_teachers, held_students = self._affinity()
        claims = self._ask_for(left, teachers=held_teachers, students=held_students)
        if claims and claims[0].kind in BATCHED:
            claims += self._ask_for(left, kinds=(claims[0].kind,), limit=BATCH_SIZE - 1)
        if not claims and left is not None and left > self._longest_s() / 2:
            claims = self._ask_for(None, kinds=RESUMABLE)  # it fits no allocation, or waits for a longer one in vain
        return claims

    def _ask_for(self, left: float | None, **wishes: Any) -> list[Claim]:
        study, lease_s = self.options.study or None, self.options.lease_s
        return self.store.claim(self.name, study=study, time_left_s=left, lease_s=lease_s, **wishes)

    def _look_for_the_end(self) -> None:
        """Ask slurmctld again when the allocation ends, where it was away; seldom, since it may keep us waiting."""
        if self.allocation.lacks_times and time.monotonic() - self._asked_slurm_at >= ASK_SLURM_AGAIN_S:
            self.allocation = self.allocation.with_times()
            self._asked_slurm_at = time.monotonic()

    def _time_left_s(self) -> float | None:
        return time_left_s(self.allocation.ends_at, self.options.margin_s)

    def _longest_s(self) -> float:
        """The time for work in a whole allocation like this one."""
        return self.allocation.length_s - self.options.margin_s

    def _affinity(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Keys of the teacher and the student of the last job, whose logits and weights are still in memory."""
        if self._last is None or self._last.kind != "transfer":
            return (), ()
        spec = self._last.spec
        return tuple(spec["teachers"]), (spec["student"],)

    def _nothing_to_wait_for(self, idle_since: float) -> str:
        """Why to leave now, or nothing after a short sleep."""
        workload = self.store.workload(self.options.study or None)
        if not workload.running and not workload.ready_now and not workload.ready_later:
            return "no work is left that could run"
        if reason := self._nothing_that_fits(workload, time.monotonic() - idle_since):
            return reason
        if time.monotonic() - idle_since > self.options.idle_s:
            return f"no work for {self.options.idle_s:.0f} s"
        self.store.expire()
        self.stop.wait(min(2.0, self.options.idle_s / 10))
        return ""

    def _nothing_that_fits(self, workload: Workload, idle_s: float) -> str:
        """Why to leave although jobs are ready: none fits the time left, and nothing runs that brings another."""
        left = self._time_left_s()
        if left is None or not workload.ready_now or workload.running or idle_s < NO_FIT_PATIENCE_S:
            return ""
        if left <= self._longest_s() / 2:
            self.stop.make(END_OF_ALLOCATION)
        return (
            f"{workload.ready_now} jobs are ready, and none is estimated to fit the {left / 60:.0f} min that are left"
        )

    def _do_all(self, claims: list[Claim]) -> None:
        self._in_hand += claims
        self.heartbeat.hold(claims)
        finished: list[tuple[Claim, Rows]] = []
        for claim in claims:
            if self.stop.made:
                self._give_back(claim)
            elif (rows := self._do(claim)) is not None:
                finished.append((claim, rows))
        for claim, rows in finished:
            self._finish(claim, rows)
        self._share_gpu()

    def _share_gpu(self) -> None:
        """Give memory that is merely cached to the other workers of this GPU."""
        if self.device.type == "cuda" and self._gpu_lost is None:
            import torch

            torch.cuda.empty_cache()

    def _do(self, claim: Claim) -> Rows | None:
        """Run one job. Returns its rows, or None when it ended otherwise and the store knows."""
        log.info("job %d (%s), attempt %d: start", claim.job_id, claim.kind, claim.attempt)
        began = time.monotonic()
        try:
            rows = job_kind(claim.kind).run(claim.spec, self._context(claim))
        except Stopped:
            self._give_back(claim)
            return None
        except LeaseLost as error:
            self._lose(claim, error)
            return None
        except ArtefactGone as error:
            self._wait_for_input(claim, error)
            return None
        except Exception as error:
            if self.stop.made and is_transient(error):  # such as a process of the job's that the same signal ended
                log.warning("job %d: stopped with %s: %s", claim.job_id, type(error).__name__, error)
                self._give_back(claim)
            elif isinstance(error, DatabaseError) and not isinstance(error, SchemaMismatch):
                log.warning("job %d: %s", claim.job_id, error)
                self._give_back(claim, "the job database was away")
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
        """As asked for; else, where a GPU does the arithmetic, the cores of this pilot but its own, and none where the
        arithmetic needs them."""
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
        except DiskError as error:  # nor does the spool take it: it waits in memory, under its lease
            log.warning("job %d: %s", claim.job_id, error)
            self._untold[claim] = lambda: self._finish(claim, rows)
            return
        self.tally.done += 1
        self._got_somewhere = True
        if written:
            self._put_down(claim)
        else:
            self._untold.pop(claim, None)
            log.warning("job %d: the database is away; its result waits in %s", claim.job_id, self.spool.folder)
            self._spooled.append(claim)  # and its lease is kept, so that no other worker runs it again

    def _deliver(self) -> None:
        """Tell the database of the jobs that ended while it was away."""
        for claim, tell in list(self._untold.items()):
            tell()
            if claim in self._untold:  # it is still away
                break
        self.spool.drain(self.store)
        if self._spooled and not self.spool.waiting():
            for claim in self._spooled:
                self._put_down(claim)
            self._spooled.clear()

    def _give_back(self, claim: Claim, reason: str = "paused") -> None:
        """The job did not come to its end and is not to blame: back to ready, unless it is no longer ours."""
        if not self.heartbeat.lost(claim):
            try:
                self.store.release(claim, reason=self.stop.reason or reason)
                self.tally.released += 1
                self._got_somewhere |= claim.kind in RESUMABLE
            except LeaseLost as error:
                log.warning("job %d: %s", claim.job_id, error)
            except DatabaseError as error:
                log.warning("job %d: %s", claim.job_id, error)
                if not self.stop.made:
                    self._untold[claim] = lambda: self._give_back(claim, reason)
                    return
        self._put_down(claim)

    def _wait_for_input(self, claim: Claim, error: ArtefactGone) -> None:
        """A file that another job left is gone: that job is done again, and this one waits for it."""
        try:
            self.store.make_again(claim, error.makers, reason=str(error))
        except LeaseLost as lost:
            self._lose(claim, lost)
        except DataError as final:
            self._fail(claim, final)
        except DatabaseError as away:
            log.warning("job %d: %s", claim.job_id, away)
            self._untold[claim] = lambda: self._wait_for_input(claim, error)
        else:
            log.warning("job %d: %s", claim.job_id, error)
            self.tally.released += 1
            self._put_down(claim)

    def _lose(self, claim: Claim, error: LeaseLost) -> None:
        log.warning("job %d: %s", claim.job_id, error)
        self.tally.lost += 1
        self._put_down(claim)
        if self.allocation.is_over():
            self.stop.make("the end of its Slurm job, which now runs elsewhere")

    def _fail(self, claim: Claim, error: Exception) -> None:
        failure = describe(error)
        log.error("job %d (%s): %s: %s", claim.job_id, claim.kind, failure.error, failure.message)
        log.debug("%s", failure.traceback)
        self.worker_cache.clear()  # whatever the job left behind may be what broke it
        self._report(claim, failure)
        self._leave_a_lost_gpu()
        if is_disk_full(error):
            self._wait_for_room()

    def _report(self, claim: Claim, failure: Failure) -> None:
        """Tell the database that a job has failed; later, under its lease, where it is away."""
        try:
            self.store.fail(claim, failure)
        except LeaseLost as lost:
            self._lose(claim, lost)
            return
        except DatabaseError as away:
            log.warning("job %d: %s", claim.job_id, away)
            self._untold[claim] = lambda: self._report(claim, failure)
            return
        self.tally.failed += 1
        self._put_down(claim)
        self._tell()

    def _wait_for_room(self) -> None:
        """Until the disk takes something again: each further job would fail in no time, and so would the whole queue."""
        since = time.monotonic()
        room = self.options.paths.cache / f".room-{self.name}"
        while not self.stop.made:
            try:
                write_bytes(room, bytes(ROOM_BYTES))
                room.unlink(missing_ok=True)
                return
            except (DiskError, OSError) as error:
                log.warning("%s; waiting until there is room", error)
            if time.monotonic() - since > self.options.idle_s:
                self._leave_for_good(f"a disk that has been full for {self.options.idle_s:.0f} s")
            self.stop.wait(TRY_AGAIN_S)

    def _leave_for_good(self, reason: str) -> None:
        """Stop as on a signal, and let Slurm not start this pilot again. Called from any thread."""
        log.error("stopping: %s", reason)
        self._leaves_for_good = True
        self.stop.make(reason)

    def _leave_a_lost_gpu(self) -> None:
        """Each further job would fail in no time, and so would the whole queue."""
        try:
            check_gpu(self.device)
        except GpuLost as error:
            log.error("%s", error)
            self._gpu_lost = error
            self.stop.make("the loss of its GPU")

    def _tell(self) -> None:
        """Send notifications of the study's first failure or its end; not while a signal leaves only seconds."""
        if self.options.study and not self.stop.made:
            notify.send_due(self.store, self.options.study, self.options.files)

    def _put_down(self, claim: Claim) -> None:
        self.heartbeat.drop(claim)
        self._untold.pop(claim, None)
        if claim in self._in_hand:
            self._in_hand.remove(claim)

    def _on_tick(self) -> None:
        left = self._time_left_s()
        if left is not None and left <= 0:
            self.stop.make(END_OF_ALLOCATION)
        if self.stop.made:
            unfinished = [claim for claim in self._in_hand if claim not in self._spooled and claim not in self._untold]
            self._last_word.say_if_due(self.stop.since, unfinished, self.stop.reason)

    def _is_of_use(self) -> bool:
        """Whether another run of this pilot would find work, and this one got somewhere."""
        if not self._got_somewhere:
            return False
        try:
            workload = self.store.workload(self.options.study or None)
        except DatabaseError:
            return True
        return bool(workload.ready_now or workload.ready_later or workload.blocked)

    def _end_abruptly(self) -> None:
        """From the heartbeat thread: the main thread hangs in a job."""
        logging.shutdown()
        if self._leaves_for_good:
            os._exit(75)
        resumable = any(claim.kind in RESUMABLE for claim in self._in_hand)
        leave_allocation(self.allocation, self.stop, self.options, work_left=resumable or self._got_somewhere)
        os._exit(75)

    def _leave(self) -> None:
        try:
            self._deliver()
            for claim in list(self._untold):  # their results cannot be reported any more: they have to run again
                self.store.release(claim, reason="its end could not be told to the job database")
            self.store.leave(self.name)
        except (LeaseLost, DatabaseError) as error:
            log.warning("%s", error)
        self._tell()

    def _record(self) -> WorkerRecord:
        return WorkerRecord(
            id=self.name,
            host=self.allocation.node,
            pid=os.getpid(),
            slurm_job=self.allocation.job,
            log=log_file(),
            device=str(self.device),
        )


def log_file() -> str:
    """Where submitit sends this process's output; empty when it was not started by submitit."""
    if "SUBMITIT_FOLDER" not in os.environ:
        return ""
    import submitit

    return str(submitit.JobEnvironment().paths.stdout)
