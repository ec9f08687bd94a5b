"""Everything that goes wrong on a cluster, in one study, in a few minutes: it ends complete, each job done once."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Callable, Iterator

import pytest

from kt_study.records import JobState
from kt_study.store import JobStore, Selection, WorkerRow
from tests.faults.catalogue import FAULTS
from tests.faults.study import Scene
from tests.slurm.dev_cluster import DevCluster, dev_cluster, eventually
from tests.slurm.study import ClusterStudy, untrained_study
from worker.pilot.signals import END_OF_ALLOCATION

PAUSE_S = 0.2
EPOCHS = 3  # 10 s for a transfer at least


def open_transfers(store: JobStore, *states: JobState) -> int:
    """Transfers that are not done, or are in one of these states."""
    wanted = states or (JobState.BLOCKED, JobState.READY, JobState.RUNNING)
    return sum(len(store.jobs(Selection(kind="transfer", state=state))) for state in wanted)


def keep_busy(study: ClusterStudy, rounds: Iterator[int]) -> None:
    """Plan as many transfers again, with other settings, where a fast machine is about to run out of work."""
    if open_transfers(study.store) < 4:
        study.write(untrained_study("fire", models=4, pairs=3, epochs=EPOCHS + next(rounds), pause_s=PAUSE_S))
        study.succeeds("plan")


def worker_at_work(study: ClusterStudy) -> WorkerRow:
    """A live worker that holds a transfer, the youngest of them."""
    found: list[WorkerRow] = []

    def is_found(store: JobStore) -> bool:
        transfers = {job.id for job in store.jobs(Selection(kind="transfer", state=JobState.RUNNING))}
        found.extend(worker for worker in store.workers(alive_within_s=8) if transfers & set(worker.running))
        return bool(found)

    study.wait_until(is_found, 120, "a worker at work")
    return found[-1]


def signal_three_times(study: ClusterStudy, cluster: DevCluster) -> None:
    """The signal that submitit asks Slurm for, sent three times to one pilot: one request, one requeue."""
    worker = worker_at_work(study)
    for _ in range(3):
        cluster.run("scancel", "--signal=USR2", worker.slurm_job)
    log = (study.folder / worker.log).read_text
    assert eventually(lambda: "requeued at its time limit" in log(), 60), log()
    study.wait_until(lambda store: all(w.id != worker.id for w in store.workers(alive_within_s=8)), 90, "its leave")


def kill_without_a_word(study: ClusterStudy, cluster: DevCluster) -> None:
    """SIGKILL: the job is found by its lease, or by sacct."""
    assert cluster
    while True:
        worker = worker_at_work(study)
        os.kill(worker.pid, signal.SIGKILL)
        job = study.store.job(worker.running[0])
        if (job.state, job.worker) == (JobState.RUNNING, worker.id):
            return


def take_accounting_away(study: ClusterStudy, cluster: DevCluster) -> None:
    """Status goes on without it, and says so."""
    assert dev_cluster(cluster.root, "down", "slurmdbd").returncode == 0

    def is_noticed() -> bool:
        return any(note.startswith("sacct: ") for note in study.status()["slurm"]["notes"])

    assert eventually(is_noticed, 60)
    assert "  note: sacct: " in study.run("status").stdout
    assert dev_cluster(cluster.root, "up").returncode == 0


def kill_a_slurmd(study: ClusterStudy, cluster: DevCluster) -> None:
    """The pilot runs on while Slurm gives its job to another node: two of them for a while."""
    os.kill(cluster.status()["daemons"][worker_at_work(study).host], signal.SIGKILL)


def of_the_fault_run(name: str) -> Callable[[ClusterStudy, DevCluster], None]:
    """A kind of fault that `make faults` has too."""

    def strike(study: ClusterStudy, cluster: DevCluster) -> None:
        assert cluster
        FAULTS[name].strike(Scene(study=study, launch=study.background[-1]), random.Random(name))

    strike.__name__ = name
    return strike


def outlive_the_time_limit(study: ClusterStudy, cluster: DevCluster) -> None:
    """A worker that nobody signalled comes to the end of its minute, and is brought back."""
    assert cluster

    def is_seen(store: JobStore) -> bool:
        keep_busy(study, MORE)
        messages = [a.message for job in store.jobs(Selection(kind="transfer")) for a in store.job(job.id).attempts]
        return sum(message in ("SIGUSR2", END_OF_ALLOCATION) for message in messages) >= 2

    study.wait_until(is_seen, 200, "a second stop at the time limit")


MORE = itertools.count(1)


@pytest.mark.timeout(900)
def test_the_study_ends_complete_and_each_job_is_done_once(study: ClusterStudy, cluster: DevCluster) -> None:
    study.write(untrained_study("fire", models=4, pairs=9, epochs=EPOCHS, pause_s=PAUSE_S))
    study.succeeds("plan")
    launch = study.start(
        "launch", "--partition", "gpu", "--workers", "3", "--cpus-per-task", "3", "--time", "1", "--device", "cpu",
        "--threads", "1", "--lease", "12", "--wait",
    )  # fmt: skip
    study.wait_until(lambda store: open_transfers(store, JobState.RUNNING) >= 2, 150, "two transfers under way")
    for fault in (
        signal_three_times, kill_a_slurmd, kill_without_a_word, of_the_fault_run("slurmctld down"),
        of_the_fault_run("node down"), take_accounting_away, of_the_fault_run("preemption"), outlive_the_time_limit,
    ):  # fmt: skip
        keep_busy(study, MORE)
        cluster.resume_nodes()
        assert launch.poll() is None, f"over before {fault.__name__}: {study.said('launch')}"
        fault(study, cluster)

    def is_over() -> bool:
        cluster.resume_nodes()
        return launch.poll() is not None

    assert eventually(is_over, 600, every_s=2.0), study.state()
    assert launch.returncode == 0, study.said("launch")

    history = cluster.run("sacct", "-X", "--duplicates", "-n", "-P", "-o", "JobName,State").splitlines()
    states = {line.split("|")[1].split()[0] for line in history if line.startswith("kt-fire-")}
    assert {"NODE_FAIL", "PREEMPTED", "REQUEUED"} <= states

    jobs = study.jobs()
    assert {job.state for job in jobs} == {JobState.DONE}
    outcomes = [[attempt.outcome for attempt in job.attempts] for job in jobs]
    assert all(found.count("done") == 1 and found[-1] == "done" for found in outcomes)
    assert {outcome for found in outcomes for outcome in found} <= {"done", "released", "expired", "retried"}
    transfers = [row for chunk in study.store.results("transfers") for row in chunk]
    assert sorted(row["job_id"] for row in transfers) == [job.id for job in jobs if job.kind == "transfer"]
    for row in transfers:
        assert row["knowledge_gain"] - row["knowledge_loss"] == pytest.approx(row["delta_transf"])
        assert row["rho_pos_before"] - row["rho_neg_before"] == pytest.approx(row["acc_teacher"] - row["acc_before"])
    released = [a for job in jobs for a in job.attempts if a.outcome == "released"]
    assert "SIGTERM" in {attempt.message for attempt in released}
    expired = [a for job in jobs for a in job.attempts if a.outcome == "expired"]
    assert all(attempt.error == "WorkerDied" for attempt in expired)
    assert expired


def test_a_store_that_is_away_is_one_line(study: ClusterStudy) -> None:
    study.write(untrained_study("away"))
    line = study.refused("status", "--db", "postgresql://nobody@127.0.0.1:1/none")
    assert line.startswith("kt-study: database none on 127.0.0.1:1 does not answer")
