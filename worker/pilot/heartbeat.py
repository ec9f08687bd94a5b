"""The thread that renews a worker's leases, writes progress to the database, and receives the reply."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from kt_study.errors import DatabaseError, LeaseLost
from kt_study.records import Claim, Progress
from kt_study.store import JobStore

log = logging.getLogger("kt-study.worker")

TICK_S = 0.5  # how often the thread looks up between two beats: Slurm leaves a stopped worker some 30 s, or 5


class Heartbeat:
    """Renews the leases of the claims in hand every third of a lease.

    A database that is away does not stop the work: nobody else can claim the job meanwhile, and when it is back the
    fencing number decides. A job that the database says is no longer ours, or is cancelled or paused, is asked to stop.
    `on_tick` is called from the thread about twice per second, whatever the lease.
    """

    def __init__(self, store: JobStore, worker: str, *, lease_s: float, on_tick: Callable[[], None]) -> None:
        self._store, self._worker, self._lease_s, self._on_tick = store, worker, lease_s, on_tick
        self._lock = threading.Lock()
        self._held: dict[Claim, Progress] = {}
        self._lost: set[Claim] = set()
        self._recalled: set[Claim] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def end(self) -> None:
        """Stop beating; returns when the last beat is over."""
        self._ended.set()
        self._thread.join(timeout=self._lease_s)

    def hold(self, claims: Iterable[Claim]) -> None:
        """Keep the leases of `claims` alive from now on."""
        with self._lock:
            self._held |= {claim: Progress() for claim in claims}

    def drop(self, claim: Claim) -> None:
        """The claim is finished, failed or released: let its lease be."""
        with self._lock:
            self._held.pop(claim, None)
            self._recalled.discard(claim)
            self._lost.discard(claim)

    def report(self, claim: Claim, progress: Progress) -> None:
        """Remember where a job is; the next beat carries it."""
        with self._lock:
            if claim in self._held:
                self._held[claim] = progress

    def recalled(self, claim: Claim) -> bool:
        """Whether the job should stop: lost, cancelled or paused."""
        return claim in self._recalled

    def lost(self, claim: Claim) -> bool:
        """Whether the job is no longer ours to report."""
        return claim in self._lost

    def _run(self) -> None:
        every = self._lease_s / 3
        due = time.monotonic() + every
        while not self._ended.wait(min(TICK_S, every)):
            if time.monotonic() >= due:
                due = time.monotonic() + every
                self._beat()
            self._on_tick()

    def _beat(self) -> None:
        with self._lock:
            held = dict(self._held)
        try:
            reply = self._store.heartbeat(self._worker, held, lease_s=self._lease_s)
        except DatabaseError as error:
            log.warning("heartbeat: %s", error)
            return
        lost = reply.lost | reply.cancelled
        with self._lock:  # a job that was put down meanwhile may be in hand again, under another claim
            still = held.keys() & self._held.keys()
            self._lost |= {claim for claim in still if claim.job_id in lost}
            self._recalled |= {claim for claim in still if claim.job_id in lost | reply.paused}


class ReleaseDeadline:
    """Gives the jobs in hand back from the heartbeat thread when the main thread does not come to it in time."""

    def __init__(self, store: JobStore, *, grace_s: float, end: Callable[[], None]) -> None:
        self._store, self._grace_s, self._end = store, grace_s, end

    def say_if_due(self, stop_since: float, claims: Iterable[Claim], reason: str) -> None:
        """After `grace_s` seconds of a stop request, release `claims` and call `end`, which ends the process."""
        if not stop_since or time.monotonic() - stop_since < self._grace_s:
            return
        for claim in claims:
            try:
                self._store.release(claim, reason=f"{reason}; the job did not stop within {self._grace_s:.0f} s")
            except (LeaseLost, DatabaseError) as error:
                log.warning("job %d: %s", claim.job_id, error)
        log.warning("not stopped within %.0f s of %s: leaving", self._grace_s, reason)
        self._end()
