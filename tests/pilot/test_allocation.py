"""How a pilot leaves its Slurm job: who requeues, and when it only waits. A small script stands for scontrol."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from kt_study.pilots import PilotOptions, time_left_s
from kt_study.store import WorkerRow
from worker.pilot import allocation
from worker.pilot.allocation import Allocation, leave_allocation, this_allocation
from worker.pilot.entry import usable_cores
from worker.pilot.signals import END_OF_ALLOCATION, StopRequest


class Scontrol:
    """Stands for scontrol: answers with `facts`, writes down what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.asked = folder / "asked"
        self.facts = folder / "facts"
        self.facts.write_text("")
        program = folder / "scontrol"
        program.write_text(f'#!/bin/sh\necho "$@" >> {self.asked}\ncat {self.facts}\n[ -s {self.facts} ]\n')
        program.chmod(0o755)

    def requeued(self) -> list[str]:
        lines = self.asked.read_text().splitlines() if self.asked.exists() else []
        return [line.split()[1] for line in lines if line.startswith("requeue")]


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scontrol:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return Scontrol(tmp_path)


@pytest.fixture
def lingered(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the pilot would have waited to be killed."""
    waits: list[float] = []
    monkeypatch.setattr(allocation, "_linger", waits.append)
    return waits


OPTIONS = PilotOptions(root="/study", margin_s=90.0, grace_s=0.0, linger_s=120.0)


def ending_in(seconds: float, **others: object) -> Allocation:
    now = time.time()
    facts = {"node": "node1", "job": "12_3", "began_at": now - 3600, "ends_at": now + seconds} | others
    return Allocation(**facts)  # type: ignore[arg-type]


def stopped(reason: str) -> StopRequest:
    stop = StopRequest()
    stop.make(reason)
    return stop


@pytest.mark.parametrize("left_s", [80, 3 * 3600])
@pytest.mark.parametrize("reason", ["SIGUSR2", "SIGUSR1", END_OF_ALLOCATION])
def test_at_the_time_limit_the_pilot_requeues_itself_by_its_array_name(
    scontrol: Scontrol, lingered: list[float], reason: str, left_s: float
) -> None:
    """Also where the limit was shortened meanwhile, or a person sent the signal: 3 h were left when the pilot looked."""
    scontrol.facts.write_text("JobId=15 JobState=RUNNING PreemptTime=None")
    leave_allocation(ending_in(left_s), stopped(reason), OPTIONS, work_left=True)
    assert scontrol.requeued() == ["12_3"]
    assert lingered == [120.0]


def test_a_comment_that_looks_like_a_fact_is_none(scontrol: Scontrol) -> None:
    scontrol.facts.write_text(
        "JobId=15 JobState=RUNNING PreemptTime=None Comment=after PreemptTime=2026-11-23T10:00:00"
    )
    assert allocation.slurm_facts("15")["PreemptTime"] == "None"


def test_without_work_it_just_ends(scontrol: Scontrol, lingered: list[float]) -> None:
    scontrol.facts.write_text("JobId=15 JobState=RUNNING PreemptTime=None")
    leave_allocation(ending_in(80), stopped("SIGUSR2"), OPTIONS, work_left=False)
    assert (scontrol.requeued(), lingered) == ([], [])


def test_what_slurm_requeues_is_left_to_slurm(scontrol: Scontrol, lingered: list[float]) -> None:
    """GraceTime 0: SIGTERM without a PreemptTime, far from the end. The pilot must be alive when it is killed."""
    scontrol.facts.write_text("JobId=15 JobState=RUNNING PreemptTime=None")
    leave_allocation(ending_in(3000), stopped("SIGTERM"), OPTIONS, work_left=True)
    assert scontrol.requeued() == []
    assert lingered == [120.0]


@pytest.mark.parametrize("reason", ["SIGTERM", "SIGUSR2"])
def test_with_a_grace_time_it_waits_for_the_end_of_the_grace(
    scontrol: Scontrol, lingered: list[float], reason: str
) -> None:
    """Slurm moves EndTime to the end of the grace, and sends the user's signal too if so configured."""
    now = time.strftime("%Y-%m-%dT%H:%M:%S")
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 600))
    scontrol.facts.write_text(f"JobId=15 JobState=RUNNING PreemptTime={now} EndTime={end}")
    leave_allocation(ending_in(80), stopped(reason), OPTIONS, work_left=True)
    assert scontrol.requeued() == []
    assert len(lingered) == 1
    assert lingered[0] == pytest.approx(660, abs=60)


def test_only_one_of_the_pilots_of_an_allocation_requeues_it(scontrol: Scontrol, lingered: list[float]) -> None:
    scontrol.facts.write_text("JobId=15 JobState=RUNNING PreemptTime=None")
    for task in range(3):
        leave_allocation(ending_in(80, task=task, tasks=3), stopped("SIGUSR2"), OPTIONS, work_left=True)
    assert scontrol.requeued() == ["12_3"]
    assert lingered == [120.0] * 3


