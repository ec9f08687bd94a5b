"""kt-study doctor: this machine, machines that scripts stand for, and nodes of a real Slurm."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shutil
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kt_study.store import open_store
from orchestrator.cluster.doctor import Finding, NodeRequest, as_text, examine_node
from orchestrator.cluster.doctor import node as node_module
from orchestrator.cluster.doctor.machine import Driver, Torch, ask_driver, ask_torch, judge
from orchestrator.cluster.doctor.node import differences
from orchestrator.cluster.doctor.study import database, folder
from orchestrator.cluster.launch.request import SlurmRequest
from tests.cli import kt_study
from tests.slurm.dev_cluster import DevCluster
from tests.slurm.study import ClusterStudy, untrained_study

Findings = dict[str, dict[str, Any]]


def by_what(stdout: str, node: str = "") -> Findings:
    """The findings of one machine."""
    return {found["what"]: found for found in json.loads(stdout) if found["node"] == node}


def test_this_machine(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(untrained_study("here"))
    open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True).add_study("here", {})
    done = kt_study(tmp_path, "doctor", "--json", environment={"PATH": "/nowhere", "KT_STUDY_DB": ""})
    found = by_what(done.stdout)
    assert found["python"]["found"] == f"{platform.python_version()} at {sys.executable}"
    for name in ("torch", "timm", "submitit", "sqlalchemy", "psycopg", "pandas", "pyarrow"):
        assert found[name] == {
            "what": name, "verdict": "ok", "found": importlib.metadata.version(name), "do": "", "node": ""
        }  # fmt: skip
    assert f"torch {importlib.metadata.version('torch')}" in found["gpu"]["found"]
    assert found["study folder"]["found"].startswith(f"{tmp_path} on ")
    free = float(found["free space"]["found"].split()[0].replace(",", ""))
    assert free == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, rel=0.2)
    assert found["study file"]["found"] == "study.toml: study 'here'"
    assert found["database"]["found"].startswith(f"SQLite {sqlite3.sqlite_version} on ")
    assert f"sqlite:///{tmp_path}/kt-study.db, 1 study, " in found["database"]["found"]
    assert found["slurm"]["found"] == "no Slurm commands here; kt-study launch uses this machine"
    assert done.returncode == (3 if any(each["verdict"] == "wrong" for each in found.values()) else 0)
    assert list(tmp_path.glob(".kt-study/*")) == []


def test_without_a_study(tmp_path: Path) -> None:
    done = kt_study(tmp_path, "doctor", environment={"PATH": "/nowhere"})
    assert done.returncode == 3
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("wrong")]
    assert "study file" in line
    assert "Traceback" not in done.stderr


def database_finding(url: str) -> Finding:
    return next(database(url))


def test_databases(tmp_path: Path, postgres_server: Any) -> None:
    absent = database_finding(f"sqlite:///{tmp_path}/none.db")
    assert (absent.verdict, absent.found) == ("note", f"there is no {tmp_path}/none.db yet; kt-study plan creates it")
    away = database_finding("postgresql://nobody@127.0.0.1:1/none")
    assert away.verdict == "wrong"
    assert "does not answer" in away.found
    assert database_finding("mysql://x/y").verdict == "wrong"
    empty = database_finding(postgres_server.database(template="template0"))
    assert empty.verdict == "note"
    assert "has no kt-study tables; `kt-study plan` creates them" in empty.found
    there = database_finding(postgres_server.database())
    assert there.verdict in ("ok", "note")  # slow is a note
    assert there.found.startswith("PostgreSQL 1")
    assert "0 studies, " in there.found
    open_store(f"sqlite:///{tmp_path}/one.db", create=True)
    notes = list(database(f"sqlite:///{tmp_path}/one.db", has_slurm=True))
    assert "need PostgreSQL" in notes[-1].found


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / ".kt-study").write_text("a file where a folder should be")
    (found,) = folder(tmp_path, has_slurm=False)
    assert (found.what, found.verdict) == ("study folder", "wrong")


def test_a_full_disk_and_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestrator.cluster.doctor import study

    monkeypatch.setattr(study, "file_system", lambda _path: "nfs4")
    for free, verdict in ((200e9, "ok"), (5e9, "note"), (0.1e9, "wrong")):
        usage = shutil._ntuple_diskusage(1000e9, 0, free)  # type: ignore[attr-defined]
        monkeypatch.setattr(study.shutil, "disk_usage", lambda _path, usage=usage: usage)
        place, space = folder(tmp_path, has_slurm=True)
        assert "nfs4, a network file system" in place.found
        assert space.verdict == verdict
    monkeypatch.setattr(study, "file_system", lambda _path: "ext4")
    assert [found.what for found in folder(tmp_path, has_slurm=True)][-1] == "shared?"


OLD, NEW = Driver(version="535.1", cuda="12.2", gpus=("A100",)), Driver(version="580.1", cuda="13.2", gpus=("A100",))


@pytest.mark.parametrize(
    ("torch", "driver", "visible", "verdict", "words"),
    [
        (Torch(version="2.6", cuda="12.4", gpus=("A100", "A100"), threads=8), NEW, None, "ok", "2 x A100; torch 2.6 for"),
        (Torch(version="2.6", cuda="12.4", gpus=(), threads=8), None, None, "note", "workers here run on the CPU, 8 thr"),
        (Torch(version="2.6", cuda="", gpus=(), threads=8), NEW, None, "wrong", "install torch's build for CUDA"),
        (Torch(version="2.6", cuda="12.10", gpus=(), threads=8), OLD, None, "wrong", "supports CUDA 12.2 at most"),
        (Torch(version="2.6", cuda="12.1", gpus=(), threads=8), OLD, "", "wrong", "CUDA_VISIBLE_DEVICES is ''"),
        (Torch(version="2.6", cuda="12.1", gpus=(), threads=8), OLD, None, "wrong", "look at `nvidia-smi`"),
    ],
)  # fmt: skip
def test_gpus(
    torch: Torch, driver: Driver | None, visible: str | None, verdict: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = judge(torch, driver)
    assert found.verdict == verdict
    assert words in f"{found.found}; {found.do}"


NVIDIA_SMI = """#!/bin/sh
if [ "$1" = -L ]; then
  echo 'GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)'; echo 'GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-2)'
