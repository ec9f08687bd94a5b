"""What `kt-study launch` hands to its workers: no password, and limits that the machine can keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from kt_study.database import parse_url
from kt_study.errors import DatabaseError
from kt_study.pilots import PilotOptions
from kt_study.store import open_store
from orchestrator.cli.commands import launch, worker
from orchestrator.cluster.launch.private import require_reachable
from orchestrator.cluster.slurm.cluster import Cluster, Node, Partition
from orchestrator.terminal.study_context import StudyContext
from tests.cli import kt_study
from tests.command_line.tiny import STUDY_FILE
from tests.store.making import job

NODE = Node(name="a", host="a", address="10.0.0.1", cpus=4, memory_mib=1000, gpus=0, partitions=("gpu",))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "study.toml").write_text(STUDY_FILE)
    return tmp_path


def test_workers_on_this_machine_find_the_password_in_a_private_file_and_nobody_elsewhere(
    folder: Path, postgres_url: str
) -> None:
    """A real worker: what submitit pickles for it anyone may read."""
    password = Path(parse_url(postgres_url).conninfo["passfile"]).read_text().strip().split(":")[-1]
    store = open_store(postgres_url)
    store.add_study("tiny", {})
    store.plan("tiny", [job(1, kind="no-such-kind")])
    url = postgres_url.replace("kt_study@", f"kt_study:{password}@").split("?")[0]
    done = kt_study(folder, "launch", "--workers", "1", "--wait", timeout=300, environment={"KT_STUDY_DB": url})
    assert done.returncode == 1, done.stderr
    assert (store.workload("tiny").failed, len(store.workers())) == (1, 1), "the worker came to the database"
    written = [path for path in folder.rglob("*") if path.is_file() and password.encode() in path.read_bytes()]
    assert [path.name for path in written] == ["pgpass"]
    assert written[0].stat().st_mode & 0o777 == 0o600
    assert any(path.suffix == ".pkl" for path in folder.rglob("*"))
    logs = [path.relative_to(folder / "logs") for path in folder.glob("logs/**/*.out")]
    assert [len(log.parts) for log in logs] == [2], "logs/TOKEN/PID_0_log.out"
    assert len(list(folder.glob("logs/*"))) == 1, "no folder that is named %j"


def test_a_database_that_only_this_machine_finds_is_refused_for_pilots_elsewhere() -> None:
    for url in (
        "postgresql:///kt", "postgresql:///kt?host=/tmp/pg", "postgresql://%2Ftmp%2Fpg/kt", "postgresql://u@[::1]/kt",
        "postgresql://u@0.0.0.0/kt", "postgresql://u@db.example/kt?hostaddr=127.0.0.1",
    ):  # fmt: skip
        with pytest.raises(DatabaseError, match="means this machine only, and pilots would run on a too"):
            require_reachable(parse_url(url), [NODE])
    require_reachable(parse_url("postgresql://u@localhost/kt?hostaddr=10.0.0.2"), [NODE])
    require_reachable(parse_url("postgresql:///kt?host=/tmp/pg"), [msgspec.structs.replace(NODE, address="127.0.0.1")])


@pytest.mark.parametrize(("kill_wait_s", "grace_s"), [(30, 20.0), (5, 3.5), (1, 1.0)])
def test_the_last_word_comes_before_slurm_kills(
    folder: Path, monkeypatch: pytest.MonkeyPatch, kill_wait_s: int, grace_s: float
) -> None:
    partition = Partition(name="gpu", is_default=True, is_up=True, longest_min=60)
    cluster = Cluster(partitions=(partition,), nodes=(NODE,), largest_array=100, kill_wait_s=kill_wait_s)
    monkeypatch.setattr("orchestrator.cluster.slurm.cluster.read_cluster", lambda: cluster)
    context = StudyContext(study_path=folder / "study.toml", db_flag=None)
    context.store(create=True)
    flags: dict[str, Any] = {"partition": "gpu"}
    pilots = launch._slurm_pilots(context, PilotOptions(root=str(folder), device="cpu"), None, flags, 1, 1)
    assert pilots.options.grace_s == grace_s


@pytest.mark.parametrize("command", [launch.command, worker.command])
@pytest.mark.parametrize("lease", ["0", "-5", "2.9"])
def test_a_lease_that_no_heartbeat_could_keep_is_refused(folder: Path, command: click.Command, lease: str) -> None:
    asked = CliRunner().invoke(command, ["--study", str(folder / "study.toml"), "--lease", lease])
    assert (asked.exit_code, "Invalid value for '--lease'" in asked.output) == (2, True), asked.output