def test_outside_slurm_and_without_a_stop_there_is_no_farewell(scontrol: Scontrol, lingered: list[float]) -> None:
    leave_allocation(Allocation(node="here"), stopped("SIGTERM"), OPTIONS, work_left=True)
    leave_allocation(ending_in(80), StopRequest(), OPTIONS, work_left=True)
    assert not scontrol.asked.exists()
    assert lingered == []


def test_an_unknown_answer_is_not_an_end(scontrol: Scontrol) -> None:
    mine = ending_in(80, restarts=1)
    assert not mine.is_over()  # scontrol fails
    for facts, over in (
        ("JobState=RUNNING Restarts=1", False),
        ("JobState=COMPLETING Restarts=1", False),
        ("JobState=RUNNING Restarts=2", True),
        ("JobState=PENDING Restarts=1", True),
    ):
        scontrol.facts.write_text(facts)
        assert mine.is_over() is over, facts


def test_the_environment_of_an_array_task(scontrol: Scontrol, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "15", "SLURMD_NODENAME": "node7",
        "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_RESTART_COUNT": "4",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    scontrol.facts.write_text("JobId=15 StartTime=2026-03-04T05:06:07 EndTime=2026-03-04T06:06:07 TimeLimit=01:00:00")
    found = this_allocation()
    assert (found.node, found.job, found.task, found.tasks, found.restarts) == ("node7", "12_3", 1, 2, 4)
    assert found.length_s == 3600
    assert time.localtime(found.began_at)[:6] == (2026, 3, 4, 5, 6, 7)


def test_the_times_are_requested_again_after_slurm_did_not_answer(
    scontrol: Scontrol, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    first = this_allocation()
    assert first.lacks_times
    assert (first.job, first.length_s, first.with_times()) == ("15", 0.0, first)
    scontrol.facts.write_text("JobId=15 StartTime=2026-03-04T05:06:07 EndTime=2026-03-04T06:06:07")
    assert first.with_times().length_s == 3600
    scontrol.facts.write_text("JobId=15 StartTime=2026-03-04T05:06:07 EndTime=Unknown TimeLimit=UNLIMITED")
    endless = this_allocation()
    assert (endless.lacks_times, endless.ends_at) == (False, 0.0)
    assert not Allocation(node="outside Slurm").lacks_times


@pytest.mark.parametrize(
    ("given", "cores"),
    [
        ({}, 8),
        ({"CPUS_PER_TASK": "3", "CPUS_ON_NODE": "4"}, 3),
        ({"CPUS_PER_TASK": "64"}, 8),
        ({"CPUS_ON_NODE": "6", "STEP_TASKS_PER_NODE": "1"}, 6),
        ({"CPUS_ON_NODE": "6", "STEP_TASKS_PER_NODE": "2"}, 3),
        ({"CPUS_ON_NODE": "6", "STEP_TASKS_PER_NODE": "3(x2),1"}, 2),
        ({"CPUS_ON_NODE": "1", "STEP_TASKS_PER_NODE": "4"}, 1),
        ({"CPUS_ON_NODE": "5"}, 5),  # in the batch script itself
        ({"CPUS_ON_NODE": "64", "STEP_TASKS_PER_NODE": "1"}, 8),
    ],
)
def test_cores_of_a_pilot_where_slurm_binds_none(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], cores: int
) -> None:
    for name in ("CPUS_PER_TASK", "CPUS_ON_NODE", "STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)))
    assert usable_cores() == cores


def worker(worker_id: str, job: str, ended: float | None = None) -> WorkerRow:
    return WorkerRow(
        id=worker_id, host="node1", pid=1, slurm_job=job, log="", device="cpu", started_at=0.0, ended_at=ended,
        beat_age_s=0.0,
    )  # fmt: skip


def test_a_requeued_pilot_knows_the_workers_of_its_earlier_runs() -> None:
    second = Allocation(node="node2", job="12_3", restarts=2)
    first = Allocation(node="node-1", job="12_3", restarts=0).new_worker_id()
    workers = [
        worker(first, "12_3"),
        worker(Allocation(node="node2", job="12_3", restarts=2).new_worker_id(), "12_3"),  # its sibling
        worker(Allocation(node="node1", job="12_3", restarts=1).new_worker_id(), "12_3", ended=5.0),  # left in order
        worker(Allocation(node="node1", job="12_30", restarts=0).new_worker_id(), "12_30"),
        worker("host-4711-0a1b2c3d", ""),
    ]
    assert second.earlier_runs(workers) == [first]


def test_time_left() -> None:
    assert time_left_s(0.0, 60.0) is None
    assert time_left_s(time.time() + 100, 60.0) == pytest.approx(40, abs=20)
