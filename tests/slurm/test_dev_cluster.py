"""The development cluster is a real Slurm, leaves nothing behind, and kills only what it started."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.slurm.dev_cluster import DevCluster, dev_cluster, eventually

DAEMONS = ["munged", "mariadbd", "slurmdbd", "slurmctld", "node1", "node2", "node3"]


def listening_addresses(pids: set[int]) -> set[str]:
    """Addresses of the TCP sockets on which these processes listen: state 0A in /proc/net/tcp, and their open files."""
    inodes = set()
    for pid in pids:
        for file in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                inodes.add(str(file.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table, size in (("/proc/net/tcp", 4), ("/proc/net/tcp6", 16)):
        for row in Path(table).read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address = bytes.fromhex(fields[1].partition(":")[0])[::-1]
                found.add(socket.inet_ntoa(address) if size == 4 else address.hex())
    return found


def processes_naming(text: str) -> list[str]:
    """Command lines of all processes that have `text` in their arguments or environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if int(entry.name) != os.getpid() and text.encode() in words + (entry / "environ").read_bytes():
                found.append(f"{entry.name} {words.decode(errors='replace')}")
    return found


def is_newer(path: Path, other: Path) -> bool:
    return path.exists() and path.stat().st_mtime > other.stat().st_mtime


def test_up_from_nothing(cluster: DevCluster) -> None:
    assert f"export SLURM_CONF={cluster.slurm_conf}" in cluster.greeting
    report = cluster.status()
    assert report["up"] is True
    assert list(report["daemons"]) == DAEMONS
    assert [node["name"] for node in report["nodes"]] == ["node1", "node2", "node3"]
    assert {node["gres"] for node in report["nodes"]} == {"gpu:fake:2"}
    assert [partition["name"] for partition in report["partitions"]] == ["gpu", "low", "high"]
    assert {"research", "teaching"} <= set(report["accounting"]["accounts"])
    assert {"normal", "long"} <= set(report["accounting"]["qos"])


def test_listens_on_loopback_only(cluster: DevCluster) -> None:
    assert listening_addresses(set(cluster.status()["daemons"].values())) == {"127.0.0.1"}


def test_up_twice_changes_nothing(cluster: DevCluster) -> None:
    before, configuration = cluster.status()["daemons"], cluster.slurm_conf.read_bytes()
    done = dev_cluster(cluster.root, "up")
    assert done.returncode == 0, done.stderr
    assert "nothing, all of it ran" in done.stdout
    assert cluster.status()["daemons"] == before
    assert cluster.slurm_conf.read_bytes() == configuration


def test_a_job_gets_its_fake_gpus(cluster: DevCluster) -> None:
    assert cluster.run("srun", "--gpus-per-node=2", "printenv", "CUDA_VISIBLE_DEVICES") == "0,1"
    refused = cluster.try_run("srun", "--gpus-per-node=3", "true")
    assert refused.returncode != 0
    assert "Requested node configuration is not available" in refused.stderr


