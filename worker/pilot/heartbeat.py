"""The thread that renews a worker's leases, stores progress, and receives the replies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from kt_study.errors import DatabaseError, LeaseLost
from kt_study.records import Claim, Progress
from kt_study.store import JobStore

log = logging.getLogger("kt-study.worker")

TICK_S = 0.5  # between two checks of the thread: Slurm gives a stopped worker some 30 s, or 5


class Heartbeat:
    """Renews the leases of the held claims every third of a lease.

    An unreachable database does not stop the work: no other worker can claim the job meanwhile, and afterwards the
    fencing number decides. A job whose lease is lost, or that is cancelled or paused, is recalled.
    `on_tick` is called from the thread about twice per second, for every length of a lease.
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
        """Start the thread."""
        self._thread.start()

    def end(self) -> None:
        """Stop; returns after the last heartbeat."""
        self._ended.set()
        self._thread.join(timeout=self._lease_s)

    def hold(self, claims: Iterable[Claim]) -> None:
        """Renew the leases of `claims` from now on."""
        with self._lock:
            self._held |= {claim: Progress() for claim in claims}

    def drop(self, claim: Claim) -> None:
        """The claim is finished, failed or released: no longer renew its lease."""
        with self._lock:
            self._held.pop(claim, None)
            self._recalled.discard(claim)
            self._lost.discard(claim)

    def report(self, claim: Claim, progress: Progress) -> None:
        """Store a job's progress with the next heartbeat."""
        with self._lock:
            if claim in self._held:
                self._held[claim] = progress

    def recalled(self, claim: Claim) -> bool:
        """Whether the job should stop: lost, cancelled or paused."""
        return claim in self._recalled

    def lost(self, claim: Claim) -> bool:
        """Whether the lease is lost: the job must not be reported."""
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
        with self._lock:  # a job that was dropped meanwhile may be held again, under another claim
            still = held.keys() & self._held.keys()
            self._lost |= {claim for claim in still if claim.job_id in lost}
            self._recalled |= {claim for claim in still if claim.job_id in lost | reply.paused}


class ReleaseDeadline:
    """Releases the held jobs from the heartbeat thread if the main thread does not do it in time."""

    def __init__(self, store: JobStore, *, grace_s: float, end: Callable[[], None]) -> None:
        self._store, self._grace_s, self._end = store, grace_s, end

    def release_if_due(self, stop_since: float, claims: Iterable[Claim], reason: str) -> None:
        """After `grace_s` seconds of a stop request, release `claims` and call `end`, which ends the process."""
        if not stop_since or time.monotonic() - stop_since < self._grace_s:
            return
        for claim in claims:
            try:
                self._store.release(claim, reason=f"{reason}; the job did not stop within {self._grace_s:.0f} s")
            except (LeaseLost, DatabaseError) as error:
                log.warning("job %d: %s", claim.job_id, error)
        log.warning("not stopped within %.0f s of %s: exiting", self._grace_s, reason)
        self._end()
