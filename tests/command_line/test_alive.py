"""Which workers `status` calls alive."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest

from kt_study.job_kinds import planned_job
from kt_study.pilots import LaunchFiles
from kt_study.records import LogitsSpec
from kt_study.store import WorkerRecord, open_store
from orchestrator.cli.status import summary
from orchestrator.cluster import slurm_status
from orchestrator.cluster.launch import records
from orchestrator.cluster.launch.records import LaunchRecord


def test_a_worker_is_alive_for_two_leases_of_its_launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a lease of 600 s it beats every 200 s."""
    monkeypatch.setattr(slurm_status, "slurm_status_of", lambda *_, **__: None)
    store, files = open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True), LaunchFiles(root=tmp_path)
    store.add_study("s", {})
    store.plan("s", [planned_job("logits", LogitsSpec(dataset="d", model="m", split="val"), estimate_s=1.0)])
    store.register(WorkerRecord(id="w", host="elsewhere", pid=1))
    with sqlite3.connect(tmp_path / "kt-study.db") as database:
        database.execute("UPDATE workers SET beat_at = beat_at - 200")
    assert summary(store, "s", files)["workers"] == []
    launch = LaunchRecord(token="t", study="s", sent_at=time.time(), allocations=1, pilots_each=1, gpus_each=0,
                          time_min=60, done_before=0, lease_s=600.0)  # fmt: skip
    records.write(files, launch)
    assert [worker["id"] for worker in summary(store, "s", files)["workers"]] == ["w"]