else
  echo '| NVIDIA-SMI 550.54.15    Driver Version: 550.54.15    CUDA Version: 12.4     |'
fi
"""


def test_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    assert ask_driver() is None
    program = tmp_path / "nvidia-smi"
    program.write_text(NVIDIA_SMI)
    program.chmod(0o755)
    assert ask_driver() == Driver(version="550.54.15", cuda="12.4", gpus=("NVIDIA A100-SXM4-40GB",) * 2)
    program.write_text(
        '#!/bin/sh\necho "NVIDIA-SMI has failed because it couldn\'t communicate with the driver."; exit 9\n'
    )
    said = ask_driver()
    assert isinstance(said, str)
    assert said.startswith("nvidia-smi: NVIDIA-SMI has failed")


UNCONFIGURED = """#!/bin/sh
echo 'scontrol: error: fetch_config: DNS SRV lookup failed' >&2
echo 'scontrol: error: _establish_config_source: failed to fetch config' >&2
exit 1
"""


def test_a_slurm_without_its_configuration(tmp_path: Path) -> None:
    for name in ("sinfo", "scontrol"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(UNCONFIGURED)
        program.chmod(0o755)
    (tmp_path / "study.toml").write_text(untrained_study("here"))
    open_store(f"sqlite:///{tmp_path}/kt-study.db", create=True)
    path = {"PATH": f"{tmp_path}/bin:/bin", "KT_STUDY_DB": ""}
    done = kt_study(tmp_path, "doctor", "--partition", "gpu", environment=path)
    (line,) = [line for line in done.stdout.splitlines() if "failed to fetch config" in line]
    advice = "; look at `scontrol ping` and at SLURM_CONF"
    assert line.startswith("wrong slurm") and line.endswith(f"failed to fetch config{advice}")
    assert line.count(advice) == 1
    assert "not checked, since Slurm does not answer here" in done.stdout
    assert done.returncode == 3
    with_path = kt_study(tmp_path, "launch", "--partition", "gpu", environment=path)
    assert with_path.stderr.endswith(f"failed to fetch config{advice}\n")


def test_a_torch_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.99: cannot open shared object file')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert ask_torch() == ("torch cannot be imported: ImportError: libcudart.so.99: cannot open shared object file")


def test_a_node_with_other_packages() -> None:
    def found(what: str, version: str) -> Finding:
        return Finding(what=what, verdict="ok", found=version)

    here = [
        found("python", "3.11.7 at /venv/bin/python"),
        found("torch", "2.6"),
        found("timm", "1.0"),
        found("gpu", "a"),
    ]
    there = [found("python", "3.11.7 at /venv/bin/python"), found("torch", "2.4"), found("gpu", "b")]
    assert [each.found for each in differences(here, there)] == [
        "torch is 2.4 there and 2.6 here", "timm is missing there and 1.0 here"
    ]  # fmt: skip
    (same,) = differences(here, here)
    assert (same.what, same.verdict) == ("as here", "ok")


def test_text_has_the_advice_and_the_node() -> None:
    text = as_text([
        Finding(what="a", verdict="wrong", found="broken", do="fix it"),
        Finding(what="bcd", verdict="ok", found="fine", node="n7"),
    ])  # fmt: skip
    assert text.splitlines() == ["wrong a    broken; fix it", "", "on n7", "ok    bcd  fine"]


def test_no_slurm_here(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(untrained_study("none"))
    done = kt_study(tmp_path, "doctor", "--partition", "gpu", "--json", environment={"PATH": "/nowhere"})
    assert done.returncode == 3
    assert "there is no scontrol here" in by_what(done.stdout)["node"]["found"]


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Small scripts in the place of Slurm's commands."""
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name, lines in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{lines}\n")
        (folder / name).chmod(0o755)


