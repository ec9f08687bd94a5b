"""Pilots whose GPU fails, and what a pilot prepares for torch; on a machine that need not have one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from kt_study.pilots import PilotOptions, ProbeExit
from kt_study.records import JobState, PlannedJob
from kt_study.store import JobStore, open_store
from worker.pilot import entry
from worker.pilot import pilot as pilot_module
from worker.pilot.allocation import Allocation
from worker.pilot.pilot import Pilot
from worker.pilot.probe import GpuLost
from worker.pilot.signals import StopRequest


class Failing:
    """A job kind that fails as a test wants."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.ran = 0
        self.first = lambda: None

    def run(self, *_: Any) -> dict[str, Any]:
        self.ran += 1
        self.first()
        raise self.error


@pytest.fixture
def store(either_url: str) -> JobStore:
    made = open_store(either_url, first_backoff_s=0.0)
    made.add_study("s", {})
    spec = {"teachers": [], "student": ""}
    made.plan("s", [PlannedJob(kind="transfer", spec={"n": n, **spec}, digest=f"t{n}") for n in range(5)])
    return made


def pilot_on(device: str, store: JobStore, root: Path) -> Pilot:
    options = PilotOptions(root=str(root), study="s", lease_s=60.0, idle_s=5.0)
    return Pilot(options=options, store=store, device=torch.device(device), allocation=Allocation(node="here"))


def test_a_pilot_whose_gpu_is_lost_fails_one_job_and_leaves_the_others(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an illegal access every call of CUDA in the process raises, whatever the job."""

    def dead(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be")

    kind = Failing(RuntimeError("CUDA error: an illegal memory access was encountered"))
    monkeypatch.setattr(pilot_module, "job_kind", lambda _: kind)
    monkeypatch.setattr(torch.cuda, "synchronize", dead)
    monkeypatch.setattr(torch.cuda, "empty_cache", dead)
    with pytest.raises(
        GpuLost, match=r"the GPU no longer responds \(CUDA error: an illegal .* encountered\); check dmesg"
    ):
        pilot_on("cuda", store, tmp_path).run()
    assert kind.ran == 1
    assert [job.state for job in store.jobs()] == [JobState.READY] * 5
    assert sum(job.attempts_used for job in store.jobs()) == 1
    assert store.workers(alive_within_s=60) == []


def test_one_whose_gpu_responds_continues(store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Failing(ValueError("a fault of the job's"))
    cleared: list[int] = []
    monkeypatch.setattr(pilot_module, "job_kind", lambda _: kind)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: cleared.append(1))
    assert "5 failed" in pilot_on("cuda", store, tmp_path).run()
    assert len(cleared) == 5, "after each job the other workers of the GPU may have its memory"


def test_a_job_that_breaks_by_the_signal_itself_is_given_back(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the signal reached a process of the job's too."""
    kind = Failing(RuntimeError("DataLoader worker (pid 7) is killed by signal: Terminated."))
    monkeypatch.setattr(pilot_module, "job_kind", lambda _: kind)
    pilot = pilot_on("cpu", store, tmp_path)
    kind.first = lambda: pilot.stop.make("SIGTERM")
    assert pilot.run() == "stopped by SIGTERM; 0 done, 0 failed, 1 released, 0 lost"
    assert sum(job.attempts_used for job in store.jobs()) == 0


def test_but_not_one_that_would_fail_anyway(store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = Failing(ValueError("wrong input"))
    monkeypatch.setattr(pilot_module, "job_kind", lambda _: kind)
    pilot = pilot_on("cpu", store, tmp_path)
    kind.first = lambda: pilot.stop.make("SIGTERM")
    assert "1 failed, 0 released" in pilot.run()


@pytest.fixture
def quiet_entry(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """`run_pilot` without its signal handlers; the environment comes back afterwards."""
    monkeypatch.setattr(StopRequest, "listen", lambda _: None)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_cublas_is_configured_for_reproducible_runs_before_torch_is_loaded(
    quiet_entry: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch looks at it once a process, when the first product of matrices is asked for, by whatever job."""
    seen: list[str | None] = []

    def made(*_: Any) -> Any:
        seen.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
        raise KeyboardInterrupt

    quiet_entry.setattr(entry, "_pilot", made)
    for given in (None, ":16:8"):
        if given:
            quiet_entry.setenv("CUBLAS_WORKSPACE_CONFIG", given)
        with pytest.raises(KeyboardInterrupt):
            entry.run_pilot(PilotOptions(root=str(tmp_path)))
    assert seen == [":4096:8", ":16:8"]


@pytest.mark.parametrize(("job", "ends"), [("7_1", SystemExit), ("", GpuLost)])
def test_slurm_gets_an_exit_code_for_a_lost_gpu(
    quiet_entry: pytest.MonkeyPatch, tmp_path: Path, job: str, ends: type[BaseException]
) -> None:
    class Lost:
        def run(self) -> str:
            raise GpuLost("the GPU no longer responds")

    quiet_entry.setattr("worker.pilot.allocation.this_allocation", lambda: Allocation(node="n1", job=job))
    quiet_entry.setattr(entry, "_pilot", lambda *_: Lost())
    with pytest.raises(ends) as caught:
        entry.run_pilot(PilotOptions(root=str(tmp_path)))
    assert getattr(caught.value, "code", ProbeExit.LOST_GPU) == ProbeExit.LOST_GPU
