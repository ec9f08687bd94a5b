"""A worker whose study has been deleted, or that `kt-study stop` has ended, leaves and brings nothing back."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kt_study.pilots import LaunchFiles
from kt_study.store import JobStore, open_store
from tests.cli import succeeds
from tests.pilot.small_jobs import Kind, make, plan, until_stopped
from tests.untrained import untrained_mixer
from worker.pilot.allocation import Allocation
from worker.pilot.pilot import Pilot

PATIENCE_S = 60.0

LONG_STUDY = f"""
[study]
name = "long"
[dataset]
kind = "digits"
{untrained_mixer("mixer-1", width=24, blocks=3)}
{untrained_mixer("mixer-2", width=32, blocks=3)}
[complementarity]
pairs = 2
models = 2
[transfer]
pairs = 2
objectives = ["kl"]
epochs = 2000
batch_size = 32
lr = 1e-3
views = 1
augment = "none"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A study folder with a marker."""
    made = tmp_path / "study"
    files = LaunchFiles(root=made)
    files.folder.mkdir(parents=True)
    files.marker.write_text("a word")
    return made


def started(pilot: Pilot, kind: Kind) -> threading.Thread:
    """The pilot in a thread, in the middle of its first job."""
    kind.work = until_stopped
    running = threading.Thread(target=pilot.run, daemon=True)
    running.start()
    limit = time.monotonic() + PATIENCE_S
    while not kind.ran:
        assert time.monotonic() < limit
        time.sleep(0.02)
    return running


@pytest.mark.parametrize("lost", ["folder", "marker", "another marker", "database"])
def test_a_worker_whose_study_is_gone_stops(
    folder: Path, kind: Kind, postgres_url: str, caplog: pytest.LogCaptureFixture, lost: str
) -> None:
    url = f"sqlite:///{folder / 'kt-study.db'}" if lost == "database" else postgres_url
    store = open_store(url, create=True, patience_s=1.0)
    store.add_study("s", {})
    plan(store, 1)
    pilot = make(store, folder, lease_s=1.5)
    running = started(pilot, kind)
    marker = LaunchFiles(root=folder).marker
    match lost:
        case "folder":
            shutil.rmtree(folder)
        case "marker":
            marker.unlink()
        case "another marker":
            marker.write_text("another word")
        case "database":
            (folder / "kt-study.db").unlink()
    running.join(PATIENCE_S)
    assert not running.is_alive()
    assert "the loss of its study: " in pilot.stop.reason
    assert pilot.stop.reason in caplog.text
    assert folder.exists() == (lost != "folder")
    if lost != "database":
        assert store.job(1).attempts[0].outcome == "released"


def test_a_folder_that_is_out_of_sight_for_less_than_a_lease_is_not_gone(
    folder: Path, kind: Kind, postgres_url: str
) -> None:
    store = open_store(postgres_url)
    store.add_study("s", {})
    plan(store, 1)
    pilot = make(store, folder, lease_s=3.0)
    running = started(pilot, kind)
    away = folder.rename(folder.with_name("away"))
    time.sleep(1.2)  # the watch looks every half second
    away.rename(folder)
    time.sleep(3.0)
    assert not pilot.stop.made
    pilot.stop.make("the end of the test")
    running.join(PATIENCE_S)


def test_a_stop_order_ends_the_workers_of_its_time_and_no_later_one(folder: Path, kind: Kind, store: JobStore) -> None:
    plan(store, 1)
    order = LaunchFiles(root=folder).stop
    order.write_text("an earlier one\n")
    pilot = make(store, folder, Allocation(node="n1", job="7"), lease_s=1.5, after_stop="an earlier one", linger_s=3600)
    running = started(pilot, kind)
    time.sleep(1.0)
    assert not pilot.stop.made
    order.write_text("this one\n")
    running.join(PATIENCE_S)  # and does not wait for Slurm to end it
    assert pilot.stop.reason == "kt-study stop"
    assert store.job(1).attempts[0].outcome == "released"
    assert store.workers(alive_within_s=60) == []


def test_a_worker_does_not_make_a_deleted_study_again(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "study.toml").write_text(LONG_STUDY)
    succeeds(folder, "plan")
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-m", "kt_study", "worker", "--device", "cpu", "--threads", "1", "--lease", "3"]
        worker = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output)
    try:
        limit = time.monotonic() + 2 * PATIENCE_S
        while "computed in" not in log.read_text():
            assert time.monotonic() < limit, log.read_text()
            time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=True)
        while folder.exists():  # it may have been about to write a file
            shutil.rmtree(folder, ignore_errors=True)
        assert worker.wait(PATIENCE_S) == 0
    finally:
        worker.kill()
    assert f"the folder {folder} is gone" in log.read_text()
    assert not folder.exists()
