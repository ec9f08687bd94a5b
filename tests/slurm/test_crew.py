"""The launcher's bookkeeping, without a cluster: who is dead, when to wait, what became of a lost sbatch."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from kt_study.errors import SlurmError
from kt_study.pilots import PilotOptions, Probe
from kt_study.store import JobStore, WorkerRecord, open_store
from kt_study.words import PlannedJob
from orchestrator.launch import records, submission
from orchestrator.launch import slurm as slurm_module
from orchestrator.launch.records import LaunchRecord, launches
from orchestrator.launch.request import SlurmRequest
from orchestrator.launch.slurm import BackingOff, SlurmCrew, disown_ended
from orchestrator.slurm.cluster import Cluster, Partition
from orchestrator.slurm.listing import QueuedJob, Run
from orchestrator.slurm.view import SlurmView
from tests.databases import Databases

CLUSTER = Cluster(
    partitions=(Partition(name="gpu", is_default=True, is_up=True, nodes=2, longest_min=120, default_min=10),),
    nodes=(),
    largest_array=3,
    kill_wait_s=30,
)


@pytest.fixture
def store(tmp_path: Path, databases: Databases) -> JobStore:
    made = open_store(databases.url(tmp_path), create=True)
    made.add_study("s", {})
    made.plan("s", [PlannedJob(kind="logits", spec={"n": n}, digest=str(n)) for n in range(10)])
    return made


@pytest.fixture
def crew(store: JobStore, tmp_path: Path) -> SlurmCrew:
    return SlurmCrew(
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
    return put


def launched(crew: SlurmCrew, token: str, *, ago_s: float, done_before: int = 0, slurm_id: str = "5") -> LaunchRecord:
    record = LaunchRecord(
        token=token, study="s", sent_at=time.time() - ago_s, allocations=2, pilots_each=1, gpus_each=1, time_min=60,
        done_before=done_before, slurm_id=slurm_id,
    )  # fmt: skip
    records.write(crew.options.files, record)
    return record


def began(crew: SlurmCrew, token: str) -> None:
    from kt_study.files import write_bytes

    probe = Probe(node="a", slurm_job="5_0")
    write_bytes(crew.options.files.probe(token, "5_0"), msgspec.json.encode(probe))


def ended(job: str, state: str, at: float) -> Run:
    return Run(
        job=job, name="kt-s-t", state=state, exit_code=0, signal=0, node="a", submitted_at=1.0, started_at=1.0,
        ended_at=at,
    )  # fmt: skip


def test_a_worker_is_dead_when_slurm_says_so_and_it_is_silent(store: JobStore) -> None:
    now = time.time()
    for job in ("7_0", "7_1", "7_2", "7_3"):
        store.enlist(WorkerRecord(id=job, host="a", pid=1, slurm_job=job))
        assert store.claim(job, lease_s=3600)
    pending = QueuedJob(
        job="7_2", name="kt-s-t", state="PENDING", reason="BeginTime", node="", starts_at=0.0, ends_at=0.0,
        partition="gpu",
    )  # fmt: skip
    view = SlurmView(
        queue=(pending,),
        runs=(
            ended("7_0", "NODE_FAIL", now + 30),
            ended("7_1", "PREEMPTED", now - 30),  # an earlier run than the worker's
            ended("7_3", "UNHEARD_OF", now + 30),
        ),
    )
    assert disown_ended(store, view, lease_s=60.0) == 0, "all of them have just sent a heartbeat"
    time.sleep(0.5)
    assert disown_ended(store, view, lease_s=1.0) == 2
    alive = {worker.id for worker in store.workers() if worker.ended_at is None}
    assert alive == {"7_1", "7_3"}


def test_launches_that_come_to_nothing_make_the_next_one_wait_longer_and_longer(
    crew: SlurmCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(slurm_module, "time", SimpleNamespace(time=lambda: now))  # no time passes
    waits = []
    for number in range(5):
        launched(crew, f"0000000{number}", ago_s=time.time() - now)
        began(crew, f"0000000{number}")
        try:
            crew._wait_after_barren_launches(crew.store.outlook("s"), SlurmView())
            waits.append(0)
        except BackingOff as wait:
            waits.append(round(wait.left_s))
    assert waits == [0, 30, 60, 120, 240]
    crew.patient = False
    crew._wait_after_barren_launches(crew.store.outlook("s"), SlurmView())


def test_the_pause_counts_from_the_end_of_a_launch_that_waited_long_in_the_queue(
    crew: SlurmCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(slurm_module, "time", SimpleNamespace(time=lambda: now))
    for number in range(2):
        launched(crew, f"0000000{number}", ago_s=7200.0 - number)
    over = tuple(
        msgspec.structs.replace(ended("7_0", "FAILED", now - 10.0), name=f"kt-s-0000000{number}") for number in range(2)
    )
    with pytest.raises(BackingOff) as wait:
        crew._wait_after_barren_launches(crew.store.outlook("s"), SlurmView(runs=over))
    assert wait.value.left_s == pytest.approx(20.0)


def test_a_launch_that_was_cancelled_in_the_queue_or_did_something_is_not_held_against_the_next(
    crew: SlurmCrew,
) -> None:
    for number in range(3):
        launched(crew, f"0000000{number}", ago_s=0.0)  # no pilot of them began
    crew._wait_after_barren_launches(crew.store.outlook("s"), SlurmView())
    for number in range(3):
        began(crew, f"0000000{number}")
    launched(crew, "00000009", ago_s=0.0, done_before=-1)  # something was done since
    began(crew, "00000009")
    crew._wait_after_barren_launches(crew.store.outlook("s"), SlurmView())


def test_the_array_is_bounded_by_the_cap_and_by_the_cluster(crew: SlurmCrew) -> None:
    queued = [
        QueuedJob(
            job=str(n), name="kt-other-t", state="RUNNING", reason="", node="", starts_at=0, ends_at=0, partition=""
        )
        for n in range(4)
    ]  # fmt: skip
    assert crew._allowed(100, SlurmView()) == 3  # MaxArraySize
    assert crew._allowed(100, SlurmView(queue=tuple(queued[:2]))) == 2  # the cap of 4
    with pytest.raises(SlurmError, match="no more than 4 may be"):
        crew._allowed(1, SlurmView(queue=tuple(queued)))


def test_an_open_question_is_settled_before_anything_is_sent(
    crew: SlurmCrew, slurm: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch was lost and squeue did not answer either; the next launch finds the job, and its pickles."""
    record = launched(crew, "0a0b0c0d", ago_s=100.0, slurm_id="")
    folder = crew.options.paths.logs / record.token
    folder.mkdir(parents=True)
    for name in ("aa.pkl", "bb.pkl"):
        (folder / name).write_bytes(b"")
    rows = "\\n".join(f"31_{task}|{record.name}|PENDING|Priority||N/A|N/A|gpu" for task in range(2))
    slurm("squeue", f"printf '{rows}\\n'")
    sent: list[int] = []
    monkeypatch.setattr(submission, "send", lambda package: sent.append(package.allocations) or "32")
    monkeypatch.setattr(crew, "wanted", 2)
    assert crew.add() == 0
    assert sent == []
    assert [known.slurm_id for known in launches(crew.options.files, "s")] == ["31"]
    assert sorted(path.name for path in folder.iterdir()) == ["31_0_submitted.pkl", "31_1_submitted.pkl"]
    monkeypatch.setattr(crew, "wanted", 3)
    assert crew.add() == 1
    assert sent == [1]


def test_while_slurm_does_not_answer_nobody_is_taken_for_dead(
    crew: SlurmCrew, slurm: Callable[[str, str], None]
) -> None:
    slurm("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    assert not crew.is_alone()
    with pytest.raises(SlurmError, match="Unable to contact slurm controller"):
        crew.add()


def test_an_unanswered_sbatch_without_squeue_stays_a_question(
    crew: SlurmCrew, slurm: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_package: submission.Package) -> str:
        slurm("squeue", "echo 'error: Unable to contact slurm controller' >&2; exit 1")
        raise submission.LostAnswer("sbatch: Socket timed out on send/recv operation")

    monkeypatch.setattr(submission, "send", lost)
    monkeypatch.setattr(submission, "SEARCH_S", 0.0)
    with pytest.raises(SlurmError, match=r"nobody knows whether kt-s-\w+ was submitted"):
        crew.add()
    assert [record.is_open_question for record in launches(crew.options.files, "s")] == [True]
