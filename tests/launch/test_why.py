"""kt-study status --why: one line for each thing that may keep a job from running. Scripts stand for squeue and sacct."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kt_study.files import write_bytes
from kt_study.pilots import LaunchFiles, Probe
from kt_study.records import Failure, JobState, PlannedJob
from kt_study.store import JobRow, JobStore, NeedRow, Selection, WorkerRecord, open_store
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.records import LaunchRecord
from orchestrator.cluster.why import path_to_cause, why
from tests.databases import Databases

TOKEN = "0a0b0c0d"
NAME = f"kt-s-{TOKEN}"


@pytest.fixture
def store(databases: Databases, tmp_path: Path) -> JobStore:
    made = open_store(databases.url(tmp_path), create=True)
    made.add_study("s", {})
    return made


class Slurm:
    """Stands for a cluster to which one launch was sent."""

    def __init__(self, folder: Path, files: LaunchFiles) -> None:
        self._folder, self._files = folder, files
        self.queue()
        self.accounting()

    def launch(self, *, gpus: int = 0, time_min: int = 60) -> None:
        record = LaunchRecord(
            token=TOKEN, study="s", sent_at=time.time() - 60, allocations=2, pilots_each=1, gpus_each=gpus,
            time_min=time_min, done_before=0, slurm_id="7",
        )  # fmt: skip
        records.write(self._files, record)

    def queue(self, *rows: str) -> None:
        self._put("squeue", rows)

    def accounting(self, *rows: str) -> None:
        self._put("sacct", rows)

    def is_away(self) -> None:
        self._write("squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")

    def found(self, node: str, error: str) -> None:
        probe = Probe(node=node, slurm_job="7_0", error=error)
        write_bytes(self._files.probe(TOKEN, "7_0"), msgspec.json.encode(probe))

    def _put(self, name: str, rows: tuple[str, ...]) -> None:
        self._write(name, "\n".join(f"echo '{row}'" for row in rows))

    def _write(self, name: str, lines: str) -> None:
        (self._folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (self._folder / name).chmod(0o755)
        self._files.slurm_view.unlink(missing_ok=True)  # what was known is kept for 15 s


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Slurm(folder, LaunchFiles(root=tmp_path))


@pytest.fixture
def ask(store: JobStore, tmp_path: Path) -> Callable[[int], str]:
    return lambda job_id: why(job_id, store, "s", LaunchFiles(root=tmp_path))


def job(name: str, *needs: str, kind: str = "logits", priority: int = 0, estimate_s: float = 60.0) -> PlannedJob:
    return PlannedJob(
        kind=kind, spec={"n": name}, digest=name, needs=needs, priority=priority, estimate_s=estimate_s
    )  # fmt: skip


def pending(task: int, reason: str, starts: str = "N/A") -> str:
    return f"7_{task}|{NAME}|PENDING|{reason}||{starts}|N/A|gpu"


def running(task: int, node: str, *, left_s: float) -> str:
    return f"7_{task}|{NAME}|RUNNING|None|{node}|{int(time.time())}|{int(time.time() + left_s)}|gpu"


def at_work(store: JobStore, name: str, *, slurm_job: str = "", token: str = TOKEN, device: str = "cpu") -> None:
    log = f"/study/logs/{token}/7.out" if slurm_job else ""
    store.register(WorkerRecord(id=name, host=f"host-of-{name}", pid=1, slurm_job=slurm_job, log=log, device=device))


Ask = Callable[[int], str]


def test_what_it_waits_for_down_to_the_job_that_failed(store: JobStore, ask: Ask) -> None:
    store.plan(
        "s", [job("a", kind="train"), job("b", "a"), job("c", "b", kind="transfer"), job("d"), job("e", "d", "c")]
    )
    (held,) = store.claim("w", kinds=["train"])
    store.fail(held, Failure(error="ValueError", message="wrong shape", traceback="", group="g"))
    assert ask(5) == (
        "waits for job 3 (transfer, blocked), which waits for job 2 (logits, blocked), which waits for job 1 (train, "
        "failed): failed with ValueError: wrong shape; `kt-study retry` starts it afresh; 1 more job must be done first"
    )


def test_the_gravest_of_several_causes_is_named(store: JobStore, ask: Ask) -> None:
    store.plan("s", [job("a"), job("b"), job("c"), job("d"), job("e", "a", "b", "c", "d", kind="transfer")])
    at_work(store, "w")
    (held,) = store.claim("w")
    assert "waits for job 2 (logits, ready): ready; 1 worker is busy" in ask(5)
    store.pause(Selection(job_ids=(3,)))
    assert "waits for job 3 (logits, ready): paused; `kt-study resume` lets it go on" in ask(5)
    store.cancel(Selection(job_ids=(4,)))
    assert "waits for job 4 (logits, cancelled): cancelled" in ask(5)
    store.fail(held, Failure(error="E", message="m", traceback="", group="g"))
    assert f"waits for job {held.job_id} (logits, failed): failed with E: m" in ask(5)
    store.pause(Selection(job_ids=(5,)))
    assert ask(5).startswith("paused (`kt-study resume` resumes it); waits for job ")


def test_a_cause_behind_thousands_is_looked_for_within_bounds() -> None:
    """A ladder in which every job waits for all below it: the number of paths doubles with each rung."""
    fetched: list[int] = []

    def fetch(number: int) -> JobRow:
        fetched.append(number)
        return ladder(number)

    def ladder(number: int) -> JobRow:
        state = JobState.BLOCKED if number else JobState.RUNNING
        below = tuple(NeedRow(job_id=n, kind="k", state=ladder_state(n)) for n in range(number))
        return JobRow(
            id=number, kind="k", digest="", spec={}, state=state, paused=False, priority=0, estimate_s=0, teacher=None,
            student=None, needs_open=number, attempts_used=0, crashes=0, fence=0, not_before=0, worker=None,
            lease_until=None, created_at=0, changed_at=0, age_s=0, progress=None, needs=below,
        )  # fmt: skip

    def ladder_state(number: int) -> JobState:
        return JobState.BLOCKED if number else JobState.RUNNING

    path = path_to_cause(ladder(400), fetch)
    assert (path[0].id, path[-1].id) == (400, 0)
    assert len(fetched) == len(set(fetched)) <= 200


def test_nobody_is_there(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    store.plan("s", [job("a")])
    assert ask(1) == "ready; no active workers: none runs or waits in a queue; `kt-study launch` starts some"
    slurm.launch()
    assert "no active workers: none runs or waits in Slurm's queue; `kt-study launch --partition ...`" in ask(1)


def test_backing_off_paused_running_done(store: JobStore, ask: Ask) -> None:
    store.plan("s", [job("a")])
    (held,) = store.claim("w")
    assert ask(1).startswith("runs on w; lease for another ")
    store.fail(held, Failure(error="E", message="m", traceback="", group="g", transient=True))
    assert ask(1).startswith("backs off for another ")
    store.retry(Selection(job_ids=(1,)))
    store.pause(Selection(job_ids=(1,)))
    assert ask(1) == "paused; `kt-study resume` lets it go on"
    store.resume(Selection(job_ids=(1,)))
    (held,) = store.claim("w")
    store.finish(held, {})
    assert ask(1) == "done"


def test_workers_with_gpus_are_still_in_the_queue(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    store.plan("s", [job("a")])
    slurm.launch(gpus=2)
    slurm.queue(
        pending(0, "Resources", starts=str(int(time.time() + 7500))), pending(1, "Priority"), pending(2, "Priority")
    )
    line = ask(1)
    assert line.startswith("ready; no worker with a GPU yet: 3 Slurm jobs that request 2 each are pending: ")
    assert "Priority (2), Resources (1); the first is expected to start in 2 h " in line


def test_workers_without_gpus_are_still_in_the_queue(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    store.plan("s", [job("a")])
    slurm.launch()
    slurm.queue(pending(0, "ReqNodeNotAvail"))
    assert ask(1) == "ready; 1 Slurm jobs are pending: ReqNodeNotAvail (1)"


def test_no_worker_found_its_gpu(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    store.plan("s", [job("a")])
    slurm.launch(gpus=1)
    slurm.found("node7", "torch sees no GPU here (CUDA_VISIBLE_DEVICES is 0)")
    assert ask(1).startswith(
        "ready; no worker with a GPU: last on node7, torch sees no GPU here (CUDA_VISIBLE_DEVICES is"
    )


def test_a_worker_ran_out_of_memory(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    """More memory than its launch asked for: Slurm's accounting says so, and the job's own history too."""
    store.plan("s", [job("a")])
    slurm.launch()
    at_work(store, "w", slurm_job="7_0")
    store.claim("w", lease_s=1e-3)
    slurm.accounting(f"7_0|{NAME}|OUT_OF_MEMORY|0:125|node1|1|{int(time.time())}|{int(time.time()) + 100}")
    store.end_leases(["w"], reason="stands for a minute of silence")
    assert (
        "no worker could start: last on node1, the pilot used more memory than it was allocated; launch with more"
        in ask(1)
    )


def test_workers_that_are_just_starting(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    store.plan("s", [job("a")])
    slurm.launch()
    slurm.queue(running(0, "node2", left_s=3000))
    assert ask(1) == "ready; workers are starting on node2; they have not registered yet"


def test_slurm_does_not_answer(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    store.plan("s", [job("a")])
    slurm.launch()
    slurm.is_away()
    assert ask(1).startswith("ready; no active workers found: squeue: Unable to contact slurm controller")


def test_an_estimate_longer_than_any_allocation(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    store.plan("s", [job("a", estimate_s=7200)])
    slurm.launch(time_min=60)
    assert ask(1) == (
        "ready; its estimate of 2 h 0 min is longer than an allocation of 1 h 0 min: launch with a longer --time"
    )
    at_work(store, "w", slurm_job="7_0")
    slurm.queue(running(0, "node1", left_s=3500))
    assert "longer than the time left of every worker, at most 5" in ask(1)
    assert "longer than an allocation of 1 h 0 min: launch with a longer --time" in ask(1)


def test_an_estimate_longer_than_what_is_left(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    store.plan("s", [job("a", estimate_s=1800), job("b", kind="transfer", estimate_s=7200)])
    slurm.launch(time_min=60)
    at_work(store, "w", slurm_job="7_0")
    at_work(store, "v", slurm_job="7_1")
    slurm.queue(running(0, "node1", left_s=690), running(1, "node2", left_s=1290), pending(2, "Priority"))
    line = "is longer than the time left of every worker, at most 19 min 5"
    assert f"ready; its estimate of 30 min 0 s {line}" in ask(1)
    assert ask(1).endswith(" on host-of-v; the next allocation runs it, 1 are pending")
    assert line in ask(2), "a transfer goes on in the next allocation, but is begun in the first half of one only"


def test_a_transfer_is_begun_by_whoever_has_half_an_allocation(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    store.plan("s", [job("a", kind="transfer", estimate_s=7200)])
    slurm.launch(time_min=60)
    at_work(store, "w", slurm_job="7_0")
    slurm.queue(running(0, "node1", left_s=2400))
    assert ask(1) == "ready; 1 worker is busy with other jobs, none with a GPU; it is next"


def test_the_line_before_it(store: JobStore, ask: Ask) -> None:
    """By priority, then longest first, then by number; what is paused or another study's is not in line."""
    store.add_study("other", {})
    store.plan("other", [job("x", priority=9)])
    store.plan("s", [job("a", priority=5), job("b", estimate_s=90), job("c"), job("d"), job("e", priority=7), job("f")])
    store.pause(Selection(job_ids=(6,)))
    for number in range(2):
        at_work(store, f"w{number}", device="cuda:0" if number else "cpu")
    assert ask(5) == (
        "ready; 2 workers are busy with other jobs, 1 with a GPU; 3 jobs are before it in the queue, 1 of them of "
        "higher priority"
    )
    assert ask(2).endswith("it is next")


def test_workers_of_another_study_do_not_count(store: JobStore, ask: Ask, slurm: Slurm) -> None:
    store.plan("s", [job("a")])
    slurm.launch()
    at_work(store, "w", slurm_job="9_0", token="ffffffff")
    assert "no active workers" in ask(1)
