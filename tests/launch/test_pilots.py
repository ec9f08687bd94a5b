"""The launcher's bookkeeping, without a cluster: who is dead, when to wait, what is missing, which nodes to avoid."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from kt_study.errors import SlurmError
from kt_study.pilots import ProbeExit
from kt_study.records import PlannedJob
from kt_study.store import JobStore, Selection, WorkerRecord
from orchestrator.cli.commands.launch import _show_script
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch import slurm as slurm_module
from orchestrator.cluster.launch.follow import BackingOff
from orchestrator.cluster.launch.local import LocalPilots
from orchestrator.cluster.launch.nodes import EXCLUDED_FOR_S
from orchestrator.cluster.launch.slurm import SlurmPilots, free_jobs_of_ended_workers
from orchestrator.cluster.slurm.view import DaemonState, SlurmView
from tests.launch.pilots import CLUSTER, began, ended, launched, queued, register


def test_a_worker_is_dead_when_slurm_says_so_and_it_is_silent(store: JobStore, pilots: SlurmPilots) -> None:
    now = time.time()
    for job in ("7_0", "7_1", "7_2", "7_3"):
        register(store, job)
        assert store.claim(job, lease_s=3600)
    view = SlurmView(
        controller=DaemonState(answered_at=now + 60),
        queue=(queued("7_2"),),
        runs=(
            ended("7_0", "NODE_FAIL", now + 30),
            ended("7_1", "PREEMPTED", now - 30),  # an earlier run than the worker's
            ended("7_3", "UNHEARD_OF", now + 30),
        ),
    )
    record = launched(pilots, "t", ago_s=0.0)
    assert free_jobs_of_ended_workers(store, view, [record]) == 0, "all of them have just sent a heartbeat"
    time.sleep(0.5)
    assert free_jobs_of_ended_workers(store, view, [msgspec.structs.replace(record, lease_s=3600.0)]) == 0, (
        "they beat seldom"
    )
    assert free_jobs_of_ended_workers(store, view, [msgspec.structs.replace(record, lease_s=1.0)]) == 2
    alive = {worker.id for worker in store.workers() if worker.ended_at is None}
    assert alive == {"7_1", "7_3"}


def test_a_queue_seen_before_the_last_heartbeat_says_nothing_of_a_worker(store: JobStore, pilots: SlurmPilots) -> None:
    """slurmctld has been away for hours: when it last answered, the worker's job was still pending."""
    record = msgspec.structs.replace(launched(pilots, "t", ago_s=0.0), lease_s=1e-3)
    old = SlurmView(queue=(queued("7_0"),), controller=DaemonState(answered_at=time.time() - 3 * 3600))
    register(store, "7_0")
    assert store.claim("7_0", lease_s=3600)
    assert free_jobs_of_ended_workers(store, old, [record]) == 0
    fresh = msgspec.structs.replace(old, controller=DaemonState(answered_at=time.time() + 60))
    assert free_jobs_of_ended_workers(store, fresh, [record]) == 1


def test_a_launch_writes_down_how_often_its_workers_beat(pilots: SlurmPilots, fake_queue: Path) -> None:
    pilots.options = msgspec.structs.replace(pilots.options, lease_s=123.0)
    pilots.wanted = 1
    assert pilots.start_missing() == 1
    assert fake_queue.read_text().count("PENDING") == 1
    assert [record.lease_s for record in pilots.launches()] == [123.0]


