"""The pilot: claims jobs one after another, does them, and says how they went, until none is left for it."""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kt_study.errors import DatabaseError, LeaseLost
from kt_study.failures import describe
from kt_study.pilots import PilotOptions
from kt_study.store import JobStore, WorkerRecord
from kt_study.store.spool import Spool
from kt_study.words import Claim
from worker.context import JobContext, Rows, Stopped, WorkerOptions
from worker.heartbeat import Heartbeat, LastWord
from worker.kinds import TINY, job_kind
from worker.signals import StopRequest

if TYPE_CHECKING:
    import torch

log = logging.getLogger("kt-study.worker")

TINY_BATCH = 16


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
    tally: Tally = field(default_factory=Tally)
    shelf: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.spool = Spool(self.options.paths.spool)
        self._in_hand: list[Claim] = []
        self._last_word = LastWord(self.store, grace_s=self.options.grace_s)
        self.heartbeat = Heartbeat(self.store, self.name, lease_s=self.options.lease_s, on_beat=self._on_beat)
        self._last: Claim | None = None
        self._spooled: list[Claim] = []

    def run(self) -> str:
        """Work until done or stopped. Returns one line that says why it ended."""
        self.store.enlist(self._record())
        self.heartbeat.start()
        log.info("worker %s on %s: start", self.name, self.device)
        try:
            reason = self._work()
        finally:
            self.heartbeat.end()
            self._leave()
        log.info("worker %s: %s; %s", self.name, reason, self.tally)
        return f"{reason}; {self.tally}"

    def _work(self) -> str:
        idle_since = time.monotonic()
        while not self.stop.made:
            try:
                claims = self._claim()
            except DatabaseError as error:
                if time.monotonic() - idle_since > self.options.idle_s:
                    return f"the database has been away for {self.options.idle_s:.0f} s: {error}"
                log.warning("%s; trying again", error)
                self.stop.wait(5.0)
                continue
            if claims:
                self._do_all(claims)
                idle_since = time.monotonic()
            elif reason := self._nothing_to_wait_for(idle_since):
                return reason
        return f"stopped by {self.stop.reason}"

    def _claim(self) -> list[Claim]:
        self._deliver_spooled()
        left = self.options.time_left_s()
        if left is not None and left <= 0:
            self.stop.make("the end of the allocation")
            return []
        held_teachers, held_students = self._affinity()
        claims = self.store.claim(
            self.name,
            study=self.options.study or None,
            teachers=held_teachers,
            students=held_students,
            time_left_s=left,
            lease_s=self.options.lease_s,
        )
        if claims and claims[0].kind in TINY:
            claims += self.store.claim(
                self.name,
                study=self.options.study or None,
                kinds=(claims[0].kind,),
                time_left_s=left,
                limit=TINY_BATCH - 1,
                lease_s=self.options.lease_s,
            )
        return claims

    def _affinity(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Keys of the teacher and the student of the last job, whose logits and weights are still in memory."""
        if self._last is None or self._last.kind != "transfer":
            return (), ()
        spec = self._last.spec
        return tuple(spec["teachers"]), (spec["student"],)

    def _nothing_to_wait_for(self, idle_since: float) -> str:
        """Why to leave now, or nothing after a short sleep."""
        outlook = self.store.outlook(self.options.study or None)
        if not outlook.running and not outlook.ready_now and not outlook.ready_later:
            return "no work is left that could run"
        if time.monotonic() - idle_since > self.options.idle_s:
            return f"no work for {self.options.idle_s:.0f} s"
        self.store.expire()
        self.stop.wait(min(2.0, self.options.idle_s / 10))
        return ""

    def _do_all(self, claims: list[Claim]) -> None:
        self._in_hand = [*self._spooled, *claims]
        self.heartbeat.hold(claims)
        finished: list[tuple[Claim, Rows]] = []
        for claim in claims:
            rows = self._do(claim) if not self.stop.made else self._give_back(claim)
            if rows is not None:
                finished.append((claim, rows))
        for claim, rows in finished:
            self._finish(claim, rows)

    def _do(self, claim: Claim) -> Rows | None:
        """Run one job. Returns its rows, or None when it ended otherwise and the store knows."""
        log.info("job %d (%s), attempt %d: start", claim.job_id, claim.kind, claim.attempt)
        began = time.monotonic()
        try:
            rows = job_kind(claim.kind).run(claim.spec, self._context(claim))
        except Stopped:
            return self._give_back(claim)
        except LeaseLost as error:
            return self._lose(claim, error)
        except Exception as error:
            return self._fail(claim, error)
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
                loader_workers=self.options.loader_workers,
                checkpoint_every_s=self.options.checkpoint_every_s,
            ),
            shelf=self.shelf,
        )

    def _finish(self, claim: Claim, rows: Rows) -> None:
        try:
            written = self.spool.finish(self.store, claim, rows)
        except LeaseLost as error:
            self._lose(claim, error)
            return
        self.tally.done += 1
        if written:
            self._put_down(claim)
        else:
            log.warning("job %d: the database is away; its result waits in %s", claim.job_id, self.spool.folder)
            self._spooled.append(claim)  # and its lease is kept, so that nobody does it again

    def _deliver_spooled(self) -> None:
        self.spool.drain(self.store)
        if self._spooled and not self.spool.waiting():
            for claim in self._spooled:
                self._put_down(claim)
            self._spooled.clear()

    def _give_back(self, claim: Claim) -> None:
        """The job was stopped and has its checkpoint: back to ready, unless it is no longer ours."""
        if not self.heartbeat.lost(claim):
            try:
                self.store.release(claim, reason=self.stop.reason or "paused")
                self.tally.released += 1
            except (LeaseLost, DatabaseError) as error:
                log.warning("job %d: %s", claim.job_id, error)
        self._put_down(claim)

    def _lose(self, claim: Claim, error: LeaseLost) -> None:
        log.warning("job %d: %s", claim.job_id, error)
        self.tally.lost += 1
        self._put_down(claim)

    def _fail(self, claim: Claim, error: Exception) -> None:
        failure = describe(error)
        log.error("job %d (%s): %s: %s", claim.job_id, claim.kind, failure.error, failure.message)
        log.debug("%s", failure.traceback)
        self.shelf.clear()  # whatever the job left behind may be what broke it
        try:
            self.store.fail(claim, failure)
            self.tally.failed += 1
        except (LeaseLost, DatabaseError) as again:
            log.warning("job %d: %s", claim.job_id, again)
        self._put_down(claim)

    def _put_down(self, claim: Claim) -> None:
        self.heartbeat.drop(claim)
        if claim in self._in_hand:
            self._in_hand.remove(claim)

    def _on_beat(self) -> None:
        if self.stop.made:
            unfinished = [claim for claim in self._in_hand if claim not in self._spooled]
            self._last_word.say_if_due(self.stop.since, unfinished, self.stop.reason)

    def _leave(self) -> None:
        try:
            self._deliver_spooled()
            self.store.leave(self.name)
        except DatabaseError as error:
            log.warning("%s", error)

    def _record(self) -> WorkerRecord:
        return WorkerRecord(
            id=self.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            slurm_job=slurm_job() or "",
            log=os.environ.get("KT_STUDY_LOG", ""),
            device=str(self.device),
        )


def slurm_job() -> str | None:
    """This allocation's name as squeue prints it, e.g. 123 or 123_4; None outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
