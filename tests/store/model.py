"""The job table as a user would explain it: plain dicts, one process, no database."""

from __future__ import annotations

from dataclasses import dataclass, field

from kt_study.records import Claim

MAX_ATTEMPTS, MAX_CRASHES = 3, 2
COUNTED_SHARE = 0.4  # of a lease, of a time in which nobody saw the database answer
OPEN = ("blocked", "ready", "running")


@dataclass
class Job:
    """What there is to know of one job."""

    number: int
    kind: str
    priority: int
    needs: frozenset[int]
    state: str = "blocked"
    paused: bool = False
    attempts: int = 0
    crashes: int = 0
    fence: int = 0
    worker: str = ""
    outcomes: list[str] = field(default_factory=list)
    rows: int = 0
    lease_s: float = 0.0
    left_s: float = 0.0  # of the lease
    stood_still: bool = False  # together with everything else, since anyone looked at the database


@dataclass
class Study:
    """One study: which jobs it holds, and what was done to the whole of it."""

    jobs: set[int] = field(default_factory=set)
    paused: bool = False
    cancelled: bool = False


class Model:
    """Jobs by number, in the order in which they were planned."""

    def __init__(self) -> None:
        self.jobs: dict[int, Job] = {}
        self.studies: dict[str, Study] = {}

    def open_needs(self, job: Job) -> int:
        """Needed jobs that are not done."""
        return sum(self.jobs[need].state != "done" for need in job.needs)

    def _waiting_state(self, job: Job) -> str:
        return "blocked" if self.open_needs(job) else "ready"

    def _others(self, study: str, number: int, *, unpaused: bool) -> bool:
        """Whether another study still wants the job."""
        return any(
            number in other.jobs and not other.cancelled and not (unpaused and other.paused)
            for name, other in self.studies.items()
            if name != study
        )

    def plan(self, study: str, jobs: list[Job]) -> tuple[int, int, int]:
        """New, linked and existing ones of the distinct jobs."""
        held = self.studies.setdefault(study, Study())
        held.cancelled = False
        new = linked = existing = 0
        for job in jobs:
            known = self.jobs.get(job.number)
            if known is None:
                job.paused = held.paused
                self.jobs[job.number] = job
                new += 1
            elif job.number not in held.jobs:
                linked += 1
                if known.state in OPEN and not held.paused:
                    known.paused = False
            else:
                existing += 1
            held.jobs.add(job.number)
        for job in jobs:
            known = self.jobs[job.number]
            if known is job:
                known.state = self._waiting_state(known)
            elif known.state == "cancelled":
                known.state, known.attempts, known.crashes = self._waiting_state(known), 0, 0
                known.paused = held.paused
        return new, linked, existing

    def claim(self, worker: str, kinds: list[str] | None, limit: int, *, lease_s: float) -> list[int]:
        """Numbers of the jobs that are taken, in order."""
        ready = [
            job
            for job in self.jobs.values()
            if job.state == "ready" and not job.paused and (kinds is None or job.kind in kinds)
        ]
        order = list(self.jobs)
        ready.sort(key=lambda job: (-job.priority, order.index(job.number)))
        for job in ready[:limit]:
            job.state, job.worker, job.fence = "running", worker, job.fence + 1
            job.lease_s = job.left_s = lease_s
            job.stood_still = False
        return [job.number for job in ready[:limit]]

    def holds(self, claim: Claim) -> bool:
        """Whether the claim is the newest and its job runs."""
        job = self.of(claim)
        return job.state == "running" and job.fence == claim.fence

    def of(self, claim: Claim) -> Job:
        """The claimed job."""
        return self.jobs[claim.spec["number"]]

    def finish(self, job: Job) -> None:
        """Done, with one row."""
        job.state, job.attempts, job.rows = "done", job.attempts + 1, job.rows + 1
        job.outcomes.append("done")
        for other in self.jobs.values():
            if other.state == "blocked":
                other.state = self._waiting_state(other)

    def release(self, job: Job) -> None:
        """Back to ready, uncounted."""
        job.state = "ready"
        job.outcomes.append("released")

    def fail(self, job: Job, transient: bool) -> str:
        """Ready again or failed."""
        job.attempts += 1
        again = transient and job.attempts < MAX_ATTEMPTS
        job.state = "ready" if again else "failed"
        job.outcomes.append("retried" if again else "failed")
        return job.state

    def renew(self, job: Job, lease_s: float) -> None:
        """A heartbeat."""
        job.lease_s = job.left_s = lease_s

    def look(self) -> None:
        """Someone sees what time it is: of a time in which everything stood still, part of a lease counts."""
        for job in self.jobs.values():
            if job.stood_still:
                job.left_s -= COUNTED_SHARE * job.lease_s
                job.stood_still = False

    def time_passes(self, seconds: float) -> None:
        """And the database answers all the time."""
        for job in self.jobs.values():
            job.left_s -= seconds

    def stand_still(self) -> None:
        """The database, or everyone who asks it, for longer than any lease."""
        for job in self.jobs.values():
            job.stood_still = job.state == "running"

    def expire(self, workers: set[str] | None = None) -> int:
        """Leases that are over, or those of these workers."""
        over = [
            job
            for job in self.jobs.values()
            if job.state == "running" and (job.left_s < 0 if workers is None else job.worker in workers)
        ]
        for job in over:
            job.crashes += 1
            poisonous = job.crashes > MAX_CRASHES
            job.state = "failed" if poisonous else "ready"
            job.outcomes.append("failed" if poisonous else "expired")
        return len(over)

    def cancel(self, numbers: set[int], study: str | None) -> int:
        """Open and failed ones among them, less those that another study wants when a study was named."""
        picked = [
            job
            for job in self.jobs.values()
            if job.number in numbers
            and job.state in (*OPEN, "failed")
            and not (study and self._others(study, job.number, unpaused=False))
        ]
        for job in picked:
            if job.state == "running":
                job.outcomes.append("cancelled")
            job.state = "cancelled"
        return len(picked)

    def unfinished(self, study: str) -> set[int]:
        """Numbers of the jobs that cancelling the whole study would take."""
        return {
            number
            for number in self.studies[study].jobs
            if self.jobs[number].state in (*OPEN, "failed") and not self._others(study, number, unpaused=False)
        }

    def pause(self, numbers: set[int], study: str | None) -> int:
        """Open ones among them that were not paused, less those that another study wants now."""
        picked = [
            job
            for job in self.jobs.values()
            if job.number in numbers
            and job.state in OPEN
            and not job.paused
            and not (study and self._others(study, job.number, unpaused=True))
        ]
        for job in picked:
            job.paused = True
        return len(picked)

    def resume(self, numbers: set[int]) -> int:
        """Paused ones among them."""
        picked = [job for job in self.jobs.values() if job.number in numbers and job.paused]
        for job in picked:
            job.paused = False
        return len(picked)

    def retry(self, numbers: set[int], *, by_id: bool) -> int:
        """Failed ones among them, and cancelled ones when they were named."""
        states = ("failed", "cancelled") if by_id else ("failed",)
        picked = [job for job in self.jobs.values() if job.number in numbers and job.state in states]
        for job in picked:
            job.state, job.attempts, job.crashes = self._waiting_state(job), 0, 0
        return len(picked)
