"""Jobs and rows for the tests of the store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from kt_study.hashing import job_digest
from kt_study.records import Claim, Failure, JobState, ModelRecord, PlannedJob
from kt_study.store import JobStore, Planned

STUDY = "study"


def job(number: int, kind: str = "logits", needs: Iterable[PlannedJob] = (), **fields: Any) -> PlannedJob:
    """The job with this number; equal numbers of one kind are the same job."""
    spec = {"number": number}
    return PlannedJob(
        kind=kind, spec=spec, digest=job_digest(kind, spec), needs=tuple(need.digest for need in needs), **fields
    )


def model(key: str, name: str) -> ModelRecord:
    """A model that no worker builds."""
    return ModelRecord(
        key=key, name=name, family="cnn", weights="random:0", input_size=(3, 8, 8), mean=(0.0,), std=(1.0,), timm="x"
    )


def plan(store: JobStore, *jobs: PlannedJob, study: str = STUDY) -> Planned:
    """Add a study and its jobs."""
    store.add_study(study, {})
    return store.plan(study, jobs)


def claim_one(store: JobStore, worker: str = "worker", **wish: Any) -> Claim:
    """Claim the one job there must be."""
    (claim,) = store.claim(worker, **wish)
    return claim


def number(claim: Claim) -> int:
    """The number the claimed job was made with."""
    found: int = claim.spec["number"]
    return found


def state_of(store: JobStore, job_id: int) -> JobState:
    """State of one job."""
    return store.job(job_id).state


def states(store: JobStore) -> dict[int, str]:
    """Number -> state of every job."""
    return {row.spec["number"]: str(row.state) for row in store.jobs(limit=10_000)}


def row(value: float = 1.0) -> dict[str, list[dict[str, Any]]]:
    """One result row."""
    return {"evaluations": [{"dataset": "digits", "model": "m", "n": 10, "acc": value}]}


def result_rows(store: JobStore, table: str = "evaluations") -> list[dict[str, Any]]:
    """Every row of a result table."""
    return [found for chunk in store.results(table) for found in chunk]


def wait_until(holds: Callable[[], bool], seconds: float = 300.0) -> None:
    """Wait for a condition, with a bound that only a hanging program reaches."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"still not so after {seconds:.0f} s"
        time.sleep(0.01)


def passing() -> Failure:
    """A failure that a retry may mend."""
    return Failure(error="OSError", message="disk", traceback="...", group="disk", transient=True)


def lasting(group: str = "cause") -> Failure:
    """A failure that it cannot."""
    return Failure(error="ValueError", message="wrong", traceback="...", group=group)