def test_an_array_runs_and_is_accounted(cluster: DevCluster, tmp_path: Path) -> None:
    script = f"echo $SLURMD_NODENAME > {tmp_path}/$SLURM_ARRAY_TASK_ID"
    options = ("--array=0-3", "--gpus-per-node=1", "--account=teaching", "--qos=long")
    job = cluster.sbatch(script, *options)
    assert eventually(partial(cluster.has_states, job, ["COMPLETED"] * 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3"]
    rows = cluster.run("sacct", "-j", job, "-X", "-n", "-P", "-o", "account,qos,alloctres%60").splitlines()
    assert {tuple(row.split("|")[:2]) for row in rows} == {("teaching", "long")}
    assert all("gres/gpu=1" in row for row in rows)


def test_a_bound_of_the_cluster_is_refused(cluster: DevCluster) -> None:
    for option in ("--array=0-1001", "--partition=nowhere"):
        assert cluster.try_run("sbatch", option, "--wrap", "true").returncode != 0


def test_up_repairs_what_died(cluster: DevCluster, tmp_path: Path) -> None:
    job = cluster.sbatch(f"touch {tmp_path}/started; sleep 10; touch {tmp_path}/ended", "--nodelist=node2")
    assert eventually((tmp_path / "started").exists)
    # slurmctld writes down what it knows within seconds; killed before that, it forgets the job and uses its id again.
    assert eventually(partial(is_newer, cluster.root / "spool/slurmctld/job_state", tmp_path / "started"))
    before = cluster.status()["daemons"]
    for daemon in ("slurmctld", "node2"):
        os.kill(before[daemon], signal.SIGKILL)
    broken = dev_cluster(cluster.root, "status", "--json")
    assert broken.returncode == 3
    assert [name for name, pid in json.loads(broken.stdout)["daemons"].items() if pid is None] == ["slurmctld", "node2"]

    assert dev_cluster(cluster.root, "up").returncode == 0
    after = cluster.status()
    assert after["up"] is True
    assert {name for name in DAEMONS if after["daemons"][name] != before[name]} == {"slurmctld", "node2"}
    assert eventually(partial(cluster.has_states, job, ["COMPLETED"]))
    assert (tmp_path / "ended").exists()


def test_one_daemon_can_be_away(cluster: DevCluster) -> None:
    assert "slurmdbd" in dev_cluster(cluster.root, "down", "slurmdbd").stdout
    assert cluster.try_run("sacct").returncode != 0
    assert cluster.run("srun", "echo", "still here") == "still here"
    assert dev_cluster(cluster.root, "up").returncode == 0
    assert cluster.run("sacct", "-n") != ""


@pytest.mark.usefixtures("cluster")
def test_down_leaves_no_process_even_after_a_crash(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Beside the session's cluster: all daemons killed, `up` finds the jobs again; then a job outlives its slurmd."""
    root = tmp_path_factory.mktemp("second")
    with tempfile.NamedTemporaryFile(dir="/tmp", prefix="#sql-temptable-", suffix=".MAI") as table:
        assert dev_cluster(root, "up").returncode == 0
        assert Path(table.name).exists(), "MariaDB deletes such files, which are another's, from its temporary folder"
    second = DevCluster(root=root, greeting="")
    try:
        done = second.sbatch("true")
        assert eventually(partial(second.has_states, done, ["COMPLETED"]))
        for pid in second.status()["daemons"].values():
            os.kill(pid, signal.SIGKILL)
        assert dev_cluster(root, "up").returncode == 0
        assert second.job_states(done) == ["COMPLETED"]

        second.sbatch(f"setsid sleep 300 & touch {root}/started; sleep 300", "--nodelist=node1")
        assert eventually((root / "started").exists)
        os.kill(second.status()["daemons"]["node1"], signal.SIGKILL)
        assert dev_cluster(root, "down", "slurmctld").returncode == 0
        assert processes_naming(str(root)) != []
    finally:
        assert dev_cluster(root, "down").returncode == 0
    assert eventually(lambda: processes_naming(str(root)) == [], 60), processes_naming(str(root))
    assert dev_cluster(root, "down").stdout == "stopped: nothing ran\n"


def test_down_spares_a_process_that_has_the_pid_of_an_old_daemon(tmp_path: Path) -> None:
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        (tmp_path / "kt-study-dev-cluster").touch()
        (tmp_path / "run").mkdir()
        (tmp_path / "run/slurmctld.json").write_text(json.dumps({"pid": stranger.pid, "started": "an earlier boot 1"}))
        assert dev_cluster(tmp_path, "down").returncode == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_what_cannot_work_is_one_line(tmp_path: Path) -> None:
    done = dev_cluster(tmp_path / ("long" * 20), "up")
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "shorten --dir" in done.stderr
    assert dev_cluster(tmp_path, "down", "slurmctdl").returncode == 2


@pytest.mark.parametrize("command", ["up", "down"])
def test_a_directory_of_others_is_left_alone(command: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        conf = Path(directory) / "etc" / "slurm.conf"
        conf.parent.mkdir()
        conf.write_text("ClusterName=production\n")
        done = dev_cluster(Path(directory), command)
        assert done.returncode == 3
        assert (
            done.stderr
            == f"dev-cluster: {directory} holds something that slurm/dev-cluster did not make; give an empty --dir\n"
        )
        assert [path.name for path in Path(directory).rglob("*")] == ["etc", "slurm.conf"]
        assert conf.read_text() == "ClusterName=production\n"
