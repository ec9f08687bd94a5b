"""The demo study on the cluster, 4 pilots on 2 nodes, PostgreSQL, preempted twice: the parquet of a local run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from kt_study.records import JobState
from kt_study.store import JobStore, Selection
from tests.slurm.dev_cluster import DevCluster, eventually
from tests.slurm.study import ClusterStudy, zoo_study

STUDY = zoo_study("demo", epochs=3, pause_s=0.4)  # 20 s for a transfer at least
TABLES = ("models", "pairs", "complementarity", "class_flips", "evaluations", "trainings", "transfers",
          "transfer_epochs", "jobs")  # fmt: skip
PILOTS = 4
ABOUT_THE_RUN = {
    "seconds", "images_per_s", "peak_memory", "host", "created_at", "changed_at", "attempts", "crashes",
}  # fmt: skip


def a_transfer_is_under_way(store: JobStore, gone: set[str]) -> bool:
    """Four pilots are at work that were not before, and a transfer of one of them has done steps, and not all."""
    alive = {worker.id for worker in store.workers(alive_within_s=30)} - gone
    running = store.jobs(Selection(kind="transfer", state=JobState.RUNNING))
    under_way = (job for job in running if job.worker in alive and job.progress and job.progress.step)
    return len(alive) == PILOTS and any(under_way)


def preempt(cluster: DevCluster) -> None:
    """Take both nodes for a moment; the pilots on them are requeued."""
    high = cluster.sbatch("true", "--partition=high", "--nodes=2", "--exclusive", "--nodelist=node1,node2")
    assert eventually(lambda: cluster.job_states(high) == ["COMPLETED"], 90), cluster.job_states(high)


def rows(folder: Path, table: str) -> list[dict[str, Any]]:
    """A table's rows without what a run adds, in an order of their own."""
    found = pq.read_table(folder / "results" / table).to_pylist()
    kept = [{name: value for name, value in row.items() if name not in ABOUT_THE_RUN} for row in found]
    return sorted(kept, key=repr)


@pytest.mark.timeout(600)
def test_preempted_twice_and_equal_to_a_local_run(study: ClusterStudy, cluster: DevCluster, tmp_path: Path) -> None:
    local = ClusterStudy(folder=tmp_path / "local", url=f"sqlite:///{tmp_path}/local.db")
    local.write(STUDY, pauses=False)
    local.succeeds("plan")
    reference = local.start("launch", "--workers", "1", "--threads", "1", "--device", "cpu", "--wait")
    study.write(STUDY)
    study.succeeds("plan")
    planned = len(study.store.jobs())
    ours = ("--partition", "gpu", "--workers", "4", "--exclude", "node3", "--gpus-per-node", "1", "--time", "30",
            "--device", "cpu", "--threads", "1", "--lease", "9")  # fmt: skip
    said = study.succeeds("launch", *ours)
    assert said.startswith("4 workers in Slurm job ")
    assert "no worker is missing" in study.succeeds("launch", *ours)
    gone: set[str] = set()

    def is_under_way(store: JobStore) -> bool:
        return a_transfer_is_under_way(store, gone)

    for _ in range(2):
        study.wait_until(is_under_way, 200, "a transfer under way")
        gone.update(worker.id for worker in study.store.workers())
        preempt(cluster)
    hosts = {worker.host for worker in study.store.workers()}
    assert hosts == {"node1", "node2"}
    study.wait_until(lambda store: store.workload("demo").done == planned, 240, "the end")

    jobs = study.jobs()
    assert {job.state for job in jobs} == {JobState.DONE}
    for job in jobs:
        assert [attempt.outcome for attempt in job.attempts].count("done") == 1
        assert {attempt.outcome for attempt in job.attempts} <= {"done", "released", "expired"}
    broken_off = [a for job in jobs if job.kind == "transfer" for a in job.attempts if a.outcome != "done"]
    assert len(broken_off) >= 2
    assert {attempt.message for attempt in broken_off if attempt.outcome == "released"} == {"SIGTERM"}
    assert cluster.job_states(said.split()[5].rstrip(";")).count("PREEMPTED") == 2 * PILOTS

    seen = study.status()
    assert seen["slurm"]["gpu_hours_used"] > 0
    assert seen["slurm"]["trouble"] == {}
    assert "\n\nslurm: " in study.succeeds("status")
    transfer = next(job for job in jobs if job.kind == "transfer")
    assert f"job {transfer.id} (transfer)" in study.succeeds("status", "--job", str(transfer.id), "--log")
    study.succeeds("collect")

    assert eventually(lambda: reference.poll() is not None, 240), local.said("launch")
    assert reference.returncode == 0, local.said("launch")
    local.succeeds("collect")
    for table in TABLES:
        expected = rows(local.folder, table)
        assert len(expected) > 0, table
        assert rows(study.folder, table) == expected, table
