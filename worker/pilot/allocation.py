"""The allocation of a pilot, on Slurm or just this machine, and how a pilot leaves it so that Slurm requeues the job.

Slurm's behaviour was observed with 22.05. Slurm itself requeues a preempted job: without a GraceTime for every exit code,
with a GraceTime only if it is still alive when that ends. So a preempted pilot releases its job and then waits to be killed.
A job that reaches its time limit is not requeued: the pilot does that itself, by the name `<array>_<task>` (the plain number
of one task is that of the whole array).
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, replace

from kt_study import scontrol
from kt_study.pilots import PilotOptions
from kt_study.store import WorkerRow
from worker.pilot.signals import END_OF_ALLOCATION, StopRequest

log = logging.getLogger("kt-study.worker")

SCONTROL_TIMEOUT_S = 30
KILL_WAIT_S = 60.0  # Slurm kills KillWait seconds after the end; 30 by default

_WARNINGS = (END_OF_ALLOCATION, "SIGUSR1", "SIGUSR2")  # of the end; for any other, Slurm sends SIGTERM
_LIVE = (
    "RUNNING",
    "COMPLETING",
    "SUSPENDED",
    "STOPPED",
    "SIGNALING",
    "STAGE_OUT",
)  # states of a job that has not ended
_WORKER_ID = re.compile(r"^(?P<node>.*)-(?P<job>\d+(?:_\d+)?)r(?P<run>\d+)-[0-9a-f]{8}$")


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The Slurm allocation of this process. Outside Slurm `job` is empty, and only `node` is known."""

    node: str
    job: str = ""  # as squeue prints it: 123 or 123_4
    task: int = 0  # which of the allocation's processes this is
    tasks: int = 1
    restarts: int = 0  # how often Slurm has requeued the job
    began_at: float = 0.0  # seconds since 1970 by this machine's clock; 0 where unknown
    ends_at: float = 0.0

    @property
    def length_s(self) -> float:
        """Time from the start of the allocation to its end; 0 where unknown."""
        return self.ends_at - self.began_at if self.ends_at else 0.0

    @property
    def lacks_times(self) -> bool:
        """Whether Slurm has not yet given the begin and end of this allocation."""
        return bool(self.job) and not self.began_at

    def with_times(self) -> Allocation:
        """The same with its begin and end from Slurm; unchanged if Slurm does not answer."""
        facts = slurm_facts(self.job)
        return replace(self, began_at=_moment(facts.get("StartTime", "")), ends_at=_moment(facts.get("EndTime", "")))

    def new_worker_id(self) -> str:
        """A name for one worker process; under Slurm it contains the job and its run."""
        middle = f"{self.job}r{self.restarts}" if self.job else str(os.getpid())
        return f"{self.node}-{middle}-{uuid.uuid4().hex[:8]}"

    def earlier_runs(self, workers: Iterable[WorkerRow]) -> list[str]:
        """The workers that Slurm killed when it requeued this job."""
        return [
            worker.id
            for worker in workers
            if worker.slurm_job == self.job
            and worker.ended_at is None
            and (name := _WORKER_ID.match(worker.id))
            and int(name["run"]) < self.restarts
        ]

    def is_over(self) -> bool:
        """Whether this run of the job has ended for Slurm, although this process lives. False without an answer."""
        if not self.job:
            return False
        facts = slurm_facts(self.job)
        restarts = int(facts.get("Restarts", self.restarts))
        return bool(facts) and (restarts != self.restarts or facts.get("JobState", "") not in _LIVE)


def this_allocation() -> Allocation:
    """The allocation of this process, from Slurm's environment and one call of scontrol, which may fail."""
    job = slurm_job()
    if not job:
        return Allocation(node=socket.gethostname())
    return Allocation(
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        job=job,
        task=int(os.environ.get("SLURM_PROCID", "0")),
        tasks=int(os.environ.get("SLURM_NTASKS", "1")),
        restarts=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
    ).with_times()


def slurm_job() -> str:
    """This allocation's name as squeue prints it, e.g. 123 or 123_4; empty outside Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def slurm_facts(job: str) -> dict[str, str]:
    """The fields of `scontrol show job`; empty if it does not answer."""
    done = _scontrol("-o", "show", "job", job)
    records = scontrol.records(done.stdout) if done and not done.returncode else []
    return records[0] if records else {}


def leave_allocation(allocation: Allocation, stop: StopRequest, options: PilotOptions, *, work_left: bool) -> None:
    """Leave an allocation whose end was announced, so that the study continues: requeue the job if Slurm will not, else
    wait for Slurm to kill this process. Returns at once outside Slurm, and if Slurm does not kill it.

    Args:
        work_left: whether a further run of this pilot would have something to do.
    """
    if not allocation.job or not stop.made:
        return
    facts = slurm_facts(allocation.job)
    if _moment(facts.get("PreemptTime", "")):  # preempted
        _linger(max(options.linger_s, _moment(facts.get("EndTime", "")) - time.time() + KILL_WAIT_S))
    elif not _is_time_limit(allocation, stop):
        _linger(options.linger_s)
    elif work_left and allocation.task == 0:
        if allocation.tasks > 1:  # the others release their jobs first: requeuing kills them
            time.sleep(max(0.0, stop.since + options.grace_s - time.monotonic()))
        if _requeue(allocation.job):
            _linger(options.linger_s)
    elif work_left:
        _linger(options.linger_s)


def _is_time_limit(allocation: Allocation, stop: StopRequest) -> bool:
    """Whether Slurm will not requeue: the user's signal without a preemption, at any time."""
    if stop.reason in _WARNINGS:
        return True
    return bool(allocation.ends_at) and time.time() >= allocation.ends_at - 1.0


def _requeue(job: str) -> bool:
    done = _scontrol("requeue", job)
    if done and not done.returncode:
        log.info("Slurm job %s: requeued at its time limit", job)
        return True
    log.warning("Slurm job %s could not be requeued: %s", job, done.stderr.strip() if done else "no answer")
    return False


def _linger(seconds: float) -> None:
    """Stay alive until SIGKILL: Slurm does not requeue a job that exits."""
    log.info("waiting up to %.0f s for Slurm to end this process", seconds)
    time.sleep(seconds)


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(
            ["scontrol", *arguments],
            capture_output=True,
            text=True,
            timeout=SCONTROL_TIMEOUT_S,
            check=False,
            env={**os.environ, "SLURM_TIME_FORMAT": "standard"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("scontrol %s: %s", " ".join(arguments), error)
        return None


def _moment(text: str) -> float:
    """Slurm's local time as seconds since 1970; 0 for None and Unknown."""
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return 0.0