def ask_node(root: Path, **target: Any) -> list[Finding]:
    request = SlurmRequest(partition="gpu", gpus_per_node=0, time=5)
    return examine_node(root, f"sqlite:///{root}/k.db", NodeRequest(request=request, **target), [])


def test_a_node_that_does_not_become_free_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled = tmp_path / "cancelled"
    stand_in(
        tmp_path,
        monkeypatch,
        srun="exec sleep 300",
        squeue="echo 'PENDING|Resources'",
        scancel=f"echo $@ > {cancelled}",
    )
    began = time.monotonic()
    (found,) = ask_node(tmp_path, patience_s=0.0)
    assert time.monotonic() - began < 60
    assert (found.verdict, found.found) == ("wrong", "partition 'gpu': still pending after 0 s (Resources)")
    assert cancelled.read_text().startswith("--name=kt-doctor-")


def test_a_node_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "CHECK_TIMEOUT_S", 0.5)
    stand_in(tmp_path, monkeypatch, srun="exec sleep 300", squeue="echo 'RUNNING|None'", scancel="true")
    (found,) = ask_node(tmp_path, patience_s=0.0)
    assert "no answer within 0 s" in found.found


@pytest.mark.parametrize(
    ("code", "words"),
    [(81, "study folder {root} is missing"), (82, "there is no kt-study in {python}")],
)
def test_what_a_node_says_with_its_exit_code(
    code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, srun=f"echo n7; exit {code}")
    (found,) = ask_node(tmp_path)
    assert (found.verdict, found.node) == ("wrong", "n7")
    assert words.format(root=tmp_path, python=sys.executable) in found.found


def test_slurms_own_complaint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(
        tmp_path, monkeypatch, srun="echo 'srun: error: Unable to allocate resources: Invalid account' >&2; exit 1"
    )
    (found,) = ask_node(tmp_path)
    assert found.found == "partition 'gpu': srun: Unable to allocate resources: Invalid account"


def test_a_gpu_that_slurm_gave_and_torch_does_not_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = json.dumps([{"what": "gpu", "verdict": "note", "found": "none on this machine"}])
    stand_in(tmp_path, monkeypatch, srun=f"echo n7; echo '{said}'")
    request = SlurmRequest(partition="gpu", gpus_per_node=1, time=5)
    found = examine_node(tmp_path, f"sqlite:///{tmp_path}/k.db", NodeRequest(request=request), [])
    assert (found[0].verdict, found[0].node) == ("wrong", "n7")
    assert found[0].found.startswith("Slurm allocated 1 GPUs, and torch sees none")


@pytest.mark.timeout(300)
def test_a_node_of_the_cluster(study: ClusterStudy, cluster: DevCluster) -> None:
    study.write(untrained_study("doctor", models=2, pairs=1, epochs=1))
    study.succeeds("plan")
    asked = ("doctor", "--json", "--partition", "gpu", "--device", "cpu", "--node", "node2", "--patience", "120")
    done = study.run(*asked)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    here, there = by_what(done.stdout), by_what(done.stdout, "node2")
    assert cluster.run("sinfo", "--version") in here["slurm"]["found"]
    partitions = [each["found"] for each in json.loads(done.stdout) if each["what"] == "partition"]
    assert partitions[0] == "gpu (default): 3 nodes of up to 4 cores and 8 GiB, 6 GPUs, at most 1 d 0 h"
    assert here["accounting"] == {
        "what": "accounting", "verdict": "ok", "found": "sacct answers", "do": "", "node": ""
    }  # fmt: skip
    assert there["study folder"]["found"] == here["study folder"]["found"]
    assert there["database"]["found"].startswith("PostgreSQL ")
    assert "1 study" in there["database"]["found"]
    assert there["as here"]["verdict"] == "ok"
    assert cluster.run("squeue", "-h") == ""
