"""Preemption with and without a GraceTime, on a real Slurm: of a pilot, and of jobs that ignore SIGTERM."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest

from kt_study.records import JobState
from kt_study.store import JobStore, Selection
from tests.slurm.dev_cluster import DevCluster, eventually
from tests.slurm.study import ClusterStudy, untrained_study

STUBBORN = "trap '' TERM; echo ${{SLURM_RESTART_COUNT:-0}} >> {runs}; [ $SLURM_RESTART_COUNT ] || sleep 200"


def is_under_way(store: JobStore) -> bool:
    running = store.jobs(Selection(kind="transfer", state=JobState.RUNNING))
    return any(job.progress and job.progress.step for job in running)


@pytest.mark.timeout(400)
def test_a_preempted_pilot_gives_its_transfer_back_within_the_grace_and_goes_on(
    study: ClusterStudy, cluster: DevCluster, tmp_path: Path
) -> None:
    """Partition `low` has 5 s of grace. Slurm requeues the pilot only if it is still alive at the end of it."""
    study.write(untrained_study("grace", models=2, pairs=1, epochs=3, pause_s=0.4))
    study.succeeds("plan")
    study.succeeds(
        "launch", "--partition", "low", "--workers", "1", "--cpus-per-task", "4", "--time", "20", "--device", "cpu",
        "--threads", "1", "--lease", "6",
    )  # fmt: skip
    jobs = {}
    for partition in ("low", "gpu"):
        options = (f"--partition={partition}", "--cpus-per-task=4")
        jobs[partition] = cluster.sbatch(STUBBORN.format(runs=tmp_path / partition), *options)
    assert eventually(lambda: all((tmp_path / partition).exists() for partition in jobs))
    study.wait_until(is_under_way, 120, "a transfer under way")
    (transfer,) = study.store.jobs(Selection(kind="transfer", state=JobState.RUNNING))
    (worker,) = study.store.workers(alive_within_s=60)
    told = study.run("status").stdout
    assert re.search(rf"job {transfer.id} transfer: epoch \d/3, step \d+/\d+, \d+ img/s, .* on {worker.id}", told), told

    high = cluster.sbatch("true", "--partition=high", "--nodes=3", "--exclusive")
    study.wait_until(
        lambda store: store.job(transfer.id).attempts[0].outcome is not None, 60, "the release of the transfer"
    )
    first = study.store.job(transfer.id).attempts[0]
    assert (first.outcome, first.message) == ("released", "SIGTERM")
    assert eventually(lambda: cluster.job_states(high) == ["COMPLETED"], 90)
    assert " s for Slurm to end this process" in Path(worker.log).read_text()
    for partition, job in jobs.items():
        assert eventually(partial(cluster.has_states, job, ["COMPLETED", "PREEMPTED"])), partition
        assert (tmp_path / partition).read_text().split() == ["0", "1"]

    study.wait_until(lambda store: store.job(transfer.id).state == JobState.DONE, 150, "the transfer's end")
    done = study.store.job(transfer.id)
    assert [attempt.outcome for attempt in done.attempts] == ["released", "done"]
    assert (done.attempts_used, done.crashes) == (1, 0)
    assert eventually(lambda: "PREEMPTED" in cluster.job_states(worker.slurm_job), 60)
    assert len({attempt.worker for attempt in done.attempts}) == 2
