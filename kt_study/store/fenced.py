"""What a worker is told that no longer holds its job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kt_study.errors import LeaseLost
from kt_study.words import Claim


class JobLost(LeaseLost):
    """A LeaseLost that knows its job."""

    def __init__(self, job_id: int, message: str) -> None:
        super().__init__(message)
        self.job_id = job_id


def lost_errors(claim: Claim, found: Sequence[Any] | None) -> list[JobLost]:
    """The error for a claim that could not be finished because its job is now (state, fence, worker), or gone.

    None for a job that is done under this very claim: that finish was committed and only its answer got lost, so it is
    recognised by its fencing number when it comes again.
    """
    if found is None:
        return [JobLost(claim.job_id, f"job {claim.job_id} is not in this database; nothing was written")]
    state, fence, worker = found
    if state == "done" and fence == claim.fence:
        return []
    if state == "cancelled":
        return [JobLost(claim.job_id, f"job {claim.job_id} was cancelled; nothing was written")]
    return [
        JobLost(
            claim.job_id,
            f"job {claim.job_id}: the lease of claim {claim.fence} has ended; the job is {state} under claim {fence} "
            f"(last worker {worker}); nothing was written",
        )
    ]
