"""A pilot in this process, with small jobs in place of models."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from kt_study.pilots import PilotOptions
from kt_study.records import JobState, PlannedJob
from kt_study.store import JobStore
from worker.job.context import JobContext, Stopped
from worker.pilot.allocation import Allocation
from worker.pilot.pilot import Pilot


class Kind:
    """A job kind whose `run` does what a test wants."""

    def __init__(self) -> None:
        self.ran: list[int] = []
        self.work = lambda _context: None

    def run(self, _spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
        self.ran.append(context.claim.job_id)
        self.work(context)
        return {}


def plan(store: JobStore, *estimates: float, kind: str = "transfer") -> None:
    jobs = [
        PlannedJob(kind=kind, spec={"n": n, "teachers": [], "student": ""}, digest=f"{kind}-{n}", estimate_s=estimate)
        for n, estimate in enumerate(estimates)
    ]
    store.plan("s", jobs)


def make(store: JobStore, tmp_path: Path, allocation: Allocation | None = None, **options: Any) -> Pilot:
    chosen = {"root": str(tmp_path), "study": "s", "lease_s": 6.0, "idle_s": 20.0, "margin_s": 60.0} | options
    return Pilot(
        options=PilotOptions(**chosen),
        store=store,
        device=torch.device("cpu"),
        allocation=allocation or Allocation(node="here"),
    )


def until_stopped(context: JobContext) -> None:
    while not context.stopping():
        time.sleep(0.02)
    raise Stopped


def states(store: JobStore) -> list[JobState]:
    return [job.state for job in store.jobs()]
