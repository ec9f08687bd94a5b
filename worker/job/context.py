"""The context of a job: its claim, the records it names, its files, its device, and reports to the pilot."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kt_study.paths import StudyPaths
from kt_study.records import Claim, DatasetRecord, ModelRecord, Progress
from kt_study.store.results import Rows as Rows

if TYPE_CHECKING:
    import torch


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGCONT)
"""Signals that stop a worker. SIGCONT alone does nothing: Slurm sends it together with SIGTERM."""


class Stopped(Exception):
    """The job was asked to stop and has written its checkpoint; it goes back to ready."""


class KindModule(Protocol):
    """One module of `worker.kinds`: `run` does one job and returns its result rows."""

    def run(self, spec: dict[str, Any], context: JobContext) -> Rows:
        """Do the job. Raises Stopped after a checkpoint when `context.stopping()`."""
        ...


class Records(Protocol):
    """Looks up what a specification names by key: the job store, or a plain dictionary in tests."""

    def model(self, key: str) -> ModelRecord:
        """The model of that key. Raises UnknownModelError."""
        ...

    def dataset(self, key: str) -> DatasetRecord:
        """The data set of that key. Raises DataError."""
        ...


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Options of the launch for this machine; they change results by rounding at most."""

    eval_batch_size: int = 64
    loader_workers: int = 0
    checkpoint_every_s: float = 300.0
    cuda_graphs: bool = False
    resident: bool = True  # logits and images that fit may be kept on the device; False after memory ran out


@dataclass(kw_only=True)
class JobContext:
    """The context that a job kind's `run` receives."""

    claim: Claim
    records: Records
    paths: StudyPaths
    device: torch.device
    report: Callable[[Progress], None] = lambda _progress: None
    stopping: Callable[[], bool] = lambda: False
    options: WorkerOptions = field(default_factory=WorkerOptions)
    worker_cache: dict[str, Any] = field(default_factory=dict)  # kept in memory between the jobs of one worker
