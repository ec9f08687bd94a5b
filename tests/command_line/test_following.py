"""What `kt-study launch` and `status` say when little or nothing goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from kt_study.pilots import LaunchFiles
from kt_study.store import JobStore, Selection, WorkerRecord, Workload, open_store
from orchestrator.cli import status
from orchestrator.cli.commands import launch
from orchestrator.cluster.launch import follow
from orchestrator.cluster.launch.follow import standstill
from tests.databases import Databases
from tests.store.making import STUDY, claim_one, job, lasting, plan


@pytest.fixture
def folder(tmp_path: Path, databases: Databases) -> Path:
    """A study of five jobs: one done, one failed, three that wait for it."""
    (tmp_path / "study.toml").write_text(f'[study]\nname = "{STUDY}"\n[dataset]\nkind = "digits"\n')
    databases.settle(tmp_path)
    store = open_store(databases.url(tmp_path), create=True)
    roots = [job(n, priority=9 - n) for n in range(2)]
    plan(store, *roots, *(job(n, kind="transfer", needs=roots, estimate_s=60.0) for n in range(2, 5)))
    store.finish(claim_one(store), {})
    store.fail(claim_one(store), lasting())
    return tmp_path


@pytest.fixture
def store(folder: Path, databases: Databases) -> JobStore:
    return open_store(databases.url(folder))


def launched(folder: Path) -> Result:
    asked = ["--study", str(folder / "study.toml"), "--workers", "2", "--wait"]
    return CliRunner().invoke(launch.command, asked, catch_exceptions=False)


def test_launch_starts_nobody_when_nothing_can_run(folder: Path, store: JobStore) -> None:
    said = launched(folder)
    assert (said.exit_code, said.stdout) == (1, "nothing can run: 3 jobs wait for 1 failed one\n")
    assert "kt-study retry" in said.stderr
    assert store.workers() == [] and not (folder / "logs").exists()


def test_launch_names_the_next_step_when_all_is_done(folder: Path, store: JobStore) -> None:
    store.cancel(Selection(study=STUDY))
    said = launched(folder)
    assert (said.exit_code, said.stdout) == (
        0,
        "nothing to do: 1 of 5 jobs done, 4 cancelled\nnext: kt-study collect\n",
    )


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ({"blocked": 44, "failed": 10}, "44 jobs wait for 10 failed ones"),
        ({"blocked": 1, "failed": 1}, "1 job waits for 1 failed one"),
        ({"blocked": 2, "cancelled": 1, "paused": 1}, "2 jobs wait for 1 cancelled and 1 paused ones"),
        ({"failed": 10}, ""),
        ({"blocked": 44, "failed": 10, "running": 1}, ""),
        ({"blocked": 44, "failed": 10, "ready_later": 1}, ""),
    ],
)
def test_a_standstill_is_told_from_waiting(counts: dict[str, int], line: str) -> None:
    assert standstill(Workload(**counts)) == line


def test_status_gives_no_time_while_nobody_works(folder: Path, store: JobStore) -> None:
    store.retry(Selection())
    files = LaunchFiles(root=folder)
    assert store.pace(STUDY).eta_s is not None
    seen = status.summary(store, STUDY, files)
    assert seen["eta_s"] is None and " left" not in status.as_text(seen)
    store.register(WorkerRecord(id="one", host="node", pid=1))
    seen = status.summary(store, STUDY, files)
    assert seen["eta_s"] > 0
    assert f"left, {len(seen['workers'])} worker\n" in status.as_text(seen) + "\n"


def test_a_log_is_told_what_changed_and_every_ten_minutes_that_nothing_did(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = SimpleNamespace(now=5000.0)
    monkeypatch.setattr(follow, "time", SimpleNamespace(monotonic=lambda: clock.now))
    with follow._lines() as show:
        for second in range(1300):
            clock.now = 5000.0 + second
            done = sum(second >= moment for moment in (3, 5, 27))
            show(Workload(running=3 - done, done=done))
    assert capsys.readouterr().err.splitlines() == [
        "0:00:00 0 of 3 jobs done, 3 running",
        "0:00:10 2 of 3 jobs done, 1 running",
        "0:00:27 3 of 3 jobs done",
        "0:10:27 3 of 3 jobs done",
        "0:20:27 3 of 3 jobs done",
    ]
