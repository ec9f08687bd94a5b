"""What a worker is told that no longer holds its job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kt_study.errors import LeaseLost
from kt_study.words import Claim

Found = Sequence[Any] | None  # a job's (state, fence, worker), None for no such job


class JobLost(LeaseLost):
    """A LeaseLost that knows its job."""

    def __init__(self, job_id: int, message: str) -> None:
        super().__init__(message)
        self.job_id = job_id


def is_done_by(claim: Claim, found: Found) -> bool:
    """Whether this very claim ended the job: its finish was committed, only the answer got lost, and it comes again."""
    return found is not None and (found[0], found[1]) == ("done", claim.fence)


def lost(claim: Claim, found: Found) -> JobLost:
    """The error for a claim that is not the newest of a running job."""
    if found is None:
        return JobLost(claim.job_id, f"job {claim.job_id} is not in this database; nothing was written")
    state, fence, worker = found
    if state == "cancelled":
        return JobLost(claim.job_id, f"job {claim.job_id} was cancelled; nothing was written")
    return JobLost(
        claim.job_id,
        f"job {claim.job_id}: the lease of claim {claim.fence} has ended; the job is {state} under claim {fence} "
        f"(last worker {worker}); nothing was written",
    )