def test_launches_that_come_to_nothing_make_the_next_one_wait_longer_and_longer(
    pilots: SlurmPilots, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(slurm_module, "time", SimpleNamespace(time=lambda: now))  # no time passes
    waits = []
    for number in range(5):
        launched(pilots, f"0000000{number}", ago_s=time.time() - now)
        began(pilots, f"0000000{number}")
        try:
            pilots._require_backoff_over(pilots.store.workload("s"), SlurmView())
            waits.append(0)
        except BackingOff as wait:
            waits.append(round(wait.left_s))
    assert waits == [0, 30, 60, 120, 240]
    pilots.backs_off = False
    pilots._require_backoff_over(pilots.store.workload("s"), SlurmView())


def test_the_pause_counts_from_the_end_of_a_launch_that_waited_long_in_the_queue(
    pilots: SlurmPilots, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(slurm_module, "time", SimpleNamespace(time=lambda: now))
    for number in range(2):
        launched(pilots, f"0000000{number}", ago_s=7200.0 - number)
    over = tuple(
        msgspec.structs.replace(ended("7_0", "FAILED", now - 10.0), name=f"kt-s-0000000{number}") for number in range(2)
    )
    with pytest.raises(BackingOff) as wait:
        pilots._require_backoff_over(pilots.store.workload("s"), SlurmView(runs=over))
    assert wait.value.left_s == pytest.approx(20.0)


def test_a_launch_that_was_cancelled_in_the_queue_or_did_something_is_not_held_against_the_next(
    pilots: SlurmPilots,
) -> None:
    for number in range(3):
        launched(pilots, f"0000000{number}", ago_s=0.0)  # no pilot of them began
    pilots._require_backoff_over(pilots.store.workload("s"), SlurmView())
    for number in range(3):
        began(pilots, f"0000000{number}")
    launched(pilots, "00000009", ago_s=0.0, done_before=-1)  # something was done since
    began(pilots, "00000009")
    pilots._require_backoff_over(pilots.store.workload("s"), SlurmView())


def test_the_array_is_bounded_by_the_cap_and_by_the_cluster(pilots: SlurmPilots) -> None:
    others = [queued(str(n), state="RUNNING") for n in range(4)]
    assert pilots._allowed(3, SlurmView()) == 3
    assert pilots.notes == []
    assert pilots._allowed(100, SlurmView()) == 3  # MaxArraySize
    assert pilots.notes.pop() == "3 of 100 missing Slurm jobs: limited by the largest array of this cluster"
    assert pilots._allowed(100, SlurmView(queue=tuple(others[:2]))) == 2  # the cap of 4
    assert pilots.notes.pop() == "2 of 100 missing Slurm jobs: limited by --max-submitted"
    with pytest.raises(SlurmError, match="no more than 4 may be"):
        pilots._allowed(1, SlurmView(queue=tuple(others)))
    pilots.cluster = msgspec.structs.replace(CLUSTER, largest_array=0)
    assert pilots._allowed(100, SlurmView()) == 1, "a cluster without arrays takes one job at a time"


def test_while_slurm_does_not_answer_nobody_is_taken_for_dead(
    pilots: SlurmPilots, slurm: Callable[[str, str], None]
) -> None:
    slurm("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert not pilots.all_gone()
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        pilots.start_missing()


def test_only_a_partitions_own_nodes_of_late_are_left_out(pilots: SlurmPilots) -> None:
    launched(pilots, "t", ago_s=0.0)
    probe = began(pilots, "t", node="gpu0", job="5_0", error="no GPU")
    for job, node in (("5_1", "other0"), ("5_2", "other1"), ("5_3", "gone7")):
        began(pilots, "t", node=node, job=job, error="no GPU")
    assert [bad.node for bad in pilots.excluded(SlurmView())] == ["gpu0"]
    pilots.excludes_nodes = False
    assert pilots.excluded(SlurmView()) == []
    pilots.excludes_nodes, pilots.notes = True, []
    began(pilots, "t", node="gpu1", job="5_4", error="no GPU")
    assert pilots.excluded(SlurmView()) == []
    assert pilots.notes == ["pilots fail on every node, last on gpu1: no GPU"]
    long_ago = time.time() - EXCLUDED_FOR_S - 60
    os.utime(probe, (long_ago, long_ago))
    assert [bad.node for bad in pilots.excluded(SlurmView())] == ["gpu1"]


def test_old_deaths_and_a_database_that_was_away_are_not_held_against_a_node(pilots: SlurmPilots) -> None:
    launched(pilots, "t", ago_s=0.0)
    began(pilots, "t", node="gpu0", job="5_0", error="the database does not answer")
    now = time.time()

    def runs(code: int, ended_at: float) -> SlurmView:
        run = msgspec.structs.replace(ended("5_0", "FAILED", ended_at), exit_code=code, node="gpu0")
        return SlurmView(runs=(run,) * 3)

    assert pilots.excluded(runs(ProbeExit.NO_DATABASE, now)) == []
    assert pilots.excluded(runs(ProbeExit.UNTRUSTED, now)) == []
    assert [bad.node for bad in pilots.excluded(runs(ProbeExit.NO_GPU, now))] == ["gpu0"]
    pilots.options.files.probe("t", "5_0").unlink()
    assert [bad.reason for bad in pilots.excluded(runs(1, now))] == [
        "3 pilots died there: the pilot ended with exit code 1 (FAILED)"
    ]
    assert pilots.excluded(runs(1, now - EXCLUDED_FOR_S - 60)) == []


def test_a_node_that_failed_for_one_device_is_not_left_out_for_the_other(pilots: SlurmPilots) -> None:
    launched(pilots, "t", ago_s=0.0)
    began(pilots, "t", node="gpu0", job="5_0", error="torch sees no GPU here")
    no_gpu = msgspec.structs.replace(ended("5_0", "FAILED", time.time()), exit_code=ProbeExit.NO_GPU, node="gpu0")
    view = SlurmView(runs=(no_gpu,))
    assert [bad.node for bad in pilots.excluded(view)] == ["gpu0"]
    pilots.options = msgspec.structs.replace(pilots.options, device="cpu")
    assert pilots.excluded(view) == []
    pilots.options = msgspec.structs.replace(pilots.options, device="auto")
    pilots.request = msgspec.structs.replace(pilots.request, gpus_per_node=0)
    assert pilots.excluded(view) == []


def test_an_array_is_no_larger_than_the_work_that_is_ready(
    store: JobStore, pilots: SlurmPilots, fake_queue: Path
) -> None:
    store.cancel(Selection())
    needed = PlannedJob(kind="train", spec={}, digest="first")
    store.plan("s", [needed, *(PlannedJob(kind="logits", spec={"m": n}, digest=f"m{n}", needs=("first",))
                               for n in range(50))])  # fmt: skip
    assert pilots.start_missing() == 1
    assert len(fake_queue.read_text().splitlines()) == 1
    assert "1 job can run now, 50 more wait for others" in pilots.notes[0]


def test_workers_of_another_study_in_the_same_database_are_not_ours(
    store: JobStore, pilots: SlurmPilots, tmp_path: Path
) -> None:
    def local(name: str, log: Path) -> None:
        store.register(WorkerRecord(id=name, host=socket.gethostname(), pid=os.getpid(), slurm_job="", log=str(log)))

    here = LocalPilots(store=store, options=pilots.options, wanted=1)
    local("theirs", tmp_path / "another" / "logs" / "7" / "7_0_log.out")
    assert (pilots.present(SlurmView()), here.all_gone()) == (0, True)
    local("ours", tmp_path / "logs" / "8" / "8_0_log.out")
    assert (pilots.present(SlurmView()), here.all_gone()) == (1, False)


def test_pilots_of_an_old_launch_count_as_long_as_they_are_in_the_queue(
    pilots: SlurmPilots, slurm: Callable[[str, str], None], tmp_path: Path
) -> None:
    for number in range(60):
        launched(pilots, f"{number:08d}", ago_s=1000.0 - number)
    view = SlurmView(queue=tuple(queued(f"1_{task}", "00000000", "RUNNING") for task in range(16)))
    assert pilots.present(view) == 16
    slurm("squeue", "true")
    slurm("sacct", f'echo "$@" > {tmp_path}/asked')
    pilots.view(fresh_s=0.0)
    asked = dict(re.findall(r"--(name|starttime)=(\S+)", (tmp_path / "asked").read_text()))
    names = asked["name"].split(",")
    assert (len(names), names[0]) == (records.MOST_RECENT, "kt-s-00000010"), "accounting is asked of the latest only"
    since = time.mktime(time.strptime(asked["starttime"], "%Y-%m-%dT%H:%M:%S"))
    assert since == pytest.approx(pilots.launches()[10].sent_at - 60.0, abs=1.0)


def test_a_job_that_slurm_could_not_start_and_holds_is_replaced(
    pilots: SlurmPilots, fake_queue: Path, slurm: Callable[[str, str], None], tmp_path: Path
) -> None:
    """`squeue --format=%r` of Slurm 22.05 for such a job; a hold by the user stays, and counts as a worker to come."""
    launched(pilots, "00000001", ago_s=100.0)
    slurm("scancel", f'echo "$@" >> {tmp_path}/cancelled; sed -i "/^5_0|/d" {fake_queue}')
    fake_queue.write_text(
        "5_0|kt-s-00000001|PENDING|launch failed requeued held||N/A|N/A|gpu\n"
        "5_1|kt-s-00000001|PENDING|JobHeldUser||N/A|N/A|gpu\n"
    )
    pilots.wanted = 2
    assert pilots.start_missing() == 1
    assert (tmp_path / "cancelled").read_text() == "--state=PENDING 5_0\n"
    jobs = [line.split("|")[1:4] for line in fake_queue.read_text().splitlines()]
    assert [reason for _, _, reason in jobs] == ["JobHeldUser", "Priority"]
    assert pilots.notes == ["1 pending Slurm job cancelled: launch failed requeued held"]


def test_a_dry_run_says_what_would_be_sent(
    pilots: SlurmPilots, fake_queue: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(JobStore, "require_single_node", lambda _store, _nodes: None)

    def shown() -> tuple[str, str]:
        pilots.notes.clear()
        assert _show_script(pilots) == 0
        out, err = capsys.readouterr()
        array = [line for line in out.splitlines() if "--array" in line]
        return " ".join(array), err

    script, said = shown()
    assert script == "#SBATCH --array=0-2%3"
    assert "3 of 8 missing Slurm jobs" in said
    launched(pilots, "t", ago_s=0.0)
    fake_queue.write_text("5_0|kt-s-t|RUNNING|None|gpu0|1|2|gpu\n")
    pilots.wanted = 3
    assert shown()[0] == "#SBATCH --array=0-1%2"
    pilots.wanted = 1
    script, said = shown()
    assert script == ""
    assert said.startswith("no worker is missing: nothing would be submitted now; this is the script of one allocation")
    fake_queue.write_text("")
    for token in ("t", "u"):
        launched(pilots, token, ago_s=0.0)
        began(pilots, token)
    assert "the last 2 launches ended without finishing a job" in shown()[1]
    pilots.store.cancel(Selection())
    assert "no worker is missing" in shown()[1]
    assert len(pilots.launches()) == 2
