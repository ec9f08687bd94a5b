"""A pilots of pilots without a cluster: a database, and small scripts in the place of Slurm's commands."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kt_study.files import write_bytes
from kt_study.pilots import PilotOptions, Probe
from kt_study.records import PlannedJob
from kt_study.store import JobStore, WorkerRecord, open_store
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.records import LaunchRecord
from orchestrator.cluster.launch.request import SlurmRequest
from orchestrator.cluster.launch.slurm import SlurmPilots
from orchestrator.cluster.slurm.cluster import Cluster, Node, Partition
from orchestrator.cluster.slurm.listing import QueuedJob, Run
from tests.databases import Databases

CLUSTER = Cluster(
    partitions=tuple(
        Partition(name=name, is_default=name == "gpu", is_up=True, longest_min=120) for name in ("gpu", "other")
    ),
    nodes=tuple(
        Node(name=f"{name}{n}", host="h", address="127.0.0.1", cpus=4, memory_mib=4000, gpus=1, partitions=(name,))
        for name in ("gpu", "other")
        for n in range(2)
    ),
    largest_array=3,
    kill_wait_s=30,
)


@pytest.fixture
def store(tmp_path: Path, databases: Databases) -> JobStore:
    """Ten jobs that are ready."""
    made = open_store(databases.url(tmp_path), create=True)
    made.add_study("s", {})
    made.plan("s", [PlannedJob(kind="logits", spec={"n": n}, digest=str(n)) for n in range(10)])
    return made


@pytest.fixture
def pilots(store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SlurmPilots:
    """The pilots of one study; the lock of the user who runs the tests stays free."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return SlurmPilots(
        store=store,
        options=PilotOptions(root=str(tmp_path), study="s", token=""),
        request=SlurmRequest(partition="gpu", gpus_per_node=1, time=60),
        cluster=CLUSTER,
        database_url=store.url,
        wanted=8,
        most_submitted=4,
    )


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Puts small scripts in the place of Slurm's commands."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(name: str, lines: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)

    put("squeue", "true")
    put("sacct", "true")
    put("srun", "true")
    return put


SBATCH = """
for script; do :; done
name=$(sed -n 's/^#SBATCH --job-name=//p' $script)
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p' $script)
for task in $(seq 0 ${last:-0}); do echo "$$_$task|$name|PENDING|Priority||N/A|N/A|gpu" >> {queue}; done
echo Submitted batch job $$
"""


@pytest.fixture
def fake_queue(slurm: Callable[[str, str], None], tmp_path: Path) -> Path:
    """An sbatch that fills a queue and a squeue that shows it; returns the queue's file."""
    queue = tmp_path / "queue"
    queue.touch()
    slurm("sbatch", SBATCH.replace("{queue}", str(queue)))
    slurm("squeue", f"cat {queue}")
    return queue


def launched(
    pilots: SlurmPilots, token: str, *, ago_s: float, done_before: int = 0, slurm_id: str = "5"
) -> LaunchRecord:
    record = LaunchRecord(
        token=token, study="s", sent_at=time.time() - ago_s, allocations=2, pilots_each=1, gpus_each=1, time_min=60,
        done_before=done_before, slurm_id=slurm_id,
    )  # fmt: skip
    records.write(pilots.options.files, record)
    return record


def began(pilots: SlurmPilots, token: str, *, node: str = "a", job: str = "5_0", error: str = "") -> Path:
    probe = Probe(node=node, slurm_job=job, error=error)
    write_bytes(pilots.options.files.probe(token, job), msgspec.json.encode(probe))
    return pilots.options.files.probe(token, job)


def ended(job: str, state: str, at: float) -> Run:
    return Run(
        job=job, name="kt-s-t", state=state, exit_code=0, signal=0, node="a", submitted_at=1.0, started_at=1.0,
        ended_at=at,
    )  # fmt: skip


def queued(job: str, token: str = "t", state: str = "PENDING") -> QueuedJob:
    return QueuedJob(
        job=job, name=f"kt-s-{token}", state=state, reason="", node="", starts_at=0.0, ends_at=0.0, partition="gpu"
    )  # fmt: skip


def register(store: JobStore, job: str, *, log: str = "/study/logs/t/7.out") -> None:
    store.register(WorkerRecord(id=job, host="a", pid=1, slurm_job=job, log=log))
