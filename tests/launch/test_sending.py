"""Sending pilots with care for the account, without a cluster: two launches at once, and an sbatch that is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from kt_study.errors import SlurmError
from kt_study.files import locked
from orchestrator.cluster.launch import submission
from orchestrator.cluster.launch.lock import AnotherLaunch, launch_lock, lock_file
from orchestrator.cluster.launch.records import launches
from orchestrator.cluster.launch.slurm import SlurmPilots
from tests.launch.pilots import CLUSTER, SBATCH, launched


def test_an_open_question_is_settled_before_anything_is_sent(
    pilots: SlurmPilots, slurm: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """sbatch was lost and squeue did not answer either; the next launch finds the job, and its pickles."""
    record = launched(pilots, "0a0b0c0d", ago_s=100.0, slurm_id="")
    folder = pilots.options.paths.logs / record.token
    folder.mkdir(parents=True)
    for name in ("aa.pkl", "bb.pkl"):
        (folder / name).write_bytes(b"")
    rows = "\\n".join(f"31_{task}|{record.name}|PENDING|Priority||N/A|N/A|gpu" for task in range(2))
    slurm("squeue", f"printf '{rows}\\n'")
    sent: list[int] = []
    monkeypatch.setattr(submission, "send", lambda package: sent.append(package.allocations) or "32")
    monkeypatch.setattr(pilots, "wanted", 2)
    assert pilots.start_missing() == 0
    assert sent == []
    assert [known.slurm_id for known in launches(pilots.options.files, "s")] == ["31"]
    assert sorted(path.name for path in folder.iterdir()) == ["31_0_submitted.pkl", "31_1_submitted.pkl"]
    monkeypatch.setattr(pilots, "wanted", 3)
    assert pilots.start_missing() == 1
    assert sent == [1]


def test_an_unanswered_sbatch_without_squeue_stays_a_question(
    pilots: SlurmPilots, slurm: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_package: submission.Package) -> str:
        slurm("squeue", "echo 'error: Unable to contact slurm controller' >&2; exit 1")
        raise submission.UnknownSubmission("sbatch: Socket timed out on send/recv operation")

    monkeypatch.setattr(submission, "send", lost)
    monkeypatch.setattr(submission, "SEARCH_S", 0.0)
    with pytest.raises(SlurmError, match=r"it is unknown whether kt-s-\w+ was submitted"):
        pilots.start_missing()
    assert [record.is_unconfirmed for record in launches(pilots.options.files, "s")] == [True]


def test_two_launches_at_once_send_no_more_than_one(pilots: SlurmPilots, fake_queue: Path, tmp_path: Path) -> None:
    """Two processes count the queue; the slower one must see what the faster one has sent."""
    pilots.cluster = msgspec.structs.replace(CLUSTER, largest_array=100)
    code = f"""
        import pathlib, sys, time
        import msgspec
        from kt_study.pilots import PilotOptions
        from kt_study.store import open_store
        from orchestrator.cluster.launch.request import SlurmRequest
        from orchestrator.cluster.launch.slurm import SlurmPilots
        from orchestrator.cluster.slurm.cluster import Cluster

        pilots = SlurmPilots(
            store=open_store({pilots.store.url!r}), options=PilotOptions(root={str(tmp_path)!r}, study="s"),
            request=SlurmRequest(partition="gpu", gpus_per_node=1, time=60),
            cluster=msgspec.json.decode({msgspec.json.encode(pilots.cluster)!r}, type=Cluster),
            database_url={pilots.store.url!r}, wanted=4, most_submitted=4,
        )
        print("ready", flush=True)
        sys.stdin.read()
        print(pilots.start_missing())
    """
    both = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    said = sorted(process.communicate(timeout=120)[0].strip() for process in both)
    assert said == ["0", "4"]
    assert len(fake_queue.read_text().splitlines()) == 4


def test_a_launch_that_lasts_keeps_another_away(pilots: SlurmPilots, fake_queue: Path) -> None:
    assert lock_file().is_relative_to(Path(os.environ["XDG_STATE_HOME"]))
    lock_file().parent.mkdir(parents=True)
    other = locked(lock_file())
    with pytest.raises(AnotherLaunch, match="another launch of yours is running"), launch_lock(timeout_s=0.3):
        pass
    os.close(other)
    pilots.wanted = 1
    assert pilots.start_missing() == 1
    assert len(fake_queue.read_text().splitlines()) == 1


def test_an_sbatch_that_is_given_up_cannot_go_through_later(
    pilots: SlurmPilots, slurm: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = tmp_path / "begun"
    slurm("sbatch", f"echo $$ > {begun}; sleep 300; true")
    monkeypatch.setattr(submission, "SEARCH_S", 0.0)
    for patience_s in (2.0, 4.0, 8.0, 16.0, 32.0):  # until the helper comes as far as sbatch on this machine
        monkeypatch.setattr(submission, "SEND_TIMEOUT_S", patience_s)
        with pytest.raises(SlurmError, match=r"did not answer within .* and Slurm has no job kt-s-\w+; launch again"):
            pilots.start_missing()
        if begun.exists():
            break
    number = int(begun.read_text())
    deadline = time.monotonic() + 20.0
    while Path(f"/proc/{number}").exists():
        assert time.monotonic() < deadline, "sbatch lives on"
        time.sleep(0.05)


@pytest.mark.parametrize("last_words", ["echo queued", "kill -9 $$"])
def test_a_job_that_slurm_took_is_not_sent_again_whatever_went_wrong_after_it(
    last_words: str, pilots: SlurmPilots, fake_queue: Path, slurm: Callable[[str, str], None]
) -> None:
    slurm("sbatch", SBATCH.replace("{queue}", str(fake_queue)).replace("echo Submitted batch job $$", last_words))
    pilots.wanted = 2
    assert pilots.start_missing() == 2
    (record,) = pilots.launches()
    jobs = [row.split("|")[0] for row in fake_queue.read_text().splitlines()]
    assert {job.partition("_")[0] for job in jobs} == {record.slurm_id}
    folder = pilots.options.paths.logs / record.token
    assert sorted(path.name for path in folder.glob("*.pkl")) == sorted(f"{job}_submitted.pkl" for job in jobs)
    assert any(f"searched for {record.name} in the queue" in note for note in pilots.notes)


def test_what_sbatch_refuses_is_known_not_to_be_sent(pilots: SlurmPilots, slurm: Callable[[str, str], None]) -> None:
    slurm("sbatch", "echo 'sbatch: error: Please give an account' >&2; echo 'sbatch: error: Unspecified' >&2; exit 1")
    with pytest.raises(SlurmError, match=r"^sbatch: Please give an account; Unspecified$"):
        pilots.start_missing()
    assert [record.slurm_id for record in pilots.launches()] == ["-"]


def test_a_job_that_turns_up_late_gets_its_pickles(pilots: SlurmPilots, slurm: Callable[[str, str], None]) -> None:
    """It was taken for not submitted; the hand-over before this one broke off in the middle."""
    record = launched(pilots, "0a0b0c0d", ago_s=100.0, slurm_id="-")
    folder = pilots.options.paths.logs / record.token
    folder.mkdir(parents=True)
    for name in ("aa.pkl", "31_0_submitted.pkl"):
        (folder / name).write_bytes(name.encode())
    slurm("squeue", "\n".join(f"echo '31_{task}|{record.name}|PENDING|Priority||N/A|N/A|gpu'" for task in range(2)))
    pilots.wanted = 2
    assert pilots.start_missing() == 0
    assert [known.slurm_id for known in pilots.launches()] == ["31"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        "31_0_submitted.pkl": b"31_0_submitted.pkl", "31_1_submitted.pkl": b"aa.pkl"
    }  # fmt: skip
