"""kt-study launch on a real Slurm: what it refuses, what it adds, how it hands over, what it does without an answer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kt_study.database import parse_url
from kt_study.records import JobState
from kt_study.store import Selection, open_store
from orchestrator.cluster.doctor import Finding, NodeRequest, examine_node
from orchestrator.cluster.launch.request import SlurmRequest
from tests.slurm.dev_cluster import DevCluster, dev_cluster, eventually
from tests.slurm.study import ClusterStudy, untrained_study
from tests.store.making import job
from tests.users import LAB

GPU = ("launch", "--partition", "gpu", "--device", "cpu", "--threads", "1", "--time", "20")


def kt_jobs(cluster: DevCluster) -> list[str]:
    """Our tasks in the queue."""
    listed = cluster.run("squeue", "--array", "--noheader", "--format=%j %i %T").splitlines()
    return [line for line in listed if line.startswith("kt-")]


@contextmanager
def busy_nodes(cluster: DevCluster) -> Iterator[None]:
    """Every node taken by a job that cannot be preempted."""
    holder = cluster.sbatch("sleep 300", "--partition=high", "--nodes=3", "--exclusive")
    assert eventually(lambda: cluster.job_states(holder) == ["RUNNING"])
    try:
        yield
    finally:
        cluster.run("scancel", holder)
        assert eventually(lambda: "RUNNING" not in cluster.job_states(holder))


def test_work_on_fake_gpus_is_refused_and_the_option_that_the_line_names_works(study: ClusterStudy) -> None:
    study.write(untrained_study("fake", models=2, pairs=1, epochs=1))
    study.succeeds("plan")
    for asked in (("--device", "cuda"), ("--gpus-per-node", "1")):
        line = study.refused("launch", "--partition", "gpu", *asked)
        assert line == ("kt-study: the GPUs of partition 'gpu' are fake and cannot compute; launch with --device cpu")
    script = study.succeeds("launch", "--partition", "gpu", "--device", "cpu", "--dry-run")
    assert "#SBATCH --partition=gpu" in script


def test_what_is_refused_is_one_line_and_submits_nothing(study: ClusterStudy, cluster: DevCluster) -> None:
    study.write(untrained_study("refused"))
    study.succeeds("plan")
    for line, options in {
        "no partition 'gpus' on this cluster; did you mean 'gpu'? (--partition may be gpu, low, high)": (
            "--partition",
            "gpus",
        ),
        "partition 'low' allows 240 min at most, and --time asks for 300": ("--partition", "low", "--time", "5:00:00"),
        "has 3 GPUs, the largest has 2": ("--partition", "gpu", "--gpus-per-node", "3"),
        "has 5 cores, the largest has 4": ("--partition", "gpu", "--cpus-per-task", "5"),
        "Invalid node name specified": ("--partition", "gpu", "--exclude", "nodeX"),
        "Invalid feature specification": ("--partition", "gpu", "--constraint", "a100"),
    }.items():
        assert line in study.refused("launch", "--device", "cpu", *options)
    assert "is for Slurm" in study.refused("launch", "--time", "5", code=2)
    doctor = study.run("doctor", "--partition", "gpus")
    assert doctor.returncode == 3
    assert "no partition 'gpus' on this cluster; did you mean 'gpu'?" in doctor.stdout.splitlines()[-1]
    lite = ClusterStudy(folder=study.folder, url=f"sqlite:///{study.folder}/kt-study.db", cluster=cluster)
    lite.succeeds("plan")
    assert "cannot share the SQLite database" in lite.refused(*GPU, "--workers", "2")
    assert kt_jobs(cluster) == []
    assert list(study.folder.glob(".kt-study/launches/*")) == []


def test_dry_run_prints_the_script_and_no_secret(study: ClusterStudy, cluster: DevCluster) -> None:
    study.write(untrained_study("dry"))
    study.succeeds("plan")
    asked = ("--workers", "6", "--gpus-per-node", "2", "--account", "research", "--qos", "long", "--mem", "2G",
             "--cpus-per-task", "2", "--exclude", "node3")  # fmt: skip
    said = study.succeeds(*GPU, *asked, "--dry-run")
    lines = {line.removeprefix("#SBATCH --") for line in said.splitlines() if line.startswith("#SBATCH")}
    assert {"array=0-2%3", "partition=gpu", "gpus-per-node=2", "ntasks-per-node=2", "time=20", "account=research",
            "qos=long", "mem=2G", "cpus-per-task=2", "exclude=node3", "requeue", "signal=USR2@90"} <= lines  # fmt: skip
    assert study.url not in said
    assert "pgpass" not in said
    assert kt_jobs(cluster) == []


@pytest.mark.timeout(300)
def test_what_slurm_and_submitit_write_is_private_and_pickles_of_others_are_not_loaded(
    study: ClusterStudy, cluster: DevCluster
) -> None:
    study.write(untrained_study("private"))
    store = open_store(study.url, create=True)
    store.add_study("private", {})
    store.plan("private", [job(number, kind="no-such-kind") for number in range(2)])
    before = os.umask(0o002)
    try:
        study.run(*GPU, "--workers", "1", "--wait")
    finally:
        os.umask(before)
    assert store.workload("private").failed == 2
    written = [
        path for name in ("logs", ".kt-study") for path in (study.folder / name).rglob("*") if not path.is_symlink()
    ]
    assert {path.suffix for path in written} >= {".out", ".pkl", ".sh", ".json"}
    assert [str(path) for path in written if path.stat().st_mode & 0o077] == []
    assert eventually(lambda: kt_jobs(cluster) == [])
    store.retry(Selection(study="private"))
    with busy_nodes(cluster):
        assert study.succeeds(*GPU, "--workers", "1", "--now").startswith("1 worker in Slurm job ")
        (pickle,) = [path for path in study.folder.glob("logs/*/*_submitted.pkl") if path not in written]
        pickle.chmod(0o664)
        os.chown(pickle, -1, LAB)
    slurm_id = pickle.name.partition("_")[0]
    assert eventually(lambda: cluster.job_states(slurm_id) == ["FAILED"], 90)
    assert f"{pickle} can be written by others" in (pickle.parent / f"{slurm_id}_0_log.out").read_text()
    assert store.workload("private").failed == 0, "no worker has come to the database"


@pytest.mark.timeout(300)
def test_topping_up_the_cap_pause_and_cancel(study: ClusterStudy, cluster: DevCluster) -> None:
    study.write(untrained_study("queue", models=3, pairs=2, epochs=1))
    study.succeeds("plan")
    with busy_nodes(cluster):
        assert "2 jobs are pending (" in study.succeeds(*GPU, "--workers", "2")
        assert "no worker is missing" in study.succeeds(*GPU, "--workers", "2")
        assert study.succeeds(*GPU, "--workers", "3").startswith("1 worker in Slurm job ")
        assert len(kt_jobs(cluster)) == 3
        assert "no more than 3 may be" in study.refused(*GPU, "--workers", "4", "--max-submitted", "3")
        seen = study.status()["slurm"]
        assert sum(seen["pending"].values()) == 3
        ready = next(job for job in study.store.jobs() if job.state == JobState.READY)
        why = study.succeeds("status", "--why", str(ready.id))
        assert "ready; 3 Slurm jobs are pending: " in why
        doctor = study.run("doctor", "--partition", "gpu", "--device", "cpu", "--patience", "2")
        assert doctor.returncode == 3
        assert "partition 'gpu': still pending after 2 s (" in doctor.stdout.splitlines()[-1]
        assert eventually(lambda: len(kt_jobs(cluster)) == 3), "the doctor leaves nothing in the queue"
        assert "3 pending Slurm jobs cancelled" in study.succeeds("pause")
        assert eventually(lambda: kt_jobs(cluster) == [])
        study.succeeds("resume")
        assert study.succeeds(*GPU, "--workers", "2").startswith("2 workers in Slurm job ")
        assert "2 pending Slurm jobs cancelled" in study.succeeds("cancel")
        assert eventually(lambda: kt_jobs(cluster) == [])
    assert "nothing to do" in study.succeeds(*GPU, "--workers", "2")


@pytest.mark.timeout(300)
def test_workers_that_share_a_gpu_find_the_database_in_a_file(study: ClusterStudy, cluster: DevCluster) -> None:
    """Four pilots in one allocation; the URL and its password travel neither in the script, the pickle, nor the job."""
    study.write(untrained_study("shared", models=3, pairs=2, epochs=1))
    study.succeeds("plan")
    password = Path(parse_url(study.url).conninfo["passfile"]).read_text().strip().split(":")[-1]
    secret = study.url.replace("kt_study@", f"kt_study:{password}@").split("?")[0]
    open_url = ClusterStudy(folder=study.folder, url=secret, cluster=cluster)
    said = open_url.succeeds(*GPU, "--workers", "4", "--gpus-per-node", "1", "--workers-per-gpu", "4")
    assert said.startswith("4 workers in Slurm job ")
    study.wait_until(lambda store: store.workload("shared").done == len(store.jobs()), 150, "the end")
    workers = study.store.workers()
    assert len(workers) == 4
    assert {worker.slurm_job for worker in workers} == {said.split()[5].rstrip(";")}
    assert len({worker.log for worker in workers}) == 4
    assert all(f"worker {worker.id}" in Path(worker.log).read_text() for worker in workers)
    written = [path for path in study.folder.rglob("*") if path.is_file() and password.encode() in path.read_bytes()]
    assert [path.name for path in written] == ["pgpass"]


LATE_SBATCH = """#!/bin/sh
# The real sbatch, at a moment when slurmctld is too slow to answer it.
case "$*" in *--test-only*) exec {sbatch} "$@";; esac
echo sent >> {log}
kill -STOP {slurmctld}
(sleep 14; kill -CONT {slurmctld}) > /dev/null 2>&1 &
exec {sbatch} "$@"
"""


@pytest.mark.timeout(300)
def test_an_sbatch_that_timed_out_but_went_through_is_not_sent_twice(
    study: ClusterStudy, cluster: DevCluster, tmp_path: Path
) -> None:
    study.write(untrained_study("late", models=3, pairs=2, epochs=1))
    study.succeeds("plan")
    late, log = tmp_path / "bin" / "sbatch", tmp_path / "sent"
    late.parent.mkdir()
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    slurmctld = cluster.status()["daemons"]["slurmctld"]
    late.write_text(LATE_SBATCH.format(sbatch=real, log=log, slurmctld=slurmctld))
    late.chmod(0o755)
    try:
        done = study.run(*GPU, "--workers", "2", environment={"PATH": f"{late.parent}:{os.environ['PATH']}"})
    finally:
        os.kill(slurmctld, signal.SIGCONT)
    assert done.returncode == 0, done.stderr
    assert "searched for kt-late-" in done.stderr
    assert log.read_text() == "sent\n"
    assert done.stdout.startswith("2 workers in Slurm job ")
    study.wait_until(lambda store: store.workload("late").done == len(store.jobs()), 150, "the end")
    (record,) = [json.loads(path.read_text()) for path in study.folder.glob(".kt-study/launches/*.json")]
    names = cluster.run("sacct", "-X", "-n", "-P", "-o", "JobName").splitlines()
    assert names.count(f"kt-late-{record['token']}") == 2


@contextmanager
def blind_node(cluster: DevCluster, node: str, folder: Path) -> Iterator[None]:
    """A node that does not see `folder`: its slurmd runs where an empty file system lies over it."""
    assert dev_cluster(cluster.root, "down", node).returncode == 0
    command = f"mount -t tmpfs none {folder} && exec slurmd -D -N {node}"
    slurmd = subprocess.Popen(["unshare", "--mount", "sh", "-c", command], env=cluster.environment, cwd=cluster.root)
    probe = ("env", f"SLURMD_NODENAME={node}", "scontrol", "show", "slurmd")
    assert eventually(lambda: cluster.try_run(*probe).returncode == 0)
    try:
        yield
    finally:
        slurmd.terminate()
        slurmd.wait()


def doctor_on(study: ClusterStudy, node: str) -> Finding:
    """The one thing that `kt-study doctor --partition gpu --node NODE` finds wrong there."""
    request = SlurmRequest(partition="gpu", gpus_per_node=0, time=5)
    found = examine_node(study.folder, study.url, NodeRequest(request=request, node=node, patience_s=120.0), [])
    (wrong,) = [each for each in found if each.verdict == "wrong"]
    return wrong


@pytest.mark.timeout(300)
def test_the_first_minute_finds_what_a_node_lacks(
    study: ClusterStudy, cluster: DevCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """node1 does not share the study folder, node2 has no virtual environment, node3 cannot reach the database."""
    study.write(untrained_study("blind", models=3, pairs=2, epochs=1))
    study.succeeds("plan")
    passfile = Path(parse_url(study.url).conninfo["passfile"])
    with (
        blind_node(cluster, "node1", study.folder),
        blind_node(cluster, "node2", Path(sys.prefix)),
        blind_node(cluster, "node3", passfile.parent),
    ):
        line = study.refused(*GPU, "--workers", "3", "--cpus-per-task", "3")
        assert f"no pilot can work: on node1, the study folder {study.folder} is missing" in line
        assert "node2, node3 cannot either" in line
        assert eventually(lambda: kt_jobs(cluster) == [])

        def all_known() -> bool:
            return len(study.status()["slurm"]["trouble"]) == 3

        assert eventually(all_known, 60), study.status()["slurm"]
        trouble = study.status()["slurm"]["trouble"]
        assert f"the study folder {study.folder} is missing" in trouble["node1"]
        assert f"there is no kt-study in {sys.executable}" in trouble["node2"]
        assert "does not answer" in trouble["node3"] or "password" in trouble["node3"]
        again = study.run(*GPU, "--workers", "3", "--cpus-per-task", "3", "--dry-run")
        assert again.returncode == 0
        monkeypatch.setenv("SLURM_CONF", str(cluster.slurm_conf))
        assert f"the study folder {study.folder} is missing" in doctor_on(study, "node1").found
        assert f"there is no kt-study in {sys.executable}" in doctor_on(study, "node2").found
        database = doctor_on(study, "node3")
        assert (database.what, database.node) == ("database", "node3")
        assert "does not answer" in database.found or "password" in database.found
    assert {job.state for job in study.store.jobs()} <= {JobState.READY, JobState.BLOCKED}


def test_stop_ends_every_worker_and_gives_their_jobs_back(study: ClusterStudy, cluster: DevCluster) -> None:
    study.write(untrained_study("stopped", epochs=50, pause_s=0.5))
    study.succeeds("plan")
    study.succeeds(*GPU, "--workers", "2")
    waiting = study.start(*GPU, "--workers", "2", "--wait")
    study.wait_until(lambda store: len(store.workers(60.0)) == 2 and store.workload().running == 2, 120, "two at work")
    said = study.succeeds("stop")
    assert "2 Slurm jobs cancelled" in said and "no worker is left" in said
    assert waiting.wait(60) == 130
    assert eventually(lambda: kt_jobs(cluster) == [])
    assert {(job.attempts_used, job.crashes) for job in study.jobs() if job.state != JobState.DONE} == {(0, 0)}
