"""Launches at the same moment start no more workers than one of them was asked for, and `kt-study stop` ends them all."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kt_study.paths import StudyPaths
from kt_study.store import JobStore, open_store
from orchestrator.cluster.launch.live import local_processes
from orchestrator.cluster.launch.local import stop_local_workers
from tests.cli import succeeds
from tests.command_line.tiny import STUDY_FILE
from tests.store.making import job, plan

PATIENCE_S = 120.0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "study.toml").write_text(STUDY_FILE)
    yield tmp_path
    stop_local_workers(StudyPaths(root=tmp_path).logs)


@pytest.fixture
def store(folder: Path) -> JobStore:
    """A study whose jobs somebody else does, so that workers wait for more."""
    made = open_store(f"sqlite:///{folder / 'kt-study.db'}", create=True)
    plan(made, *(job(number) for number in range(4)), study="tiny")
    assert len(made.claim("somebody", lease_s=3600.0, limit=4)) == 4
    return made


def _started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kt_study", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _registered(store: JobStore, count: int) -> None:
    limit = time.monotonic() + PATIENCE_S
    while len(store.workers()) < count:
        assert time.monotonic() < limit
        time.sleep(0.2)


@pytest.mark.parametrize(("launches", "workers"), [(3, 1), (2, 2)])
def test_launches_at_once_start_no_more_than_asked_for_and_stop_ends_them(
    folder: Path, store: JobStore, launches: int, workers: int
) -> None:
    asked = ["launch", "--workers", str(workers), "--device", "cpu"]
    said = [launch.communicate(timeout=PATIENCE_S)[0] for launch in [_started(folder, *asked) for _ in range(launches)]]
    assert sum(f"{workers} worker" in each for each in said) == 1, said
    assert sum("no worker is missing" in each for each in said) == launches - 1, said
    _registered(store, workers)
    assert len(local_processes(StudyPaths(root=folder).logs)) == workers
    assert len(store.workers()) == workers
    assert "no worker is missing" in succeeds(folder, *asked)

    assert "no worker is left" in succeeds(folder, "stop")

    assert local_processes(StudyPaths(root=folder).logs) == []
    assert all(worker.ended_at for worker in store.workers())


def test_stop_ends_a_launch_that_waits_and_workers_that_nobody_launched(folder: Path, store: JobStore) -> None:
    waiting = _started(folder, "launch", "--workers", "1", "--wait", "--device", "cpu")
    by_hand = _started(folder, "worker", "--device", "cpu", "--lease", "6")
    try:
        _registered(store, 2)
        assert "no worker is left" in succeeds(folder, "stop")
        assert "stopped by kt-study stop" in by_hand.communicate(timeout=PATIENCE_S)[0]
        assert "stopped by kt-study stop" in waiting.communicate(timeout=PATIENCE_S)[0]
        assert (by_hand.returncode, waiting.returncode) == (0, 130)
        assert len(store.workers()) == 2, "none was replaced"
    finally:
        by_hand.kill()
        waiting.kill()
