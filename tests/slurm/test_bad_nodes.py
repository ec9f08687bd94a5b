"""A node on which pilots keep dying, on a real Slurm: the next launch keeps away from it, says why, and backs off."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from kt_study.records import JobState
from kt_study.store import JobStore, Selection
from tests.slurm.dev_cluster import DevCluster, eventually
from tests.slurm.study import ClusterStudy, untrained_study

LAUNCH = ("launch", "--partition", "gpu", "--device", "cpu", "--threads", "1", "--time", "20", "--lease", "9")
DEADLY = "setup = ['kill -9 $$']\n"
DIED = "pilots died there: the pilot ended by SIGKILL (FAILED)"


def kill_whoever_comes(study: ClusterStudy, deaths: int) -> None:
    """SIGKILL to every worker that says its first word, until so many have died."""
    killed: set[str] = set()

    def enough(store: JobStore) -> bool:
        for worker in store.workers():
            if worker.id not in killed and worker.ended_at is None:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
                killed.add(worker.id)
        return len(killed) >= deaths

    study.wait_until(enough, 150, f"{deaths} workers killed")


@contextmanager
def as_if_just_over(study: ClusterStudy) -> Iterator[None]:
    """The last launch's moment, moved: whether the next has to wait must not depend on how fast this machine is."""
    records = [(json.loads(path.read_text()), path) for path in study.folder.glob(".kt-study/launches/*.json")]
    record, path = max(records, key=lambda pair: float(pair[0]["sent_at"]))
    path.write_text(json.dumps(record | {"sent_at": time.time() + 600.0}))
    yield
    path.write_text(json.dumps(record))


@pytest.mark.timeout(400)
def test_a_node_where_pilots_die_is_left_out_and_launches_that_come_to_nothing_back_off(
    study: ClusterStudy, cluster: DevCluster
) -> None:
    study.write(untrained_study("deadly", models=3, pairs=4, epochs=3, pause_s=0.6))
    study.succeeds("plan")
    launch = study.start(*LAUNCH, "--workers", "3", "--exclude", "node1,node3")
    kill_whoever_comes(study, 3)
    assert eventually(lambda: launch.poll() is not None, 120), study.said("launch")
    assert {worker.host for worker in study.store.workers()} == {"node2"}

    assert eventually(lambda: study.status()["slurm"]["left_out"].keys() == {"node2"}, 120), study.status()["slurm"]
    seen = study.status()["slurm"]
    assert seen["left_out"]["node2"] == f"3 {DIED}"
    assert f"the next launch excludes node2: 3 {DIED}" in study.run("status").stdout
    assert "#SBATCH --exclude=node2" in study.succeeds(*LAUNCH, "--workers", "3", "--dry-run")

    profile = study.folder / "deadly.toml"
    profile.write_text(DEADLY)
    for _ in range(2):
        done = study.run(*LAUNCH, "--workers", "1", "--profile", str(profile), "--now")
        assert done.returncode == 3, done.stdout
        assert f"node2 is excluded: 3 {DIED}" in done.stderr
        assert "no pilot can work: on node" in done.stderr
        assert "the pilot ended by SIGKILL (FAILED)" in done.stderr

    with as_if_just_over(study):
        line = study.refused(*LAUNCH, "--workers", "2")
    assert re.search("the last [23] launches ended without finishing a job; the next may start in ", line), line
    assert "--now launches at once" in line

    assert study.succeeds(*LAUNCH, "--workers", "2", "--now").startswith("2 workers in Slurm job ")
    study.wait_until(lambda store: len(transfers(store)) == 2, 120, "two transfers under way")
    at_work = {study.store.job(number).worker for number in transfers(study.store)}
    assert {worker.host for worker in study.store.workers() if worker.id in at_work} <= {"node1", "node3"}
    pause_reaches_running_pilots(study, cluster)


def transfers(store: JobStore) -> list[int]:
    return [job.id for job in store.jobs(Selection(kind="transfer", state=JobState.RUNNING))]


def pause_reaches_running_pilots(study: ClusterStudy, cluster: DevCluster) -> None:
    """They give their transfers back with the next heartbeat, find nothing else, and leave."""
    held = transfers(study.store)
    study.succeeds("pause")
    study.wait_until(lambda store: not transfers(store), 60, "the pause")
    for job in map(study.store.job, held):
        assert (job.attempts[-1].outcome, job.attempts[-1].message, job.attempts_used) == ("released", "paused", 0)
    assert eventually(lambda: "kt-deadly" not in cluster.run("squeue", "-h", "-o", "%j"), 60)
    assert "paused; `kt-study resume`" in study.succeeds("status", "--why", str(held[0]))
